"""A core as the standard `Attention` operator, opset 23 and newer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from causal_onnx.export.attention.notes import notes_of
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.cache_rows import JoinedRows, has_rows, join_rows
from causal_onnx.export.lower.positions import core_inputs, window_mask

__all__ = ["attention_attributes", "attention_of_rows", "write_attention"]


def write_attention(write: Writer, node: ir.Node) -> Sequence[ir.Value]:
    """The standard operator: https://onnx.ai/onnx/operators/onnx__Attention.html."""
    if has_rows(node):
        joined = join_rows(write, node)
        result = attention_of_rows(write, node, joined)
        return [result, joined.present_k, joined.present_v]
    q, k, v, bias, past_k, past_v = core_inputs(node)
    window = node.attributes["window"].as_int()
    if bias is not None and not notes_of(node).bias_is_known:
        bias = _without_least(write, bias)
    if window:
        allowed = window_mask(write, q, k, past_k, window)
        if bias is None:
            bias = allowed
        else:
            bias = write("Where", allowed, bias, write.number(-np.inf, bias))
    elif bias is not None and not notes_of(node).bias_is_whole:
        bias = _whole(write, q, k, past_k, bias)
    inputs = [q, k, v, bias, past_k, past_v] if past_k is not None else [q, k, v, bias]
    if inputs[-1] is None:
        inputs.pop()
    attributes = attention_attributes(node)
    return write.node("Attention", inputs, attributes, outputs=len(node.outputs)).outputs


def attention_of_rows(write: Writer, node: ir.Node, joined: JoinedRows) -> ir.Value:
    """With a cache of rows of different lengths: a mask says what each row sees of its own."""
    q, _, _, bias, *_ = core_inputs(node)
    mask = joined.allowed(write)
    if bias is not None:
        mask = write("Where", mask, bias, write.number(-np.inf, bias))
    attributes = {**attention_attributes(node), "is_causal": 0}
    return write.node("Attention", [q, joined.k, joined.v, mask], attributes).outputs[0]


def _without_least(write: Writer, bias: ir.Value) -> ir.Value:
    """`bias` with half the least number in its place.

    onnxruntime 1.32 gives 0 for a row that is hidden by the least number of its type, as by -inf;
    a softmax averages over it, as over every other number.
    """
    dtype = (bias.dtype or ir.DataType.FLOAT).numpy()
    least = float(ml_dtypes.finfo(dtype).min)  # type: ignore[no-untyped-call]  # has no stubs
    hidden = write("Equal", bias, write.number(least, bias))
    return write("Where", hidden, write.number(least / 2, bias), bias)


def _whole(
    write: Writer, q: ir.Value, k: ir.Value, past_k: ir.Value | None, bias: ir.Value
) -> ir.Value:
    """`bias` for each query and key: onnxruntime 1.32 refuses one for all queries, and takes the
    keys that one for all keys does not have for hidden ones."""
    total = write("Shape", k, start=2, end=3)
    if past_k is not None:
        total = write("Add", total, write("Shape", past_k, start=2, end=3))
    shape = write("Concat", write("Shape", q, start=2, end=3), total, axis=0)
    return write("Expand", bias, shape)


def attention_attributes(node: ir.Node) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "scale": node.attributes["scale"].as_float(),
        "is_causal": node.attributes["is_causal"].as_int(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    return attributes
