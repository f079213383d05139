"""One line that says how far a long run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Counts steps of known cost; rewrites its line on a terminal, adds lines elsewhere."""

    def __init__(
        self,
        total_cost: float,
        steps: int,
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_cost = total_cost
        self._steps = steps
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._start = now()
        self._done_cost = 0.0
        self._step = 0
        self._label = ""
        self._live = self._stream.isatty()

    def begin(self, label: str) -> None:
        """Start the next step."""
        self._step += 1
        self._label = label
        if self._live:
            self.detail("")
        else:
            print(self._line(""), file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        """Say more about the step that runs, where lines can be rewritten."""
        if self._live:
            self._stream.write(f"\r\x1b[K{self._line(text)}")
            self._stream.flush()

    def end(self, cost: float) -> None:
        """Count the step as done."""
        self._done_cost += cost

    def note(self, text: str) -> None:
        """Say something that stays."""
        if self._live:
            self._stream.write("\r\x1b[K")
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the line."""
        self.note(f"done in {_minutes(self._now() - self._start)}")

    def _line(self, text: str) -> str:
        elapsed = self._now() - self._start
        line = f"[{self._step}/{self._steps}] {self._label}"
        if text:
            line += f", {text}"
        if self._done_cost > 0:
            left = elapsed * (self._total_cost - self._done_cost) / self._done_cost
            line += f"  ({_minutes(elapsed)} gone, about {_minutes(left)} left)"
        return line


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
