"""Rewrite a graph of opset 18 in opset 17, for the runtimes that read no newer one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import constant, constant_value

__all__ = ["OPSET", "to_opset_17"]

OPSET = 17
_REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"}
_REDUCTIONS |= {"ReduceMin", "ReduceProd", "ReduceSumSquare"}
"""Took their axes as an attribute before opset 18 (ReduceSum changed at 13)."""
_SCATTERS = {"ScatterElements", "ScatterND"}


def to_opset_17(model: ir.Model) -> None:
    """Write every node of a model of opset 18 as opset 17 has it, in place.

    Opset 18 changed how axes and numbers of pieces are given, and added operators
    (https://github.com/onnx/onnx/blob/main/docs/Changelog.md, "Version 18"); all others are the
    same in both.

    Raises:
        NotSupportedError: A node has no form in opset 17; names it and the operator.
    """
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute(node)
        elif node.op_type == "Split":
            _equal_pieces(node)
        elif node.op_type == "Pad":
            _pads_of_all_axes(model.graph, node)
        elif node.op_type in _SCATTERS:
            if node.attributes.get_string("reduction", "none") in ("max", "min"):
                raise _refusal(node, "it reduces by the largest or smallest")
        elif not _is_in_17(node.op_type):
            raise _refusal(node, "the operator is newer")
    model.opset_imports[""] = OPSET
    for graph in model.graphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = OPSET


def _refusal(node: ir.Node, reason: str) -> NotSupportedError:
    return NotSupportedError(
        f"{node.op_type} ({node.name or node.outputs[0].name}) cannot be written in opset "
        f"{OPSET}: {reason}. Export at opset 18 or newer"
    )


def _is_in_17(op_type: str) -> bool:
    """Whether opsets 17 and 18 have the same definition of an operator."""
    try:
        newest = onnx.defs.get_schema(op_type, OPSET + 1).since_version
    except onnx.defs.SchemaError:
        return False
    return newest <= OPSET


def _axes_as_attribute(node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = constant_value(node.inputs[1])
    if axes is None:
        raise _refusal(node, "its axes are computed")
    if axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.reshape(-1)])
        node.attributes.pop("noop_with_empty_axes", None)
    elif node.attributes.get_int("noop_with_empty_axes", 0):
        raise _refusal(node, "it reduces over no axes")
    node.resize_inputs(1)


def _equal_pieces(node: ir.Node) -> None:
    """Opset 17 splits into as many equal pieces as there are outputs, and fails on a remainder."""
    node.attributes.pop("num_outputs", None)


def _pads_of_all_axes(graph: ir.Graph, node: ir.Node) -> None:
    """Opset 17 pads every axis, by constants or by what the graph computes."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return
    axes, source = constant_value(node.inputs[3]), node.inputs[0]
    if axes is None or source is None or source.shape is None:
        raise _refusal(node, "its axes, or the rank of what it pads, are not known")
    rank, pads = len(source.shape), node.inputs[1]
    assert pads is not None
    # The padding of axis a stands at its place among `axes`; all others are padded by 0.
    places = np.full(2 * rank, 2 * axes.size, np.int64)
    for index, axis in enumerate(axes.reshape(-1).tolist()):
        places[axis % rank] = index
        places[axis % rank + rank] = index + axes.size
    zero = constant(graph, np.zeros(1, np.int64))
    joined = ir.node("Concat", [pads, zero], attributes={"axis": 0})
    spread = ir.node("Gather", [joined.outputs[0], constant(graph, places)])
    owner = node.graph
    assert owner is not None
    owner.insert_before(node, [joined, spread])
    node.replace_input_with(1, spread.outputs[0])
    node.resize_inputs(3)
