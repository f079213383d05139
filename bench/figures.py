"""What subjects reached: medians and ratios over sets of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.rounds import Clock
from bench.summary import Spread, paired_ratios, rounded, summarise

__all__ = ["Figure", "Times", "figures", "find"]

Times = Mapping[str, Sequence[float]]
"""Seconds of each subject, round by round, in one set of processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What one subject reached in one row."""

    row: str
    """What was done: "prefill 512", "decode 128 after 16", "start", ..."""
    subject: str
    threads: int
    clock: Clock
    unit: str
    """ "tokens/s", "s", "MB" or "us"."""
    value: Spread
    """Lowest, median, highest."""
    better: Mapping[str, Spread]
    """How many times better than another subject in the same rounds: faster, or smaller."""
    sets: int
    """Sets of fresh processes: the spreads are over the medians of each."""
    rounds: int
    """In all."""


def figures(
    row: str,
    sets: Sequence[Times],
    *,
    threads: int,
    clock: Clock,
    amount: float,
    unit: str = "tokens/s",
) -> list[Figure]:
    """One figure per subject, from the times of one or several sets of processes.

    Args:
        row: What was done.
        sets: Each with the same subjects.
        threads: Of each.
        clock: What the times are of.
        amount: Of tokens in one time; for other units, what a second is in that unit.
        unit: "tokens/s": more is better; any other: less is.
    """
    found = []
    for name in sets[0]:
        others = [other for other in sets[0] if other != name]
        medians = [summarise(times[name]).median for times in sets]
        found.append(
            Figure(
                row=row,
                subject=name,
                threads=threads,
                clock=clock,
                unit=unit,
                value=_spread([amount / x if unit == "tokens/s" else amount * x for x in medians]),
                better={
                    other: _spread(
                        [
                            summarise(paired_ratios(times[other], times[name])).median
                            for times in sets
                        ]
                    )
                    for other in others
                },
                sets=len(sets),
                rounds=sum(len(times[name]) for times in sets),
            )
        )
    return found


def _spread(values: Sequence[float]) -> Spread:
    low, middle, high = min(values), summarise(values).median, max(values)
    return (rounded(low), rounded(middle), rounded(high))


def find(
    found: Iterable[Figure], row: str, subject: str, threads: int, unit: str | None = None
) -> Figure | None:
    """The figure of these, or None where there is none."""
    for figure in found:
        if (figure.row, figure.subject, figure.threads) == (row, subject, threads) and (
            unit is None or figure.unit == unit
        ):
            return figure
    return None
