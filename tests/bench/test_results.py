from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.attention.section import LeftOut, Section, TimeRow, time_rows
from bench.results import read_results, write_section
from bench.rounds import Turn
from tests.bench.sections import memory_row, section, time_row


def full() -> Section:
    return section(
        times=[time_row("eager", {}), time_row("ours", {"eager": 0.5, "plain20": 0.7})],
        memory=[memory_row("ours", 12.5)],
        left_out=[
            LeftOut(
                subject="plain20",
                what="time",
                batch=8,
                seq=9,
                threads=1,
                has_failed=False,
                reason="too large",
            )
        ],
    )


def test_a_section_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_section(path, "attention", full().to_dict())
    assert Section.from_dict(read_results(path)["attention"]) == full()


def test_each_row_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_section(path, "attention", full().to_dict())
    rows = [line for line in path.read_text().splitlines() if '"rounds"' in line]
    assert [json.loads(row.strip().rstrip(","))["subject"] for row in rows] == ["eager", "ours"]


def test_other_sections_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_section(path, "decoding", {"tokens_per_s": 40})
    write_section(path, "attention", full().to_dict())
    write_section(path, "attention", {"replaced": True})
    assert read_results(path) == {
        "decoding": {"tokens_per_s": 40},
        "attention": {"replaced": True},
    }


def test_without_a_file_there_are_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.json") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"format": 99, "sections": {}}', "has format 99, expected 1"),
        ("[]", "has format None, expected 1"),
        ('{"format": 1, "sections": 3}', "delete it and run again"),
    ],
)
def test_a_foreign_file_is_refused_and_kept(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        write_section(path, "attention", {})
    assert path.read_text() == text


def test_a_figure_that_is_no_number_is_refused_and_the_old_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_section(path, "attention", {"time_s": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_section(path, "attention", {"time_s": math.nan})
    assert read_results(path)["attention"] == {"time_s": 1.0}


def test_unknown_and_missing_fields_are_named() -> None:
    data = full().to_dict()
    del data["machine"]
    with pytest.raises(ValueError, match=r"Section has the fields .* missing: machine"):
        Section.from_dict(data)
    data = full().to_dict()
    data["times"][0]["speed"] = 3
    with pytest.raises(ValueError, match=r"TimeRow .* unknown: speed"):
        Section.from_dict(data)


def rows_of(turns: dict[str, list[Turn]]) -> dict[str, TimeRow]:
    rows = time_rows(
        turns,
        batch=1,
        seq=3,
        threads=1,
        clock="cpu",
        baselines=["eager", "plain20"],
        errors=dict.fromkeys(turns, 1e-7),
    )
    return {row.subject: row for row in rows}


def test_rows_hold_paired_ratios_of_the_clock_that_counts() -> None:
    rows = rows_of(
        {
            "eager": [Turn(wall=9.0, cpu=cpu) for cpu in (1.0, 10.0, 2.0)],
            "ours": [Turn(wall=8.0, cpu=cpu) for cpu in (0.5, 5.0, 1.5)],
        }
    )
    # Of the same rounds: 0.5, 0.5, 0.75. The ratio of the medians would be 1.5 / 2.
    assert rows["ours"].ratios == {"eager": (0.5, 0.5, 0.625)}
    assert (rows["ours"].wall_s, rows["ours"].cpu_s, rows["ours"].rounds) == (8.0, 1.5, 3)
    assert rows["eager"].ratios == {}


def test_a_baseline_that_did_not_run_has_no_ratio() -> None:
    rows = rows_of({name: [Turn(wall=1.0, cpu=1.0)] for name in ("eager", "plain20", "ours")})
    assert set(rows["ours"].ratios) == {"eager", "plain20"}
    rows = rows_of({name: [Turn(wall=1.0, cpu=1.0)] for name in ("eager", "ours")})
    assert set(rows["ours"].ratios) == {"eager"}
