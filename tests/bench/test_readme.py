from __future__ import annotations

from pathlib import Path

import pytest

from bench.client import ROOT
from bench.readme import replace_between_markers, rewrite_page

PAGE = "# Title\n\nBefore.\n<!-- times: begin -->\nold\n<!-- times: end -->\nAfter.\n"


def test_only_what_is_between_the_markers_changes() -> None:
    new = replace_between_markers(PAGE, "times", "| new |", where="page")
    begin, end = "<!-- times: begin -->", "<!-- times: end -->"
    assert new.partition(begin)[0] == PAGE.partition(begin)[0]
    assert new.partition(end)[2] == PAGE.partition(end)[2]
    assert "| new |" in new
    assert "old" not in new


def test_writing_the_same_again_changes_nothing() -> None:
    once = replace_between_markers(PAGE, "times", "| new |", where="page")
    assert replace_between_markers(once, "times", "| new |", where="page") == once


def test_sections_do_not_touch_each_other() -> None:
    page = PAGE + PAGE.replace("times", "decoding")
    new = replace_between_markers(page, "decoding", "| new |", where="page")
    assert new.startswith(PAGE)
    assert new.count("old") == 1


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no markers", r"page must hold the marker <!-- times: begin --> exactly once, found 0"),
        (PAGE + PAGE, r"exactly once, found 2"),
        (PAGE.replace("end", "finish"), r"<!-- times: end --> exactly once, found 0"),
        ("<!-- times: end -->\n<!-- times: begin -->", r"before <!-- times: begin -->; swap them"),
    ],
    ids=["none", "twice", "no end", "reversed"],
)
def test_damaged_markers_are_refused(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_between_markers(page, "times", "new", where="page")


def test_a_page_with_damaged_markers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        rewrite_page(path, "times", "new")
    assert path.read_text() == "no markers"


def test_the_page_of_the_bench_can_be_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text((ROOT / "bench" / "README.md").read_text())
    rewrite_page(path, "attention", "| figures |")
    assert "| figures |" in path.read_text()
