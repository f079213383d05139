"""What each effort checks, what it says of the rest, and what it finds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_onnx.export import ExportReport, ParityError, export
from causal_onnx.export.source import budget
from causal_onnx.models import DecoderLM, tiny_llama_config
from causal_onnx.runtime import load
from tests.export.modules import Head, Sdpa, example

LONGEST = 60


class LateDefect(Head):
    """Says something else at its maximum, and no trace shows it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(x)
        if not torch.compiler.is_exporting():
            y = y + (torch.arange(x.shape[1]) == LONGEST - 1).to(y.dtype)[:, None]
        return y


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small modules cost what large ones do: the longest sequence is too much for one call."""
    for name in ("SURE_SCORES", "SURE_WORK"):
        monkeypatch.setattr(budget, name, 0)
    monkeypatch.setattr(budget, "LARGEST_FLOPS", 2e5)
    monkeypatch.setattr(budget, "MANY_ROWS_WORK", 1.0)
    monkeypatch.setattr(budget, "QUICK_FED_WORK", 1.0)


def exported(tmp_path: Path, effort: str, **options: Any) -> ExportReport:
    module = options.pop("module", None) or Sdpa().eval()
    options = {"example": example(), "max_seq_len": LONGEST, **options}
    return export(module, tmp_path / f"{effort}.onnx", effort=effort, **options)


def stored(report: ExportReport) -> dict[str, Any]:
    certificate = load(report.path).certificate
    assert certificate is not None
    return dict(certificate)


@pytest.mark.usefixtures("as_if_large")
def test_a_defect_at_the_maximum_alone_is_found_by_full(tmp_path: Path) -> None:
    module = LateDefect().eval()
    report = exported(tmp_path, "normal", module=module)

    assert any(text.startswith(f"parity: seq {LONGEST}, batch 1") for text in report.skipped)
    with pytest.raises(ParityError, match=f"seq {LONGEST}, batch 1: output"):
        exported(tmp_path, "full", module=module)
    assert not (tmp_path / "full.onnx").exists()


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize("effort", ["quick", "normal"])
def test_what_was_left_out_is_in_the_report_and_the_file(effort: str, tmp_path: Path) -> None:
    report = exported(tmp_path, effort)

    assert report.effort == effort
    assert report.to_dict()["skipped"] == list(report.skipped)
    text = f"seq {LONGEST}, batch 2: more than this check computes"
    assert f"causality: {text}" in report.skipped
    assert f"not run, as the effort is {effort}: causality: {text}" in str(report)
    assert text in stored(report)["causality"]["skipped"]


@pytest.mark.usefixtures("as_if_large")
def test_full_leaves_nothing_out(tmp_path: Path) -> None:
    report = exported(tmp_path, "full", cache=True)

    assert report.skipped == ()
    assert report.parity.longest == {1: LONGEST, 2: LONGEST, 5: LONGEST}
    assert max(case.seq for case in report.causality.cases) == LONGEST
    assert report.cache is not None
    assert {case.batch for case in report.cache.cases if case.seq == LONGEST} == {1, 3}


@pytest.mark.usefixtures("as_if_large")
def test_quick_feeds_short_sequences_through_the_cache_and_says_so(tmp_path: Path) -> None:
    report = exported(tmp_path, "quick", cache=True)

    assert report.cache is not None
    assert {case.seq for case in report.cache.cases} == {1, 2, 7}
    assert "seq 23, batch 1: more than this check computes" in report.cache.skipped
    assert "seq 41, batch 3: more than this check computes" in stored(report)["cache"]["skipped"]


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize("effort", ["quick", "normal", "full"])
def test_no_effort_claims_what_it_did_not_run(effort: str, tmp_path: Path) -> None:
    report = exported(tmp_path, effort, cache=True)

    assert report.cache is not None
    ran = {(c.seq, c.batch) for c in report.parity.cases if not c.refused}
    fed = {(c.seq, c.batch) for c in report.cache.cases}
    for text in report.skipped:
        check, _, rest = text.partition(": ")
        seq, batch = (int(part.split()[1]) for part in rest.partition(":")[0].split(", ")[:2])
        assert (seq, batch) not in {"parity": ran, "cache": fed}.get(check, set())


def test_quick_reads_fewer_texts_for_the_drift(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0)
    report = export(module, tmp_path / "m.onnx", precision="int4", effort="quick", max_seq_len=64)

    assert report.drift is not None
    assert report.drift.positions == 2 * 64
    assert "drift: 2 of 16 texts of 64 positions were read" in report.skipped
    assert stored(report)["drift"]["skipped"] == ["2 of 16 texts of 64 positions were read"]


def test_where_nothing_is_left_out_every_effort_writes_the_same_bytes(tmp_path: Path) -> None:
    efforts = ("quick", "normal", "full")
    reports = [exported(tmp_path, effort, max_seq_len=24, cache=True) for effort in efforts]

    assert len({hashlib.sha256(r.path.read_bytes()).hexdigest() for r in reports}) == 1
    assert all("skipped" not in stored(reports[0])[check] for check in ("causality", "cache"))


def test_an_effort_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="effort must be one of quick, normal, full, got 'some'"):
        exported(tmp_path, "some")
