from __future__ import annotations

import io
import json
import sys

import pytest

from causal_onnx.cli.console import Console, json_text, plain_table, printable
from causal_onnx.cli.estimate import Estimate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_tables_align_text_left_and_numbers_right() -> None:
    table = plain_table(["name", "n"], [["a", "1"], ["long name", "10"]], numbers=1)
    assert table == "  name        n\n  a           1\n  long name  10"


def test_rich_tables_hold_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    Console(use_rich=True).table(["shape", "n"], [["[2] (1, [bold]3)", "7"]], numbers=1)
    assert "[2] (1, [bold]3)" in out.getvalue()  # not taken for markup
    assert "\x1b[2m" in out.getvalue()  # the dim header


def test_pipes_get_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["a"], [["1"]])
    Console().heading("title")
    assert capsys.readouterr().out == "  a\n  1\n\ntitle\n"


def test_a_terminal_without_rich_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setitem(sys.modules, "rich", None)
    Console().table(["a"], [["1"]])
    assert out.getvalue() == "  a\n  1\n"


@pytest.mark.parametrize("use_rich", [True, False])
def test_progress_shows_the_step_and_clears_itself(
    use_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if use_rich:
        pytest.importorskip("rich")
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Console(use_rich=use_rich).progress() as tell:
        tell("compare", 0.5)
    assert "compare" in err.getvalue()
    assert err.getvalue().endswith(("\r", "\x1b[2K"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("use_rich", [True, False])
def test_a_terminal_shows_how_far_all_steps_are_and_what_is_left(
    use_rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if use_rich:
        pytest.importorskip("rich")
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm-256color")
    estimate = Estimate({"capture": 300.0, "compare": 300.0})
    with Console(use_rich=use_rich).progress(estimate) as tell:
        tell("compare", 0.5)
    assert "about 2 min left" in err.getvalue()
    assert ("75% of all" in err.getvalue()) is not use_rich
    assert estimate.share_done == pytest.approx(0.75, abs=0.01)


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress() as tell:
        tell("compare", 0.5)
    assert capsys.readouterr().err == ""


def test_a_line_a_step_is_printed_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Console().progress(Estimate({})) as tell:
        for step, fraction in (("probe", 0.0), ("compare", 0.1), ("compare", 0.5)):
            tell(step, fraction)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["probe", "compare", "done"]


def test_pairs_keep_lines_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    Console().pairs([("a", "one\ntwo"), ("long", "x")])
    assert capsys.readouterr().out == "  a     one\n        two\n  long  x\n"


def test_json_is_strict() -> None:
    said = json_text({"a": float("inf"), "b": [float("nan"), 1.5], 3: ("x",)})
    assert json.loads(said) == {"a": None, "b": [None, 1.5], "3": ["x"]}


def test_printable_shows_control_characters() -> None:
    assert printable("a\x1b[31mb\r\u202e\nc ä") == "a\\x1b[31mb\\r\\u202e\nc ä"
