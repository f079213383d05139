"""The frame of every measurement: subjects do one thing in turn, once their outputs agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from bench.client import WorkerError
from bench.crew import Crew, Starts
from bench.figures import Figure, Times, figures
from bench.rounds import Clock, RoundPolicy, Turn, calls_per_turn, run_rounds, times_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Bench", "Check", "Outputs", "Work"]

Outputs = Mapping[str, npt.NDArray[Any]]
"""Name of a subject -> what it gave for the case."""

Check = Callable[[Outputs], Mapping[str, str] | None]

Work = TypeVar("Work", bound="DataclassInstance")


def _refuse(name: str, error: WorkerError) -> None:
    raise error


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """How things are measured."""

    folder: Path
    """For the outputs, meanwhile."""
    policy: RoundPolicy
    """When there are rounds enough."""
    threads: int
    """Of each subject."""
    clock: Clock
    """Of the times that count."""
    reference: str
    """The subject whose ratios decide."""

    def interleave(
        self,
        crew: Crew,
        names: Iterable[str],
        case: Mapping[str, Any],
        *,
        check: Check,
        lose: Callable[[str, WorkerError], None] = _refuse,
        tell: Callable[[str], None] = lambda text: None,
    ) -> dict[str, list[Turn]]:
        """Warm up, compare the outputs, then take turns.

        Args:
            crew: The processes.
            names: Who takes part.
            case: What is done.
            check: Raises where outputs do not agree, or gives the subjects that are left out for
                it, each with the reason.
            lose: Called for a subject that failed or died, which takes part no longer; raises the
                error where it must not be missing, as it does by default.
            tell: Called with what goes on.

        Returns:
            The turns of each subject that is left, round by round.

        Raises:
            WorkerError: By `lose`.
            DisagreementError: By `check`.
        """
        calls, outputs = {}, {}
        for name in names:
            tell(f"warming up {name}")
            path = self.folder / f"{name}.npy"
            try:
                warm = crew.ask(name, "prepare", case=dict(case))
                crew.ask(name, "save", path=str(path.resolve()))
            except WorkerError as error:
                lose(name, error)
                continue
            calls[name] = calls_per_turn(warm["seconds"], self.policy)
            outputs[name] = np.load(path, mmap_mode="r")  # all of them may be large
            path.unlink()
        for name, reason in (check(outputs) or {}).items():
            lose(name, WorkerError(reason))
            del calls[name]
        outputs.clear()
        while True:  # where a subject dies of it, once more without that one
            try:
                return self._rounds(crew, calls, tell)
            except _LostError as lost:
                lose(lost.name, lost.error)
                del calls[lost.name]

    def _rounds(
        self, crew: Crew, calls: Mapping[str, int], tell: Callable[[str], None]
    ) -> dict[str, list[Turn]]:
        def take_turn(name: str) -> Turn:
            try:
                answer = crew.ask(name, "turn", calls=calls[name])
            except WorkerError as error:
                raise _LostError(name, error) from error
            return Turn.of(answer["wall_s"], answer["cpu_s"])

        return run_rounds(
            list(calls),
            take_turn,
            reference=self.reference,
            clock=self.clock,
            policy=self.policy,
            tell=lambda number: tell(f"round {number}"),
        )

    def measure(
        self,
        starts: Starts,
        works: Sequence[Work],
        *,
        sets: int,
        check: Callable[[Work, Outputs], Mapping[str, str] | None],
        begin: Callable[[Work, int], None],
        amount: Callable[[Work], float],
        unit: str = "tokens/s",
        row: Callable[[Work], str] = str,
        lose: Callable[[str, WorkerError], None] = _refuse,
    ) -> list[Figure]:
        """Do all works in several sets of fresh processes, one set after the other.

        Args:
            starts: The subjects.
            works: What is done, as it is sent to the workers.
            sets: How many.
            check: See `interleave`.
            begin: Called before each work, with the number of the set.
            amount: See `figures`.
            unit: See `figures`.
            row: What the figures of a work are called.
            lose: Called for a subject that failed, which takes part no longer and has no figures;
                raises the error where it must not be missing, as it does by default.

        Raises:
            WorkerError: By `lose`.
            DisagreementError: By `check`.
        """
        seen: dict[Work, list[Times]] = {work: [] for work in works}
        left = list(starts)

        def drop(name: str, error: WorkerError) -> None:
            lose(name, error)
            left.remove(name)

        for number in range(sets):
            with Crew(starts) as crew:
                for work in works:
                    begin(work, number + 1)
                    turns = self.interleave(
                        crew, tuple(left), asdict(work), check=partial(check, work), lose=drop
                    )
                    seen[work].append(times_of(turns, self.clock))
        for sets_of_work in seen.values():
            sets_of_work[:] = [{name: times[name] for name in left} for times in sets_of_work]
        return [
            figure
            for work, times in seen.items()
            for figure in figures(
                row(work),
                times,
                threads=self.threads,
                clock=self.clock,
                amount=amount(work),
                unit=unit,
            )
        ]


class _LostError(Exception):
    def __init__(self, name: str, error: WorkerError) -> None:
        super().__init__(name)
        self.name, self.error = name, error
