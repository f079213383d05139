"""onnxruntime's `GroupQueryAttention`: which cores it takes, and what it is told of them.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from causal_onnx.export.attention.notes import notes_of

__all__ = ["CONTRIB", "fits_operator", "operator_attributes"]

CONTRIB = "com.microsoft"


def fits_operator(node: ir.Node) -> bool:
    """Whether it computes heads of this core's sizes and dtype."""
    q = node.inputs[0]
    return (
        q is not None
        and q.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and notes_of(node).head_dim == notes_of(node).value_dim
        and notes_of(node).head_dim % 8 == 0  # it refuses others
    )


def operator_attributes(node: ir.Node) -> dict[str, Any]:
    """Heads, scale, softcap and window of a causal core."""
    attributes: dict[str, Any] = {
        "num_heads": notes_of(node).num_heads,
        "kv_num_heads": notes_of(node).num_kv_heads,
        "scale": node.attributes["scale"].as_float(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    if node.attributes["window"].as_int():
        attributes["local_window_size"] = node.attributes["window"].as_int()
    return attributes
