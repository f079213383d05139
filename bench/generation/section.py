"""The generation section of the results: figures as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.attention.section import SubjectRow
from bench.rounds import Clock
from bench.summary import paired_ratios, summarise

__all__ = ["Figure", "Section", "SubjectRow", "Times", "figures"]

Spread = tuple[float, float, float]
"""Lowest, median, highest."""

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
    better: Mapping[str, Spread]
    """How many times better than another subject in the same rounds: faster, or smaller."""
    sets: int
    """Sets of fresh processes: the spreads are over the medians of each."""
    rounds: int
    """In all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """All that one run found out."""

    date: str
    """ISO 8601, UTC."""
    seconds: float
    machine: Mapping[str, Any]
    device: str
    sizes: Mapping[str, Any]
    """Of the language model."""
    tiny: Mapping[str, Any]
    """Of the small model that shows what Python does."""
    module: Mapping[str, Any]
    """Of the attention module that is started."""
    batch: Mapping[str, int]
    subjects: Sequence[SubjectRow]
    graphs: Mapping[str, str]
    """Subject -> what its file holds in few bits."""
    errors: Mapping[str, float]
    """Subject -> the largest difference of its logits from the reference's, by their scale."""
    figures: Sequence[Figure]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Section:
        """Read what `to_dict` wrote, also after a passage through JSON.

        Raises:
            ValueError: A field is missing or unknown.
        """
        found = _checked(cls, data)
        found["subjects"] = [SubjectRow(**_checked(SubjectRow, row)) for row in data["subjects"]]
        found["figures"] = [_figure(row) for row in data["figures"]]
        return cls(**found)

    def find(self, row: str, subject: str, threads: int, unit: str | None = None) -> Figure | None:
        """The figure of these, or None where there is none."""
        for figure in self.figures:
            if (figure.row, figure.subject, figure.threads) == (row, subject, threads) and (
                unit is None or figure.unit == unit
            ):
                return figure
        return None


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
    """Six digits: more than any clock here can tell."""
    found = (min(values), summarise(values).median, max(values))
    low, middle, high = (float(f"{value:.6g}") for value in found)
    return (low, middle, high)


def _figure(data: Mapping[str, Any]) -> Figure:
    found = _checked(Figure, data)
    found["value"] = tuple(data["value"])
    found["better"] = {name: tuple(spread) for name, spread in data["better"].items()}
    return Figure(**found)


def _checked(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    expected = {field.name for field in fields(kind)}
    if set(data) != expected:
        raise ValueError(
            f"{kind.__name__} has the fields {', '.join(sorted(expected))}; missing: "
            f"{', '.join(sorted(expected - set(data))) or 'none'}, unknown: "
            f"{', '.join(sorted(set(data) - expected)) or 'none'}"
        )
    return dict(data)
