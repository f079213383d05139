"""Time a model by sequence length, on inputs made from its contract alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from causal_onnx.runtime.request.example import make_request

if TYPE_CHECKING:
    from causal_onnx.runtime import Contract, Model

__all__ = ["Timing", "default_lengths", "time_lengths", "too_long"]

SECONDS_PER_LENGTH = 0.4
MAX_RUNS = 100
MAX_CALL_S = 3.0
"""A length whose call is likely to take longer is left out: this is a look, not a benchmark."""
MAX_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Calls of one length, at batch 1."""

    seq: int
    median_ms: float
    fastest_ms: float
    runs: int


def default_lengths(contract: Contract) -> list[int]:
    """1, 4, 16, ... up to the limit and with it; up to 1024 where no limit is known."""
    top = contract.max_seq_len or max(1024, contract.min_seq_len)
    lengths = [4**power for power in range(7)]
    return [*(n for n in lengths if contract.min_seq_len <= n < top), min(top, 4**7)]


def time_lengths(
    model: Model,
    lengths: Sequence[int],
    *,
    tell: Callable[[str, float], None] = lambda step, fraction: None,
) -> tuple[list[Timing], list[str]]:
    """Time `model` at each of `lengths`, shortest first, at batch 1.

    Returns:
        The timings, and for each length that was left out a line that says why.

    Raises:
        ValueError: A length is more than the contract allows.
        RunError: onnxruntime failed.
    """
    timings: list[Timing] = []
    left_out: list[str] = []
    for index, seq in enumerate(sorted(set(lengths))):
        tell(f"length {seq}", index / len(lengths))
        reason = _reason_to_skip(model.contract, seq, timings[-1] if timings else None)
        if reason:
            left_out.append(f"length {seq}: {reason}")
            continue
        request = make_request(model.contract, seq=seq)
        model.run(**request)  # the first call of a shape plans memory
        times: list[float] = []
        until = time.perf_counter() + SECONDS_PER_LENGTH
        while len(times) < 3 or (time.perf_counter() < until and len(times) < MAX_RUNS):
            started = time.perf_counter()
            model.run(**request)
            times.append((time.perf_counter() - started) * 1e3)
        timings.append(
            Timing(
                seq=seq,
                median_ms=statistics.median(times),
                fastest_ms=min(times),
                runs=len(times),
            )
        )
    return timings, left_out


def _reason_to_skip(contract: Contract, seq: int, before: Timing | None) -> str | None:
    sizes = {"batch": 1, "seq": seq, "past_seq": 0, "total_seq": seq}
    size_bytes = sum(
        math.prod(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
        * (2 if spec.dtype in ("float16", "bfloat16") else 4)
        for spec in contract.outputs
    )
    if size_bytes > MAX_OUTPUT_BYTES:
        return f"its outputs would take {size_bytes / 2**30:.1f} GiB"
    return None if before is None else too_long(seq, before.seq, before.median_ms)


def too_long(seq: int, seq_before: int, ms_before: float) -> str | None:
    """Why not to time a length, after a shorter one; None: there is no reason.

    Attention's own cost grows with the square of the length.
    """
    likely_s = ms_before / 1e3 * (seq / seq_before) ** 2
    return f"a call may take {likely_s:.0f} s" if likely_s > MAX_CALL_S else None
