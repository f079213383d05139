from __future__ import annotations

import io

from bench.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_every_step_is_a_line_with_the_time_left() -> None:
    stream, times = io.StringIO(), iter([0.0, 1.0, 30.0, 90.0])
    progress = Progress(100.0, 2, stream=stream, now=lambda: next(times))
    progress.begin("first")
    progress.detail("round 1")
    progress.end(25.0)
    progress.begin("second")
    progress.end(75.0)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "[1/2] first",
        "[2/2] second  (0:30 gone, about 1:30 left)",
        "done in 1:30",
    ]


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    stream = Terminal()
    progress = Progress(2.0, 2, stream=stream, now=lambda: 0.0)
    progress.begin("first")
    progress.detail("round 1")
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K[1/2] first, round 1")
    progress.note("left out: too large")
    assert stream.getvalue().endswith("\r\x1b[Kleft out: too large\n")
