"""How many threads the next training step runs with, by what the steps before took."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StepThreads"]

FIRST_PAUSE_S = 4.0
"""Until a slower number of threads gets another step."""
LONGEST_PAUSE_S = 60.0
HOPELESS = 2.0
"""A step this much slower than the best, and the pause is doubled."""


class StepThreads:
    """Chooses among numbers of threads while the machine's other work comes and goes.

    PyTorch's threads wait for each other in a busy loop after each operator. Where something else
    runs on a core, a step with one thread per core can take a hundred times as long as with one,
    and a choice made once, or on smaller work, is soon wrong.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        """Choose among `counts`; the first is tried first.

        Raises:
            ValueError: There are none.
        """
        if not counts:
            raise ValueError("counts must hold at least one number of threads")
        self._counts = tuple(counts)
        self._seconds: dict[int, float] = {}
        self._again: dict[int, float] = {}
        self._pauses: dict[int, float] = {}

    def next(self, now: float) -> int:
        """The number for the step that begins at `now`, in seconds of any clock."""
        for count in self._counts:
            if count not in self._seconds:
                return count
        best = self.best
        due = [n for n in self._counts if n != best and self._again[n] <= now]
        return due[0] if due else best

    @property
    def best(self) -> int:
        """The number whose last step was the quickest, the first of `counts` before any."""
        return min(self._counts, key=lambda n: self._seconds.get(n, float("inf")))

    def record(self, count: int, seconds: float, now: float) -> None:
        """Tell how long a step with `count` threads took, which ended at `now`."""
        self._seconds[count] = seconds
        hopeless = seconds > HOPELESS * self._seconds[self.best]
        pause = 2 * self._pauses.get(count, FIRST_PAUSE_S) if hopeless else FIRST_PAUSE_S
        self._pauses[count] = min(pause, LONGEST_PAUSE_S)
        self._again[count] = now + self._pauses[count]
