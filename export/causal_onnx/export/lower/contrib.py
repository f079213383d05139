"""onnxruntime's `GroupQueryAttention`: which cores it takes, and what it is told of them.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

__all__ = ["CONTRIB", "fits_operator", "operator_attributes"]

CONTRIB = "com.microsoft"


def fits_operator(node: ir.Node) -> bool:
    """Whether it computes heads of this core's sizes and dtype."""
    q = node.inputs[0]
    return (
        q is not None
        and q.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and node.meta["head_dim"] == node.meta["value_dim"]
        and node.meta["head_dim"] % 8 == 0  # it refuses others
    )


def operator_attributes(node: ir.Node) -> dict[str, Any]:
    """Heads, scale, softcap and window of a causal core."""
    attributes: dict[str, Any] = {
        "num_heads": node.meta["num_heads"],
        "kv_num_heads": node.meta["num_kv_heads"],
        "scale": node.attributes["scale"].as_float(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    if node.attributes["window"].as_int():
        attributes["local_window_size"] = node.attributes["window"].as_int()
    return attributes
