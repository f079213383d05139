"""The benchmark of the server, on a model that is small."""

from __future__ import annotations

from pathlib import Path

from bench.serving import Works, measure


def test_every_work_is_measured_and_the_load_changes_nothing(stories: Path) -> None:
    works = Works(tokens=16, prompt=8, long_prompt=130, rounds=1)
    figures = measure(stories, threads=1, works=works)
    assert (figures.replayed, figures.different) == (17, 0)
    assert min(figures.in_turn_tokens_s, figures.together_tokens_s, figures.gap_alone_ms) > 0
    assert all(text for row in figures.rows() for text in row)
