"""How many threads PyTorch gains from here and now."""

from __future__ import annotations

import statistics
import time

import torch

from causal_onnx.runtime.session.threads import available_cores

__all__ = ["choose_threads"]

ROUNDS = 7
WORK = 60
"""Small products per round: some milliseconds on one core."""
HOPELESS = 3.0
"""Two rounds this much slower than one thread, and no more are spent on it."""


def choose_threads() -> int:
    """One thread or one per core, whichever is faster now.

    PyTorch's threads wait for each other in a busy loop after each operator. On a machine where
    something else runs, one per core can be forty times slower than a single one, and training as
    well as every comparison would be of no use.
    """
    cores = available_cores()
    if cores == 1:
        return 1
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {1: [], cores: []}
    matrix = torch.full((192, 192), 1e-3)
    slow_rounds = 0
    for _ in range(ROUNDS):
        for threads, taken in times.items():
            torch.set_num_threads(threads)
            taken.append(_round(matrix))
        slow_rounds += times[cores][-1] > HOPELESS * times[1][-1]
        if slow_rounds == 2:
            break
    torch.set_num_threads(before)
    return min(times, key=lambda threads: statistics.median(times[threads]))


def _round(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(WORK):
            torch.relu(matrix @ matrix)
    return time.perf_counter() - start
