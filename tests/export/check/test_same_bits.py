"""Whose bits depend on what is computed beside them: looked at, and said as it was seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from causal_onnx.cli.main import main
from causal_onnx.export import BitsCase, BitsReport, export
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import load

BESIDE, PIECES = (
    "a sequence prefilled beside others of the same length",
    "a prompt in chunks of 2 or more",
)
STEP, PROMPT = "a step beside steps of sequences of the same length", "a prompt beside longer ones"
RAGGED_STEP, SINGLE = "a step beside steps of longer sequences", "steps compared with a prompt"
THREADS = "more threads"


def attention(width: int = 256) -> CausalMechanismV1:
    return CausalMechanismV1(width, 32, 64, seed=0)


def looked_at(path: Path, module: nn.Module | None = None, **options: object) -> BitsReport:
    report = export(module or attention(), path, same_bits=True, **options)  # type: ignore[arg-type]
    assert report.bits is not None
    return report.bits


def same(report: BitsReport) -> set[str]:
    return {case.question for case in report.cases if case.is_same}


def test_integer_products_give_a_row_the_same_bits_beside_others(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0)
    found = looked_at(tmp_path / "m.onnx", module, precision="w8a8", cache=True)
    asked = {case.question for case in found.cases}
    assert asked == {BESIDE, PIECES, STEP, PROMPT, RAGGED_STEP, SINGLE, THREADS}
    assert {BESIDE, PIECES, STEP} <= same(found)


def test_blocks_of_64_depend_on_the_rows_beside_and_are_said_to(tmp_path: Path) -> None:
    """onnxruntime computes rows of such a product in pairs, and a last one by another kernel."""
    found = looked_at(tmp_path / "m.onnx", precision="int4", block_size=64, cache=True)
    assert not {STEP, PIECES} <= same(found)
    assert any(case.differing for case in found.cases)


def test_the_file_says_what_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    found = looked_at(path, attention(32))
    certificate = load(path).certificate
    assert certificate is not None
    assert certificate["bits"]["summary"] == found.summary()
    assert certificate["bits"]["cases"][0]["compared"] == sum(range(2, 9))
    assert main(["inspect", str(path)]) == 0
    assert "pairs of calls in onnxruntime" in capsys.readouterr().out.replace("\n", " ")


def test_only_calls_that_the_file_takes_are_looked_at(tmp_path: Path) -> None:
    questions = {case.question for case in looked_at(tmp_path / "m.onnx", attention(32)).cases}
    assert questions == {BESIDE, THREADS}


def test_nothing_is_said_unless_it_was_asked_for(tmp_path: Path) -> None:
    report = export(attention(32), tmp_path / "m.onnx")
    assert report.bits is None
    assert "bits" not in (load(tmp_path / "m.onnx").certificate or {})


class WholeBatch(nn.Module):
    """Rows move each other by less than a comparison with PyTorch could tell from rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = attention(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, width = x.shape
        other = x.reshape(batch, seq, width).sum(0, keepdim=True) - x
        return self.inner(x + 1e-5 * other)


def test_rows_that_move_each_other_are_found(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "m.onnx", WholeBatch(), example=torch.randn(2, 6, 32))
    (case,) = (case for case in found.cases if case.question == BESIDE)
    assert {f"{rows} rows" for rows in range(2, 9)} <= set(case.differing)


def test_a_question_without_a_call_is_not_answered_with_yes() -> None:
    assert not BitsCase(question=BESIDE, compared=0, differing=()).is_same


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same_bits runs the file, and bfloat16 runs on CUDA"):
        looked_at(tmp_path / "m.onnx", precision="bf16")
