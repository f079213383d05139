"""What the command does with what a run found; the run itself is made up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.agreement import DisagreementError
from bench.attention.run import Plan
from bench.attention.section import LeftOut, Section
from bench.client import ROOT
from tests.bench.sections import section, time_row

TIMES = [time_row("eager", {}), time_row("ours", {"eager": 0.25})]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bench's page, which a whole run rewrites."""
    shutil.copy(ROOT / "bench" / "README.md", tmp_path / "README.md")
    monkeypatch.setattr(command, "PAGE", tmp_path)
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    return tmp_path / "README.md"


def pretend(monkeypatch: pytest.MonkeyPatch, result: Section | BaseException) -> list[Plan]:
    """Let every run end with `result`; gives the plans that were to be run."""
    plans: list[Plan] = []

    def run(plan: Plan) -> Section:
        plans.append(plan)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(command, "run", run)
    return plans


def failure(subject: str, *, has_failed: bool) -> LeftOut:
    return LeftOut(
        subject=subject,
        what="time",
        batch=1,
        seq=1,
        threads=1,
        has_failed=has_failed,
        reason="because",
    )


def test_a_whole_run_rewrites_the_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = pretend(monkeypatch, section(TIMES))
    assert command.main([]) == 0
    text = page.read_text()
    assert "0.25 (0.24-0.26)" in text
    assert "](results.svg)" in text
    assert "## How it is measured" in text
    assert (page.parent / "results.json").exists()
    assert (page.parent / "results.svg").exists()
    assert len(plans[0].cases) == 21
    assert len(plans[0].subjects) == 5


@pytest.mark.parametrize(
    "arguments",
    [["--quick"], ["--lengths", "4"], ["--only", "ours"], ["--no-memory"], ["--threads", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_part_of_a_run_does_not_touch_the_page(
    page: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    before = page.read_bytes()
    pretend(monkeypatch, section(TIMES))
    assert command.main(arguments) == 0
    assert page.read_bytes() == before
    assert not (page.parent / "results.json").exists()
    assert (page.parent / "work" / "results.json").exists()


def test_the_options_choose_what_is_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = pretend(monkeypatch, section(TIMES))
    command.main(["--lengths", "9", "3", "--batch", "2", "--threads", "1", "--only", "ours"])
    (plan,) = plans
    assert [(case.batch, case.seq) for case in plan.cases] == [(2, 3), (2, 9)]
    assert plan.threads == (1,)
    assert [subject.name for subject in plan.subjects] == ["eager", "ours"]


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        (failure("ours", has_failed=True), 1),
        (failure("ours", has_failed=False), 0),
        (failure("compile", has_failed=True), 0),
    ],
    ids=["ours failed", "ours too large", "a peer failed"],
)
def test_only_a_failure_of_ours_fails_the_command(
    page: Path, monkeypatch: pytest.MonkeyPatch, missing: LeftOut, code: int
) -> None:
    pretend(monkeypatch, section(TIMES, left_out=[missing]))
    assert command.main([]) == code


def test_a_disagreement_is_one_line_and_writes_nothing(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page.read_bytes()
    pretend(monkeypatch, DisagreementError("peer differs"))
    assert command.main([]) == 1
    assert capsys.readouterr().err == "error: peer differs\n"
    assert page.read_bytes() == before
    assert not (page.parent / "results.json").exists()


def test_an_interrupted_run_writes_nothing(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, KeyboardInterrupt())
    assert command.main([]) == 130
    assert "nothing was written" in capsys.readouterr().err
