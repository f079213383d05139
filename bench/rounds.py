"""Give subjects turns, round by round, until their ratios are known well enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.summary import paired_ratios, summarise

__all__ = [
    "Clock",
    "RoundPolicy",
    "Turn",
    "calls_per_turn",
    "clock_of",
    "is_settled",
    "rotated",
    "run_rounds",
    "times_of",
]

Clock = Literal["cpu", "wall"]


def clock_of(threads: int) -> Clock:
    """Processor time for one thread, the steadiest figure on a shared machine; else wall time."""
    return "cpu" if threads == 1 else "wall"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The median call of one turn, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, walls: Sequence[float], cpus: Sequence[float]) -> Turn:
        return cls(wall=median(walls), cpu=median(cpus))


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPolicy:
    """When enough rounds were run."""

    at_least: int = 7
    """Before the ratios are looked at."""
    at_most: int = 41
    precision: float = 0.01
    """Standard error allowed for the median of every ratio, relative to it."""
    seconds: float = 8.0
    """After this long, stop as soon as there are `at_least_slow` rounds."""
    at_least_slow: int = 3
    turn_s: float = 0.03
    """A turn repeats a short call for about this long."""

    def __post_init__(self) -> None:
        if not 1 <= self.at_least_slow <= self.at_least <= self.at_most:
            raise ValueError(
                "expected 1 <= at_least_slow <= at_least <= at_most, got "
                f"{self.at_least_slow}, {self.at_least}, {self.at_most}"
            )


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: everyone is first, second, ... equally often."""
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def calls_per_turn(call_s: float, policy: RoundPolicy) -> int:
    """How often a turn repeats a call of `call_s` seconds: 1 to 100 times."""
    return max(1, min(100, round(policy.turn_s / max(call_s, 1e-9))))


def run_rounds(
    names: Sequence[str],
    take_turn: Callable[[str], Turn],
    *,
    reference: str,
    clock: Clock,
    policy: RoundPolicy,
    tell: Callable[[int], None] = lambda number: None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[Turn]]:
    """Interleave the subjects: one turn each per round, in an order that rotates.

    Args:
        names: The subjects.
        take_turn: Runs one subject's turn; no other runs meanwhile.
        reference: The subject whose ratios decide when it is enough.
        clock: Of these times.
        policy: When it is enough.
        tell: Called with the number of each finished round.
        now: The clock for `policy.seconds`.

    Returns:
        The turns of each subject, in the order of the rounds.

    Raises:
        ValueError: `reference` is not among `names`.
    """
    if reference not in names:
        raise ValueError(f"the reference {reference!r} is not among {', '.join(names)}")
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    start = now()
    for number in range(policy.at_most):
        for name in rotated(names, number):
            turns[name].append(take_turn(name))
        done = number + 1
        tell(done)
        if done >= policy.at_least_slow and now() - start >= policy.seconds:
            break
        if done >= policy.at_least and is_settled(turns, reference, clock, policy.precision):
            break
    return turns


def times_of(turns: Mapping[str, Sequence[Turn]], clock: Clock) -> dict[str, list[float]]:
    """Seconds of each subject, round by round."""
    return {name: [getattr(turn, clock) for turn in own] for name, own in turns.items()}


def is_settled(
    turns: Mapping[str, Sequence[Turn]], reference: str, clock: Clock, precision: float
) -> bool:
    """Whether every ratio to the reference is known to `precision`."""
    times = times_of(turns, clock)
    return all(
        summarise(paired_ratios(own, times[reference])).uncertainty <= precision
        for own in times.values()
    )
