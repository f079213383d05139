"""Time calls that can be made again: wall clock and processor time, after a warm-up."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from causal_onnx.runtime.profile.workload import Workload

__all__ = ["CallTimes", "time_calls"]

LEAST_CALLS = 3
MOST_CALLS = 200
SECONDS = 0.5
"""For one workload, unless `LEAST_CALLS` take longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTimes:
    """Times of calls of one workload, in milliseconds."""

    wall_ms: float
    """Median."""
    fastest_ms: float
    cpu_ms: float
    """Processor time of all threads of the process, median."""
    calls: int


def time_calls(work: Workload, *, calls: int | None = None) -> CallTimes:
    """Time calls, after one or two that are not counted.

    Args:
        work: What to call; it is taken back after each call, outside of the time.
        calls: How many; None: as many as fit into half a second, 3 to 200.

    Raises:
        RunError: onnxruntime failed.
    """
    # The first call of a shape plans memory; a second one finds the caches warm.
    for _ in range(2):
        started = time.perf_counter()
        work.call()
        work.take_back()
        if time.perf_counter() - started > SECONDS:
            break
    walls: list[float] = []
    cpus: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(walls) < (calls or LEAST_CALLS) or (
        calls is None and len(walls) < MOST_CALLS and time.perf_counter() < until
    ):
        cpu, wall = time.process_time(), time.perf_counter()
        work.call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        work.take_back()
    return CallTimes(
        wall_ms=statistics.median(walls) * 1e3,
        fastest_ms=min(walls) * 1e3,
        cpu_ms=statistics.median(cpus) * 1e3,
        calls=len(walls),
    )
