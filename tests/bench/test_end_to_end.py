"""The command on a tiny module, with PyTorch and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import SECTION, main
from bench.attention.section import Section
from bench.attention.subjects import SUBJECTS
from bench.client import ROOT
from bench.results import read_results

TINY = ["--dim", "32", "--heads", "2", "--threads", "1", "--quick"]


@pytest.mark.slow
def test_a_tiny_run_measures_all_subjects_and_leaves_the_page_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "bench" / "README.md").read_bytes()
    code = main([*TINY, "--lengths", "5", "--batch", "2", "--no-memory", "--out", str(tmp_path)])
    assert code == 0
    section = Section.from_dict(read_results(tmp_path / "results.json")[SECTION])
    got = {row.subject for row in section.times} | {item.subject for item in section.left_out}
    assert got == {subject.name for subject in SUBJECTS}
    timed = {row.subject: row.error for row in section.times}
    assert {"eager", "ours", "plain20", "plain24"} <= set(timed)
    assert max(timed.values()) < 1e-5
    assert "### Batch 2, one thread: processor time" in capsys.readouterr().out
    assert (tmp_path / "results.svg").read_text().startswith("<svg")
    assert (ROOT / "bench" / "README.md").read_bytes() == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "onnx"], "invalid choice: 'onnx'"),
        (["--lengths", "0"], "expected a positive integer, got 0"),
        (["--batch"], "expected at least one argument"),
    ],
)
def test_wrong_usage_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_without_a_case_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--lengths", "40000", "--out", str(tmp_path)]) == 2
    assert "no case is left" in capsys.readouterr().err
