"""Small edits of an onnx-ir graph that several passes share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = [
    "constant",
    "constant_value",
    "copy_output",
    "insert_before_uses",
    "replace_node",
]


def constant(graph: ir.Graph, array: npt.NDArray[Any], name: str | None = None) -> ir.Value:
    """An initializer that holds `array`; equal arrays share one."""
    if name is None:
        if array.size <= 16:
            text = "_".join(str(x) for x in array.reshape(-1).tolist())
            shape = "x".join(str(n) for n in array.shape) or "scalar"
            name = f"const_{array.dtype.name}_{shape}_{text}"
        else:
            raw = (
                f"{array.dtype.name} {array.shape} ".encode()
                + np.ascontiguousarray(array).tobytes()
            )
            name = f"const_{array.dtype.name}_{hashlib.sha256(raw).hexdigest()[:16]}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def constant_value(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array that `value` always is, or None."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        return None if attribute is None else attribute.as_tensor().numpy()
    return None


def insert_before_uses(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes` at the front of the graph and give the users of `value` their last output.

    `value` is a graph input and the nodes compute a replacement for it.
    """
    replacement = nodes[-1].outputs[0]
    users = [(use.node, use.idx) for use in value.uses() if use.node not in nodes]
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    for node, index in users:
        node.replace_input_with(index, replacement)


def copy_output(graph: ir.Graph, value: ir.Value) -> None:
    """Give a copy of an output of the graph in its place, under its name; `value` is then read."""
    copy = ir.node("Identity", [value]).outputs[0]
    copy.type, copy.shape = value.type, value.shape
    copy.name, value.name = value.name, f"{value.name}_inside"
    graph.outputs[list(graph.outputs).index(value)] = copy
    producer = copy.producer()
    assert producer is not None
    graph.append(producer)


def replace_node(node: ir.Node, result: ir.Value) -> None:
    """Give the users of `node` another value, under the same name."""
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph = node.graph
    assert graph is not None
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = result
    name, old.name = old.name, None
    result.name = name
    old.replace_all_uses_with(result)
    graph.remove(node, safe=True)
