"""A residual sum and the norm that reads it become one node, which gives both."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.match import producer, replace
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["fuse_skip_norms"]

_FUSED = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def fuse_skip_norms(model: ir.Model, layouts: Layouts) -> int:
    """Rewrite every norm of a sum of two equal shapes (batch, seq, width).

    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    count = 0
    for norm in list(model.graph):
        if norm.op_type not in _FUSED or norm.domain or not _is_plain(norm):
            continue
        total = norm.inputs[0]
        added = producer(total, "Add")
        if added is None or total is None or not _is_residual(added, layouts):
            continue
        eps = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        node = ir.node(
            _FUSED[norm.op_type],
            [*added.inputs, *norm.inputs[1:]],
            {"epsilon": eps},
            domain=CONTRIB,
            num_outputs=4,
        )
        node.metadata_props.update(norm.metadata_props)
        # Where the sum stood: others may read it before the norm does.
        replace(layouts, [norm.outputs[0]], node, added)
        summed = node.outputs[3]
        summed.type, summed.shape = total.type, total.shape
        layouts.note(summed, total)
        total.replace_all_uses_with(summed)
        model.graph.remove([norm, added], safe=True)
        count += 1
    return count


def _is_plain(norm: ir.Node) -> bool:
    """Over the last axis, with constant weights, and only the normalised output wanted."""
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    weights = [constant_value(value) for value in norm.inputs[1:]]
    return (
        axis in (-1, 2)
        and len(norm.outputs) == 1
        and all(array is not None and array.ndim == 1 for array in weights)
    )


def _is_residual(added: ir.Node, layouts: Layouts) -> bool:
    left, right = added.inputs
    assert left is not None
    assert right is not None
    return (
        not added.outputs[0].is_graph_output()
        and len(layouts.axes(left)) == 3
        and left.dtype == ir.DataType.FLOAT
        and constant_value(left) is None
        and constant_value(right) is None
        and layouts.axes(left) == layouts.axes(right)
    )
