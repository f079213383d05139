"""A line that tells how far a run is: rewritten on a terminal, one per task elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Counts tasks."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._rewrites = self._stream.isatty()
        self._done = 0
        self._started = time.monotonic()

    def step(self, what: str) -> None:
        """One more task is done."""
        self._done += 1
        passed = time.monotonic() - self._started
        left = passed / self._done * (self._total - self._done)
        width = len(str(self._total))
        text = f"[{self._done:>{width}}/{self._total}] {_clock(left)} left  {what}"
        if self._rewrites:
            columns = shutil.get_terminal_size().columns - 1
            end = "\n" if self._done == self._total else ""
            print(f"\r\x1b[K{text[:columns]}", end=end, file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
