"""Attention of some queries over some keys in MatMul and Softmax."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer

__all__ = ["attend", "hiding"]


def hiding(
    write: Writer, allowed: ir.Value | None, bias: ir.Value | None, *, like: ir.Value
) -> ir.Value | None:
    """What to add to the scores: `bias`, and -inf where not `allowed`; None for nothing.

    The mask is as wide as one head, and adding it is one pass over the scores of all heads;
    choosing between scores and -inf takes onnxruntime three.
    """
    if allowed is None:
        return bias
    shown = write.number(0.0, like) if bias is None else bias
    return write("Where", allowed, shown, write.number(-np.inf, like))


def attend(
    write: Writer,
    core: CanonicalCore,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    mask: ir.Value | None,
    count: ir.Value,
) -> ir.Value:
    """softmax(scale q k^T + mask) v, each key/value head multiplied with its group of queries.

    Args:
        write: Where to.
        core: Its scale, softcap, sink and heads.
        q: (batch, num_heads, count, head_dim).
        k: (batch, num_kv_heads, columns, head_dim).
        v: (batch, num_kv_heads, columns, value_dim).
        mask: Broadcasts to (batch, num_heads, count, columns); added to the scores.
        count: int64 (1,), the number of queries.

    Returns:
        (batch, num_heads, count, value_dim).
    """
    heads, groups = core.num_heads, core.num_kv_heads
    grouped, like = heads != groups, q  # what is made of q has no dtype here
    q = write("Mul", q, write.number(core.scale, like))
    if grouped:
        # (batch, groups, heads per group * count, d): the queries of a group share its keys.
        q = write("Reshape", q, write.ints(0, groups, -1, core.head_dim))
    scores = write("MatMul", q, write("Transpose", k, perm=[0, 1, 3, 2]))
    if grouped:
        scores = write("Reshape", scores, _split(write, heads, count))
    if core.softcap:
        number = write.number(core.softcap, like)
        scores = write("Mul", write("Tanh", write("Div", scores, number)), number)
    if mask is not None:
        scores = write("Add", scores, mask)
    weights = _weights(write, scores, core.sink, heads)
    if core.bias is not None and core.sink is None:
        # Where nothing may be attended to the softmax is 0 / 0; the output is 0 by definition.
        weights = write("Where", write("IsNaN", weights), write.number(0.0, like), weights)
    if grouped:
        columns = write("Shape", k, start=2, end=3)
        shape = write("Concat", write.ints(0, groups, -1), columns, axis=0)
        weights = write("Reshape", weights, shape)
    result = write("MatMul", weights, v)
    return write("Reshape", result, _split(write, heads, count)) if grouped else result


def _split(write: Writer, heads: int, count: ir.Value) -> ir.Value:
    """The shape that gives each head of a group its queries again."""
    return write("Concat", write.ints(0, heads), count, write.ints(-1), axis=0)


def _weights(write: Writer, scores: ir.Value, sink: ir.Value | None, heads: int) -> ir.Value:
    """The softmax; a sink, one more score per head, takes part in it and is dropped after it."""
    if sink is None:
        return write("Softmax", scores, axis=-1)
    shape = write("Concat", write("Shape", scores, start=0, end=3), write.ints(1), axis=0)
    column = write("Expand", write("Reshape", sink, write.ints(1, heads, 1, 1)), shape)
    weights = write("Softmax", write("Concat", scores, column, axis=-1), axis=-1)
    return write("Slice", weights, write.ints(0), write.ints(-1), write.ints(3))
