"""The chart of the section: time over PyTorch eager's, by length."""

from __future__ import annotations

from bench.attention.section import Section
from bench.plot import Panel, Point, Series, render

__all__ = ["draw"]

COLORS = {
    "ours": "#0072b2",
    "plain20": "#d55e00",
    "plain24": "#e69f00",
    "compile": "#009e73",
}
"""Told apart by colour-blind readers too (Okabe and Ito)."""
OTHER_COLOR = "#cc79a7"


def draw(section: Section) -> str:
    """An SVG with a panel per batch size and number of threads."""
    shown = sorted({(row.batch, row.threads) for row in section.times})
    titles = {subject.name: subject.title for subject in section.subjects}
    panels = [
        Panel(
            title=f"batch {batch}, {threads} thread{'s' if threads > 1 else ''} "
            f"({'processor' if threads == 1 else 'wall'} time)",
            series=[
                Series(
                    title=titles[name],
                    color=COLORS.get(name, OTHER_COLOR),
                    is_main=name == section.ours,
                    points=_points(section, name, batch, threads),
                )
                for name in titles
                if name != section.reference
            ],
        )
        for batch, threads in shown
    ]
    return render(
        panels,
        x_label="length",
        y_label=f"time / {titles[section.reference]}",
        baseline=titles[section.reference],
    )


def _points(section: Section, name: str, batch: int, threads: int) -> list[Point]:
    points = []
    for row in section.times:
        if (row.subject, row.batch, row.threads) == (name, batch, threads):
            low, middle, high = row.ratios[section.reference]
            points.append(Point(x=row.seq, y=middle, low=low, high=high))
    return points
