"""Draw what was measured: time by length, and for a model with a cache its rate by past."""

from __future__ import annotations

from causal_onnx.cli.bench.run import BenchResult
from causal_onnx.cli.chart import document, latency_chart, line_chart
from causal_onnx.cli.markup import element

__all__ = ["draw"]

HEAD = 58
WIDTH, HEIGHT, GAP = 440, 250, 16
STYLE = """
text { font: 11px sans-serif; fill: #555 }
.title { font-size: 13px; font-weight: bold; fill: #222 }
.value { fill: #222; stroke-width: 3px; paint-order: stroke }
.grid, .tick { stroke: #ddd }
.line { fill: none; stroke: #2563a8; stroke-width: 2 }
.dot { fill: #2563a8; stroke: #fff; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #9a9ea5 }
  .title, .value { fill: #e8e9eb }
  .grid, .tick { stroke: #3a3d42 }
  .line { stroke: #8fb0ff }
  .dot { fill: #8fb0ff; stroke: #131416 }
}
"""


def draw(result: BenchResult) -> str:
    """An SVG document: time by length, and for a model with a cache positions/s by past."""
    calls = [case for case in result.cases if case.kind != "decode"]
    steps = [case for case in result.cases if case.kind == "decode"]
    rows = "" if calls[0].profile.batch == 1 else f", {calls[0].profile.batch} rows"
    what = "prefill" if steps else "call"
    place = {"y": HEAD, "width": WIDTH, "height": HEIGHT}
    panels = [
        latency_chart(
            [(case.profile.seq, case.times.wall_ms) for case in calls],
            x_label=f"positions of a {what}{rows}: median time",
            x=0,
            **place,
        )
    ]
    if steps:
        panels.append(
            line_chart(
                [(case.profile.past, case.positions_per_s) for case in steps],
                x_label=f"positions of the past of a step{rows}: positions/s",
                text=_rate,
                told=lambda past, rate: f"past {past}: {_rate(rate)} positions/s",
                summary="Positions per second of decoding by past",
                x=WIDTH + GAP,
                **place,
            )
        )
    name = result.path.replace("\\", "/").rpartition("/")[2]
    return document(
        element("text", name, x=8, y=20, class_="title"),
        element("text", f"{result.machine.processor}; {result.machine.when}", x=8, y=36),
        element("text", result.machine.system, x=8, y=51),
        *panels,
        width=len(panels) * (WIDTH + GAP) - GAP,
        height=HEAD + HEIGHT,
        style=STYLE,
    )


def _rate(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"
