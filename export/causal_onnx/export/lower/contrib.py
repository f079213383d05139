"""onnxruntime's `GroupQueryAttention`: which cores it takes, and what it is told of them.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore

__all__ = ["fits_operator", "operator_attributes"]


def fits_operator(core: CanonicalCore) -> bool:
    """Whether it computes heads of this core's sizes and dtype."""
    return (
        core.operands[0].dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and core.head_dim == core.value_dim
        and core.head_dim % 8 == 0  # it refuses others
    )


def operator_attributes(core: CanonicalCore) -> dict[str, Any]:
    """Heads, scale, softcap and window of a causal core."""
    attributes: dict[str, Any] = {
        "num_heads": core.num_heads,
        "kv_num_heads": core.num_kv_heads,
        "scale": core.scale,
    }
    if core.softcap:
        attributes["softcap"] = core.softcap
    if core.window:
        attributes["local_window_size"] = core.window
    return attributes
