from __future__ import annotations

import re

import numpy as np

from examples.demo.drawings import LEVELS, curve, level_of, map_cells
from examples.demo.train import CurvePoint


def drawn_levels(svg: str, *, seq: int) -> np.ndarray:
    """Read the shade of every cell back from the paths; -1 where two paths overlap."""
    levels = np.zeros((seq, seq), dtype=int)
    for data, opacity in re.findall(r'<path d="([^"]*)" fill-opacity="([^"]*)">', svg):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", data):
            part = levels[int(y), int(x) : int(x) + int(width)]
            part[:] = np.where(part == 0, round(float(opacity) * LEVELS), -1)
    return levels


def test_every_cell_is_drawn_once_in_its_shade() -> None:
    random = np.random.default_rng(0)
    weights = np.tril(random.random((9, 9))) ** 4
    weights[3, :3] = 0.25  # equal neighbours become one rectangle
    svg = map_cells(weights, identifier="m")
    expected = np.vectorize(level_of)(weights)
    np.testing.assert_array_equal(drawn_levels(svg, seq=9), expected)
    assert "M0 3h3v1h-3z" in svg


def test_the_darkest_shade_is_the_whole_weight() -> None:
    assert (level_of(0.0), level_of(0.25), level_of(1.0)) == (0, LEVELS // 2, LEVELS)


def test_a_curve_of_one_point_can_be_drawn() -> None:
    svg = curve([CurvePoint(step=1, train=7.9, held_out=7.9)], label="a & b")
    assert 'aria-label="a &amp; b"' in svg
    assert svg.count("<circle") == 2


def test_a_higher_loss_is_drawn_higher() -> None:
    points = [CurvePoint(step=i, train=4.0 - i, held_out=4.5 - i) for i in range(1, 4)]
    svg = curve(points, label="")
    line = re.search(r'<polyline points="([^"]*)" class="line train">', svg)
    assert line is not None
    heights = [float(pair.split(",")[1]) for pair in line[1].split()]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


def test_labels_stay_above_the_numbers_of_the_axis() -> None:
    points = [
        CurvePoint(step=1, train=8.0, held_out=8.0),
        CurvePoint(step=900, train=2.0, held_out=2.01),  # at the foot of the curve
    ]
    svg = curve(points, label="")
    axis = max(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="middle"', svg))
    values = [float(y) for y in re.findall(r'y="([\d.]+)" class="value"', svg)]
    assert max(values) <= axis - 14
    assert abs(values[0] - values[1]) >= 30
