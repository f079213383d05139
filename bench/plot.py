"""Ratios over length as SVG: small panels, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Panel", "Point", "Series", "render"]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 44
LEGEND = 34
DIGIT = 7.0  # width of one digit of the labels, at their font size

Y_LIMIT = 16.0
"""Values beyond it, or below one part in it, are drawn hollow at the edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A median with its quartiles."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a panel."""

    title: str
    color: str
    is_main: bool
    """Drawn thicker, and above the others."""
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart."""

    title: str
    series: Sequence[Series]


def render(panels: Sequence[Panel], *, x_label: str, y_label: str, baseline: str) -> str:
    """An SVG document with two panels per row and one legend; all panels share their axes.

    Args:
        panels: At least one, with at least one point between them.
        x_label: Under each panel.
        y_label: Beside each panel.
        baseline: What the line at 1 stands for.

    Raises:
        ValueError: There is nothing to draw, or a value is not positive.
    """
    points = [point for panel in panels for series in panel.series for point in series.points]
    if not points:
        raise ValueError("expected at least one point to draw")
    if any(min(point.x, point.low) <= 0 for point in points):
        raise ValueError("logarithmic axes need positive values")
    xs = sorted({point.x for point in points})
    scale = _Scale(
        x_low=xs[0] / 1.3,
        x_high=xs[-1] * 1.3,
        y_low=max(1 / Y_LIMIT, min(0.5, _power_below(min(point.low for point in points)))),
        y_high=min(Y_LIMIT, max(2.0, 1 / _power_below(1 / max(point.high for point in points)))),
    )
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT + LEGEND
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(panels, baseline),
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * WIDTH, number // columns * HEIGHT + LEGEND
        body.append(f'<g transform="translate({x} {y})">')
        body += _panel(panel, scale, xs, x_label, y_label)
        body.append("</g>")
    return "\n".join([*body, "</svg>", ""])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        part = math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y_low), self.y_high)
        part = math.log(inside / self.y_low) / math.log(self.y_high / self.y_low)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    def holds(self, value: float) -> bool:
        return self.y_low <= value <= self.y_high

    def y_ticks(self) -> list[float]:
        low, high = round(math.log2(self.y_low)), round(math.log2(self.y_high))
        return [2.0**power for power in range(low, high + 1)]


def _panel(
    panel: Panel, scale: _Scale, xs: Sequence[float], x_label: str, y_label: str
) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [
        f'<text x="{LEFT}" y="{TOP - 14}" font-size="13" font-weight="bold">'
        f"{escape(panel.title)}</text>"
    ]
    for tick in scale.y_ticks():
        y = scale.y(tick)
        color, size = ("#777", 1.5) if tick == 1 else ("#ddd", 1)
        lines.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{color}" stroke-width="{size}"/>'
        )
        lines.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_fraction(tick)}</text>'
        )
    labelled = _with_room(xs, scale)
    for x_value in xs:
        x = scale.x(x_value)
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#777"/>'
        )
        if x_value in labelled:
            lines.append(
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{x_value:g}</text>'
            )
    middle = (LEFT + right) / 2
    lines.append(
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(x_label)}</text>'
    )
    lines.append(
        f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for series in sorted(panel.series, key=lambda one: one.is_main):
        lines += _series(series, scale)
    return lines


def _with_room(xs: Sequence[float], scale: _Scale) -> set[float]:
    """The values whose labels do not touch one another; the largest always has one."""
    kept: list[float] = []
    for value in sorted(xs, reverse=True):
        half = 0.5 * DIGIT * (len(f"{value:g}") + 2)
        if not kept or scale.x(kept[-1]) - scale.x(value) >= half + 0.5 * DIGIT * len(
            f"{kept[-1]:g}"
        ):
            kept.append(value)
    return set(kept)


def _series(series: Series, scale: _Scale) -> list[str]:
    size = 2.5 if series.is_main else 1.3
    points = sorted(series.points, key=lambda point: point.x)
    path = " ".join(f"{scale.x(point.x):.1f},{scale.y(point.y):.1f}" for point in points)
    lines = [
        f'<polyline points="{path}" fill="none" stroke="{series.color}" stroke-width="{size}"/>'
    ]
    for point in points:
        x = scale.x(point.x)
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(point.low):.1f}" '
            f'y2="{scale.y(point.high):.1f}" stroke="{series.color}" stroke-width="1"/>'
        )
        lines.append(
            f'<circle cx="{x:.1f}" cy="{scale.y(point.y):.1f}" r="{size + 0.7}" '
            f'fill="{series.color if scale.holds(point.y) else "#fff"}" stroke="{series.color}"/>'
        )
    return lines


def _power_below(value: float) -> float:
    """The largest power of two that is not above `value`."""
    return 2.0 ** math.floor(math.log2(value))


def _fraction(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _legend(panels: Sequence[Panel], baseline: str) -> list[str]:
    entries = {
        series.title: (series.color, 2.5 if series.is_main else 1.3)
        for panel in panels
        for series in panel.series
    }
    lines, x = [], float(LEFT)
    for title, (color, size) in {baseline: ("#777", 1.5), **entries}.items():
        lines.append(
            f'<line x1="{x}" x2="{x + 20}" y1="18" y2="18" stroke="{color}" stroke-width="{size}"/>'
        )
        lines.append(f'<text x="{x + 26}" y="22">{escape(title)}</text>')
        x += 26 + 6.2 * len(title) + 20
    return lines
