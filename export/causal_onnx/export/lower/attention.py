"""A core as the standard `Attention` operator, opset 23 and newer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.lower.positions import core_inputs, window_mask
from causal_onnx.export.lower.writer import Writer

__all__ = ["attention_attributes", "write_attention"]


def write_attention(write: Writer, node: ir.Node) -> Sequence[ir.Value]:
    """The standard operator: https://onnx.ai/onnx/operators/onnx__Attention.html."""
    q, k, v, bias, past_k, past_v = core_inputs(node)
    window = node.attributes["window"].as_int()
    if window:
        allowed = window_mask(write, q, k, past_k, window)
        if bias is None:
            bias = allowed
        else:
            bias = write("Where", allowed, bias, write.number(-np.inf, bias))
    inputs = [q, k, v, bias, past_k, past_v] if past_k is not None else [q, k, v, bias]
    if inputs[-1] is None:
        inputs.pop()
    attributes = attention_attributes(node)
    return write.node("Attention", inputs, attributes, outputs=len(node.outputs)).outputs


def attention_attributes(node: ir.Node) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "scale": node.attributes["scale"].as_float(),
        "is_causal": node.attributes["is_causal"].as_int(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    return attributes
