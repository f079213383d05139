"""Fused attention and rotary operators, by what they compute.

Each is written out as product, mask, softmax and product of the abstract tensors, so that a mask
given as data, a window or a past is judged as in a graph of primitive operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_ints,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    BoolArray,
    Elements,
    Known,
    RefusedByOnnxError,
    Tensor,
    compress,
    lift,
    normal,
    restructure,
    view,
)
from causal_onnx.export.analysis.rules.contraction import contract
from causal_onnx.export.analysis.rules.elementwise import binary, combine
from causal_onnx.export.analysis.rules.moving import concatenate, take_slice
from causal_onnx.export.analysis.rules.reduction import softmax
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["CausalRule", "Mask"]


@dataclass
class CausalRule:
    """Which keys a query may see by place: query i stands at key index i + offset."""

    offset: int | BoolArray = 0
    """One offset, or one per batch row."""
    causal: bool = True
    left: int | None = None
    """Keys before the query that are seen; None: all."""
    right: int | None = None
    """Keys after the query that are seen, without `causal`; None: all."""

    def visible(self, rows: int, columns: int) -> BoolArray:
        """Shape (rows, columns), or (batch, 1, rows, columns) with an offset per row."""
        offset = np.asarray(self.offset, np.int64)
        lead = offset.reshape(-1, 1, 1, 1) if offset.ndim else offset
        distance = np.arange(columns)[None, :] - (np.arange(rows)[:, None] + lead)
        seen = np.ones(distance.shape, np.bool_)
        if self.causal:
            seen &= distance <= 0
        if self.left is not None:
            seen &= distance >= -self.left
        if self.right is not None:
            seen &= distance <= self.right
        return seen


@dataclass
class Mask:
    """Everything that restricts or biases the scores."""

    rule: CausalRule | None = None
    allowed: list[Tensor] = field(default_factory=list)
    """Boolean, True where attention is allowed; broadcast to the scores."""
    bias: list[Tensor] = field(default_factory=list)
    """Added to the scores."""


def attend(
    ctx: Context, node: ir.Node, q: Tensor, k: Tensor, v: Tensor, *, mask: Mask
) -> tuple[Tensor, Tensor]:
    """Attention of (batch, heads, seq, head_dim) tensors with one key head per query head.

    Returns:
        The output (batch, heads, seq, v_dim) and the weights (batch, heads, seq, total).
    """
    if ctx.blank:
        one = np.full((1, 1, 1, 1), NONE, np.int32)
        weights: Tensor = Elements((*q.shape[:3], k.shape[2]), one)
        return Elements((*q.shape[:3], v.shape[3]), one), weights
    scores: Tensor = contract("bhsd", "bhtd", "bhst", q, k)
    for bias in mask.bias:
        scores = binary("Add", scores, bias)
    hidden = Known(np.asarray(-np.inf, np.float32))
    allowed = list(mask.allowed)
    if mask.rule is not None:
        allowed.append(Known(mask.rule.visible(q.shape[2], k.shape[2])))
    for seen in allowed:
        scores = combine("Where", [seen, scores, hidden], None)
    ctx.scores[node] = scores
    weights = _no_nan(softmax(ctx, node, lift(scores), (3,)))
    return contract("bhst", "bhtd", "bhsd", weights, v), weights


def _no_nan(weights: Tensor) -> Tensor:
    """A row that sees nothing gives 0 in the fused operators."""
    lifted = lift(weights)
    if lifted.value is not None:
        lifted.value = np.nan_to_num(lifted.value, nan=0.0)
    return normal(lifted)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(batch, seq, heads * dim) -> (batch, heads, seq, dim)."""
    batch, seq, width = tensor.shape
    if width % heads:
        raise RefusedByOnnxError(f"width {width} is no multiple of {heads} heads")
    shape = (batch, seq, heads, width // heads)
    return normal(restructure(lift(tensor), lambda a, _: a.reshape(shape).transpose(0, 2, 1, 3)))


def join_heads(tensor: Tensor) -> Tensor:
    """(batch, heads, seq, dim) -> (batch, seq, heads * dim)."""
    batch, heads, seq, dim = tensor.shape
    shape = (batch, seq, heads * dim)
    return normal(restructure(lift(tensor), lambda a, _: a.transpose(0, 2, 1, 3).reshape(shape)))


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Give each query head its own copy of its key-value head."""
    own = tensor.shape[1]
    if own == heads:
        return tensor
    if own == 0 or heads % own:
        raise RefusedByOnnxError(f"{heads} query heads for {own} key-value heads")
    return normal(restructure(lift(tensor), lambda a, _: np.repeat(a, heads // own, axis=1)))


def _with_rank(tensor: Tensor, rank: int) -> Tensor:
    """Leading axes of size 1, as broadcasting adds them."""
    shape = (1,) * (rank - len(tensor.shape)) + tensor.shape
    return normal(restructure(lift(tensor), lambda a, _: a.reshape(shape)))


_SAME_TYPE = frozenset(
    {"Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose result has the type of their first input."""
_OF_NUMBERS = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "MatMul", "Log"})


def _is_bool(node: ir.Node, index: int, tensor: Tensor) -> bool:
    value = node.inputs[index]
    # A file states no types of what lies between its inputs and outputs.
    while value is not None and value.dtype is None:
        producer = value.producer()
        if producer is not None and producer.op_type in _OF_NUMBERS and not producer.domain:
            return False
        if producer is None or producer.domain:
            break
        if producer.op_type != "Where" and producer.op_type not in _SAME_TYPE:
            break
        value = producer.inputs[producer.op_type == "Where"]
    if value is not None and value.dtype is not None:
        return value.dtype == ir.DataType.BOOL
    if isinstance(tensor, Known):
        return tensor.value.dtype == np.bool_
    raise UnsupportedError("it is not known whether its mask is boolean or added")


@rule("Attention")
def attention(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The operator of ONNX, opset 23 and later.

    Source: https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    q, k, v = (required(inputs, i) for i in range(3))
    flat = len(q.shape) == 3
    if flat:
        q = split_heads(q, required_attr(node, "q_num_heads"))
        k = split_heads(k, required_attr(node, "kv_num_heads"))
        v = split_heads(v, required_attr(node, "kv_num_heads"))
    past_k, past_v = tensor_at(inputs, 4), tensor_at(inputs, 5)
    offset: int | BoolArray = 0
    if past_k is not None and past_v is not None:
        offset = past_k.shape[2]
        k, v = concatenate([past_k, k], 2), concatenate([past_v, v], 2)
    present_k, present_v = k, v
    mask = Mask()
    lengths = tensor_at(inputs, 6)
    if lengths is not None:
        offset = _padded_keys(lengths, q, k, mask)
    window = {name: attr(node, f"{name}_window_size", -1) for name in ("left", "right")}
    mask.rule = CausalRule(
        offset=offset,
        causal=bool(attr(node, "is_causal", 0)),
        left=None if window["left"] < 0 else window["left"],
        right=None if window["right"] < 0 else window["right"],
    )
    given = tensor_at(inputs, 3)
    if given is not None:
        _attn_mask(node, given, k.shape[2], mask)
    heads = q.shape[1]
    out, weights = attend(ctx, node, q, repeat_heads(k, heads), repeat_heads(v, heads), mask=mask)
    if len(node.outputs) > 3 and attr(node, "qk_matmul_output_mode", 0) != 3:
        weights = contract("bhsd", "bhtd", "bhst", q, repeat_heads(k, heads))
    results = [join_heads(out) if flat else out, present_k, present_v, weights]
    return list(results[: len(node.outputs)])


def _padded_keys(lengths: Tensor, q: Tensor, k: Tensor, mask: Mask) -> int | BoolArray:
    """The offset where the number of valid keys per batch row is given."""
    if isinstance(lengths, Elements):
        raise UnsupportedError("the number of valid keys depends on data")
    valid = lengths.value.reshape(-1).astype(np.int64)
    seen = np.arange(k.shape[2])[None, :] < valid[:, None]
    mask.allowed.append(Known(seen[:, None, None, :]))
    return np.asarray(valid - q.shape[2])


def _attn_mask(node: ir.Node, given: Tensor, columns: int, mask: Mask) -> None:
    boolean = _is_bool(node, 3, given)
    missing = columns - given.shape[-1]
    if missing > 0 and given.shape[-1] > 1:
        fill = Known(
            np.full((*given.shape[:-1], missing), False if boolean else np.float32(-np.inf))
        )
        given = concatenate([given, fill], len(given.shape) - 1)
    (mask.allowed if boolean else mask.bias).append(_with_rank(given, 4))


@rule("GroupQueryAttention", domain="com.microsoft", follows=(0, 1, 2, 3, 4, 5, 6, 10, 16))
def group_query_attention(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Causal attention over a past, with grouped heads; rotary inside on demand.

    Source: onnxruntime's ContribOperators.md. Where query i stands follows from `seqlens_k` (total
    valid keys - 1) when there is a past; a prompt (as many keys as queries) starts at 0. With
    `query_seqlens`, which says how many queries of a row count, it always follows from both.
    """
    heads, kv_heads = required_attr(node, "num_heads"), required_attr(node, "kv_num_heads")
    q, k, v = _gqa_inputs(inputs, heads, kv_heads)
    batch, seq = q.shape[0], q.shape[2]
    total = known_ints(inputs, 6, "total sequence length")
    if total is None:
        raise RefusedByOnnxError("total_sequence_length is missing")
    past_k, past_v = tensor_at(inputs, 3), tensor_at(inputs, 4)
    lengths = tensor_at(inputs, 5)
    chunk = tensor_at(inputs, 16)
    prompt = seq == total[0] and chunk is None
    if chunk is not None:
        starts = _starts_of_chunks(lengths, chunk, seq, total[0], past_k)
    elif isinstance(lengths, Known) and not prompt:
        starts = lengths.value.reshape(-1).astype(np.int64) + 1 - seq
    elif prompt:
        starts = np.zeros(batch, np.int64)
    else:
        raise UnsupportedError("the place of its queries (seqlens_k) depends on data")
    if chunk is not None:
        past_k, past_v = (_with_room(past, total[0]) for past in (past_k, past_v))
    k = _into_past(past_k, k, starts, total[0])
    v = _into_past(past_v, v, starts, total[0])
    window = attr(node, "local_window_size", -1)
    mask = Mask(rule=CausalRule(offset=np.asarray(starts), left=None if window < 0 else window - 1))
    bias = tensor_at(inputs, 10)
    if bias is not None:
        mask.bias.append(_bias_for(bias, k.shape[2]))
    out, weights = attend(ctx, node, q, repeat_heads(k, heads), repeat_heads(v, heads), mask=mask)
    return [join_heads(out), k, v, weights][: len(node.outputs)]


def _starts_of_chunks(
    lengths: Tensor | None, chunk: Tensor, seq: int, total: int, past: Tensor | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Where the first query of each row stands, with `query_seqlens`.

    Source: onnxruntime's ContribOperators.md, "Right-padded query chunks".
    """
    if past is None:
        raise RefusedByOnnxError("query_seqlens is given without past keys")
    if not isinstance(lengths, Known) or not isinstance(chunk, Known):
        raise UnsupportedError(
            "the place of its queries (seqlens_k, query_seqlens) depends on data"
        )
    counts = chunk.value.reshape(-1).astype(np.int64)
    ends = lengths.value.reshape(-1).astype(np.int64) + 1
    if (counts > seq).any() or (counts < 0).any():
        raise RefusedByOnnxError(f"query_seqlens of {counts.tolist()} for {seq} queries")
    if (counts < seq).any():
        raise UnsupportedError(
            f"its outputs beyond query_seqlens ({counts.tolist()} of {seq} queries) are unspecified"
        )
    if (ends < counts).any():
        raise RefusedByOnnxError(f"query_seqlens of {counts.tolist()} for {ends.tolist()} keys")
    if (ends > total).any():
        raise RefusedByOnnxError(f"seqlens_k + 1 of {ends.tolist()} in a total length of {total}")
    starts: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = ends - counts
    if (starts > past.shape[2]).any():
        raise RefusedByOnnxError(f"{starts.tolist()} keys in a past of {past.shape[2]}")
    return starts


def _bias_for(bias: Tensor, columns: int) -> Tensor:
    """The bias, for a key buffer that may be longer than the keys in use."""
    have = bias.shape[-1]
    if have in (1, columns):
        return bias
    fill = Known(np.zeros((*bias.shape[:-1], columns - have), np.float32))
    return concatenate([bias, fill], len(bias.shape) - 1)


def _gqa_inputs(
    inputs: Sequence[Abstract], heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    query = required(inputs, 0)
    key, value = tensor_at(inputs, 1), tensor_at(inputs, 2)
    if key is not None and value is not None:
        parts: list[Tensor] = [
            split_heads(query, heads),
            split_heads(key, kv_heads) if len(key.shape) == 3 else key,
            split_heads(value, kv_heads) if len(value.shape) == 3 else value,
        ]
    else:
        width = query.shape[2] // (heads + 2 * kv_heads)
        bounds = np.cumsum([0, heads * width, kv_heads * width, kv_heads * width])
        slices = [take_slice(query, 2, int(a), int(b)) for a, b in pairwise(bounds)]
        parts = [
            split_heads(part, count)
            for part, count in zip(slices, (heads, kv_heads, kv_heads), strict=True)
        ]
    # Rotary positions and per-head norms act within a head.
    return _whole_heads(parts[0]), _whole_heads(parts[1]), parts[2]


def _whole_heads(tensor: Tensor) -> Tensor:
    lifted = lift(tensor)
    return Elements(lifted.shape, lifted.reach.max(axis=3, keepdims=True, initial=NONE))


def _with_room(past: Tensor | None, total: int) -> Tensor | None:
    """The past as a buffer of `total` slots at least, where its new keys have their places."""
    missing = 0 if past is None else total - past.shape[2]
    if past is None or missing <= 0:
        return past
    shape = (*past.shape[:2], missing, past.shape[3])
    empty = Elements(shape, np.full((1, 1, 1, 1), NONE, np.int32))
    return concatenate([past, empty], 2)


def _into_past(
    past: Tensor | None,
    new: Tensor,
    starts: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    total: int,
) -> Tensor:
    """Keys after this step: the past followed by the new, or a buffer that the new is put into."""
    seq = new.shape[2]
    if past is None:
        return new
    if (starts == past.shape[2]).all() or past.shape[2] + seq == total:  # no room: they follow it
        return concatenate([past, new], 2)
    buffer = lift(past)
    shape = buffer.shape
    reach = view(buffer.reach, shape).copy()
    fresh = view(lift(new).reach, new.shape)
    for row, start in enumerate(starts):
        begin = int(start)
        if begin < 0 or begin + seq > shape[2]:
            raise RefusedByOnnxError(
                f"positions {begin} to {begin + seq} in a buffer of {shape[2]}"
            )
        reach[row, :, begin : begin + seq] = fresh[row]
    return Elements(shape, compress(reach))


@rule("MultiHeadAttention", domain="com.microsoft", follows=(0, 1, 2, 4, 5, 6, 7))
def multi_head_attention(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Attention with optional bias, padding mask, additive bias and past.

    Source: onnxruntime's ContribOperators.md.
    """
    heads = required_attr(node, "num_heads")
    q, k, v = _mha_inputs(inputs, heads)
    past_k, past_v = tensor_at(inputs, 6), tensor_at(inputs, 7)
    if tensor_at(inputs, 8) is not None or tensor_at(inputs, 9) is not None:
        raise UnsupportedError("a shared past buffer or beam indirection is not followed")
    offset = 0
    if past_k is not None and past_v is not None:
        offset = past_k.shape[2]
        k, v = concatenate([past_k, k], 2), concatenate([past_v, v], 2)
    mask = Mask()
    if attr(node, "unidirectional", 0):
        if offset + q.shape[2] != k.shape[2]:
            raise UnsupportedError("unidirectional with fewer queries than new keys")
        mask.rule = CausalRule(offset=offset)
    padding = tensor_at(inputs, 4)
    if padding is not None:
        mask.allowed.append(_padding(padding, k.shape[2]))
    bias = tensor_at(inputs, 5)
    if bias is not None:
        mask.bias.append(bias)
    out, weights = attend(ctx, node, q, k, v, mask=mask)
    return [join_heads(out), k, v, weights][: len(node.outputs)]


def _padding(padding: Tensor, columns: int) -> Tensor:
    """A key padding mask (batch, total) or (batch, seq, total); lengths must be known."""
    rank = len(padding.shape)
    shape: tuple[int, ...]
    if rank == 2 and padding.shape[1] == columns:
        shape = (padding.shape[0], 1, 1, columns)
    elif rank == 3:
        shape = (padding.shape[0], 1, *padding.shape[1:])
    elif isinstance(padding, Known) and rank == 1:
        seen = np.arange(columns)[None, :] < padding.value.reshape(-1)[:, None]
        return Known(seen[:, None, None, :])
    else:
        raise UnsupportedError(f"a padding mask of shape {padding.shape} is not followed")
    moved = restructure(lift(padding), lambda a, _: a.reshape(shape))
    if moved.value is not None:
        moved.value = moved.value.astype(np.bool_)
    return normal(moved)


def _mha_inputs(inputs: Sequence[Abstract], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query = required(inputs, 0)
    key, value = tensor_at(inputs, 1), tensor_at(inputs, 2)
    if len(query.shape) == 5:  # packed (batch, seq, heads, 3, dim)
        parts = [_unpacked(query, 3, i) for i in range(3)]
        return parts[0], parts[1], parts[2]
    q = split_heads(query, heads)
    if key is None:
        return q, q, q
    if len(key.shape) == 5:  # packed (batch, total, heads, 2, dim)
        return q, _unpacked(key, 3, 0), _unpacked(key, 3, 1)
    k = split_heads(key, heads) if len(key.shape) == 3 else key
    if value is None:
        return q, k, k
    return q, k, split_heads(value, heads) if len(value.shape) == 3 else value


def _unpacked(tensor: Tensor, axis: int, index: int) -> Tensor:
    """Part `index` of a packed tensor, as (batch, heads, seq, dim)."""
    part = lift(take_slice(tensor, axis, index, index + 1))
    return normal(restructure(part, lambda a, _: a.squeeze(axis).transpose(0, 2, 1, 3)))
