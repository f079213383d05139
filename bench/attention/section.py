"""The attention section of the results: rows as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from bench.memory import Footprint
from bench.rounds import Clock, Turn
from bench.summary import Summary, paired_ratios, summarise

__all__ = ["LeftOut", "MemoryRow", "Section", "SubjectRow", "TimeRow", "time_rows"]

Spread = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectRow:
    """One subject, as readers know it."""

    name: str
    title: str
    about: str


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
    peak_bytes: int
    extra_bytes: int

    @classmethod
    def of(cls, subject: str, batch: int, seq: int, footprint: Footprint) -> MemoryRow:
        return cls(subject=subject, batch=batch, seq=seq, **asdict(footprint))


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
class Section:
    """All that one run found out."""

    date: str
    """ISO 8601, UTC."""
    seconds: float
    """How long the run took."""
    machine: Mapping[str, Any]
    sizes: Mapping[str, int]
    reference: str
    ours: str
    baselines: Sequence[str]
    """The subjects that others are set in relation to; the reference is the first."""
    subjects: Sequence[SubjectRow]
    times: Sequence[TimeRow]
    memory: Sequence[MemoryRow]
    left_out: Sequence[LeftOut]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Section:
        """Read what `to_dict` wrote, also after a passage through JSON.

        Raises:
            ValueError: A field is missing or unknown.
        """
        return cls(
            **{
                **_checked(cls, data),
                "subjects": [SubjectRow(**_checked(SubjectRow, row)) for row in data["subjects"]],
                "times": [_time_row(row) for row in data["times"]],
                "memory": [MemoryRow(**_checked(MemoryRow, row)) for row in data["memory"]],
                "left_out": [LeftOut(**_checked(LeftOut, row)) for row in data["left_out"]],
            }
        )

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
    times = {name: [getattr(turn, clock) for turn in own] for name, own in turns.items()}
    return [
        TimeRow(
            subject=name,
            batch=batch,
            seq=seq,
            threads=threads,
            clock=clock,
            rounds=len(own),
            wall_s=_rounded(summarise([turn.wall for turn in own]).median),
            cpu_s=_rounded(summarise([turn.cpu for turn in own]).median),
            quartiles_s=_spread(summarise(times[name])),
            ratios={
                base: _spread(summarise(paired_ratios(times[name], times[base])))
                for base in baselines
                if base in times and base != name
            },
            error=_rounded(errors[name]),
        )
        for name, own in turns.items()
    ]


def _spread(summary: Summary) -> Spread:
    return (_rounded(summary.q1), _rounded(summary.median), _rounded(summary.q3))


def _rounded(value: float) -> float:
    """Six digits: more than any clock here can tell."""
    return float(f"{value:.6g}")


def _time_row(data: Mapping[str, Any]) -> TimeRow:
    return TimeRow(
        **{
            **_checked(TimeRow, data),
            "quartiles_s": tuple(data["quartiles_s"]),
            "ratios": {name: tuple(spread) for name, spread in data["ratios"].items()},
        }
    )


def _checked(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    expected = {field.name for field in fields(kind)}
    if set(data) != expected:
        raise ValueError(
            f"{kind.__name__} has the fields {', '.join(sorted(expected))}; missing: "
            f"{', '.join(sorted(expected - set(data))) or 'none'}, unknown: "
            f"{', '.join(sorted(set(data) - expected)) or 'none'}"
        )
    return dict(data)
