"""Questions that the fusions ask of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.facts import Layouts

__all__ = [
    "only_user",
    "other_input",
    "producer",
    "replace",
    "scalar",
]


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node of the default domain that makes `value`, if its operator is among these."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in op_types:
        return None
    return node


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    array = constant_value(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def other_input(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """The second operand of a node of two inputs, one of which is `value`."""
    if len(node.inputs) != 2 or value not in node.inputs:
        return None
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, if nothing else does."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def replace(layouts: Layouts, old: Sequence[ir.Value], node: ir.Node, before: ir.Node) -> None:
    """Put `node` before another and give the users of `old` its outputs; type and axes stay."""
    graph = before.graph
    assert graph is not None
    graph.insert_before(before, node)
    for value, new in zip(old, node.outputs, strict=False):
        new.type, new.shape = value.type, value.shape
        layouts.note(new, value)
        if value.is_graph_output():
            index = list(graph.outputs).index(value)
            new.name, value.name = value.name, f"{value.name}_replaced"
            graph.outputs[index] = new
        value.replace_all_uses_with(new)
