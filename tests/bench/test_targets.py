"""The table of what must be reached, from made-up results and from those in the repository."""

from __future__ import annotations

import pytest

from bench import targets as module
from bench.readme import replace_between_markers
from bench.results import read_results
from bench.targets import MARKER, PAGE, RESULTS, Target, targets, to_markdown
from tests.bench import generation, sections


def target(*found: float, unit: str = "x") -> Target:
    bounds = (150.0, 50.0) if unit == "us" else (1.3, 2.0)
    places = {f"({index})": value for index, value in enumerate(found)}
    return Target(work="w", against="a", at_least=bounds[0], aim=bounds[1], found=places, unit=unit)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (target(2.1, 2.0), "aim"),
        (target(2.1, 1.4), "at least"),
        (target(2.1, 1.2), "missed"),
        (target(1.2999), "at least"),
        (target(), "not measured"),
        (target(40.0, unit="us"), "aim"),
        (target(120.0, unit="us"), "at least"),
        (target(151.0, unit="us"), "missed"),
    ],
)
def test_the_worst_place_decides(row: Target, verdict: str) -> None:
    assert row.verdict == verdict
    assert verdict in row.to_row()


def test_what_is_missed_and_every_loss_stand_in_bold() -> None:
    assert target(0.9).to_row() == "| w | a | 1.3x | 2x | **0.90x** (0) | **missed** |"
    assert "1.20x (0) | **missed**" in target(1.2).to_row()


def test_every_setting_of_the_peer_has_a_row_and_each_number_of_threads_counts() -> None:
    one = {"ours-fp32": 1.0, "genai-fp32": 3.0, "tuned-fp32": 2.0}
    two = {"ours-fp32": 1.0, "genai-fp32": 1.5, "tuned-fp32": 0.9}
    made = [*generation.work("prefill 512", one), *generation.work("prefill 512", two, threads=2)]
    rows = targets({"generation": generation.section(made).to_dict()})
    built, tuned = [row for row in rows if row.work.endswith("prefill 512, fp32")]
    assert built.found == {"(one thread)": 3.0, "(two threads)": 1.5}
    assert tuned.found == {"(one thread)": 2.0, "(two threads)": 0.9}
    assert "every setting" in tuned.against
    assert (built.verdict, tuned.verdict) == ("at least", "missed")


def test_the_slowest_length_of_the_module_counts() -> None:
    times = [
        sections.time_row("ours", {"eager": 0.5}, seq=16),
        sections.time_row("ours", {"eager": 0.8}, seq=512),
        sections.time_row("ours", {"eager": 1.25}, seq=1024),
        sections.time_row("ours", {"eager": 9.0}, seq=16, batch=8),
    ]
    memory = [
        sections.memory_row("ours", 50, seq=8192),
        sections.memory_row("plain20", 1000, seq=8192),
    ]
    made = sections.section(times, memory=memory)
    rows = targets({"attention": made.to_dict()})
    assert rows[0].found == {"(one thread)": pytest.approx(1.25)}
    assert (rows[1].found, rows[1].verdict) == ({"(one thread)": 0.8}, "at least")
    sizes = [row for row in rows if "memory at 8192" in row.work]
    assert [row.found for row in sizes] == [{"": pytest.approx(20.0)}, {}]


def test_without_results_every_row_is_there_and_says_so() -> None:
    rows = targets({})
    assert {row.verdict for row in rows} == {"not measured"}
    text = to_markdown({})
    assert text.count("not measured |") == len(rows)
    assert "The model: not measured yet." in text


def test_the_page_holds_what_the_results_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    expected = to_markdown(read_results(RESULTS))
    assert replace_between_markers(text, MARKER, expected, where="page") == text, (
        "run python -m bench.targets"
    )


def test_the_command_prints_and_writes(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"  # type: ignore[operator]
    page.write_text(f"# Title\n<!-- {MARKER}: begin -->\n<!-- {MARKER}: end -->\n")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "none.json")  # type: ignore[operator]
    assert module.main() == 0
    assert "| work | against |" in page.read_text()
    assert "not measured" in capsys.readouterr().out
