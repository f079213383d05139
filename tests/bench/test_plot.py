from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bench.attention.chart import draw
from bench.plot import Panel, Point, Series, render
from tests.bench.sections import section, time_row

NAMESPACE = "{http://www.w3.org/2000/svg}"


def point(x: float, y: float) -> Point:
    return Point(x=x, y=y, low=y, high=y)


def chart_of(*points: Point) -> ElementTree.Element:
    series = Series(title="<ours & theirs>", color="#000", is_main=True, points=points)
    text = render([Panel(title="panel", series=[series])], x_label="x", y_label="y", baseline="one")
    return ElementTree.fromstring(text)


def dots(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    found = []
    for dot in root.iter(f"{NAMESPACE}circle"):
        found.append((float(dot.attrib["cx"]), float(dot.attrib["cy"]), dot.attrib["fill"]))
    return found


def test_twice_as_much_is_as_far_up_everywhere() -> None:
    (x1, y1, _), (x2, y2, _), (x3, y3, _) = dots(chart_of(point(1, 1), point(4, 2), point(16, 4)))
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2  # SVG counts downwards
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)


def test_what_lies_beyond_the_axis_is_hollow_at_the_edge() -> None:
    root = chart_of(point(1, 0.001), point(2, 1.0), point(4, 5000.0))
    (_, bottom, low), (_, _, inside), (_, top, high) = dots(root)
    assert (low, inside, high) == ("#fff", "#000", "#fff")
    assert 0 < top < bottom < float(root.attrib["height"])


def test_titles_are_text_not_markup() -> None:
    texts = [node.text for node in chart_of(point(1, 1)).iter(f"{NAMESPACE}text")]
    assert "<ours & theirs>" in texts


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        render([Panel(title="", series=[])], x_label="", y_label="", baseline="")


def test_what_has_no_logarithm_is_refused() -> None:
    with pytest.raises(ValueError, match="need positive values"):
        chart_of(point(1, 0.0))


def test_the_chart_has_a_panel_per_batch_and_threads() -> None:
    times = [
        row
        for batch in (1, 8)
        for threads in (1, 2)
        for row in (
            time_row("eager", {}, batch=batch, threads=threads),
            time_row("ours", {"eager": 0.5}, batch=batch, threads=threads),
        )
    ]
    root = ElementTree.fromstring(draw(section(times)))
    titles = [node.text for node in root.iter(f"{NAMESPACE}text") if "font-weight" in node.attrib]
    assert titles == [
        f"batch {batch}, {threads}"
        for batch in (1, 8)
        for threads in ("1 thread (processor time)", "2 threads (wall time)")
    ]
    assert len(dots(root)) == 4


def test_labels_of_the_axis_keep_apart() -> None:
    texts = [
        (float(node.attrib["x"]), node.text or "")
        for node in chart_of(*(point(2.0**n, 1.0) for n in range(14))).iter(f"{NAMESPACE}text")
        if (node.text or "").isdigit() and "x" in node.attrib and float(node.attrib["x"]) > 47
    ]
    texts.sort()
    assert texts[-1][1] == "8192"
    for (left, first), (right, second) in pairwise(texts):
        assert right - left >= 7 * (len(first) + len(second) + 2) / 2
