"""Write the length limit into the graph: every runtime then refuses a longer sequence by name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant, insert_before_uses

__all__ = ["enforce_max_seq_len", "limit_name"]


def limit_name(limit: int) -> str:
    """What the node is called that refuses more than `limit` positions; runtimes report it."""
    return f"sequence_longer_than_max_seq_len_{limit}"


def enforce_max_seq_len(
    model: ir.Model, *, input_name: str, axis: int, limit: int, past: tuple[str, int] | None = None
) -> None:
    """Make the graph fail where `input_name` is longer than `limit` along `axis`.

    Args:
        model: Changed in place.
        input_name: An input with a sequence axis.
        axis: That axis.
        limit: The longest sequence.
        past: An input that holds earlier positions, and its axis; they count too.

    PyTorch's own checks (`assert`, `raise`, an embedding's bounds) do not survive an export. A
    lookup in a table of `limit` zeros does it with four cheap standard operators: its index is the
    length minus one, so a longer input is out of bounds, and every runtime reports the name of the
    node.
    The zero found is added to the shape of a Reshape that changes nothing.
    """
    graph = model.graph
    value = next(x for x in graph.inputs if x.name == input_name)
    assert value.shape is not None
    rank = len(value.shape)
    name = limit_name(limit)
    nodes = [ir.node("Shape", [value], attributes={"start": axis, "end": axis + 1})]
    if past is not None:
        held = next(x for x in graph.inputs if x.name == past[0])
        earlier = ir.node("Shape", [held], attributes={"start": past[1], "end": past[1] + 1})
        total = ir.node("Add", [nodes[0].outputs[0], earlier.outputs[0]])
        nodes += [earlier, total]
    one = constant(graph, np.array([1], np.int64))
    last = ir.node("Sub", [nodes[-1].outputs[0], one])
    table = ir.node(
        "ConstantOfShape",
        [constant(graph, np.array([limit], np.int64))],
        attributes={"value": ir.tensor(np.zeros(1, np.int64))},
    )
    zero = ir.node("Gather", [table.outputs[0], last.outputs[0]], name=name)
    keep = ir.node("Add", [constant(graph, np.zeros(rank, np.int64)), zero.outputs[0]])
    checked = ir.node("Reshape", [value, keep.outputs[0]])
    checked.outputs[0].name = f"{input_name}_checked"
    checked.outputs[0].type = value.type
    insert_before_uses(graph, value, [*nodes, last, table, zero, keep, checked])
