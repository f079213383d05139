"""Draw time against sequence length as SVG, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.cli.markup import Markup, element
from causal_onnx.cli.timing import Timing

__all__ = ["latency_chart"]

# In SVG units; the page scales the drawing to its width, so text stays in proportion.
WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 22, 38


def latency_chart(timings: Sequence[Timing]) -> Markup:
    """A line through the median time of each length, with its value beside each point."""
    low, high = _decades([timing.median_ms for timing in timings])
    first, last = math.log2(timings[0].seq), math.log2(timings[-1].seq)

    def x_of(seq: int) -> float:
        part = (math.log2(seq) - first) / (last - first) if last > first else 0.5
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def y_of(ms: float) -> float:
        part = (math.log10(ms) - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        label = _ms(10.0**power)
        parts.append(element("text", label, x=LEFT - 8, y=y + 4, text_anchor="end"))
    for timing in timings:
        x, y = x_of(timing.seq), HEIGHT - BOTTOM + 16
        parts.append(element("text", f"{timing.seq}", x=x, y=y, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", "sequence length", x=middle, y=HEIGHT - 4, text_anchor="middle"))
    points = [(x_of(timing.seq), y_of(timing.median_ms), timing) for timing in timings]
    if len(points) > 1:
        path = " ".join(f"{x},{y}" for x, y, _ in points)
        parts.append(element("polyline", points=path, class_="line"))
    for x, y, timing in points:
        title = element("title", f"length {timing.seq}: median {_ms(timing.median_ms)}")
        parts.append(element("circle", title, cx=x, cy=y, r=4, class_="dot"))
        # Kept inside the drawing at both ends.
        anchor = "start" if x < LEFT + 24 else "end" if x > WIDTH - RIGHT - 24 else "middle"
        parts.append(
            element("text", _ms(timing.median_ms), x=x, y=y - 9, text_anchor=anchor, class_="value")
        )
    summary = ", ".join(f"{t.seq}: {_ms(t.median_ms)}" for t in timings)
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"Median time of one call by length: {summary}",
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten that enclose `values`, at least one apart."""
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 0.1 else f"{value * 1000:.3g} µs"
