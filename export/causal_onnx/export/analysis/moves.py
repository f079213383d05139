"""Operators that only move elements: each gives a function that moves any array that way.

The function takes an array of the operator's (first) input's shape and the entry for elements that
the operator makes up (padding), and returns the moved array. It serves values and records alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_ints,
    normal_axis,
    required_value,
)
from causal_onnx.export.analysis.elements import (
    Abstract,
    Array,
    RefusedByOnnxError,
    broadcast_shape,
    refusing,
)

__all__ = ["MOVES", "Move", "split_sizes"]

Move: TypeAlias = Callable[[Array, Any], Array]
Shape: TypeAlias = tuple[int, ...]
MakeMove: TypeAlias = Callable[[ir.Node, Shape, Sequence[Abstract]], Move]

MOVES: dict[str, MakeMove] = {}
"""Operator of the default domain -> (node, shape of input 0, inputs) -> move."""


def _moves(op_type: str) -> Callable[[MakeMove], MakeMove]:
    def register(make: MakeMove) -> MakeMove:
        def made(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
            move = make(node, shape, inputs)

            def checked(array: Array, fill: Any) -> Array:
                with refusing():
                    return move(array, fill)

            return checked

        MOVES[op_type] = made
        return make

    return register


@_moves("Reshape")
def _reshape(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    goal = known_ints(inputs, 1, "target shape")
    if goal is None:
        goal = list(attr(node, "shape", ()))
    if not attr(node, "allowzero", 0):
        goal = [shape[i] if size == 0 else size for i, size in enumerate(goal)]
    if -1 in goal:
        rest = 1
        for size in goal:
            rest *= size if size != -1 else 1
        total = int(np.prod(shape, dtype=np.int64))
        if rest == 0 or total % rest:
            raise RefusedByOnnxError(f"a tensor of shape {shape} cannot be reshaped to {goal}")
        goal = [total // rest if size == -1 else size for size in goal]
    return lambda array, _: array.reshape(goal)


@_moves("Transpose")
def _transpose(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    perm = attr(node, "perm")
    return lambda array, _: array.transpose(perm)


@_moves("Identity")
def _identity(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    return lambda array, _: array


@_moves("Flatten")
def _flatten(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    axis = attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    columns = int(np.prod(shape[axis:], dtype=np.int64))
    return lambda array, _: array.reshape(rows, columns)


def _axes(node: ir.Node, inputs: Sequence[Abstract]) -> list[int] | None:
    axes = known_ints(inputs, 1, "axes")
    if axes is None:
        axes = attr(node, "axes")
    return None if axes is None else list(axes)


@_moves("Squeeze")
def _squeeze(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    axes = _axes(node, inputs)
    if axes is None:
        axes = [i for i, size in enumerate(shape) if size == 1]
    gone = {normal_axis(axis, len(shape)) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        raise RefusedByOnnxError(f"Squeeze of axes {sorted(gone)} of a tensor of shape {shape}")
    goal = tuple(size for i, size in enumerate(shape) if i not in gone)
    return lambda array, _: array.reshape(goal)


@_moves("Unsqueeze")
def _unsqueeze(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    axes = _axes(node, inputs)
    if axes is None:
        raise RefusedByOnnxError("Unsqueeze without axes")
    rank = len(shape) + len(axes)
    new = {normal_axis(axis, rank) for axis in axes}
    old = iter(shape)
    goal = tuple(1 if i in new else next(old) for i in range(rank))
    index = tuple(None if i in new else slice(None) for i in range(rank))

    def move(array: Array, _: Any) -> Array:
        moved: Array = array[index]
        assert moved.shape == goal
        return moved

    return move


@_moves("Expand")
def _expand(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    wanted = known_ints(inputs, 1, "target shape")
    goal = broadcast_shape(shape, tuple(wanted or ()))
    return lambda array, _: np.broadcast_to(array, goal)


@_moves("Tile")
def _tile(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    repeats = known_ints(inputs, 1, "repeats") or []
    if len(repeats) != len(shape):
        raise RefusedByOnnxError(f"{len(repeats)} repeats for a tensor of shape {shape}")
    return lambda array, _: np.tile(array, repeats)


@_moves("Slice")
def _slice(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    if len(inputs) > 1:
        starts, ends = known_ints(inputs, 1, "start"), known_ints(inputs, 2, "end")
        axes, steps = known_ints(inputs, 3, "axes"), known_ints(inputs, 4, "steps")
    else:
        starts, ends, axes = attr(node, "starts"), attr(node, "ends"), attr(node, "axes")
        steps = None
    if starts is None or ends is None:
        raise RefusedByOnnxError("Slice without bounds")
    axes = list(range(len(starts))) if axes is None else list(axes)
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * len(shape)
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = normal_axis(given, len(shape))
        index[axis] = _python_slice(start, end, step, shape[axis])
    return lambda array, _: array[tuple(index)]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps the bounds; a negative step may run down to and including index 0."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        return slice(start, max(end, start), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step) if end < start else slice(0, 0)


def split_sizes(node: ir.Node, size: int, inputs: Sequence[Abstract]) -> list[int]:
    """The sizes of the outputs of Split along its axis."""
    sizes = known_ints(inputs, 1, "split sizes")
    if sizes is None:
        sizes = attr(node, "split")
    if sizes is None:
        count = attr(node, "num_outputs", len(node.outputs))
        step = -(-size // count)
        sizes = [max(0, min(step, size - i * step)) for i in range(count)]
    if sum(sizes) != size:
        raise RefusedByOnnxError(f"Split of an axis of size {size} into {list(sizes)}")
    return list(sizes)


def _indices(indices: Array, size: int) -> Array:
    """Non-negative indices.

    Raises:
        RefusedByOnnxError: One is out of range: the runtime refuses these sizes.
    """
    indices = np.where(indices < 0, indices + size, indices)
    if indices.size and not (int(indices.min()) >= 0 and int(indices.max()) < size):
        raise RefusedByOnnxError(f"index {int(indices.max())} of an axis of size {size}")
    return indices


@_moves("Gather")
def _gather(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    indices = required_value(inputs, 1, "index")
    axis = normal_axis(attr(node, "axis", 0), len(shape))
    found = _indices(indices, shape[axis])
    return lambda array, _: np.take(array, found, axis=axis)


def _same_rank(indices: Array, shape: Shape) -> None:
    if indices.ndim != len(shape):
        raise RefusedByOnnxError(f"indices of rank {indices.ndim} into a tensor of shape {shape}")


@_moves("GatherElements")
def _gather_elements(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    indices = required_value(inputs, 1, "index")
    axis = normal_axis(attr(node, "axis", 0), len(shape))
    _same_rank(indices, shape)
    found = _indices(indices, shape[axis])
    grid = list(np.ix_(*(np.arange(n) for n in found.shape)))
    grid[axis] = found
    return lambda array, _: array[tuple(grid)]


@_moves("GatherND")
def _gather_nd(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    indices = required_value(inputs, 1, "index")
    batch = attr(node, "batch_dims", 0)
    depth = indices.shape[-1]
    found = tuple(_indices(indices[..., i], shape[batch + i]) for i in range(depth))
    lead = np.ix_(*(np.arange(n) for n in shape[:batch])) if batch else ()
    inner = len(indices.shape) - 1 - batch
    lead = tuple(axis.reshape(axis.shape + (1,) * inner) for axis in lead)
    return lambda array, _: array[lead + found]


@_moves("Pad")
def _pad(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    pads = known_ints(inputs, 1, "padding")
    if pads is None:
        pads = list(attr(node, "pads", attr(node, "paddings", ())))
    axes = known_ints(inputs, 3, "axes")
    rank = len(shape)
    axes = list(range(rank)) if axes is None else [normal_axis(axis, rank) for axis in axes]
    mode = attr(node, "mode", "constant")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    crop = tuple(
        slice(max(-b, 0), size - max(-a, 0))
        for b, a, size in zip(before, after, shape, strict=True)
    )
    width = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]

    def move(array: Array, fill: Any) -> Array:
        kept = array[crop]
        if mode == "constant":
            return np.pad(kept, width, constant_values=fill)
        return np.pad(kept, width, mode=mode)

    if mode not in {"constant", "edge", "reflect", "wrap"}:
        raise UnsupportedError(f"padding mode {mode!r}")
    return move


@_moves("Trilu")
def _trilu(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    k = known_ints(inputs, 1, "diagonal")
    upper, diagonal = attr(node, "upper", 1), k[0] if k else 0
    rows, columns = shape[-2:]
    j_minus_i = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    keep = j_minus_i >= diagonal if upper else j_minus_i <= diagonal
    return lambda array, fill: np.where(keep, array, np.asarray(fill, array.dtype))


@_moves("DepthToSpace")
def _depth_to_space(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    block = attr(node, "blocksize")
    n, c, h, w = shape
    if attr(node, "mode", "DCR") == "DCR":
        split, perm = (n, block, block, c // block**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (n, c // block**2, block, block, h, w), (0, 1, 4, 2, 5, 3)
    goal = (n, c // block**2, h * block, w * block)
    return lambda array, _: array.reshape(split).transpose(perm).reshape(goal)


@_moves("SpaceToDepth")
def _space_to_depth(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    block = attr(node, "blocksize")
    n, c, h, w = shape
    split = (n, c, h // block, block, w // block, block)
    goal = (n, c * block**2, h // block, w // block)
    return lambda array, _: array.reshape(split).transpose(0, 3, 5, 1, 2, 4).reshape(goal)


@_moves("Compress")
def _compress(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    keep = required_value(inputs, 1, "condition")
    axis = attr(node, "axis")
    return lambda array, _: np.compress(keep, array, axis=axis)


@_moves("ReverseSequence")
def _reverse_sequence(node: ir.Node, shape: Shape, inputs: Sequence[Abstract]) -> Move:
    lengths = known_ints(inputs, 1, "lengths") or []
    time, batch = attr(node, "time_axis", 0), attr(node, "batch_axis", 1)
    steps = np.arange(shape[time])
    order = np.stack([np.where(steps < n, n - 1 - steps, steps) for n in lengths], axis=batch)
    whole = order.reshape(order.shape + (1,) * (len(shape) - 2))
    return lambda array, _: np.take_along_axis(array, np.broadcast_to(whole, shape), axis=time)
