"""Plain causal attention for onnxruntime: the operator is chosen by the length, when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.lower.attention import attention_attributes, write_attention
from causal_onnx.export.lower.branches import choose
from causal_onnx.export.lower.heads import give_merged, merge_heads, split_heads
from causal_onnx.export.lower.positions import core_inputs, window_mask
from causal_onnx.export.lower.writer import Writer

__all__ = ["CONTRIB", "LONGEST_SHORT", "fits_flash", "is_plain", "write_packed"]

CONTRIB = "com.microsoft"
LONGEST_SHORT = 640
"""Up to here `Attention` is faster on the CPU, beyond `GroupQueryAttention` (12 heads of 64, one
thread, time of the second over the first: 512 1.15, 1024 0.69, 2048 0.53, 4096 0.47)."""


def is_plain(node: ir.Node) -> bool:
    """Whether this core is causal attention without bias and past."""
    bias, past_k = core_inputs(node)[3:5]
    return node.attributes["is_causal"].as_int() == 1 and bias is None and past_k is None


def fits_flash(node: ir.Node) -> bool:
    """Whether `GroupQueryAttention` computes this plain core."""
    return (
        node.meta["head_dim"] == node.meta["value_dim"]
        and node.meta["head_dim"] % 8 == 0  # it refuses others
        and node.inputs[0] is not None
        and node.inputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    )


def write_packed(write: Writer, node: ir.Node, *, switching: bool) -> ir.Value:
    """Attention on (batch, seq, heads * width), without transpositions, where the module has that.

    `Attention` up to LONGEST_SHORT positions and, if `switching`, `GroupQueryAttention` beyond.
    """
    q, k, v, *_ = core_inputs(node)
    packed = "packed_output" in node.meta and "packed_inputs" in node.meta
    values: list[ir.Value] = node.meta["packed_inputs"] if packed else [q, k, v]
    if not switching:
        chosen = _short(write, node, values, packed)
    else:
        chosen = _switch(write, node, values, packed)
    chosen.type = q.type
    return give_merged(write, node, chosen) if packed else chosen


def _switch(write: Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    """Choose the operator by the length, when the graph runs.

    The contrib operator's flash path needs no seq x seq scores; it is taken only where past and
    present are given, so an empty past is.
    """
    axis = 1 if packed else 2
    seq = write("Shape", values[0], start=axis, end=axis + 1)
    is_long = write("Greater", write("Squeeze", seq), write.scalar(LONGEST_SHORT))
    return choose(
        write,
        node,
        is_long,
        lambda inner: _flash(inner, node, values, packed),
        lambda inner: _short(inner, node, values, packed),
    )


def _short(write: Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    if not packed:
        return write_attention(write, node)[0]
    bias = None
    window = node.attributes["window"].as_int()
    if window:
        bias = window_mask(write, values[0], values[1], None, window, axis=1)
    attributes = {
        **attention_attributes(node),
        "q_num_heads": node.meta["num_heads"],
        "kv_num_heads": node.meta["num_kv_heads"],
    }
    inputs = [*values, bias] if bias is not None else list(values)
    return write.node("Attention", inputs, attributes).outputs[0]


def _flash(write: Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    """The contrib operator, with an empty past.

    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    heads, groups = node.meta["num_heads"], node.meta["num_kv_heads"]
    width = node.meta["head_dim"]
    merged = list(values)
    if not packed:
        counts = (heads, groups, groups)
        merged = [merge_heads(write, x, n, width) for x, n in zip(values, counts, strict=True)]
    batch = write("Shape", merged[0], start=0, end=1)
    seq = write("Shape", merged[0], start=1, end=2)
    last = write("Cast", write("Sub", seq, write.ints(1)), to=ir.DataType.INT32.value)
    lasts = write("Expand", last, batch)
    total = write("Squeeze", write("Cast", seq, to=ir.DataType.INT32.value))
    shape = write("Concat", batch, write.ints(groups, 0, width), axis=0)
    dtype = (node.inputs[0].dtype or ir.DataType.FLOAT).numpy()  # type: ignore[union-attr]
    empty = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype)))
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": node.attributes["scale"].as_float(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    if node.attributes["window"].as_int():
        attributes["local_window_size"] = node.attributes["window"].as_int()
    result = write.node(
        "GroupQueryAttention",
        [*merged, empty, empty, lasts, total],
        attributes,
        outputs=3,
        domain=CONTRIB,
    ).outputs[0]
    if packed:
        return result
    return split_heads(write, result, heads, node.meta["value_dim"])
