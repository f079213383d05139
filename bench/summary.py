"""Medians, quartiles and paired ratios of repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "Summary", "paired_ratios", "rounded", "summarise"]

Spread = tuple[float, float, float]
"""A median between two other values: quartiles, or the lowest and the highest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A median with its quartiles."""

    median: float
    q1: float
    q3: float
    count: int

    @property
    def uncertainty(self) -> float:
        """The standard error of the median, relative to the median.

        1.253 sigma / sqrt(n), with sigma = (q3 - q1) / 1.349 as for a normal distribution.
        """
        if self.median <= 0:
            return math.inf
        return 1.253 / 1.349 * (self.q3 - self.q1) / (self.median * math.sqrt(self.count))


def summarise(values: Sequence[float]) -> Summary:
    """The median and quartiles, interpolated between neighbours.

    Raises:
        ValueError: There is no value, or one is not a number.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected finite numbers, got {list(values)[:5]}")
    q1, median, q3 = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Summary(median=median, q1=q1, q3=q3, count=len(values))


def paired_ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each value over the reference's of the same round, so that a slow minute cancels out.

    Raises:
        ValueError: They are not of the same rounds.
    """
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} rounds against {len(reference)} of the reference")
    return [value / other for value, other in zip(values, reference, strict=True)]


def rounded(value: float) -> float:
    """Six digits: more than any clock here can tell."""
    return float(f"{value:.6g}")
