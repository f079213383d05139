"""x / sqrt(mean(x^2) + eps) * weight becomes one `RMSNormalization`."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.match import (
    only_user,
    other_input,
    producer,
    replace,
    scalar,
)

__all__ = ["fuse_rms_norms"]


def fuse_rms_norms(model: ir.Model, layouts: Layouts) -> int:
    """Rewrite every RMS norm over the last axis that is written out in float32.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4.
    """
    count = 0
    for mean in list(model.graph):
        if mean.op_type != "ReduceMean" or mean.domain:
            continue
        found = _normalised(mean, layouts)
        if found is None:
            continue
        x, eps, last = found
        weighted = _weighted(x, last, layouts)
        if weighted is None:
            continue
        weight, result = weighted
        node = ir.node(
            "RMSNormalization", [x, weight], {"axis": -1, "epsilon": eps, "stash_type": 1}
        )
        node.metadata_props.update(result.metadata_props)
        replace(layouts, result.outputs, node, result)
        count += 1
    return count


def _normalised(mean: ir.Node, layouts: Layouts) -> tuple[ir.Value, float, ir.Node] | None:
    """(x, eps, the node that gives x / sqrt(mean(x^2) + eps))."""
    x = _squared(mean.inputs[0])
    if x is None or x.dtype != ir.DataType.FLOAT:
        return None
    axes = constant_value(mean.inputs[1]) if len(mean.inputs) > 1 else None
    keeps = "keepdims" not in mean.attributes or mean.attributes["keepdims"].as_int() == 1
    if axes is None or axes.tolist() not in ([-1], [len(layouts.axes(x)) - 1]) or not keeps:
        return None
    added = _single(mean.outputs[0], "Add")
    eps = None if added is None else scalar(other_input(added, mean.outputs[0]))
    if added is None or eps is None or eps <= 0:
        return None
    root = _single(added.outputs[0], "Sqrt")
    if root is None:
        return None
    divided = _single(root.outputs[0], "Div", "Reciprocal")
    if divided is None:
        return None
    if divided.op_type == "Div":
        if divided.inputs[1] is not root.outputs[0]:
            return None
        if divided.inputs[0] is x:
            return x, eps, divided
        if scalar(divided.inputs[0]) != 1.0:
            return None
    scaled = _single(divided.outputs[0], "Mul")
    if scaled is None or other_input(scaled, divided.outputs[0]) is not x:
        return None
    return x, eps, scaled


def _squared(value: ir.Value | None) -> ir.Value | None:
    node = producer(value, "Pow", "Mul")
    if node is None or len(node.outputs[0].uses()) != 1:
        return None
    if node.op_type == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    return node.inputs[0] if scalar(node.inputs[1]) == 2.0 else None


def _weighted(x: ir.Value, last: ir.Node, layouts: Layouts) -> tuple[ir.Value, ir.Node] | None:
    """(weight, the node after which it is applied), the weight a constant vector."""
    product = _single(last.outputs[0], "Mul")
    if product is None:
        return None
    weight = other_input(product, last.outputs[0])
    array = constant_value(weight)
    if weight is None or array is None or array.ndim != 1 or weight.dtype != x.dtype:
        return None
    return (weight, product) if array.shape[0] == layouts.width(x) else None


def _single(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The only node that reads `value`, if its operator is among these."""
    node = only_user(value)
    return node if node is not None and node.op_type in op_types and not node.domain else None
