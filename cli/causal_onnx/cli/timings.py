"""What each step of a long command took: processor time, wall time, and the most memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["StepTime", "StepTimes", "timings_table"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One step."""

    step: str
    processor_s: float
    wall_s: float
    peak_bytes: int | None
    """Most memory of the process during the step; None: the system does not tell."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class StepTimes:
    """Notes what passes between the calls that a long function makes to say how far it is.

    Give it to the function as its `progress`. The peak is the process's, which Linux can set back:
    nobody else in the process should read it meanwhile.
    """

    def __init__(self, then: Callable[[str, float], None] | None = None) -> None:
        """Note the steps and pass each call on to `then`."""
        self._then = then
        self._found: dict[str, StepTime] = {}
        self._step: str | None = None
        self._begin()

    def __call__(self, step: str, fraction: float) -> None:
        """Note that `step` goes on, or begins."""
        if step != self._step:
            self._end()
            self._step = step
            self._begin()
        if self._then is not None:
            self._then(step, fraction)

    def finish(self) -> tuple[StepTime, ...]:
        """The steps so far, in the order of their beginnings; one that came twice is one."""
        self._end()
        self._step = None
        return tuple(self._found.values())

    def _begin(self) -> None:
        _reset_peak()
        self._processor, self._wall = time.process_time(), time.perf_counter()

    def _end(self) -> None:
        if self._step is None:
            return
        peak = _peak_bytes()
        earlier = self._found.get(self._step)
        processor = time.process_time() - self._processor
        wall = time.perf_counter() - self._wall
        if earlier is not None:
            processor, wall = processor + earlier.processor_s, wall + earlier.wall_s
            peak = None if peak is None else max(peak, earlier.peak_bytes or 0)
        self._found[self._step] = StepTime(
            step=self._step, processor_s=processor, wall_s=wall, peak_bytes=peak
        )


def timings_table(steps: Sequence[StepTime]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, the last of them for all steps together."""
    known = [step.peak_bytes for step in steps if step.peak_bytes is not None]
    whole = StepTime(
        step="all",
        processor_s=sum(step.processor_s for step in steps),
        wall_s=sum(step.wall_s for step in steps),
        peak_bytes=max(known) if known else None,
    )
    headers = ["step", "processor, s", "wall, s", "peak memory, MB"]
    return headers, [
        [
            step.step,
            f"{step.processor_s:.1f}",
            f"{step.wall_s:.1f}",
            "?" if step.peak_bytes is None else f"{step.peak_bytes / 1e6:.0f}",
        ]
        for step in (*steps, whole)
    ]


def _reset_peak() -> None:
    """Let the peak begin again from what is held now; see proc_pid_clear_refs(5), value 5."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak is then that of the process so far


def _peak_bytes() -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found.split()[1]) * 1024
