"""The table of what must be reached, from made-up results and from those in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench import cold_start, serving
from bench import targets as module
from bench.figures import Figure
from bench.readme import replace_between_markers
from bench.results import read_results
from bench.serving_clients import CHUNK
from bench.targets import MARKER, MODEL, PAGE, RESULTS, Target, targets, to_markdown
from tests.bench import generation, sections
from tests.bench.servers import http, serving_section


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


def rows_of(figures: Sequence[Figure], **others: Any) -> dict[tuple[str, str], Target]:
    made = {**generation.section(figures).to_dict(), **others}
    return {(row.work, row.against): row for row in targets({"generation": made})}


def test_each_number_of_threads_counts() -> None:
    one = {"ours-w8a8": 1.0, "llama-q8_0": 5.0}
    two = {"ours-w8a8": 1.0, "llama-q8_0": 3.6}
    made = [*generation.work("prefill 512", one), *generation.work("prefill 512", two, threads=2)]
    row = rows_of(made)[f"{MODEL}, prefill 512, int8 (w8a8)", "llama.cpp Q8_0"]
    assert row.found == {"(one thread)": 5.0, "(two threads)": 3.6}
    assert row.verdict == "at least"


def test_a_peer_that_is_missing_has_its_reason_in_the_row() -> None:
    rows = rows_of([], left_out={"llama.cpp": "no program", "tuned-fp32": "it died"})
    text = {key: row.to_row() for key, row in rows.items()}
    key = f"{MODEL}, decode 128 after 16, fp32"
    assert text[key, "llama.cpp F32"].endswith("| - | not measured: no program |")
    assert text[key, "onnxruntime-genai fp32, tuned"].endswith("| not measured: it died |")


@pytest.mark.parametrize(
    ("drifts", "found"),
    [
        ({"ours-int4": 0.2, "ours-int4-128": 0.1, "llama-q4_0": 0.15}, {"(one thread)": 4.0}),
        ({"ours-int4": 0.1, "ours-int4-128": 0.2, "llama-q4_0": 0.15}, {"(one thread)": 2.0}),
        ({"ours-int4": 0.1, "ours-int4-128": 0.151, "llama-q4_0": 0.15}, {"(one thread)": 4.0}),
        ({"ours-int4": 0.2, "ours-int4-128": 0.3, "llama-q4_0": 0.15}, {}),
    ],
)
def test_only_files_of_no_more_drift_are_set_beside_llama(
    drifts: dict[str, float], found: dict[str, float]
) -> None:
    seconds = {"ours-int4": 2.0, "ours-int4-128": 1.0, "llama-q4_0": 4.0}
    rows = rows_of(generation.work("decode 128 after 16", seconds), drifts=drifts)
    what = f"{MODEL}, decode 128 after 16, int4 of no more drift than Q4_0"
    row = rows[what, "llama.cpp Q4_0"]
    assert row.found == found
    assert ("both of ours drift more: int4 in blocks of 32 20.0 %" in row.to_row()) == (not found)
    assert ("at 2.00x (one thread); int4 in blocks of 128 30.0 %" in row.to_row()) == (not found)


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
    assert (rows[1].found, rows[1].verdict) == ({"(one thread)": 0.8}, "missed")
    sizes = [row for row in rows if "memory at 8192" in row.work]
    assert [row.found for row in sizes] == [{"": pytest.approx(20.0)}, {}]


def test_the_best_way_of_loading_is_set_beside_each_peer() -> None:
    def row(kind: str, seconds: float, together: int) -> cold_start.StartRow:
        return cold_start.StartRow(
            file="135M fp32",
            kind=kind,
            processor_s=seconds,
            wall_s=seconds,
            peak_bytes=900,
            together_bytes=together,
            alone_bytes=600,
        )

    made = cold_start.StartSection(
        date="2026-11-30T10:00+00:00",
        seconds=60.0,
        machine=sections.MACHINE,
        rows=[row("load", 2.0, 300), row("prepared", 0.5, 100), row("genai", 2.0, 900)],
        sizes={},
        rounds=5,
        together=10,
        left_out={cold_start.TITLES["llama"]: "no program"},
    )
    rows = [
        row
        for row in targets({cold_start.SECTION: made.to_dict()})
        if "fp32, process to first" in row.work or "ten processes" in row.work
    ]
    assert [row.found for row in rows] == [{"(prepared)": 4.0}, {}, {"(fp32)": 6.0}]
    assert [row.verdict for row in rows] == ["aim", "not measured", "aim"]
    assert rows[1].to_row().endswith("| not measured: no program |")


def test_the_server_is_judged_by_processor_time_and_by_waits() -> None:
    ours = {"in_turn_cpu_ms": 8.0, "server_cpu_ms": 2.0, "first_token_alone_ms": 10.0}
    waits = {"first_token_in_company_ms": 18.0, "chunk_ms": 50.0, "gap_in_reading_ms": 60.0}
    made = serving_section(http(**ours, **waits), http(server_cpu_ms=1.0))
    rows = {(row.work, row.against): row for row in targets({serving.SECTION: made.to_dict()})}
    found = {against: row for (work, against), row in rows.items() if "server" in work}
    assert (found["one after another"].found, found["one after another"].verdict) == (
        {"(w8a8)": 4.0},
        "at least",
    )
    assert (
        found["alone"].to_row().endswith("| at most 2x | at most 1.5x | 1.80x (w8a8) | at least |")
    )
    assert found[f"a chunk of {CHUNK}, alone"].verdict == "missed"
    assert found["the engine in process"].found == {"(w8a8)": pytest.approx(200.0)}
    assert "**0.50x** (w8a8) | **missed**" in rows["the same", "llama.cpp"].to_row()
    assert "not measured: no wheel" in rows["the same", "OpenVINO GenAI"].to_row()


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
