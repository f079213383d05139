"""The chart of the section: time over PyTorch eager's, by length; both axes are logarithmic."""

from __future__ import annotations

import math

from bench.attention.section import Section
from causal_onnx.cli.chart import Axis, Frame, Point, document
from causal_onnx.cli.markup import Markup, element

__all__ = ["draw"]

WIDTH, HEIGHT = 460, 300
LEGEND = 34
COLUMNS = 2

Y_LIMIT = 16.0
"""Values beyond it, or below one part in it, are drawn hollow at the edge."""

COLORS = {
    "ours": "#0072b2",
    "plain20": "#d55e00",
    "plain24": "#e69f00",
    "compile": "#009e73",
}
"""Told apart by colour-blind readers too (Okabe and Ito)."""
OTHER_COLOR = "#cc79a7"

STYLE = """
text { font: 11px sans-serif; fill: #333 }
.title { font-size: 13px; font-weight: bold }
.grid { stroke: #ddd }
.tick { stroke: #777 }
.baseline { stroke: #777; stroke-width: 1.5 }
.line { stroke-width: 1.3 }
.line.main { stroke-width: 2.5 }
.spread { stroke-width: 1 }
"""
DARK = """
@media (prefers-color-scheme: dark) {
  text { fill: #c9ccd1 }
  .grid { stroke: #3a3d42 }
  .tick, .baseline { stroke: #9a9ea5 }
  .ours { stroke: #56b4e9; fill: #56b4e9 }
  .line { fill: none }
}
"""


def draw(section: Section) -> str:
    """An SVG document with a panel per batch size and number of threads, on the same axes.

    Raises:
        ValueError: There is nothing to draw, or a ratio is not positive.
    """
    titles = {subject.name: subject.title for subject in section.subjects}
    others = [name for name in titles if name != section.reference]
    names = sorted(others, key=lambda name: name == section.ours)  # the last lies above the others
    found = {
        (batch, threads): {name: _points(section, name, batch, threads) for name in names}
        for batch, threads in sorted({(row.batch, row.threads) for row in section.times})
    }
    frame = _frame([point for panel in found.values() for own in panel.values() for point in own])
    panels = []
    for number, ((batch, threads), panel) in enumerate(found.items()):
        label = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        label += f" ({'processor' if threads == 1 else 'wall'} time)"
        parts = [*_around(frame, label, titles[section.reference])]
        for name, own in panel.items():
            is_main = name == section.ours
            kind = f"{name} main" if is_main else name
            parts += frame.series(own, kind, radius=3.2 if is_main else 2)
        row, column = divmod(number, COLUMNS)
        place = {"x": column * WIDTH, "y": row * HEIGHT + LEGEND, "width": WIDTH, "height": HEIGHT}
        panels.append(frame.svg(*parts, label=label, **place))
    colors = "".join(
        f".{name} {{ stroke: {color}; fill: {color} }}\n"
        for name in names
        for color in [COLORS.get(name, OTHER_COLOR)]
    )
    return document(
        *_legend(section),
        *panels,
        width=min(COLUMNS, len(panels)) * WIDTH,
        height=math.ceil(len(panels) / COLUMNS) * HEIGHT + LEGEND,
        style=f"{STYLE}{colors}.line {{ fill: none }}\n{DARK}",
    )


def _points(section: Section, name: str, batch: int, threads: int) -> list[Point]:
    points = []
    for row in section.times:
        if (row.subject, row.batch, row.threads) == (name, batch, threads):
            low, middle, high = row.ratios[section.reference]
            points.append(Point(x=row.seq, y=middle, spread=(low, high)))
    return sorted(points, key=lambda point: point.x)


def _frame(points: list[Point]) -> Frame:
    """Axes that hold all points, in powers of two, but for what is beyond `Y_LIMIT`."""
    spreads = [value for point in points for value in point.spread or ()]
    if not spreads:
        raise ValueError("expected at least one point to draw")
    if min(spreads) <= 0:
        raise ValueError(f"logarithmic axes need positive values, got {min(spreads)}")
    low = max(-math.log2(Y_LIMIT), min(-1, math.floor(math.log2(min(spreads)))))
    high = min(math.log2(Y_LIMIT), max(1, math.ceil(math.log2(max(spreads)))))
    powers = [2.0**power for power in range(int(low), int(high) + 1)]
    xs = sorted({point.x for point in points})
    return Frame(
        x=Axis(low=xs[0] / 1.3, high=xs[-1] * 1.3, ticks=xs),
        y=Axis(low=powers[0], high=powers[-1], ticks=powers, text=_fraction),
        width=WIDTH,
        height=HEIGHT,
        right=14,
        top=34,
        bottom=44,
    )


def _around(frame: Frame, label: str, reference: str) -> list[Markup]:
    """What stands around the lines of a panel, and the line of the reference."""
    middle = (frame.top + HEIGHT - frame.bottom) / 2
    return [
        element("text", label, x=frame.left, y=frame.top - 14, class_="title"),
        *frame.axes("length"),
        frame.rule(1.0, "baseline"),
        element(
            "text",
            f"time / {reference}",
            transform=f"translate(14 {middle}) rotate(-90)",
            text_anchor="middle",
        ),
    ]


def _fraction(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _legend(section: Section) -> list[Markup]:
    parts, x = [], 52.0
    for subject in section.subjects:
        main = " main" if subject.name == section.ours else ""
        kind = "baseline" if subject.name == section.reference else f"line {subject.name}{main}"
        parts.append(element("line", x1=x, x2=x + 20, y1=18, y2=18, class_=kind))
        parts.append(element("text", subject.title, x=x + 26, y=22))
        x += 26 + 6.2 * len(subject.title) + 20
    return parts
