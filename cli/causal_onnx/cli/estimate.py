"""How long an export takes: what its steps cost by the size of the model, and how fast this one is.

What a step costs grows slower than the weights: capturing goes by the number of layers, comparing
by their width too. The figures were measured on models of 4 to 730 MB; a run that is faster or
slower corrects the rest by what its finished steps took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["Estimate", "expected_seconds", "size_of_checkpoint"]

SECONDS = {
    "load": (0.01, 0.5),
    "probe": (0.3, 0.65),
    "capture": (3.6, 0.5),
    "compare": (0.4, 0.65),
    "cache": (0.45, 0.65),
    "drift": (0.2, 0.65),
    "causality": (0.07, 0.65),
    "proof": (0.12, 0.65),
    "write": (0.05, 0.65),
    "folder": (0.1, 0.65),
}
"""Of each step, in their order: seconds on two cores for weights of one megabyte, and the power of
the size by which they grow."""

PRIOR_S = 3.0
"""How many seconds of finished steps weigh as much as the table: the first steps are short, and
say little of the others."""

MOST = 0.95
"""How much of a step is taken as done, at most, while it still runs."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def expected_seconds(
    size_bytes: int, *, cache: bool, drift: bool, folder: bool
) -> dict[str, float]:
    """What the steps of an export take, in their order.

    Args:
        size_bytes: Of the weights.
        cache: The file gets a KV cache.
        drift: Its precision is lower than the module's, and what that costs is measured.
        folder: A model's folder is made of it.
    """
    megabytes = max(size_bytes / 1e6, 1.0)
    happens = {"cache": cache, "drift": drift, "folder": folder}
    return {
        step: seconds * megabytes**power
        for step, (seconds, power) in SECONDS.items()
        if happens.get(step, True)
    }


def size_of_checkpoint(place: Path) -> int:
    """Bytes of the weights in a folder, or of a file; 0 where there are none."""
    files = [place] if place.is_file() else place.glob("*") if place.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS and file.is_file())


class Estimate:
    """How far several steps are, and how long the rest takes.

    Args:
        expected: Seconds of each step, in the order of the steps; see `expected_seconds`.
        clock: Seconds, from any start.
    """

    def __init__(
        self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected = dict(expected)
        self._clock = clock
        self._step: str | None = None
        self._fraction = 0.0
        self._began = clock()
        self._took, self._planned = PRIOR_S, PRIOR_S

    def expect(self, expected: Mapping[str, float]) -> None:
        """Take other figures, once more is known of what is to be done."""
        self._expected = dict(expected)

    def tell(self, step: str, fraction: float) -> None:
        """A step is so far, 0.0 to 1.0; a step that begins ends the one before."""
        if step != self._step:
            now = self._clock()
            planned = self._expected.get(self._step or "", 0.0)
            if planned:
                self._planned += planned
                self._took += now - self._began
            self._step, self._began = step, now
        self._fraction = fraction

    @property
    def seconds_left(self) -> float:
        """For the rest of this step and all behind it."""
        return self._pace * (self._total - self._done)

    @property
    def share_done(self) -> float:
        """Of all the work, 0.0 to 1.0; less than before where a step is made again."""
        return self._done / self._total if self._total else 0.0

    def __str__(self) -> str:
        """What is left, in words: "12 s left", "about 3 min left"."""
        left = self.seconds_left
        if left < 90:
            return f"{max(left, 1):.0f} s left"
        return f"about {left / 60:.0f} min left"

    @property
    def _total(self) -> float:
        return sum(self._expected.values())

    @property
    def _planned_now(self) -> float:
        """Of the step that runs."""
        return self._expected.get(self._step or "", 0.0)

    @property
    def _pace(self) -> float:
        """Seconds of this run for one of the table: by the steps that ended, and one that should
        have."""
        pace, running = self._took / self._planned, self._clock() - self._began
        if not self._planned_now or running <= pace * self._planned_now:
            return pace
        return (self._took + running) / (self._planned + self._planned_now)

    @property
    def _done(self) -> float:
        """Seconds of the table that are done."""
        steps = list(self._expected)
        if self._step not in steps:
            return 0.0
        before = sum(self._expected[step] for step in steps[: steps.index(self._step)])
        # Some steps say nothing until they end.
        by_time = (self._clock() - self._began) / (self._pace * self._planned_now)
        return before + self._planned_now * max(self._fraction, min(by_time, MOST))
