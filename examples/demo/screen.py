"""What the demo prints: sections, lines, tables, and a bar on every step that takes long.

On a terminal the bars move; elsewhere (a file, a pipe, CI) each becomes a few plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["Screen", "Update"]

LABEL_WIDTH = 10

Update = Callable[[float, str], None]
"""Called with the share done, 0.0 to 1.0, and a few words on what is going on."""

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal: one line per step and this long, so that a log shows signs of life."""


class Screen:
    """Prints to `file`, or to stdout where that is None."""

    def __init__(self, file: IO[str] | None = None) -> None:
        # highlight=False: rich would colour numbers and paths inside text at its own choice.
        # Without a terminal nothing is wrapped: logs are searched by line.
        self._console = Console(file=file, highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal

    def section(self, title: str) -> None:
        """Start a part of the output."""
        if self.is_terminal:
            self._console.print()
            self._console.rule(Text(title, style="bold"), align="left", style="cyan")
        else:
            self.line()
            self.line(f"== {title}")

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """Print text as it is; square brackets mean nothing."""
        self._console.print(text, style=style, markup=False)

    def fact(self, label: str, text: str, *, passed: bool | None = None) -> None:
        """Print what was found under a label.

        Args:
            label: A word or two.
            text: What was found.
            passed: Shown as a green or a red sign; None: nothing was judged.
        """
        sign = {True: ("✓ ", "green"), False: ("✗ ", "bold red"), None: ("", "")}[passed]
        parts = Text.assemble(("  " + label.ljust(LABEL_WIDTH), "dim"), sign, text)
        self._console.print(parts)

    def block(self, text: str, *, indent: int = 2) -> None:
        """Print several lines, indented."""
        for line in text.splitlines():
            self.line(" " * indent + line)

    def write(self, text: str, *, style: str | None = None) -> None:
        """Print text without ending the line, and hand it over before another process writes."""
        self._console.print(text, style=style, markup=False, end="")
        self._console.file.flush()

    @contextmanager
    def step(self, title: str) -> Iterator[Update]:
        """Show progress while the block runs, and how long it took when it is done."""
        start = time.monotonic()
        if self.is_terminal:
            yield from self._bar(title)
        else:
            yield from self._lines(title)
        self.line(f"  done  {title} ({time.monotonic() - start:.1f} s)", style="dim")

    def _bar(self, title: str) -> Iterator[Update]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False, style="dim"),
        )
        # transient: the finished bar gives way to the line that `step` prints.
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=1.0, words="")
            yield lambda share, words: progress.update(task, completed=share, words=words)

    def _lines(self, title: str) -> Iterator[Update]:
        self.line(f"  ...   {title}")
        last = time.monotonic()

        def update(share: float, words: str) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.line(f"  {share:>4.0%}  {title}  {words}")

        yield update
