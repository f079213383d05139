"""LSTM, GRU and RNN: each step depends on the steps before it, in the direction of the layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    attr,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Elements,
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
