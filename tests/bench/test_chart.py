from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.attention.chart import draw
from bench.attention.section import Section, TimeRow
from bench.client import ROOT
from bench.results import read_results
from tests.bench.sections import section, time_row

NAMESPACE = "{http://www.w3.org/2000/svg}"


def rows(batch: int = 1, threads: int = 1, ratio: float = 0.5) -> list[TimeRow]:
    return [
        time_row("eager", {}, batch=batch, threads=threads),
        time_row("ours", {"eager": ratio}, batch=batch, threads=threads),
    ]


def test_the_chart_has_a_panel_per_batch_and_threads() -> None:
    times = [row for batch in (1, 8) for threads in (1, 2) for row in rows(batch, threads)]
    root = ElementTree.fromstring(draw(section(times)))
    titles = [node.text for node in root.iter(f"{NAMESPACE}text") if "class" in node.attrib]
    assert titles == [
        f"batch {batch}, {threads}"
        for batch in (1, 8)
        for threads in ("1 thread (processor time)", "2 threads (wall time)")
    ]
    dots = [dot.attrib["class"] for dot in root.iter(f"{NAMESPACE}circle")]
    assert dots == ["dot ours main"] * 4


def test_what_is_sixteen_times_slower_is_drawn_hollow() -> None:
    root = ElementTree.fromstring(draw(section(rows(ratio=99.0))))
    assert [dot.attrib["class"] for dot in root.iter(f"{NAMESPACE}circle")] == [
        "dot ours main hollow"
    ]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        draw(section([]))


def test_what_has_no_logarithm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need positive values, got 0\.0"):
        draw(section(rows(ratio=0.0)))


def test_the_chart_of_the_page_is_that_of_its_figures() -> None:
    figures = Section.from_dict(read_results(ROOT / "bench" / "results.json")["attention"])
    assert (ROOT / "bench" / "results.svg").read_text(encoding="utf-8") == draw(figures)
