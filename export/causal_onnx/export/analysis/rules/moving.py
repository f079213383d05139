"""Operators that move, copy, join or drop elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_value,
    normal_axis,
    required,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Array,
    BoolArray,
    Elements,
    IntArray,
    Known,
    RefusedByOnnxError,
    Tensor,
    compress,
    lift,
    merge,
    normal,
    restructure,
    view,
)
from causal_onnx.export.analysis.moves import MOVES, split_sizes
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["concatenate", "gather_rows", "moved", "reach_over", "take_slice"]

_SIMPLE = sorted(
    set(MOVES) - {"Identity", "Pad", "Trilu", "Gather", "GatherElements", "GatherND", "Compress"}
)


def moved(node: ir.Node, inputs: Sequence[Abstract]) -> Tensor:
    """Input 0 after a pure move."""
    first = required(inputs, 0)
    move = MOVES[node.op_type](node, first.shape, inputs)
    return normal(restructure(lift(first), move))


@rule(*_SIMPLE)
def move_elements(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Reshape, Transpose, Slice, Expand, Tile, ...: known targets, any data."""
    return [moved(node, inputs)]


@rule("Pad", "Trilu")
def fill_elements(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Moves that put a known value where there was none."""
    first = required(inputs, 0)
    fill = np.asarray(0)
    if node.op_type == "Pad":
        given = known_value(inputs, 2, "padding value")
        fill = np.asarray(attr(node, "value", 0)) if given is None else given.reshape(())
    source = lift(first)
    move = MOVES[node.op_type](node, first.shape, inputs)
    out = restructure(source, move)
    made_up = move(view(np.zeros((1,) * len(source.shape), np.bool_), source.shape), True)
    if made_up.any():
        made = compress(made_up)
        out.known = made if out.known is None else out.known | made
        value = np.zeros((), fill.dtype) if out.value is None else out.value
        out.value = np.where(made, fill, value)
    return [normal(out)]


@rule("Split")
def split(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """One slice per output."""
    first = required(inputs, 0)
    axis = normal_axis(attr(node, "axis", 0), len(first.shape))
    outputs: list[Abstract] = []
    start = 0
    for size in split_sizes(node, first.shape[axis], inputs):
        outputs.append(take_slice(first, axis, start, start + size))
        start += size
    return outputs


def take_slice(tensor: Tensor, axis: int, start: int, end: int) -> Tensor:
    """Elements start:end of one axis."""
    index = (slice(None),) * axis + (slice(start, end),)
    return normal(restructure(lift(tensor), lambda array, _: array[index]))


@rule("Concat")
def concat(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Join along an axis."""
    tensors = [tensor_at(inputs, i) for i in range(len(inputs))]
    return [concatenate([t for t in tensors if t is not None], attr(node, "axis"))]


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """The tensors joined along `axis`.

    Raises:
        RefusedByOnnxError: Their other axes differ.
    """
    axis = normal_axis(axis, len(tensors[0].shape))
    others = {t.shape[:axis] + t.shape[axis + 1 :] for t in tensors}
    if len(others) != 1:
        raise RefusedByOnnxError(f"Concat of shapes {[t.shape for t in tensors]} along axis {axis}")
    return normal(merge(tensors, axis))


def reach_over(tensor: Elements, axes: Sequence[int]) -> IntArray:
    """The largest reach over the axes, which keep size 1."""
    if 0 in tensor.shape:
        return np.full((1,) * len(tensor.shape), NONE, np.int32)
    return np.asarray(tensor.reach.max(axis=tuple(axes), keepdims=True))


@rule("Gather")
def gather(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Rows by index; an index made of data reaches what the data reaches."""
    data, indices = required(inputs, 0), required(inputs, 1)
    if isinstance(indices, Known):
        return [moved(node, inputs)]
    return [gather_rows(ctx, node, data, indices, attr(node, "axis", 0))]


def gather_rows(ctx: Context, node: ir.Node, data: Tensor, indices: Elements, axis: int) -> Tensor:
    """Gather with indices that depend on data: any row may be the one."""
    axis = normal_axis(axis, len(data.shape))
    shape = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    lead = (1,) * axis
    trail = (1,) * (len(data.shape) - axis - 1)
    reach = indices.reach.reshape(lead + indices.reach.shape + trail)
    if isinstance(data, Elements):
        over = reach_over(data, [axis])
        if int(over.max(initial=NONE)) > NONE:
            ctx.approximated(node, "the index depends on data, so that any element may be read")
        grown = over.reshape(over.shape[:axis] + (1,) * len(indices.shape) + over.shape[axis + 1 :])
        reach = np.maximum(reach, grown)
    return Elements(shape, reach)


@rule("GatherElements")
def gather_elements(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """One element per index, within its line along the axis."""
    data, indices = required(inputs, 0), required(inputs, 1)
    if isinstance(indices, Known):
        return [moved(node, inputs)]
    axis = normal_axis(attr(node, "axis", 0), len(data.shape))
    source = lift(data)
    over = view(reach_over(source, [axis]), _with(source.shape, axis, 1))
    crop = tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(indices.shape))
    if isinstance(data, Elements) and not _uniform(source.reach, axis):
        ctx.approximated(node, "the index depends on data, so that any element may be read")
    return [Elements(indices.shape, compress(np.maximum(indices.reach, over[crop])))]


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _uniform(array: Array, axis: int) -> bool:
    return array.shape[axis] == 1 or bool((array == array.take([0], axis=axis)).all())


@rule("GatherND")
def gather_nd(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Elements or slices by index tuples."""
    data, indices = required(inputs, 0), required(inputs, 1)
    if isinstance(indices, Known):
        return [moved(node, inputs)]
    batch, depth = attr(node, "batch_dims", 0), indices.shape[-1]
    shape = indices.shape[:-1] + data.shape[batch + depth :]
    tail = len(data.shape) - batch - depth
    own = reach_over(indices, [len(indices.shape) - 1])[..., 0]
    source = lift(data)
    over = reach_over(source, range(batch, batch + depth))
    if int(over.max(initial=NONE)) > NONE:
        ctx.approximated(node, "the index depends on data, so that any element may be read")
    middle = len(indices.shape) - 1 - batch
    over = over.reshape(over.shape[:batch] + (1,) * middle + over.shape[batch + depth :])
    own = own.reshape(own.shape + (1,) * tail)
    return [Elements(shape, compress(np.maximum(own, over)))]


@rule("ScatterND", "ScatterElements")
def scatter(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Updates put at indices into a copy of the data."""
    data, indices, updates = (required(inputs, i) for i in range(3))
    if isinstance(indices, Known):
        return [_scatter_known(ctx, node, lift(data), indices.value, lift(updates))]
    source, changes = lift(data), lift(updates)
    if node.op_type == "ScatterElements":
        axis = normal_axis(attr(node, "axis", 0), len(data.shape))
        return [_scatter_lines(ctx, node, source, indices, changes, axis=axis)]
    depth = indices.shape[-1]
    top = max(
        int(indices.reach.max(initial=NONE)),
        int(changes.reach.max(initial=NONE)),
    )
    ctx.approximated(node, "the index depends on data, so that any element may be overwritten")
    del depth
    reach = np.maximum(source.reach, np.int32(top))
    return [Elements(data.shape, reach)]


def _scatter_lines(
    ctx: Context,
    node: ir.Node,
    data: Elements,
    indices: Elements,
    updates: Elements,
    *,
    axis: int,
) -> Elements:
    """Indices made of data move updates along `axis` only: line by line."""
    both = np.maximum(view(indices.reach, indices.shape), view(updates.reach, indices.shape))
    lines = both.max(axis=axis, keepdims=True, initial=NONE)
    reach = view(data.reach, data.shape).copy()
    where = tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(indices.shape))
    reach[where] = np.maximum(reach[where], lines)
    if not _uniform(both, axis):
        ctx.approximated(node, "the index depends on data, so that any element may be overwritten")
    return Elements(data.shape, compress(reach))


def _scatter_known(
    ctx: Context, node: ir.Node, data: Elements, indices: Array, updates: Elements
) -> Tensor:
    shape = data.shape
    where = _targets(node, shape, indices)
    adds = attr(node, "reduction", "none") != "none"
    source_shape = updates.shape
    reach = view(data.reach, shape).copy()
    change = view(updates.reach, source_shape)
    if adds:
        np.maximum.at(reach, where, change)  # type: ignore[arg-type]
        return normal(Elements(shape, compress(reach)))
    reach[where] = change
    out = Elements(shape, compress(reach))
    out.known = _written(data.known, updates.known, shape, where, source_shape)
    out.low = _written(data.low, updates.low, shape, where, source_shape)
    out.maybe_low = _written(data.maybe_low, updates.maybe_low, shape, where, source_shape)
    if out.known is not None or out.low is not None:
        old = np.zeros((), np.float32) if data.value is None else data.value
        new = np.zeros((), old.dtype) if updates.value is None else updates.value
        value = view(old, shape).astype(np.result_type(old, new), copy=True)
        value[where] = view(new, source_shape)
        out.value = compress(value)
    return normal(out)


def _written(
    data: BoolArray | None,
    updates: BoolArray | None,
    shape: tuple[int, ...],
    where: tuple[Array | slice, ...],
    source_shape: tuple[int, ...],
) -> BoolArray | None:
    if data is None and updates is None:
        return None
    false = np.zeros((), np.bool_)
    record = view(false if data is None else data, shape).copy()
    record[where] = view(false if updates is None else updates, source_shape)
    return compress(record)


def _targets(node: ir.Node, shape: tuple[int, ...], indices: Array) -> tuple[Array | slice, ...]:
    """The numpy index of the elements that the updates replace."""
    if node.op_type == "ScatterElements":
        axis = normal_axis(attr(node, "axis", 0), len(shape))
        if indices.ndim != len(shape):
            raise RefusedByOnnxError(f"indices of rank {indices.ndim} for shape {shape}")
        grid: list[Array] = list(np.ix_(*(np.arange(n) for n in indices.shape)))
        grid[axis] = np.where(indices < 0, indices + shape[axis], indices)
        return tuple(grid)
    depth = indices.shape[-1]
    return tuple(
        np.where(indices[..., i] < 0, indices[..., i] + shape[i], indices[..., i])
        for i in range(depth)
    )


@rule("TensorScatter")
def tensor_scatter(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Write new positions into a cache, at a known index per batch row."""
    cache, update = required(inputs, 0), required(inputs, 1)
    starts = known_value(inputs, 2, "write index")
    axis = normal_axis(attr(node, "axis", -2), len(cache.shape))
    batch, size = cache.shape[0], cache.shape[axis]
    first = np.zeros(batch, np.int64) if starts is None else starts.reshape(-1)
    steps = first[:, None] + np.arange(update.shape[axis])[None, :]
    if attr(node, "mode", "linear") == "circular":
        steps = steps % size
    elif steps.size and int(steps.max()) >= size:
        raise RefusedByOnnxError(f"a write at {int(steps.max())} into a cache of size {size}")
    indices = [np.asarray(grid) for grid in np.ix_(*(np.arange(n) for n in update.shape))]
    target = [1] * len(cache.shape)
    target[0], target[axis] = steps.shape
    indices[axis] = steps.reshape(target)
    full = np.broadcast_arrays(*indices)
    flat = np.stack(full, axis=-1)
    scatter_nd = ir.Node("", "ScatterND", [], num_outputs=1)
    return [_scatter_known(ctx, scatter_nd, lift(cache), flat, lift(update))]


@rule("Compress")
def compress_axis(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Keep the elements where a known condition holds."""
    return [moved(node, inputs)]


@rule("Resize", "Upsample", "GridSample", "CenterCropPad")
def resample(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Refused: interpolation weights are not followed."""
    raise UnsupportedError("interpolation along axes is not followed")


@rule("Shape")
def shape_of(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The sizes, which are known."""
    first = required(inputs, 0)
    sizes = first.shape[attr(node, "start", 0) : attr(node, "end")]
    return [Known(np.asarray(sizes, np.int64))]


@rule("Size")
def size_of(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The number of elements, which is known."""
    first = required(inputs, 0)
    return [Known(np.asarray(first.size, np.int64))]


@rule("EyeLike")
def eye_like(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Depends on the shape of its input alone."""
    first = required(inputs, 0)
    dtype = attr(node, "dtype")
    kind = np.dtype(np.float32) if dtype is None else ir.DataType(dtype).numpy()
    rows, columns = first.shape
    return [Known(np.eye(rows, columns, k=attr(node, "k", 0)).astype(kind))]
