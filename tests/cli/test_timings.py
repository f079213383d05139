"""What the steps of a long command took, from the calls that say how far it is."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli import timings
from causal_onnx.cli.timings import StepTimes, timings_table

MB = 1_000_000


def busy(count: int) -> None:
    """Some milliseconds of work each."""
    for _ in range(count):
        np.ones(1 << 20).sum()


def test_each_step_has_the_time_until_the_next_and_calls_are_passed_on() -> None:
    heard: list[tuple[str, float]] = []
    tell = StepTimes(lambda step, fraction: heard.append((step, fraction)))
    tell("short", 0.0)
    tell("long", 0.0)
    busy(50)
    tell("long", 0.5)
    short, long = tell.finish()
    assert heard == [("short", 0.0), ("long", 0.0), ("long", 0.5)]
    assert (short.step, long.step) == ("short", "long")
    assert long.processor_s > 10 * short.processor_s
    assert long.wall_s > 10 * short.wall_s


def test_a_step_that_comes_twice_is_one() -> None:
    tell = StepTimes()
    for step in ("compare", "cache", "compare"):
        tell(step, 0.0)
        busy(2 if step == "compare" else 1)
    first, second = tell.finish()
    assert (first.step, second.step) == ("compare", "cache")
    assert first.processor_s > second.processor_s


@pytest.mark.skipif(not timings.CLEAR.exists(), reason="the system does not tell the peak")
def test_the_peak_is_that_of_the_step() -> None:
    gc.collect()  # what other tests left would go in between, and hide what is taken here
    tell = StepTimes()
    tell("large", 0.0)
    with mmap.mmap(-1, 64 * MB) as taken:  # not of the heap, which may hold as much that is free
        taken[::4096] = b"x" * (len(taken) // 4096)
    tell("small", 0.0)
    large, small = (step.peak_bytes or 0 for step in tell.finish())
    assert 50 * MB < large - small < 80 * MB


def test_where_the_system_does_not_tell_the_peak_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "STATUS", tmp_path / "status")
    monkeypatch.setattr(timings, "CLEAR", tmp_path / "folder" / "clear")
    tell = StepTimes()
    tell("probe", 0.0)
    steps = tell.finish()
    assert steps[0].peak_bytes is None
    assert timings_table(steps)[1][-1][::3] == ["all", "?"]
