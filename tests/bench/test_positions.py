"""What a step costs by its position: what is measured, and what is bold."""

from __future__ import annotations

from typing import Any

from bench.positions import PositionRow, PositionSection, measure, to_markdown
from tests.bench.sections import MACHINE
from tests.runtime.artifacts import fixture


def section(**others: Any) -> PositionSection:
    given = {
        "model": "a",
        "is_fixed": True,
        "step_ms": {"20": 1.0, "2000": 1.2},
        "state_bytes": {"20": 5000, "2000": 5000},
    }
    row = PositionRow(**(given | others))
    return PositionSection(
        date="2026-11-29T17:00+00:00", seconds=60.0, machine=MACHINE, rows=[row], rounds=3
    )


def test_a_step_of_fixed_state_that_becomes_dearer_is_bold() -> None:
    dear = {"20": 1.0, "2000": 1.3}
    assert "| a | fixed | 1.00 | 1.20 | 5 | 5 |" in to_markdown(section())
    assert "| a | fixed | 1.00 | **1.30** | 5 | 5 |" in to_markdown(section(step_ms=dear))
    assert "| a | grows | 1.00 | 1.30 |" in to_markdown(section(step_ms=dear, is_fixed=False))


def test_a_section_survives_json() -> None:
    made = section()
    assert PositionSection.from_dict(made.to_dict()) == made


def test_keys_and_values_grow_with_the_position() -> None:
    row = measure("a", fixture("language"), positions=(3, 30), rounds=1)
    assert not row.is_fixed
    assert row.state_bytes["30"] > row.state_bytes["3"]
    assert min(row.step_ms.values()) > 0
