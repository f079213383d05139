"""The memory that one call needs, seen in a fresh process, and whether a case fits the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.client import Worker

__all__ = ["LEAST_BYTES", "fits", "measure_footprint", "predict_extra"]

MARGIN = 0.9
"""Part of the available memory that a case may take; the rest is for what else goes on."""


LEAST_BYTES = 4_000_000
"""Below it pages and allocators round, and neither ratios nor predictions say anything."""


def measure_footprint(
    start: Callable[[], Worker], *, case: Mapping[str, Any], settle: Mapping[str, Any]
) -> dict[str, int]:
    """Measure in a process of its own: the fields of a `MemoryRow` that are in bytes.

    Args:
        start: Starts the worker.
        case: What to measure.
        settle: A case to run before, so that what every first call sets up is not counted.

    Raises:
        WorkerError: The subject failed or the process died.
    """
    with start() as worker:
        return worker.ask("memory", case=dict(case), settle=dict(settle))


def predict_extra(known: Mapping[int, int], seq: int) -> int:
    """An upper bound for the extra bytes at a length, from those measured at other lengths.

    Grows with the square of the length beyond the longest that was measured; 0 where that needed
    too little to tell.
    """
    longer = [length for length in known if length >= seq]
    if longer:
        return known[min(longer)]
    longest = max(known, default=0)
    if known.get(longest, 0) < LEAST_BYTES:
        return 0
    return round(known[longest] * (seq / longest) ** 2)


def fits(need_bytes: int, available_bytes: int) -> bool:
    """Whether so much may be asked of a machine with so much left."""
    return need_bytes <= MARGIN * available_bytes
