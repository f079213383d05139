"""Draw the report's figures as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.cli.chart import Axis, Frame, Point
from causal_onnx.cli.markup import Markup, element
from examples.demo.train import CurvePoint

__all__ = ["LEVELS", "curve", "level_of", "map_cells", "map_frame", "map_thumbnail"]

Array = npt.NDArray[Any]

LEVELS = 24
"""Shades of a map. A shade is the square root of the weight: most weights are far below 1."""

CELL = 10
MARGIN = 14
"""Of a map's labels, in the units of `CELL`."""


def level_of(weight: float) -> int:
    """The shade of a weight in [0, 1]: 0 (not drawn) to `LEVELS`."""
    return round(math.sqrt(weight) * LEVELS)


def map_cells(weights: Array, *, identifier: str) -> Markup:
    """Draw the cells of one map, once, for others to refer to.

    One path for each shade, cells of a row that lie side by side and share it as one rectangle:
    an SVG of some 20 kB instead of 200 kB.

    Args:
        weights: (seq, seq), rows attend to columns.
        identifier: Of the group.
    """
    paths: dict[int, list[str]] = {}
    levels = np.rint(np.sqrt(weights) * LEVELS).astype(int)
    for row, line in enumerate(levels):
        column = 0
        while column < len(line):
            level, start = int(line[column]), column
            while column < len(line) and line[column] == level:
                column += 1
            if level:
                width = column - start
                paths.setdefault(level, []).append(f"M{start} {row}h{width}v1h-{width}z")
    shades = [
        element("path", d="".join(parts), fill_opacity=f"{level / LEVELS:.3f}")
        for level, parts in sorted(paths.items())
    ]
    return element("g", *shades, id=identifier, shape_rendering="crispEdges")


def map_thumbnail(seq: int, *, identifier: str) -> Markup:
    """Show the cells of `identifier` small."""
    return element(
        "svg",
        _future(seq),
        element("use", href=f"#{identifier}", class_="cells"),
        viewBox=f"0 0 {seq} {seq}",
        aria_hidden="true",
        class_="thumbnail",
    )


def map_frame(characters: Sequence[str], *, identifier: str, label: str) -> Markup:
    """Show the cells of `identifier` large, with a character at each row and column."""
    seq = len(characters)
    size = seq * CELL + MARGIN
    rows = [
        element("text", _visible(c), x=MARGIN - 4, y=MARGIN + CELL * i + 7.6, class_="at-row")
        for i, c in enumerate(characters)
    ]
    columns = [
        element("text", _visible(c), x=MARGIN + CELL * i + 5, y=MARGIN - 4, class_="at-column")
        for i, c in enumerate(characters)
    ]
    zoom = f"translate({MARGIN} {MARGIN}) scale({CELL})"
    return element(
        "svg",
        element("g", *rows, *columns, class_="labels"),
        element(
            "g",
            _future(seq),
            element("use", href=f"#{identifier}", class_="cells", id="shown-cells"),
            element("rect", x=0, y=0, width=1, height=1, class_="row-mark", id="row-mark"),
            element("rect", x=0, y=0, width=1, height=1, class_="cell-mark", id="cell-mark"),
            transform=zoom,
        ),
        element(
            "text",
            "the future: exactly 0",
            x=MARGIN + seq * CELL * 0.7,
            y=MARGIN + seq * CELL * 0.3,
            class_="future-note",
        ),
        viewBox=f"0 0 {size} {size}",
        role="img",
        aria_label=label,
        class_="map",
        id="map",
        data_cell=CELL,
        data_margin=MARGIN,
    )


def _future(seq: int) -> Markup:
    """The cells above the diagonal, as one shape."""
    steps = "".join("v1h1" for _ in range(seq - 1))
    return element("path", d=f"M1 0{steps}V0z", class_="future")


def _visible(character: str) -> str:
    return "·" if character == " " else character


def curve(points: Sequence[CurvePoint], *, label: str) -> Markup:
    """Draw the training and held-out loss over the steps."""
    series = {"train": [p.train for p in points], "held out": [p.held_out for p in points]}
    losses = [loss for values in series.values() for loss in values]
    floor, ceiling = math.floor(min(losses) * 2) / 2, math.ceil(max(losses) * 2) / 2
    ceiling = max(ceiling, floor + 0.5)
    end = float(points[-1].step)
    frame = Frame(
        x=Axis(low=0.0, high=end, ticks=_ticks(0.0, end), text="{:g}".format, is_log=False),
        y=Axis(low=floor, high=ceiling, ticks=_ticks(floor, ceiling), is_log=False),
        width=560,
        height=270,
        left=44,
        right=92,
        top=34,
        bottom=30,
    )
    shapes = [*frame.axes(), element("text", "bits per byte", x=14, y=14)]
    # The lower label's second line stays above the numbers of the axis.
    last = {name: frame.at(end, values[-1])[1] for name, values in series.items()}
    ends = _apart(last, gap=36, lowest=frame.height - frame.bottom - 14)
    after = frame.width - frame.right + 10
    for name, values in series.items():
        kind = name.replace(" ", "-")
        dots = [
            Point(x=float(p.step), y=v, note=f"{name}, step {p.step}: {v:.2f} bits per byte")
            for p, v in zip(points, values, strict=True)
        ]
        shapes += frame.series(dots, kind, radius=3.2)
        shapes.append(element("text", name, x=after, y=ends[name] - 1, class_=f"name {kind}"))
        last_value = f"{values[-1]:.2f}"
        shapes.append(element("text", last_value, x=after, y=ends[name] + 14, class_="value"))
    return frame.svg(*shapes, label=label, class_="curve")


def _apart(places: dict[str, float], *, gap: float, lowest: float) -> dict[str, float]:
    """Move two labels apart to at least `gap`, around their middle, none below `lowest`."""
    (first, a), (second, b) = sorted(places.items(), key=lambda item: item[1])
    half = max(b - a, gap) / 2
    middle = min((a + b) / 2, lowest - half)
    return {first: middle - half, second: middle + half}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, three to seven of them."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (s * power) <= 6.5)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
