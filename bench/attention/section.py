"""The attention section of the results: rows as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench import results
from bench.rounds import Clock, Turn, times_of
from bench.subject import SubjectRow
from bench.summary import Spread, Summary, paired_ratios, rounded, summarise

__all__ = ["LeftOut", "MemoryRow", "Section", "TimeRow", "time_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRow:
    """The forward time of one subject at one shape and number of threads."""

    subject: str
    batch: int
    seq: int
    threads: int
    clock: Clock
    """Which time `ratios` and `quartiles_s` are of."""
    rounds: int
    wall_s: float
    cpu_s: float
    quartiles_s: Spread
    """Lower quartile, median, upper quartile."""
    ratios: Mapping[str, Spread]
    """Over each baseline's time of the same round; without those that did not run."""
    error: float
    """Largest difference from the reference's output, relative to its scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """The memory of one subject at one shape, with one thread."""

    subject: str
    batch: int
    seq: int
    loaded_bytes: int
    """After loading, a first small call, and making the input of the case."""
    peak_bytes: int
    """The most at once over the whole life of the process."""
    extra_bytes: int
    """The most at once during the case's call, less `loaded_bytes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Something that has no figure, and why."""

    subject: str
    what: Literal["time", "memory"]
    batch: int
    seq: int
    threads: int
    has_failed: bool
    """False: it was not tried, for lack of memory."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section(results.Section):
    """All that one run found out."""

    sizes: Mapping[str, int]
    reference: str
    ours: str
    baselines: Sequence[str]
    """The subjects that others are set in relation to; the reference is the first."""
    subjects: Sequence[SubjectRow]
    times: Sequence[TimeRow]
    memory: Sequence[MemoryRow]
    left_out: Sequence[LeftOut]

    def time(self, subject: str, batch: int, seq: int, threads: int) -> TimeRow | None:
        """The row of these, or None where it was left out."""
        for row in self.times:
            if (row.subject, row.batch, row.seq, row.threads) == (subject, batch, seq, threads):
                return row
        return None

    def footprint(self, subject: str, batch: int, seq: int) -> MemoryRow | None:
        """The row of these, or None where it was left out."""
        for row in self.memory:
            if (row.subject, row.batch, row.seq) == (subject, batch, seq):
                return row
        return None


def time_rows(
    turns: Mapping[str, Sequence[Turn]],
    *,
    batch: int,
    seq: int,
    threads: int,
    clock: Clock,
    baselines: Sequence[str],
    errors: Mapping[str, float],
) -> list[TimeRow]:
    """One row per subject from the turns of all."""
    times = times_of(turns, clock)
    return [
        TimeRow(
            subject=name,
            batch=batch,
            seq=seq,
            threads=threads,
            clock=clock,
            rounds=len(own),
            wall_s=rounded(summarise([turn.wall for turn in own]).median),
            cpu_s=rounded(summarise([turn.cpu for turn in own]).median),
            quartiles_s=_spread(summarise(times[name])),
            ratios={
                base: _spread(summarise(paired_ratios(times[name], times[base])))
                for base in baselines
                if base in times and base != name
            },
            error=rounded(errors[name]),
        )
        for name, own in turns.items()
    ]


def _spread(summary: Summary) -> Spread:
    return (rounded(summary.q1), rounded(summary.median), rounded(summary.q3))
