"""LSTM, GRU and RNN: each step depends on the steps before it, in the direction of the layer.

So does onnxruntime's LinearAttention, always forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Elements,
    IntArray,
    RefusedByOnnxError,
    Tensor,
    compress,
    lift,
    view,
)
from causal_onnx.export.analysis.rules.registry import Context, rule


@rule("LSTM", "GRU", "RNN")
def recurrent(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """X is (seq, batch, input), or (batch, seq, input) with layout 1."""
    source = lift(required(inputs, 0))
    time = 1 if attr(node, "layout", 0) else 0
    steps = source.reach.max(axis=2, keepdims=False)
    steps = np.moveaxis(np.broadcast_to(steps, source.shape[:2]), time, 0)
    hidden = required_attr(node, "hidden_size")
    start = NONE
    for index in range(1, len(inputs)):
        extra = tensor_at(inputs, index)
        if isinstance(extra, Elements):
            start = max(start, int(extra.reach.max(initial=NONE)))
    direction = attr(node, "direction", "forward")
    runs = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    lines, ends = [], []
    for backwards in runs:
        order = np.flip(steps, 0) if backwards else steps
        total = np.maximum(np.maximum.accumulate(order, axis=0), start)
        ends.append(total[-1])
        lines.append(np.flip(total, 0) if backwards else total)
    length, batch = steps.shape
    every = np.stack(lines, axis=1)[..., None]  # (seq, direction, batch, 1)
    last = np.stack(ends, axis=0)[..., None]  # (direction, batch, 1)
    if time:
        every = every.transpose(2, 0, 1, 3)  # (batch, seq, direction, 1)
        last = last.transpose(1, 0, 2)
        shape: tuple[int, ...] = (batch, length, len(runs), hidden)
        end_shape: tuple[int, ...] = (batch, len(runs), hidden)
    else:
        shape = (length, len(runs), batch, hidden)
        end_shape = (len(runs), batch, hidden)
    out = Elements(shape, compress(every.astype(np.int32)))
    end = Elements(end_shape, compress(last.astype(np.int32)))
    assert view(out.reach, shape).shape == shape
    return [out, end, end][: len(node.outputs)]


@rule("LinearAttention", domain="com.microsoft")
def linear_attention(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Queries, keys and values are (batch, seq, heads * width); a query reads the state after its
    own position's key and value have entered.

    Source: onnxruntime's ContribOperators.md. All its update rules move a column of the state by
    that column, the key, the decay, the rate, and the column's value.
    """
    heads, kv_heads = required_attr(node, "q_num_heads"), required_attr(node, "kv_num_heads")
    rule_name = attr(node, "update_rule", "gated_delta")
    if rule_name not in ("linear", "gated", "delta", "gated_delta"):
        raise UnsupportedError(f"its update rule is {rule_name}")
    if attr(node, "state_window", 0):
        raise UnsupportedError("it keeps several states")
    if heads % kv_heads:
        raise UnsupportedError("it has fewer heads of queries than of keys")
    query, value = required(inputs, 0), required(inputs, 2)
    batch, seq = query.shape[:2]
    width, value_width = query.shape[2] // heads, value.shape[2] // kv_heads
    if required(inputs, 1).shape[2] != width * kv_heads:
        raise UnsupportedError("its keys are shared by heads of values")
    asked = _by_head(query, heads).max(axis=3, keepdims=True, initial=NONE)
    enters = _by_head(value, kv_heads)  # (batch, heads, seq, value width)
    for index in (1, 4, 5):
        part = tensor_at(inputs, index)
        if part is not None:
            own = _by_head(part, 1 if part.shape[2] == 1 else kv_heads)
            enters = np.maximum(enters, own.max(axis=3, keepdims=True, initial=NONE))
    past = tensor_at(inputs, 3)
    if past is not None:
        start = view(lift(past).reach, past.shape).max(axis=2, keepdims=True, initial=NONE)
        enters = np.concatenate([start, enters], axis=2)
    lines = np.maximum.accumulate(enters, axis=2)
    last = lines[:, :, -1:]
    out = np.maximum(np.repeat(lines[:, :, lines.shape[2] - seq :], heads // kv_heads, 1), asked)
    out = out.transpose(0, 2, 1, 3).reshape(batch, seq, heads * value_width)
    state = (batch, kv_heads, width, value_width)
    return [
        Elements(out.shape, compress(out.astype(np.int32))),
        Elements(state, compress(last.astype(np.int32))),
    ][: len(node.outputs)]


def _by_head(tensor: Tensor, heads: int) -> IntArray:
    """How far each entry reaches, (batch, heads, seq, width)."""
    batch, seq, width = tensor.shape
    if width % heads:
        raise RefusedByOnnxError(f"width {width} is no multiple of {heads} heads")
    reach = view(lift(tensor).reach, tensor.shape)
    return reach.reshape(batch, seq, heads, width // heads).transpose(0, 2, 1, 3)
