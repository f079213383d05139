"""A core in MatMul and Softmax, which every opset has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.canonical import sink_of
from causal_onnx.export.lower.positions import allowed_pairs, core_inputs
from causal_onnx.export.lower.rows import has_rows, join_rows
from causal_onnx.export.lower.writer import Writer

__all__ = ["write_primitives"]


def write_primitives(write: Writer, node: ir.Node) -> Sequence[ir.Value]:
    """softmax(scale q k^T + bias) v, each key/value head multiplied with its group of queries.

    A sink takes part in the softmax and is dropped after it.
    """
    q, k, v, bias, past_k, past_v = core_inputs(node)
    joined = join_rows(write, node) if has_rows(node) else None
    if joined is not None:
        k, v = joined.k, joined.v
    elif past_k is not None and past_v is not None:
        k = write("Concat", past_k, k, axis=2)
        v = write("Concat", past_v, v, axis=2)
    heads, groups = node.meta["num_heads"], node.meta["num_kv_heads"]
    width, value_width = node.meta["head_dim"], node.meta["value_dim"]
    grouped = heads != groups
    scale = write.number(node.attributes["scale"].as_float(), q)
    left, right, values = write("Mul", q, scale), k, v
    if grouped:
        # (batch, groups, heads per group * seq, d): the queries of a group share its keys.
        left = write("Reshape", left, write.ints(0, groups, -1, width))
    scores = write("MatMul", left, write("Transpose", right, perm=[0, 1, 3, 2]))
    if grouped:
        scores = write("Reshape", scores, write.shape(q, 2, [0, heads], [-1]))
    cap = node.attributes["softcap"].as_float()
    if cap:
        number = write.number(cap, q)
        scores = write("Mul", write("Tanh", write("Div", scores, number)), number)
    allowed = allowed_pairs(write, node, q, k) if joined is None else joined.allowed
    if bias is not None:
        scores = write("Add", scores, bias)
    low = write.number(-np.inf, q)
    if allowed is not None:
        scores = write("Where", allowed, scores, low)
    sink = sink_of(node)
    if sink is None:
        weights = write("Softmax", scores, axis=-1)
    else:
        weights = _beside_sink(write, scores, sink, heads)
    if bias is not None and sink is None:
        # Where nothing may be attended to the softmax is 0 / 0; the output is 0 by definition.
        zero = write.number(0.0, q)
        weights = write("Where", write("IsNaN", weights), zero, weights)
    if grouped:
        total = write("Shape", k, start=2, end=3)
        shape = write("Concat", write.ints(0, groups, -1), total, axis=0)
        weights = write("Reshape", weights, shape)
    result = write("MatMul", weights, values)
    if grouped:
        result = write("Reshape", result, write.shape(q, 2, [0, heads], [value_width]))
    if joined is not None:
        return [result, joined.present_k, joined.present_v]
    return [result, k, v][: len(node.outputs)]


def _beside_sink(write: Writer, scores: ir.Value, sink: ir.Value, heads: int) -> ir.Value:
    """Weights of the keys where one more score per head takes part in the softmax."""
    rows = write("Shape", scores, start=0, end=3)
    column = write("Reshape", sink, write.ints(1, heads, 1, 1))
    column = write("Expand", column, write("Concat", rows, write.ints(1), axis=0))
    weights = write("Softmax", write("Concat", scores, column, axis=-1), axis=-1)
    return write("Slice", weights, write.ints(0), write.ints(-1), write.ints(3))
