"""Attention cores wherever they stand: in the graph, in branches of an If, in a Loop."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.branches import branch_of
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.attention.core import AttentionCore
from causal_onnx.export.attention.find_footprint import with_footprint
from causal_onnx.export.attention.recognise import core_at

__all__ = ["find_all_cores"]


def find_all_cores(analysis: Analysis) -> list[AttentionCore]:
    """All attention cores with their footprints, in the order in which they are computed.

    An attention that the branches of an If write in several forms counts once.
    """
    sizes = analysis.probe_sizes()
    probe = None if sizes is None else analysis.by_position(sizes)
    return [] if probe is None else _in_graph(analysis, probe, analysis.model.graph)


def _in_graph(analysis: Analysis, probe: Run, graph: ir.Graph) -> list[AttentionCore]:
    """Those of a graph, or of a body, that the run `probe` computed."""
    found: list[AttentionCore] = []
    for node in graph:
        if node.op_type == "If":
            found.extend(_in_branches(analysis, probe, node))
        elif not any(out in probe.values for out in node.outputs):
            continue
        elif node.op_type == "Loop":
            # What stands for the body is its last pass: the last queries, and all keys.
            found.extend(_in_graph(analysis, probe, attr(node, "body")))
        else:
            rows = analysis.by_batch(probe.sizes) if node.op_type == "Softmax" else None
            core = core_at(analysis, probe, rows, node)
            if core is not None:
                found.append(with_footprint(analysis, core))
    return found


def _in_branches(analysis: Analysis, probe: Run, node: ir.Node) -> list[AttentionCore]:
    """Those of each branch, looked at in the shortest run that entered it."""
    runs = [probe, *sorted(analysis.runs, key=lambda run: run.sizes.total_seq)]
    shortest: dict[bool, Run] = {}
    for run in runs:
        for condition in run.context.entered.get(node, ()):
            shortest.setdefault(condition, run)
    forms = [_in_graph(analysis, run, branch_of(node, way)) for way, run in shortest.items()]
    if len(forms) == 2 and _alike(*forms):
        return forms[0]
    return [core for form in forms for core in form]


def _alike(some: Sequence[AttentionCore], others: Sequence[AttentionCore]) -> bool:
    """Whether two branches compute the same attention, as far as the certificate speaks of it."""
    return [_outline(core) for core in some] == [_outline(core) for core in others]


def _outline(core: AttentionCore) -> tuple[object, ...]:
    scale = None if core.scale is None else f"{core.scale:.5g}"
    return core.describe(), core.num_heads, core.num_kv_heads, core.head_dim, scale
