from __future__ import annotations

import io

import pytest

from examples.demo import screen as screen_module
from examples.demo.screen import Screen


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_plain_lines_only() -> None:
    file = io.StringIO()
    screen = Screen(file)
    screen.section("Part [one]")
    with screen.step("work") as update:
        update(0.5, "half")
    screen.line("[bold]shown as it is[/bold] " + "x" * 200)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert "== Part [one]\n" in text
    assert "[bold]shown as it is[/bold] " + "x" * 200 in text
    assert "done  work" in text


def test_without_a_terminal_long_steps_show_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_module, "SECONDS_BETWEEN_LINES", 0.0)
    file = io.StringIO()
    with Screen(file).step("work") as update:
        update(0.25, "a quarter")
    assert "25%  work  a quarter" in file.getvalue()


def test_on_a_terminal_a_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = FakeTerminal()
    screen = Screen(file)
    assert screen.is_terminal
    with screen.step("work") as update:
        update(0.5, "half")
    assert "\x1b[" in file.getvalue()
    assert "50%" in file.getvalue()


def test_a_step_that_fails_does_not_say_done() -> None:
    file = io.StringIO()
    with pytest.raises(OSError, match="disk full"), Screen(file).step("work"):
        raise OSError("disk full")
    assert "done" not in file.getvalue()
