"""The benchmark of the server, and the soak, on a model that is small."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench import serving_soak
from bench.serving import Works, measure
from bench.serving_soak import ALLOWED_BYTES, KINDS, Report, soak_server
from tests.runtime.artifacts import fixture


def test_every_work_is_measured_and_the_load_changes_nothing(stories: Path) -> None:
    works = Works(tokens=16, prompt=8, long_prompt=130, rounds=1)
    figures = measure(stories, threads=1, works=works)
    assert (figures.replayed, figures.different) == (17, 0)
    assert min(figures.in_turn_tokens_s, figures.together_tokens_s, figures.gap_alone_ms) > 0
    assert all(text for row in figures.rows() for text in row)


def test_a_short_soak_finds_nothing(stories: Path) -> None:
    report = soak_server(stories, seconds=3, clients=24, pause_s=0.2)
    assert report.passed, (report, report.problems)
    assert set(report.done) == set(KINDS)


def test_a_short_soak_of_a_server_that_guesses_finds_nothing() -> None:
    model = fixture("language")
    report = soak_server(model, seconds=2, clients=16, pause_s=0.2, lookup=True)
    assert report.passed, (report, report.problems)
    assert report.done["streamed"] > 0


def test_a_soak_finds_answers_that_change(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = itertools.count()
    monkeypatch.setattr(serving_soak, "_told", lambda kind, answer: next(given))
    report = soak_server(stories, seconds=1, clients=8, pause_s=0.1)
    assert not report.passed
    assert any(problem.startswith("wrong: ") for problem in report.problems)


def test_memory_that_grows_fails_a_soak() -> None:
    assert Report(before_bytes=0, after_bytes=ALLOWED_BYTES).passed
    assert not Report(before_bytes=0, after_bytes=ALLOWED_BYTES + 1).passed
