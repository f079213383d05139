"""Operators that join the elements along axes: sums, maxima, softmax, norms, sorting."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.decode import KEPT
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents
from causal_onnx.runtime.scan.rules.stated import size_below
from causal_onnx.runtime.scan.sizes import Number, add, between, high_of, hull, multiply, product
from causal_onnx.runtime.scan.values import BOOL, FLOAT, INT64, Node, Value

__all__ = [
    "along_axis", "arg_extreme", "batch_normalization", "cumulative", "dft", "dropout",
    "group_normalization", "layer_normalization", "local_normalization", "reduce",
    "simplified_skip", "top_k",
]  # fmt: skip


def _reduced(node: Node, value: Value, axes: list[int] | None) -> list[Number]:
    keep = node.number("keepdims", 1)
    rank = len(value.shape)
    gone = range(rank) if axes is None else axes
    return [
        1 if index in gone else size
        for index, size in enumerate(value.shape)
        if keep or index not in gone
    ]


def reduce(node: Node) -> list[Value]:
    """Joined along some axes; without any, along all or none."""
    value = node.input(0)
    axes = node.axes(1, len(value.shape))
    if not axes:
        if node.number("noop_with_empty_axes", 0):
            return [node.result(value.dtype, value.shape)]
        axes = None
    shape = _reduced(node, value, axes)
    known = value.numbers if value.dtype in INTEGERS else None
    if known is not None:
        gone = value.shape if axes is None else [value.shape[axis] for axis in axes]
        known = _joined(node, known, gone, is_whole=len(gone) == len(value.shape))
    return [node.result(value.dtype, shape, numbers.of_type(known, value.dtype))]


def _joined(
    node: Node, known: Contents, sizes: Sequence[Number], *, is_whole: bool
) -> Contents | None:
    """What is known of elements of which so many are joined."""
    items = known.items if is_whole else None
    join = {
        "ReduceMax": numbers.maximum, "ReduceMin": numbers.minimum, "ReduceSum": add,
        "ReduceProd": multiply,
    }.get(node.op_type)  # fmt: skip
    if items and join is not None:
        return Contents.of([functools.reduce(join, items)])
    if node.op_type in ("ReduceMax", "ReduceMin"):
        return Contents.any_of(known.all)
    if node.op_type == "ReduceSum":
        return Contents.any_of(multiply(hull([known.all, 0]), product(sizes)))
    return None


def arg_extreme(node: Node) -> list[Value]:
    """Where the largest or the smallest is."""
    value = node.input(0)
    if not value.shape:
        node.refuse("searches a scalar")
    axis = node.axis(node.number("axis", 0), len(value.shape))
    node.nonempty(value, [axis])
    shape = _reduced(node, value, [axis])
    return [node.result(INT64, shape, Contents.any_of(hull([0, value.shape[axis]])))]


def along_axis(node: Node) -> list[Value]:
    """Softmax and others: each row along an axis, of the same shape."""
    value = node.input(0)
    node.axis(node.number("axis", -1), len(value.shape))
    return [node.result(value.dtype, value.shape)]


def cumulative(node: Node) -> list[Value]:
    """Sums or products so far, along an axis."""
    value = node.input(0)
    (axis,) = node.exact(1, "an axis") or [0]
    node.axis(axis, len(value.shape))
    known = value.known
    count = value.count
    if known is None or node.op_type != "CumSum" or count is None or not 0 < count <= KEPT:
        return [node.result(value.dtype, value.shape)]
    total = multiply(hull([known.all, 0]), count)
    return [
        node.result(value.dtype, value.shape, numbers.of_type(Contents.any_of(total), value.dtype))
    ]


def top_k(node: Node) -> list[Value]:
    """The largest ones along an axis, sorted."""
    value, count = node.input(0), node.input(1)
    rank = len(value.shape)
    axis = node.axis(node.number("axis", -1), rank)
    node.nonempty(value, [axis])
    if count.count != 1 or count.numbers is None:
        node.refuse("has a number of elements that is not one number")
    shape = list(value.shape)
    # No more than there are; else it is an error of onnxruntime.
    shape[axis] = size_below(count.numbers.all, shape[axis])
    node.work += value.elements * 32
    places = Contents.any_of(hull([0, value.shape[axis]]))
    return [node.result(value.dtype, shape), node.result(INT64, shape, places)]


def layer_normalization(node: Node) -> list[Value]:
    """Rows with mean 0 and spread 1; means and spreads besides."""
    value, scale = node.input(0), node.input(1)
    rank = len(value.shape)
    axis = node.axis(node.number("axis", -1), rank)
    # It divides by how many there are, and reads a scale and a bias of that many.
    node.nonempty(value, list(range(axis, rank)))
    for part in (scale, *([node.input(2)] if node.has(2) else [])):
        if len(part.shape) > rank:
            node.refuse("has a scale of a higher rank than its data")
    rows = [size if index < axis else 1 for index, size in enumerate(value.shape)]
    rest = [node.result(FLOAT, rows)] * 2
    return [node.result(value.dtype, value.shape), *rest][: max(node.outputs, 1)]


def simplified_skip(node: Node) -> list[Value]:
    """A sum with a skip connection, normalised; the sum is the fourth output."""
    value, skip, gamma = node.ranked(0, 2, 3), node.ranked(1, 1, 2, 3), node.ranked(2, 1)
    node.nonempty(value, [len(value.shape) - 1])
    width = value.shape[-1]
    for index in range(2, len(node.inputs)):
        if node.has(index) and node.ranked(index, 1).shape[0] != width:
            node.refuse(f"has an input {index} of another width than its data")
    if gamma.shape[0] != width or skip.shape[-1] != width:
        node.refuse("has a skip connection of another width than its data")
    rows = [*value.shape[:-1], 1]
    full = node.result(value.dtype, value.shape)
    return [full, node.result(FLOAT, rows), node.result(FLOAT, rows), full][: node.outputs]


def batch_normalization(node: Node) -> list[Value]:
    """Channels, with the means and spreads of the training."""
    value = node.input(0)
    if len(value.shape) < 2 or node.number("training_mode", 0):
        node.refuse("is of a tensor without channels, or for training")
    node.nonempty(value, [1])
    for index in range(1, 5):
        if node.ranked(index, 1).shape[0] != value.shape[1]:
            node.refuse(f"has an input {index} that is not one number for each channel")
    return [node.result(value.dtype, value.shape)]


def group_normalization(node: Node) -> list[Value]:
    """Groups of channels, or each channel, with mean 0 and spread 1."""
    value = node.input(0)
    if len(value.shape) < (2 if node.op_type == "GroupNormalization" else 3):
        node.refuse("is of a tensor without channels, or without places")
    node.nonempty(value, list(range(1, len(value.shape))))
    node.ranked(1, 1)
    node.ranked(2, 1)
    channels = value.shape[1]
    if not isinstance(channels, int):
        node.refuse("has a number of channels that the file does not state")
    groups = node.number("num_groups") if node.op_type == "GroupNormalization" else channels
    if groups < 1 or channels % groups:
        node.refuse(f"makes {groups} groups of {channels} channels")
    return [node.result(value.dtype, value.shape)]


def local_normalization(node: Node) -> list[Value]:
    """LRN: over neighbouring channels."""
    value = node.ranked(0, 4)
    node.nonempty(value)
    size = node.number("size")
    if not 1 <= size <= 1 << 10 or size % 2 == 0:
        node.refuse(f"has the size {size}, expected an odd number of channels up to 1024")
    node.work += value.elements * size
    node.scratch += value.bytes * 2
    return [node.result(value.dtype, value.shape)]


def dropout(node: Node) -> list[Value]:
    """As it is, or in training with some elements 0; and a mask of what was kept."""
    value = node.input(0)
    mask = node.result(BOOL, value.shape)
    return [node.result(value.dtype, value.shape), mask][: max(node.outputs, 1)]


def dft(node: Node) -> list[Value]:
    """A Fourier transform along one axis, of real or complex numbers (2 in the last axis)."""
    value = node.input(0)
    rank = len(value.shape)
    if rank < 2 or value.shape[-1] not in (1, 2):
        node.refuse("has an input that holds neither real nor complex numbers in its last axis")
    axis = node.exact(2, "an axis")[0] if node.has(2) else node.number("axis", -2)
    axis = node.axis(axis, rank)
    if axis == rank - 1:
        node.refuse("transforms along the axis of real and imaginary parts")
    node.nonempty(value)
    shape = list(value.shape)
    length = shape[axis]
    if node.has(1):
        stated = node.input(1)
        if stated.count != 1 or stated.numbers is None or stated.numbers.high >= 1 << 40:
            node.refuse("has a length that does not come from the sizes of its inputs")
        length = stated.numbers.all
        if stated.numbers.low < 1:
            node.refuse("has a length that may be 0")
    shape[axis], shape[-1] = length, 2
    if node.number("onesided", 0):
        shape[axis] = between((0,), high_of(add(length, 1)))
        if node.number("inverse", 0):
            shape[-1] = 1
            shape[axis] = between((0,), high_of(multiply(length, 2)))
    result = node.result(value.dtype, shape)
    # Lengths that are no power of 2 are computed by a longer transform, with complex numbers.
    node.work += result.elements * 512 + value.elements * 64
    node.scratch += result.bytes * 16
    return [result]
