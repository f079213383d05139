"""Symbolic rules of the fused attention and rotary operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.proof.symbolic.arranging import concatenate, cut
from causal_onnx.export.proof.symbolic.computing import combine, contract, softmax
from causal_onnx.export.proof.symbolic.expression import AtLeastZero, Constant, as_poly
from causal_onnx.export.proof.symbolic.poly import ZERO, Poly
from causal_onnx.export.proof.symbolic.registry import (
    Given,
    SymbolicContext,
    optional,
    rule,
    tensor,
)
from causal_onnx.export.proof.symbolic.tensor import OpenError, Space, Symbolic

__all__: list[str] = []


@dataclass
class _Mask:
    causal: bool = False
    offset: Poly = ZERO
    """Query i stands at key index i + offset."""
    allowed: list[Symbolic] = field(default_factory=list)
    bias: list[Symbolic] = field(default_factory=list)


def _attend(
    space: Space, q: Symbolic, k: Symbolic, v: Symbolic, mask: _Mask
) -> tuple[Symbolic, Symbolic]:
    """Attention of (batch, heads, position, feature) tensors with equal heads."""
    scores = contract(space, ("bhsd", "bhtd", "bhst"), q, k)
    for bias in mask.bias:
        scores = combine(space, "Add", [scores, bias])
    hidden = Symbolic((), value=Constant(-float("inf")), known=True)
    for allowed in mask.allowed:
        scores = combine(space, "Where", [allowed, scores, hidden])
    if mask.causal:
        scores, row = space.single(scores, 2)
        scores, column = space.single(scores, 3)
        seen = Symbolic(
            ((), (), scores.axes[2], scores.axes[3]),
            value=AtLeastZero(row + mask.offset - column),
            known=True,
        )
        scores = combine(space, "Where", [seen, scores, hidden])
    weights = softmax(space, scores, [3])
    return contract(space, ("bhst", "bhtd", "bhsd"), weights, v), weights


def _split_heads(space: Space, part: Symbolic, heads: int) -> Symbolic:
    """(batch, seq, heads * dim) -> (batch, heads, seq, dim)."""
    batch, seq, width = space.shape(part)
    each = width.divided_by(heads)
    if each is None:
        raise OpenError(f"a width of {width!r} for {heads} heads")
    split = space.regroup(part, [batch, seq, Poly.of(heads), each])
    a, b, c, d = split.axes
    return replace(split, axes=(a, c, b, d))


def _join_heads(part: Symbolic) -> Symbolic:
    a, b, c, d = part.axes
    return replace(part, axes=(a, c, (*b, *d)), ints=None)


def _any_head(space: Space, part: Symbolic, heads: Poly) -> Symbolic:
    """Keys with one copy per query head; nothing may depend on the head index."""
    own = part.axes[1]
    if space.size(own) == heads:
        return part
    if any(set(own) & term.variables() for term in part.terms):
        raise OpenError("positions are merged with heads")
    axes = (part.axes[0], space.axis(heads), *part.axes[2:])
    return replace(part, axes=axes)


@rule("Attention")
def attention(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The operator of ONNX, opset 23 and later."""
    space = ctx.space
    q, k, v = (tensor(inputs, i) for i in range(3))
    flat = q.rank == 3
    if flat:
        q = _split_heads(space, q, attr(node, "q_num_heads"))
        k = _split_heads(space, k, attr(node, "kv_num_heads"))
        v = _split_heads(space, v, attr(node, "kv_num_heads"))
    mask = _Mask(causal=bool(attr(node, "is_causal", 0)))
    past_k, past_v = optional(inputs, 4), optional(inputs, 5)
    if past_k is not None and past_v is not None:
        mask.offset = space.size(past_k.axes[2])
        k, v = concatenate(space, [past_k, k], 2), concatenate(space, [past_v, v], 2)
    if optional(inputs, 6) is not None:
        raise OpenError("a number of valid keys per row is not followed")
    if attr(node, "right_window_size", -1) == 0:
        mask.causal = True
    given = optional(inputs, 3)
    if given is not None:
        boolean = _is_bool(ctx, node, 3)
        (mask.allowed if boolean else mask.bias).append(given)
    heads = space.size(q.axes[1])
    out, weights = _attend(space, q, _any_head(space, k, heads), _any_head(space, v, heads), mask)
    results = [_join_heads(out) if flat else out, k, v, weights]
    if len(node.outputs) > 3 and attr(node, "qk_matmul_output_mode", 0) != 3:
        raise OpenError("it gives the scores")
    return results[: len(node.outputs)]


def _is_bool(ctx: SymbolicContext, node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    dtype = None if value is None else ctx.dtype(value)
    if dtype is None:
        raise OpenError("the type of its mask is not known")
    return dtype == ir.DataType.BOOL


@rule("GroupQueryAttention", domain="com.microsoft", follows=(0, 1, 2, 3, 4, 5, 6, 10, 16))
def group_query_attention(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Causal attention over a past of its own; the new keys follow it."""
    space = ctx.space
    heads, kv_heads = attr(node, "num_heads"), attr(node, "kv_num_heads")
    query = tensor(inputs, 0)
    key, value = optional(inputs, 1), optional(inputs, 2)
    if key is None or value is None:
        width = space.size(query.axes[2]).divided_by(heads + 2 * kv_heads)
        if width is None:
            raise OpenError("its packed width does not divide into heads")
        bounds = [ZERO, width * heads, width * (heads + kv_heads), width * (heads + 2 * kv_heads)]
        q, k, v = (cut(ctx, node, query, 2, start, end=stop) for start, stop in pairwise(bounds))
    else:
        q, k, v = query, key, value
    q = _split_heads(space, q, heads)
    k = _split_heads(space, k, kv_heads) if k.rank == 3 else k
    v = _split_heads(space, v, kv_heads) if v.rank == 3 else v
    past_k, past_v = optional(inputs, 3), optional(inputs, 4)
    mask = _Mask(causal=True)
    total = tensor(inputs, 6)
    length = space.size(q.axes[2])
    past = ZERO if past_k is None else space.size(past_k.axes[2])
    if total.ints is None or total.ints[0] != past + length:
        raise OpenError("its cache is a buffer that is shared between steps")
    chunk = optional(inputs, 16)
    if chunk is not None and (chunk.terms or as_poly(chunk.value) != length):
        raise OpenError("the number of its queries that count (query_seqlens) is not that of all")
    if past_k is not None and past_v is not None and (past != 0 or chunk is not None):
        lengths = tensor(inputs, 5)
        if lengths.terms or as_poly(lengths.value) != past + length - 1:
            raise OpenError("the place of its queries (seqlens_k) is not known")
        mask.offset = past
        k, v = concatenate(space, [past_k, k], 2), concatenate(space, [past_v, v], 2)
    bias = optional(inputs, 10)
    if bias is not None:
        mask.bias.append(bias)
    count = Poly.of(heads)
    out, weights = _attend(space, q, _any_head(space, k, count), _any_head(space, v, count), mask)
    return [_join_heads(out), k, v, weights][: len(node.outputs)]


@rule("MultiHeadAttention", domain="com.microsoft", follows=(0, 1, 2, 4, 5, 6, 7))
def multi_head_attention(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Attention with optional masks and a past."""
    space = ctx.space
    heads = attr(node, "num_heads")
    query, key, value = tensor(inputs, 0), tensor(inputs, 1), tensor(inputs, 2)
    if query.rank != 3 or key.rank == 5:
        raise OpenError("packed queries, keys and values are not followed")
    if any(optional(inputs, i) is not None for i in (8, 9)):
        raise OpenError("a shared past buffer is not followed")
    q = _split_heads(space, query, heads)
    k = _split_heads(space, key, heads) if key.rank == 3 else key
    v = _split_heads(space, value, heads) if value.rank == 3 else value
    mask = _Mask(causal=bool(attr(node, "unidirectional", 0)))
    past_k, past_v = optional(inputs, 6), optional(inputs, 7)
    if past_k is not None and past_v is not None:
        mask.offset = space.size(past_k.axes[2])
        k, v = concatenate(space, [past_k, k], 2), concatenate(space, [past_v, v], 2)
    if mask.causal and space.size(k.axes[2]) != space.size(q.axes[2]) + mask.offset:
        raise OpenError("unidirectional with fewer queries than new keys")
    padding = optional(inputs, 4)
    if padding is not None:
        if padding.rank != 2:
            raise OpenError("its padding mask is not (batch, keys)")
        mask.allowed.append(replace(padding, axes=(padding.axes[0], (), (), padding.axes[1])))
    bias = optional(inputs, 5)
    if bias is not None:
        mask.bias.append(bias)
    out, weights = _attend(space, q, k, v, mask)
    return [_join_heads(out), k, v, weights][: len(node.outputs)]
