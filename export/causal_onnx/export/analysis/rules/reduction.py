"""Operators that work along an axis: reductions, softmax, cumulative sums, sorting, norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_ints,
    known_value,
    normal_axis,
    required,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    BoolArray,
    Elements,
    IntArray,
    Ratio,
    RefusedByOnnxError,
    Tensor,
    compress,
    is_low,
    lift,
    normal,
    view,
)
from causal_onnx.export.analysis.rules.elementwise import bound_of, low_note
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["blend", "softmax"]

PADDED_NOTE = (
    "rows whose every visible key is masked by data (padding) average over all positions; "
    "only rows with at least one unmasked key are proved"
)


def blend(tensor: Elements, axes: Iterable[int], live: BoolArray | None = None) -> IntArray:
    """The largest reach over the axes (kept, size 1) of the elements that are `live`."""
    axes = tuple(axes)
    reach = tensor.reach
    if live is not None:
        reach = np.where(live, reach, np.int32(NONE))
    if not axes:
        return reach
    return np.asarray(reach.max(axis=axes, keepdims=True, initial=NONE))


def _full(record: BoolArray | None, tensor: Elements) -> BoolArray:
    return np.zeros((1,) * len(tensor.shape), np.bool_) if record is None else record


def reduce_axes(node: ir.Node, inputs: Sequence[Abstract], rank: int) -> tuple[int, ...]:
    """The axes that a Reduce operator works along, counted from the front."""
    axes = known_ints(inputs, 1, "axes")
    if axes is None:
        axes = attr(node, "axes")
    if not axes:
        return () if attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({normal_axis(axis, rank) for axis in axes}))


def _finish(out: Elements, axes: Sequence[int], *, keep: bool) -> Tensor:
    """Drop the reduced axes unless they are kept."""
    if keep or not axes:
        return normal(out)
    shape = tuple(size for i, size in enumerate(out.shape) if i not in axes)
    for name in ("reach", "known", "value", "low", "maybe_low"):
        array = getattr(out, name)
        if array is not None:
            setattr(out, name, np.squeeze(array, axis=tuple(axes)))
    out.shape = shape
    return normal(out)


@rule(
    "ReduceSum",
    "ReduceMean",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
)
def reduce(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Combine along axes; elements that cannot change the result leave no trace."""
    tensor = lift(required(inputs, 0))
    rank = len(tensor.shape)
    axes = reduce_axes(node, inputs, rank)
    live = _live(ctx, node, tensor, axes)
    reach = blend(tensor, axes, live)
    shape = tuple(1 if i in axes else size for i, size in enumerate(tensor.shape))
    out = Elements(shape, compress(reach))
    _reduced_values(node, tensor, axes, live, out)
    ratio = tensor.ratio
    sums = node.op_type == "ReduceSum" and attr(node, "keepdims", 1)
    if sums and ratio is not None and tuple(axes) == ratio.axes:
        own = Elements(tensor.shape, ratio.reach)
        out.ratio = Ratio(ratio.source, ratio.axes, blend(own, axes, live))
    return [_finish(out, axes, keep=bool(attr(node, "keepdims", 1)))]


NEUTRAL = {
    "ReduceSum": 0.0,
    "ReduceMean": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceLogSum": 0.0,
    "ReduceLogSumExp": -np.inf,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceProd": 1.0,
}


def _live(ctx: Context, node: ir.Node, tensor: Elements, axes: Sequence[int]) -> BoolArray | None:
    """Where an element can change the result; None: everywhere."""
    live: BoolArray | None = None
    op = node.op_type
    if tensor.known is not None and tensor.value is not None:
        value = tensor.value
        if value.dtype == np.bool_:
            value = value.astype(np.int8)
        dead = tensor.known & (value == NEUTRAL[op])
        if op in ("ReduceMax", "ReduceMin") and value.dtype.kind in "iub":
            limit = _integer_limit(tensor, op)
            dead = dead | (tensor.known & (value == limit))
        live = ~dead
    if op in ("ReduceMax", "ReduceLogSumExp"):
        live = _live_above_low(ctx, node, tensor, axes, live)
    return live


def _integer_limit(tensor: Elements, op: str) -> int:
    assert tensor.value is not None
    if tensor.value.dtype == np.bool_:
        return 0 if op == "ReduceMax" else 1
    info = np.iinfo(tensor.value.dtype)
    return int(info.min if op == "ReduceMax" else info.max)


def _live_above_low(
    ctx: Context,
    node: ir.Node,
    tensor: Elements,
    axes: Sequence[int],
    live: BoolArray | None,
) -> BoolArray | None:
    """Finite masked scores lose against any other of the row."""
    low = is_low(tensor, infinite=False)
    if low is None or not axes:
        return live
    above = ~low if live is None else live & ~low
    above_full = np.broadcast_to(above, _wide(above, low, tensor))
    alive = above_full.any(axis=tuple(axes), keepdims=True)
    if not alive.any():
        return live
    ctx.assume(node, AssumptionKind.FINITE_MASK, low_note(bound_of(tensor, low)))
    _note_padded(ctx, node, tensor, above, axes)
    everything = np.ones_like(above) if live is None else live
    return np.where(alive, above, everything)


def _wide(a: BoolArray, b: BoolArray, tensor: Elements) -> tuple[int, ...]:
    return np.broadcast_shapes(a.shape, b.shape, tensor.reach.shape)


def _note_padded(
    ctx: Context, node: ir.Node, tensor: Elements, above: BoolArray, axes: Sequence[int]
) -> None:
    """Say so where every live score of some row may be masked by data."""
    if tensor.maybe_low is None:
        return
    sure = above & ~tensor.maybe_low
    wide = np.broadcast_shapes(sure.shape, above.shape)
    has_sure = np.broadcast_to(sure, wide).any(axis=tuple(axes))
    has_live = np.broadcast_to(above, wide).any(axis=tuple(axes))
    if (has_live & ~has_sure).any():
        ctx.assume(node, AssumptionKind.PADDED_ROWS, PADDED_NOTE)


def _reduced_values(
    node: ir.Node,
    tensor: Elements,
    axes: Sequence[int],
    live: BoolArray | None,
    out: Elements,
) -> None:
    """Know the result where all elements are neutral, or one decides alone."""
    op = node.op_type
    if tensor.known is None or tensor.value is None or not axes:
        return
    value = tensor.value.astype(np.float64) if tensor.value.dtype == np.bool_ else tensor.value
    wide = tensor.shape
    known = np.broadcast_to(tensor.known, wide)
    values = np.broadcast_to(value, wide)
    axes = tuple(axes)
    if op == "ReduceProd":
        _set(out, (known & (values == 0)).any(axis=axes, keepdims=True), 0.0)
        return
    if live is None:
        return
    dead = ~np.broadcast_to(live, wide).any(axis=axes, keepdims=True)
    settled = known.all(axis=axes, keepdims=True) & dead
    if op in ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
        _set(out, settled, 0.0)
    elif op == "ReduceMax":
        _set(out, settled, np.where(known, values, -np.inf).max(axis=axes, keepdims=True))
        top = known & ((values == np.inf) | _boolean_top(tensor, values, 1))
        _set(
            out,
            top.any(axis=axes, keepdims=True),
            np.where(top, values, -np.inf).max(axis=axes, keepdims=True),
        )
    elif op == "ReduceMin":
        _set(out, settled, np.where(known, values, np.inf).min(axis=axes, keepdims=True))
        bottom = known & ((values == -np.inf) | _boolean_top(tensor, values, 0))
        _set(
            out,
            bottom.any(axis=axes, keepdims=True),
            np.where(bottom, values, np.inf).min(axis=axes, keepdims=True),
        )


def _boolean_top(
    tensor: Elements, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], top: int
) -> BoolArray:
    assert tensor.value is not None
    if tensor.value.dtype == np.bool_:
        return np.asarray(values == top)
    return np.zeros((1,) * values.ndim, np.bool_)


def _set(out: Elements, chosen: object, value: object) -> None:
    where = np.asarray(chosen)
    if not where.any():
        return
    old = np.zeros((), np.float64) if out.value is None else out.value
    fresh = where if out.known is None else where & ~out.known
    out.value = np.where(fresh, np.asarray(value), old)
    out.known = fresh if out.known is None else out.known | fresh
    out.reach = np.where(out.known, np.int32(NONE), out.reach).astype(np.int32)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax_node(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Softmax along one axis; before opset 13, along all axes from that one on."""
    tensor = lift(required(inputs, 0))
    rank = len(tensor.shape)
    if ctx.opsets.get("", 18) < 13:
        start = normal_axis(attr(node, "axis", 1), rank)
        axes = tuple(range(start, rank))
    else:
        axes = (normal_axis(attr(node, "axis", -1), rank),)
    return [softmax(ctx, node, tensor, axes, log=node.op_type == "LogSoftmax")]


def softmax(
    ctx: Context, node: ir.Node, tensor: Elements, axes: Sequence[int], *, log: bool = False
) -> Tensor:
    """exp(x) / sum exp(x) over the axes.

    Scores of -inf, and finite very negative ones beside others, get weight 0 and leave no trace.
    A row without any other score is NaN (all -inf) or an average over it (all finite).
    """
    rank = len(tensor.shape)
    gone = np.zeros((1,) * rank, np.bool_)
    if tensor.known is not None and tensor.value is not None and tensor.value.dtype.kind == "f":
        gone = tensor.known & (tensor.value == -np.inf)
    live = _live_above_low(ctx, node, tensor, axes, ~gone)
    assert live is not None
    reach = np.where(live, blend(tensor, axes, live), np.int32(NONE))
    out = Elements(tensor.shape, compress(reach.astype(np.int32)))
    wide = np.broadcast_shapes(live.shape, out.reach.shape)
    empty = ~np.broadcast_to(live, tensor.shape).any(axis=tuple(axes), keepdims=True)
    dead = ~live & ~empty
    if not log:
        own = np.where(live, tensor.reach, np.int32(NONE))
        out.ratio = Ratio(ctx.next_number(), tuple(axes), own.astype(np.int32))
    out.known = compress(np.broadcast_to(dead | empty, np.broadcast_shapes(wide, empty.shape)))
    zero = -np.inf if log else 0.0
    out.value = np.where(empty, np.nan, zero).astype(np.float32)
    out.reach = compress(np.where(dead | empty, np.int32(NONE), out.reach).astype(np.int32))
    return normal(out)


@rule("CumSum", "CumProd")
def cumulate(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Each element gathers those before it (after it, in reverse)."""
    tensor = lift(required(inputs, 0))
    axes = known_ints(inputs, 1, "axis")
    assert axes is not None
    axis = normal_axis(axes[0], len(tensor.shape))
    reach = view(tensor.reach, tensor.shape)
    if attr(node, "reverse", 0):
        reach = np.flip(reach, axis)
    total = np.maximum.accumulate(reach, axis=axis)
    if attr(node, "exclusive", 0):
        total = np.roll(total, 1, axis)
        total[(slice(None),) * axis + (slice(0, 1),)] = NONE
    if attr(node, "reverse", 0):
        total = np.flip(total, axis)
    return [Elements(tensor.shape, compress(total))]


@rule("DFT")
def fourier(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Every frequency depends on the whole line."""
    tensor = lift(required(inputs, 0))
    axes = known_ints(inputs, 2, "axis")
    axis = normal_axis(attr(node, "axis", 1 if axes is None else axes[0]), len(tensor.shape))
    length = known_ints(inputs, 1, "length")
    if (length is not None and length[0] != tensor.shape[axis]) or attr(node, "onesided", 0):
        raise UnsupportedError("a transform of another length is not followed")
    mixed = mix(tensor, (axis,))
    return [Elements((*tensor.shape[:-1], 2), mix(mixed, (len(tensor.shape) - 1,)).reach)]


@rule("ArgMax", "ArgMin")
def arg_extreme(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The place of the extreme depends on the whole line."""
    tensor = lift(required(inputs, 0))
    axis = normal_axis(attr(node, "axis", 0), len(tensor.shape))
    live = None
    if tensor.known is not None and tensor.value is not None and node.op_type == "ArgMax":
        live = ~(tensor.known & (tensor.value == -np.inf))
        live = _live_above_low(ctx, node, tensor, (axis,), live)
    shape = tuple(1 if i == axis else size for i, size in enumerate(tensor.shape))
    out = Elements(shape, compress(blend(tensor, (axis,), live)))
    return [_finish(out, (axis,), keep=bool(attr(node, "keepdims", 1)))]


@rule("TopK")
def top_k(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The k largest of each line depend on the whole line."""
    tensor = lift(required(inputs, 0))
    axis = normal_axis(attr(node, "axis", -1), len(tensor.shape))
    k = known_ints(inputs, 1, "k")
    count = attr(node, "k") if k is None else k[0]
    reach = compress(blend(tensor, (axis,)))
    shape = tuple(count if i == axis else size for i, size in enumerate(tensor.shape))
    if count > tensor.shape[axis]:
        raise RefusedByOnnxError(f"TopK of {count} among {tensor.shape[axis]}")
    return [Elements(shape, reach), Elements(shape, reach.copy())]


def mix(tensor: Elements, axes: Iterable[int]) -> Elements:
    """Every element comes to depend on its whole line (plane, ...) along the axes."""
    return Elements(tensor.shape, compress(blend(tensor, axes)))


def _with_parameters(out: Elements, inputs: Sequence[Abstract], start: int = 1) -> Elements:
    """Scale and bias that depend on data add what they reach (they broadcast from the right)."""
    for index in range(start, len(inputs)):
        extra = tensor_at(inputs, index)
        if isinstance(extra, Elements):
            out.reach = np.maximum(out.reach, extra.reach)
    return out


@rule("SimplifiedLayerNormalization", domain="com.microsoft")
@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Normalise over the axes from `axis` to the last."""
    tensor = lift(required(inputs, 0))
    rank = len(tensor.shape)
    axis = normal_axis(attr(node, "axis", -1), rank)
    axes = tuple(range(axis, rank))
    out = _with_parameters(mix(tensor, axes), inputs)
    shape = tuple(1 if i >= axis else size for i, size in enumerate(tensor.shape))
    statistics = [
        Elements(shape, compress(blend(tensor, axes))) for _ in range(len(node.outputs) - 1)
    ]
    return [out, *statistics]


@rule("BatchNormalization")
def batch_norm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """With stored statistics element by element; in training mode over all but the channels."""
    tensor = lift(required(inputs, 0))
    rank = len(tensor.shape)
    if attr(node, "training_mode", 0):
        axes = tuple(i for i in range(rank) if i != 1)
        out = mix(tensor, axes)
        channels = Elements(
            (tensor.shape[1],), np.full(1, int(out.reach.max(initial=NONE)), np.int32)
        )
        return [out, channels, channels][: len(node.outputs)]
    reach = tensor.reach
    for index in range(1, len(inputs)):
        extra = tensor_at(inputs, index)
        if isinstance(extra, Elements):
            reach = np.maximum(reach, extra.reach.reshape((1, -1) + (1,) * (rank - 2)))
    return [Elements(tensor.shape, compress(np.asarray(reach, np.int32)))]


@rule("LRN")
def local_response_norm(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Normalise over neighbouring channels (all of them, here)."""
    return [mix(lift(required(inputs, 0)), (1,))]


@rule("Dropout")
def dropout(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The identity, unless the graph was exported in training mode."""
    first = required(inputs, 0)
    training = known_value(inputs, 2, "training mode")
    if training is not None and bool(training.reshape(())):
        ctx.random.add(node.name or node.op_type)
        source = lift(first)
        return [Elements(source.shape, source.reach), Elements(source.shape, source.reach)][
            : len(node.outputs)
        ]
    mask = Elements(first.shape, np.full((1,) * len(first.shape), NONE, np.int32))
    return [first, mask][: len(node.outputs)]
