"""Draw figures against sequence length as SVG, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from causal_onnx.cli.markup import Markup, element
from causal_onnx.cli.timing import Timing

__all__ = ["HEIGHT", "WIDTH", "latency_chart", "line_chart", "time_text"]

# In SVG units; the page scales the drawing to its width, so text stays in proportion.
WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 22, 38


def latency_chart(timings: Sequence[Timing]) -> Markup:
    """A line through the median time of each length, with its value beside each point."""
    points = [(timing.seq, timing.median_ms) for timing in timings]
    summary = ", ".join(f"{seq}: {time_text(ms)}" for seq, ms in points)
    return line_chart(
        points,
        x_label="sequence length",
        text=time_text,
        told=lambda seq, ms: f"length {seq}: median {time_text(ms)}",
        summary=f"Median time of one call by length: {summary}",
    )


def line_chart(
    points: Sequence[tuple[int, float]],
    *,
    x_label: str,
    text: Callable[[float], str],
    told: Callable[[int, float], str],
    summary: str,
    place: tuple[int, int] | None = None,
) -> Markup:
    """A line with the value beside each point, both axes logarithmic.

    Args:
        points: (x, y), at least one, y above 0; in the order of x. An x of 0 stands where 1/2 is.
        x_label: Under the axis.
        text: Writes a value of y.
        told: Writes what is said of a point when it is pointed at.
        summary: For those who do not see the drawing.
        place: Where it stands in a larger drawing; None: by itself.
    """
    low, high = _decades([y for _, y in points])
    first, last = _log2(points[0][0]), _log2(points[-1][0])

    def x_of(value: int) -> float:
        part = (_log2(value) - first) / (last - first) if last > first else 0.5
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        part = (math.log10(value) - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", text(10.0**power), x=LEFT - 8, y=y + 4, text_anchor="end"))
    for value, _ in points:
        x, y = x_of(value), HEIGHT - BOTTOM + 16
        parts.append(element("text", f"{value}", x=x, y=y, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", x_label, x=middle, y=HEIGHT - 4, text_anchor="middle"))
    if len(points) > 1:
        path = " ".join(f"{x_of(value)},{y_of(y)}" for value, y in points)
        parts.append(element("polyline", points=path, class_="line"))
    for value, result in points:
        x, y = x_of(value), y_of(result)
        title = element("title", told(value, result))
        parts.append(element("circle", title, cx=x, cy=y, r=4, class_="dot"))
        # Kept inside the drawing at both ends.
        anchor = "start" if x < LEFT + 24 else "end" if x > WIDTH - RIGHT - 24 else "middle"
        parts.append(
            element("text", text(result), x=x, y=y - 9, text_anchor=anchor, class_="value")
        )
    size = {} if place is None else dict(zip(("x", "y"), place, strict=True))
    if place is not None:
        size |= {"width": WIDTH, "height": HEIGHT}
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=summary,
        **size,
    )


def _log2(value: int) -> float:
    return math.log2(value) if value else -1.0


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten that enclose `values`, at least one apart."""
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def time_text(value: float) -> str:
    """Milliseconds in the unit that leaves few digits."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 0.1 else f"{value * 1000:.3g} µs"
