"""A core as the standard `Attention` operator, opset 23 and newer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.cache_rows import JoinedRows, join_rows
from causal_onnx.export.lower.positions import window_mask

__all__ = ["attention_attributes", "attention_of_rows", "write_attention"]


def write_attention(write: Writer, core: CanonicalCore) -> Sequence[ir.Value]:
    """The standard operator: https://onnx.ai/onnx/operators/onnx__Attention.html."""
    if core.rows is not None:
        joined = join_rows(write, core)
        result = attention_of_rows(write, core, joined)
        return [result, joined.present_k, joined.present_v]
    (q, k, v), bias = core.operands, core.bias
    past_k, past_v = core.past or (None, None)
    if bias is not None and not core.bias_is_known:
        bias = _without_least(write, bias)
    if core.window:
        allowed = window_mask(write, q, k, past_k, core.window)
        if bias is None:
            bias = allowed
        else:
            bias = write("Where", allowed, bias, write.number(-np.inf, bias))
    elif bias is not None and not core.bias_is_whole:
        bias = _whole(write, q, k, past_k, bias)
    inputs = [q, k, v, bias, past_k, past_v] if past_k is not None else [q, k, v, bias]
    if inputs[-1] is None:
        inputs.pop()
    attributes = attention_attributes(core)
    return write.node("Attention", inputs, attributes, outputs=len(core.node.outputs)).outputs


def attention_of_rows(write: Writer, core: CanonicalCore, joined: JoinedRows) -> ir.Value:
    """With a cache of rows of different lengths: a mask says what each row sees of its own."""
    mask = joined.allowed(write)
    if core.bias is not None:
        mask = write("Where", mask, core.bias, write.number(-np.inf, core.bias))
    attributes = {**attention_attributes(core), "is_causal": 0}
    return write.node(
        "Attention", [core.operands[0], joined.k, joined.v, mask], attributes
    ).outputs[0]


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


def attention_attributes(core: CanonicalCore) -> dict[str, Any]:
    attributes: dict[str, Any] = {"scale": core.scale, "is_causal": int(core.is_causal)}
    if core.softcap:
        attributes["softcap"] = core.softcap
    return attributes
