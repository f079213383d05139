from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from causal_onnx.cli.chart import Axis, Frame, Point, document, line_chart
from causal_onnx.cli.markup import element

NAMESPACE = "{http://www.w3.org/2000/svg}"

TWOS = [2.0**power for power in range(-4, 14)]


def chart_of(*points: Point, is_log: bool = True) -> ElementTree.Element:
    frame = Frame(
        x=Axis(low=1, high=8192, ticks=[point.x for point in points], is_log=is_log),
        y=Axis(low=1 / 16, high=16, ticks=TWOS[:9], is_log=is_log),
    )
    svg = frame.svg(*frame.axes("<x & y>"), *frame.series(points, "ours"), label="chart")
    return ElementTree.fromstring(document(svg, width=440, height=250, style=""))


def dots(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    found = root.iter(f"{NAMESPACE}circle")
    return [(float(d.attrib["cx"]), float(d.attrib["cy"]), d.attrib["class"]) for d in found]


def texts(root: ElementTree.Element, kind: str | None = None) -> list[tuple[float, str]]:
    """Where the texts of a class, or of none, stand."""
    found = [node for node in root.iter(f"{NAMESPACE}text") if node.get("class") == kind]
    return [(float(node.attrib["x"]), node.text or "") for node in found]


def test_twice_as_much_is_as_far_up_everywhere() -> None:
    (x1, y1, _), (x2, y2, _), (x3, y3, _) = dots(
        chart_of(*(Point(x=x, y=y) for x, y in ((1, 1), (4, 2), (16, 4))))
    )
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2  # SVG counts downwards
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)


def test_on_linear_axes_as_much_more_is_as_far_up_everywhere() -> None:
    (x1, y1, _), (x2, y2, _), (x3, y3, _) = dots(
        chart_of(*(Point(x=100 * n, y=4 * n) for n in (1, 2, 3)), is_log=False)
    )
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)


def test_what_lies_beyond_the_axis_is_hollow_at_the_edge() -> None:
    root = chart_of(*(Point(x=x, y=y) for x, y in ((1, 0.001), (2, 1.0), (4, 5000.0))))
    (_, bottom, low), (_, _, inside), (_, top, high) = dots(root)
    assert (low, inside, high) == ("dot ours hollow", "dot ours", "dot ours hollow")
    assert 0 < top < bottom < float(root.attrib["height"])


def test_a_spread_joins_its_values_through_the_point() -> None:
    root = chart_of(Point(x=2, y=1.0, spread=(0.5, 4.0)))
    (line,) = (one for one in root.iter(f"{NAMESPACE}line") if one.get("class") == "spread ours")
    ((x, y, _),) = dots(root)
    assert float(line.attrib["x1"]) == float(line.attrib["x2"]) == x
    assert float(line.attrib["y1"]) > y > float(line.attrib["y2"])


def test_labels_are_text_not_markup() -> None:
    assert "<x & y>" in [text for _, text in texts(chart_of(Point(x=1, y=1)))]


def test_labels_of_the_axis_keep_apart() -> None:
    root = chart_of(*(Point(x=2.0**n, y=1.0) for n in range(14)))
    found = sorted(one for one in texts(root) if one[1].isdigit() and one[0] >= 52)
    assert found[-1][1] == "8192"
    assert 5 < len(found) < 14
    for (left, first), (right, second) in pairwise(found):
        assert right - left >= 7 * (len(first) + len(second) + 2) / 2


def drawn(*points: tuple[int, float]) -> ElementTree.Element:
    svg = line_chart(points, x_label="", text="{:g}".format, told="{}: {}".format, summary="")
    return ElementTree.fromstring(document(svg, width=440, height=250, style=""))


def test_values_stand_beside_their_points_and_not_on_one_another() -> None:
    root = drawn((0, 99_990.0), (1, 99_980.0), (64, 99_970.0), (1024, 1.0))
    assert [text for _, text in texts(root, "value")] == ["99990", "99970", "1"]
    assert len(dots(root)) == 4
    assert {"0", "1", "64", "1024"} <= {text for _, text in texts(root)}


def test_one_point_stands_in_the_middle() -> None:
    ((x, _, _),) = dots(drawn((7, 0.05)))
    assert x == (52 + 440 - 20) / 2


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    inner = element("i", "x & <y>")
    made = element("p", "<b>", inner, None, class_="a", aria_label='"<', id=None)
    assert made == ('<p class="a" aria-label="&quot;&lt;">&lt;b&gt;<i>x &amp; &lt;y&gt;</i></p>')
    assert element("input", checked=True, disabled=False) == "<input checked>"
