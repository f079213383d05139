"""Print results for people and for scripts: tables, lists, JSON, progress.

Results go to stdout, everything else to stderr. On a terminal, tables and progress are drawn with
rich where it is installed; without it, and in pipes and files, they are plain text.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from causal_onnx.cli.estimate import Estimate

__all__ = ["Console", "Progress", "json_text", "plain_table", "printable"]

Progress = Callable[[str, float], None]
"""Called with the name of a step and how much of it is done, 0.0 to 1.0."""


class Console:
    """Where a command writes to.

    Args:
        use_rich: Draw with rich; None: where it is installed and the stream is a terminal.
    """

    def __init__(self, *, use_rich: bool | None = None) -> None:
        self._use_rich = use_rich
        self.has_json = False
        """Whether a JSON document was written: stdout holds one at most."""

    def print(self, text: str = "") -> None:
        """Write a line, or several, of the result."""
        print(printable(text))

    def write(self, text: str) -> None:
        """Write a piece of a line of the result, at once.

        As it is where no terminal could obey it, for a script wants it unchanged.
        """
        whole = printable(text, kept="\n\t") if self._is_terminal(sys.stdout) else text
        sys.stdout.write(whole)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Write a line that is not part of the result, to stderr."""
        print(printable(text), file=sys.stderr)

    def json(self, document: Any) -> None:
        """Write the result as JSON."""
        self.has_json = True
        print(json_text(document))

    def heading(self, text: str) -> None:
        """Write the title of what follows, with an empty line before it."""
        if self._rich(sys.stdout):
            from rich.console import Console as RichConsole
            from rich.text import Text

            RichConsole(file=sys.stdout, soft_wrap=True).print(Text(f"\n{printable(text)}", "bold"))
        else:
            print(f"\n{printable(text)}")

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write a list of names and values, the values below each other."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            first, *more = printable(value).split("\n")
            print(f"  {printable(name):<{width}}  {first}".rstrip())
            for line in more:
                print(f"  {'':<{width}}  {line}".rstrip())

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0
    ) -> None:
        """Write a table.

        Args:
            headers: One per column.
            rows: Cells as text, as many as headers.
            numbers: How many of the last columns hold numbers; they are aligned to the right.
        """
        clean = [[printable(cell) for cell in row] for row in rows]
        if not self._rich(sys.stdout):
            print(plain_table(headers, clean, numbers=numbers))
            return
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=True, header_style="dim", padding=(0, 1))
        for index, header in enumerate(headers):
            right = index >= len(headers) - numbers
            table.add_column(Text(header), justify="right" if right else "left", overflow="fold")
        for row in clean:
            # As Text, or rich would take "[2]" in a shape for its markup.
            table.add_row(*(Text(cell) for cell in row))
        RichConsole(file=sys.stdout).print(table)

    @contextlib.contextmanager
    def progress(self, estimate: Estimate | None = None) -> Iterator[Progress]:
        """Show how far a long step is, on stderr.

        Args:
            estimate: Of all steps: a terminal shows how far they are together and how long the
                rest takes, and where there is none, each step is a line. None: the step alone is
                shown, and that in a terminal only.
        """
        if not self._is_terminal(sys.stderr):
            if estimate is None:
                yield lambda step, fraction: None
            else:
                with _line_progress(sys.stderr) as tell:
                    yield tell
        elif self._rich(sys.stderr):
            with _rich_progress(estimate) as tell:
                yield tell
        else:
            with _plain_progress(sys.stderr, estimate) as tell:
                yield tell

    def _rich(self, stream: TextIO) -> bool:
        if self._use_rich is not None:
            return self._use_rich
        return self._is_terminal(stream) and importlib.util.find_spec("rich") is not None

    @staticmethod
    def _is_terminal(stream: TextIO) -> bool:
        return stream.isatty()


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> str:
    """A table as text: columns two spaces apart, the last `numbers` of them to the right."""
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    first_number = len(headers) - numbers
    lines = []
    for row in table:
        cells = [
            f"{cell:>{width}}" if column >= first_number else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def printable(text: str, *, kept: str = "\n") -> str:
    """`text` with control characters shown as escapes, but for those in `kept`.

    Names and notes come out of files that others wrote; a terminal would obey what is in them.
    """
    return "".join(
        char if char in kept or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def json_text(document: Any) -> str:
    """`document` as JSON that every parser reads: infinities and NaN become null."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=True, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def _rich_progress(estimate: Estimate | None) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )
    from rich.text import Text

    class Left(ProgressColumn):
        """Drawn ten times a second, so that it goes on within a step that says nothing."""

        def render(self, task: Task) -> Text:
            assert estimate is not None
            task.completed = estimate.share_done
            return Text(str(estimate))

    shown = TextColumn("{task.description:<12}")
    left = (TextColumn("left"), TimeRemainingColumn()) if estimate is None else (Left(),)
    columns = (shown, BarColumn(), TimeElapsedColumn(), *left)
    console = RichConsole(file=sys.stderr)
    with RichProgress(*columns, console=console, transient=True) as bar:
        task, current = bar.add_task("", total=1.0), ""

        def tell(step: str, fraction: float) -> None:
            nonlocal current
            if estimate is not None:
                estimate.tell(step, fraction)
                bar.update(task, description=step)
                return
            if step != current:  # what is left is left of the step
                current = step
                bar.reset(task, description=step)
            bar.update(task, completed=fraction)

        yield tell


@contextlib.contextmanager
def _line_progress(stream: TextIO) -> Iterator[Progress]:
    """A line for each step as it begins, and one at the end, with the seconds since the first."""
    started, current = time.monotonic(), ""

    def line(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=stream, flush=True)

    def tell(step: str, fraction: float) -> None:
        nonlocal current
        if step != current:
            current = step
            line(step)

    yield tell
    line("done")


@contextlib.contextmanager
def _plain_progress(stream: TextIO, estimate: Estimate | None) -> Iterator[Progress]:
    longest = 0

    def tell(step: str, fraction: float) -> None:
        nonlocal longest
        line = f"{step} {fraction:.0%}" if 0 < fraction < 1 else step
        if estimate is not None:
            estimate.tell(step, fraction)
            line = f"{step}, {estimate.share_done:.0%} of all, {estimate}"
        stream.write(f"\r{line:<{longest}}")
        stream.flush()
        longest = max(longest, len(line))

    try:
        yield tell
    finally:
        stream.write(f"\r{'':<{longest}}\r")
        stream.flush()
