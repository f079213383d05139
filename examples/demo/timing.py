"""Time an artifact beside its PyTorch source: interleaved, medians, equal threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_onnx.runtime import Model

__all__ = ["Timing", "interleave", "time_beside"]

ROUNDS = 9
FEWEST_ROUNDS = 3
LONGEST_S = 4.0
"""No new round after this time: a busy machine gets fewer."""
SECONDS_PER_ROUND = 0.04
"""Calls that are short are repeated to this length, far above the clock's resolution."""

SETTLING_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Median time of one call, of both."""

    batch: int
    seq: int
    onnx_ms: float
    torch_ms: float

    @property
    def ratio(self) -> float:
        """The artifact's time over PyTorch's: below 1 the artifact is faster."""
        return self.onnx_ms / self.torch_ms


def time_beside(
    module: nn.Module,
    model: Model,
    *,
    lengths: Sequence[int],
    threads: int,
    progress: Callable[[float, str], None],
) -> list[Timing]:
    """Time one call at batch 1 for every length.

    Args:
        module: The source, in eval mode; has a method `example_input(batch, seq)`.
        model: Loaded with `threads` threads.
        lengths: Of the sequences.
        threads: PyTorch gets as many.
        progress: Called with (share done, what is being timed).
    """
    example: Callable[[int, int], Tensor] = getattr(module, "example_input")  # noqa: B009
    timings = []
    with torch_threads(threads), torch.inference_mode():
        for index, seq in enumerate(lengths):
            progress(index / len(lengths), f"length {seq}")
            x = example(1, seq)
            array = x.numpy()
            onnx_ms, torch_ms = interleave(_call(model, array), _call(module, x))
            timings.append(Timing(batch=1, seq=seq, onnx_ms=onnx_ms, torch_ms=torch_ms))
    progress(1.0, "")
    return timings


def interleave(
    first: Callable[[], object], second: Callable[[], object], *, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Time two calls in turn, so that a busy moment of the machine meets both.

    Returns:
        The median of each, in milliseconds per call.
    """
    calls = (first, second)
    repeats = [_repeats(call) for call in calls]
    times: tuple[list[float], list[float]] = ([], [])
    started = time.monotonic()
    for index in range(rounds):
        if index >= FEWEST_ROUNDS and time.monotonic() - started > LONGEST_S:
            break
        for call, count, seconds in zip(calls, repeats, times, strict=True):
            _settle(call)
            start = time.perf_counter()
            for _ in range(count):
                call()
            seconds.append((time.perf_counter() - start) / count)
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3


def _settle(call: Callable[[], object]) -> None:
    """Call, untimed, until the other side's idle threads have stopped spinning.

    PyTorch's threads wait for more work in a busy loop for some milliseconds, on the cores that
    are needed here.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < SETTLING_SECONDS:
        call()


def _call(function: Callable[[Any], object], argument: object) -> Callable[[], object]:
    return lambda: function(argument)


def _repeats(call: Callable[[], object]) -> int:
    call()  # the first call allocates and picks kernels
    start = time.perf_counter()
    call()
    elapsed = time.perf_counter() - start
    return max(1, min(1000, round(SECONDS_PER_ROUND / max(elapsed, 1e-6))))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
