"""Draw lines over two axes as SVG, which the style of the page or document around it colours.

Classes: `grid` and `tick` of the axes; `line`, `spread` and `dot` of a series, beside its own;
`hollow` of a dot that stands for a value beyond the axis; `value` of a number beside a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from causal_onnx.cli.markup import Markup, element

__all__ = ["Axis", "Frame", "Point", "document", "latency_chart", "line_chart"]

DIGIT, LINE = 7.0, 12.0
"""Width and height that a digit of a number takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A value of y at a value of x."""

    x: float
    y: float
    note: str | None = None
    """What is shown when it is pointed at."""
    spread: tuple[float, float] | None = None
    """Values of y that a vertical line joins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What an axis spans, and the values that are marked on it."""

    low: float
    high: float
    """Above `low`, or the same: then all values lie in the middle."""
    ticks: Sequence[float]
    text: Callable[[float], str] = "{:g}".format
    is_log: bool = True

    def part(self, value: float) -> float:
        """Where a value lies, 0 to 1; what is beyond an end lies at it."""
        if self.low == self.high:
            return 0.5
        inside = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A drawing with two axes: its size and margins, in SVG units, and what the axes span."""

    x: Axis
    y: Axis
    width: int = 440
    height: int = 250
    left: int = 52
    right: int = 20
    top: int = 22
    bottom: int = 38

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point."""
        across, up = self.width - self.left - self.right, self.height - self.top - self.bottom
        return (
            round(self.left + self.x.part(x) * across, 1),
            round(self.height - self.bottom - self.y.part(y) * up, 1),
        )

    def rule(self, y: float, kind: str) -> Markup:
        """A horizontal line through the whole drawing."""
        _, place = self.at(self.x.low, y)
        right = self.width - self.right
        return element("line", x1=self.left, x2=right, y1=place, y2=place, class_=kind)

    def axes(self, x_label: str = "") -> list[Markup]:
        """Lines for the marked values of y, marks for those of x, and their numbers where they fit.

        Args:
            x_label: Under the numbers of x.
        """
        parts = []
        for value in self.y.ticks:
            _, y = self.at(self.x.low, value)
            parts.append(self.rule(value, "grid"))
            text = self.y.text(value)
            parts.append(element("text", text, x=self.left - 8, y=y + 4, text_anchor="end"))
        foot = self.height - self.bottom
        taken = math.inf
        for value in sorted(self.x.ticks, reverse=True):  # the last one always has its number
            x, _ = self.at(value, self.y.low)
            parts.append(element("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="tick"))
            text = self.x.text(value)
            half = len(text) * DIGIT / 2
            if x + half + DIGIT <= taken:
                parts.append(element("text", text, x=x, y=foot + 16, text_anchor="middle"))
                taken = x - half
        middle = (self.left + self.width - self.right) / 2
        if x_label:
            parts.append(element("text", x_label, x=middle, y=foot + 34, text_anchor="middle"))
        return parts

    def series(self, points: Sequence[Point], kind: str = "", *, radius: float = 4) -> list[Markup]:
        """A line through the points, in their order.

        Args:
            points: Without any, nothing is drawn.
            kind: A class of all its elements.
            radius: Of its dots.
        """
        places = [self.at(point.x, point.y) for point in points]
        parts = []
        if len(places) > 1:
            path = " ".join(f"{x},{y}" for x, y in places)
            parts.append(element("polyline", points=path, class_=f"line {kind}".strip()))
        for point, (x, y) in zip(points, places, strict=True):
            if point.spread is not None:
                (_, y1), (_, y2) = (self.at(point.x, value) for value in point.spread)
                parts.append(element("line", x1=x, x2=x, y1=y1, y2=y2, class_=f"spread {kind}"))
            title = None if point.note is None else element("title", point.note)
            hollow = "" if self.y.low <= point.y <= self.y.high else " hollow"
            dot = f"dot {kind}".strip() + hollow
            parts.append(element("circle", title, cx=x, cy=y, r=radius, class_=dot))
        return parts

    def svg(self, *parts: Markup, label: str, **attributes: str | float) -> Markup:
        """The whole drawing.

        Args:
            *parts: What is in it.
            label: For those who do not see it.
            **attributes: More of its element, such as its place in a larger one.
        """
        box = f"0 0 {self.width} {self.height}"
        return element("svg", *parts, viewBox=box, role="img", aria_label=label, **attributes)


GROUND = """
.ground { fill: #fff }
.value { stroke: #fff }
.hollow { fill: #fff }
@media (prefers-color-scheme: dark) {
  .ground { fill: #131416 }
  .value { stroke: #131416 }
  .hollow { fill: #131416 }
}
"""
"""Whatever has the colour of the ground, on light and on dark pages."""


def document(*parts: Markup, width: float, height: float, style: str) -> str:
    """A file of its own, with nothing in it but shapes and text.

    Args:
        *parts: What is in it.
        width: In pixels.
        height: In pixels.
        style: CSS; for a dark page it gives `text` and its own classes other colours. The ground,
            and the halo of text on it, are drawn here.
    """
    svg = element(
        "svg",
        # Not escaped as text would be: a style holds no words of a file.
        Markup(f"<style>{style}{GROUND}</style>"),
        element("rect", width=width, height=height, class_="ground"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )
    return f"{svg}\n"


def latency_chart(
    points: Sequence[tuple[int, float]], *, x_label: str, **attributes: float
) -> Markup:
    """A line through the median milliseconds of each length; see `line_chart`."""
    summary = ", ".join(f"{seq}: {_time_text(ms)}" for seq, ms in points)
    return line_chart(
        points,
        x_label=x_label,
        text=_time_text,
        told=lambda seq, ms: f"length {seq}: median {_time_text(ms)}",
        summary=f"Median time of one call by length: {summary}",
        **attributes,
    )


def line_chart(
    points: Sequence[tuple[int, float]],
    *,
    x_label: str,
    text: Callable[[float], str],
    told: Callable[[int, float], str],
    summary: str,
    **attributes: float,
) -> Markup:
    """A line with the value beside each point, both axes logarithmic.

    Args:
        points: (x, y), at least one, y above 0; in the order of x. An x of 0 stands where 1/2 is.
        x_label: Under the axis.
        text: Writes a value of y.
        told: Writes what is said of a point when it is pointed at.
        summary: For those who do not see the drawing.
        **attributes: Where it stands in a larger drawing.
    """
    shown = [Point(x=x or 0.5, y=y, note=told(x, y)) for x, y in points]
    xs, ys = [point.x for point in shown], [point.y for point in shown]
    low = math.floor(math.log10(min(ys)))
    high = max(math.ceil(math.log10(max(ys))), low + 1)
    decades = [10.0**power for power in range(low, high + 1)]
    frame = Frame(
        x=Axis(low=xs[0], high=xs[-1], ticks=xs, text=lambda x: f"{x if x >= 1 else 0:.0f}"),
        y=Axis(low=decades[0], high=decades[-1], ticks=decades, text=text),
    )
    values: list[Markup] = []
    end, before = -math.inf, 0.0
    for point in shown:
        x, y = frame.at(point.x, point.y)
        words = text(point.y)
        width = len(words) * DIGIT
        # Kept inside the drawing at both ends.
        is_first, is_last = x < frame.left + 24, x > frame.width - frame.right - 24
        anchor, part = ("start", 0.0) if is_first else ("end", 1.0) if is_last else ("middle", 0.5)
        start = x - part * width
        if start >= end or abs(y - before) >= LINE:  # else it would lie on the one before
            values.append(element("text", words, x=x, y=y - 9, text_anchor=anchor, class_="value"))
            end, before = start + width, y
    return frame.svg(
        *frame.axes(x_label), *frame.series(shown), *values, label=summary, **attributes
    )


def _time_text(value: float) -> str:
    """Milliseconds in the unit that leaves few digits."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 0.1 else f"{value * 1000:.3g} µs"
