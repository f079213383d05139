"""Projections of one input become one product: its weights side by side, the result split.

One call for queries, keys and values (and one for gate and up) keeps all threads busy once instead
of thrice; `GroupQueryAttention` takes the joined result without the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.fuse.match import Sizes, only_user, other_input
from causal_onnx.export.graph import constant, constant_value
from causal_onnx.export.layout import Axis

__all__ = ["pack_projections"]


@dataclass(frozen=True, kw_only=True)
class _Projection:
    """x W, or x W + b."""

    product: ir.Node
    weight: ir.Value
    added: ir.Node | None
    bias: ir.Value | None

    @property
    def result(self) -> ir.Value:
        return (self.added or self.product).outputs[0]

    @property
    def width(self) -> int:
        array = constant_value(self.weight)
        assert array is not None
        return int(array.shape[1])


def pack_projections(model: ir.Model, sizes: Sizes) -> int:
    """Join all products of one input with constant matrices; returns how many inputs had some."""
    graph = model.graph
    count = 0
    by_input: dict[ir.Value, list[_Projection]] = {}
    for node in graph:
        found = _projection(node, sizes)
        if found is not None and node.inputs[0] is not None:
            by_input.setdefault(node.inputs[0], []).append(found)
    for x, projections in by_input.items():
        with_bias = [p for p in projections if p.bias is not None]
        if len(projections) < 2 or len(with_bias) not in (0, len(projections)):
            continue
        _join(graph, sizes, x, projections)
        count += 1
    return count


def _projection(node: ir.Node, sizes: Sizes) -> _Projection | None:
    """A product of a 3-D value with a matrix that nothing else reads."""
    x, weight = node.inputs[:2] if node.op_type == "MatMul" and not node.domain else (None, None)
    if x is None or weight is None or len(sizes(x)) != 3:
        return None
    array = constant_value(weight)
    if array is None or array.ndim != 2 or len(weight.uses()) != 1:
        return None
    if node.outputs[0].is_graph_output():
        return None
    added = only_user(node.outputs[0])
    if added is None or added.op_type != "Add" or added.domain:
        return _Projection(product=node, weight=weight, added=None, bias=None)
    bias = other_input(added, node.outputs[0])
    values = constant_value(bias)
    fits = values is not None and values.shape == (array.shape[1],)
    if not fits or added.outputs[0].is_graph_output():
        return _Projection(product=node, weight=weight, added=None, bias=None)
    return _Projection(product=node, weight=weight, added=added, bias=bias)


def _join(graph: ir.Graph, sizes: Sizes, x: ir.Value, projections: Sequence[_Projection]) -> None:
    first = projections[0].product
    weights = [constant_value(p.weight) for p in projections]
    joined = constant(graph, np.concatenate(weights, axis=1))  # type: ignore[arg-type]
    nodes = [ir.node("MatMul", [x, joined])]
    if projections[0].bias is not None:
        biases = [constant_value(p.bias) for p in projections]
        bias = constant(graph, np.concatenate(biases))  # type: ignore[arg-type]
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias]))
    widths = constant(graph, np.array([p.width for p in projections], np.int64))
    split = ir.node(
        "Split", [nodes[-1].outputs[0], widths], {"axis": -1}, num_outputs=len(projections)
    )
    for node in (*nodes, split):
        node.metadata_props.update(first.metadata_props)
        for output in node.outputs:
            output.type = x.type
    for node in nodes:
        sizes.note(node.outputs[0], [*sizes(x)[:-1], Axis(sum(p.width for p in projections))])
    graph.insert_before(first, [*nodes, split])
    for projection, output in zip(projections, split.outputs, strict=True):
        sizes.note(output, [*sizes(x)[:-1], Axis(projection.width)])
        projection.result.replace_all_uses_with(output)
    for projection in projections:
        graph.remove([n for n in (projection.added, projection.product) if n], safe=True)
        del graph.initializers[projection.weight.name or ""]
