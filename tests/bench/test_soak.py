"""The soak, small: a model's memory does not grow, and memory that grows is found."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bench import resident
from bench.soak import Growth, main, mixed_calls, soak, steps
from causal_onnx.runtime import Stream
from tests.runtime.artifacts import fixture
from tests.runtime.language import CONTEXT, language_model

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not resident.is_supported(),
    reason="memory is read from Linux's /proc/self",
)


@pytest.mark.parametrize(("load", "count"), [(steps, 2 * CONTEXT), (mixed_calls, 80)])
def test_memory_does_not_grow(load: object, count: int) -> None:
    act = load(language_model())  # type: ignore[operator]
    found = soak("calls", act, count=count, warm=count, allowed_bytes=4 << 20)
    assert found.passed, str(found)


def test_memory_that_grows_is_found() -> None:
    kept: list[np.ndarray] = []
    found = soak("leaks", lambda: kept.append(np.ones(1 << 17)), count=10, warm=2)
    assert not found.passed
    assert 8e6 < found.grown_bytes < 14e6
    assert str(found).endswith("GROWTH")


def test_steps_go_to_the_end_of_the_cache_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    rewind = Stream.rewind

    def spy(stream: Stream, length: int) -> None:
        assert stream.lengths == (CONTEXT,)
        lengths.append(length)
        rewind(stream, length)

    monkeypatch.setattr(Stream, "rewind", spy)
    act = steps(language_model())
    for _ in range(2 * CONTEXT):
        act()
    assert lengths
    assert all(1 <= length < CONTEXT // 2 for length in lengths)


def test_the_figure_is_printed_and_growth_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(fixture("language")), "--steps", "20", "--calls", "10"]

    def pretend(what: str, act: object, *, count: int, warm: int) -> Growth:
        return Growth(what=what, count=count, before_bytes=0, after_bytes=count * (1 << 19))

    monkeypatch.setattr("bench.soak.soak", pretend)
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "20 decode steps: 0.00 MB after the warm-up, 10.49 MB at the end, +10486 kB" in out
    monkeypatch.setattr(
        "bench.soak.soak", lambda what, act, **_: pretend(what, act, count=2, warm=1)
    )
    assert main(arguments) == 0


def test_there_is_no_figure_without_a_warm_up() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 5"):
        soak("nothing", lambda: None, count=5, warm=0)
