"""Which shapes a check runs, by the size of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.export.source import budget
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.dry_run import MOST_STEPS, dry_run
from causal_onnx.export.source.inputs import CallSizes
from causal_onnx.export.source.module import open_source
from tests.export.modules import Head


class Wide(nn.Module):
    """As many parameters as a 135M model, most of them behind a lookup of one row: quick to run."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1).expand(135_000_000), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[:1]


def test_a_large_model_is_run_at_its_maximum_in_one_row_and_shorter_in_several() -> None:
    source, specs = open_source(Wide(), torch.randn(2, 5, 4), None)
    allows = Budget(source, specs).allows
    assert allows(CallSizes(batch=1, seq=2048))
    assert not allows(CallSizes(batch=5, seq=2048))
    assert not allows(CallSizes(batch=2, seq=2048))
    assert allows(CallSizes(batch=5, seq=16))


def test_a_small_model_is_run_at_its_maximum_in_every_batch() -> None:
    source, specs = open_source(Head(), torch.randn(2, 5, 16), None)
    assert Budget(source, specs).allows(CallSizes(batch=5, seq=2048))


def test_the_report_says_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SURE_WORK", 0)
    monkeypatch.setattr(budget, "MANY_ROWS_WORK", 0)
    report = export(
        Head().eval(), tmp_path / "m.onnx", example=torch.randn(2, 5, 16), max_seq_len=40
    )
    assert report.parity.longest == {1: 40, 2: 13, 5: 13, None: 40}
    assert any("seq 40, batch 5" in text for text in report.parity.skipped)
    assert "longest compared: 40 at batch 1, 13 at batch 2" in str(report)
    whole = replace(report, parity=replace(report.parity, skipped=()))
    assert "longest compared" not in str(whole)


class Counting(nn.Module):
    """As many operators as positions."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1]):
            x = x + 1
        return x


def test_a_loop_over_positions_is_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SURE_SCORES", 0)
    asked = []
    monkeypatch.setattr(
        budget,
        "dry_run",
        lambda *of: asked.append(of[2].seq) or dry_run(*of),
    )
    source, specs = open_source(Counting(), torch.randn(2, 5, 1), None)
    allows = Budget(source, specs).allows
    for seq in (MOST_STEPS + 1, MOST_STEPS + 5, 7):
        allows(CallSizes(batch=1, seq=seq))
    assert asked == [MOST_STEPS + 1, 7]
