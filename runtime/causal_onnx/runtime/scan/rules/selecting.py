"""Operators that pick, join, place or reorder elements."""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.decode import KEPT
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents
from causal_onnx.runtime.scan.rules.stated import (
    any_of,
    as_size,
    each_number,
    size_high,
    stated_numbers,
)
from causal_onnx.runtime.scan.sizes import (
    STATED,
    Number,
    Size,
    add,
    between,
    divide,
    high_of,
    hull,
    infimum,
    is_nonnegative,
    low_of,
    multiply,
    product,
    quotient,
    subtract,
    supremum,
)
from causal_onnx.runtime.scan.values import INT64, Node, Value

__all__ = [
    "compress",
    "concat",
    "depth_to_space",
    "gather",
    "gather_elements",
    "gather_nd",
    "joined",
    "nonzero",
    "one_hot",
    "pad",
    "reverse_sequence",
    "scatter",
    "slice_of",
    "space_to_depth",
    "split",
    "tensor_scatter",
    "trilu",
]


def concat(node: Node) -> list[Value]:
    """Joined along an axis."""
    return [joined(node, [node.input(index) for index in range(len(node.inputs))])]


def joined(node: Node, values: Sequence[Value]) -> Value:
    if not values:
        node.refuse("has no inputs")
    rank = len(values[0].shape)
    if any(len(value.shape) != rank for value in values) or not rank:
        node.refuse("joins tensors of several ranks")
    axis = node.axis(node.number("axis"), rank)
    total: Number = 0
    for value in values:
        total = add(total, value.shape[axis])
    shape = [
        total if index == axis else _same([value.shape[index] for value in values])
        for index in range(rank)
    ]
    known = None
    knowns = [value.numbers for value in values if value.count != 0]
    given = [part for part in knowns if part is not None]
    if given and len(given) == len(knowns):
        whole = [part.items for part in given]
        if rank == 1 and all(items is not None for items in whole):
            known = Contents.of([item for items in whole for item in items or ()])
        else:
            known = Contents.any_of(hull([part.all for part in given]))
    return node.result(values[0].dtype, shape, known)


def _same(sizes: Sequence[Number]) -> Number:
    """Sizes that must be equal: a number where one of them is known."""
    return next((size for size in sizes if not isinstance(size, Size)), sizes[0])


def slice_of(node: Node) -> list[Value]:
    """A part of some axes."""
    value = node.input(0)
    rank = len(value.shape)
    starts, ends = (node.ranked(index, 1) for index in (1, 2))
    if starts.count is None or starts.count != ends.count or starts.count > KEPT:
        node.refuse("starts and ends at numbers of which it is not known how many they are")
    count = starts.count
    axes = node.exact(3, "axes") if node.has(3) else list(range(count))
    steps = node.exact(4, "steps") if node.has(4) else [1] * count
    if len(axes) != count or len(steps) != count:
        node.refuse("has other numbers of starts, ends, axes and steps")
    shape = list(value.shape)
    begin, end = (each_number(node, part, count) for part in (starts, ends))
    known = value.known
    for index, number in enumerate(axes):
        axis = node.axis(number, rank)
        if steps[index] == 0:
            node.refuse("has a step of 0")
        shape[axis] = _part(shape[axis], begin[index], end[index], steps[index])
    if known is not None:
        chosen = None
        if rank == 1 and known.items is not None and count == 1:
            chosen = _chosen(known.items, begin[0], end[0], steps[0])
        known = Contents.of(chosen) if chosen else Contents.any_of(known.all)
    return [node.result(value.dtype, shape, known)]


def _part(size: Number, start: Number, end: Number, step: int) -> Number:
    """How many elements a slice has: at most all, at least none."""
    if step == 1:
        first, last = _place(size, start), _place(size, end)
        if last == size and not isinstance(start, Size) and start < 0:
            return numbers.minimum(size, -start)  # the last ones, or all where there are fewer
        if first is not None and last is not None:
            count = subtract(last, first)
            apart = subtract(end, start)
            if last == end and is_nonnegative(start):
                return numbers.maximum(apart, 0)  # where a start beyond the end gives nothing too
            if is_nonnegative(count) or not isinstance(count, Size):
                return as_size(count)
            if is_nonnegative(start) == is_nonnegative(end) and supremum(
                high_of(apart), STATED
            ) < supremum(high_of(size), STATED):
                return between((0,), size_high(apart), as_size(apart))
            return numbers.maximum(count, 0)
    elif not isinstance(size, Size) and not isinstance(start, Size) and not isinstance(end, Size):
        return len(range(int(size))[int(start) : int(end) : step])
    most = size if abs(step) == 1 else add(divide(size, abs(step)), 1)
    return between((0,), high_of(most))


def _place(size: Number, number: Number) -> Number | None:
    """Where a start or an end is, from the front; None: anywhere."""
    if infimum(low_of(number)) >= 0:
        return numbers.minimum(number, size)
    if supremum(high_of(number)) < 0:
        return numbers.maximum(add(size, number), 0)
    return None


def _chosen(
    items: Sequence[Number], start: Number, end: Number, step: int
) -> Sequence[Number] | None:
    if isinstance(start, Size) or isinstance(end, Size):
        return None
    return items[int(start) : int(end) : step]


def gather(node: Node) -> list[Value]:
    """Rows by their numbers."""
    value, indices = node.input(0), node.input(1)
    axis = node.axis(node.number("axis", 0), len(value.shape))
    shape = (*value.shape[:axis], *indices.shape, *value.shape[axis + 1 :])
    known, chosen = value.known, indices.known
    if known is not None:
        exact = None if chosen is None else chosen.exact
        items = known.items
        if len(value.shape) == 1 and items is not None and exact:
            count = len(items)
            if any(not -count <= index < count for index in exact):
                node.refuse(f"takes the elements {exact} of {count}")
            known = Contents.of([items[int(index)] for index in exact])
        else:
            known = Contents.any_of(known.all)
    return [node.result(value.dtype, shape, known)]


def gather_elements(node: Node) -> list[Value]:
    """One element for each index."""
    value, indices = node.input(0), node.input(1)
    node.axis(node.number("axis", 0), len(value.shape))
    if len(value.shape) != len(indices.shape):
        node.refuse("has indices of another rank than its data")
    return [any_of(node, value, indices.shape)]


def gather_nd(node: Node) -> list[Value]:
    """Slices, by the numbers of several axes."""
    value, indices = node.input(0), node.input(1)
    batch = node.number("batch_dims", 0)
    width = indices.shape[-1] if indices.shape else 0
    if isinstance(width, Size) or not 0 <= batch < min(len(value.shape), len(indices.shape)):
        node.refuse("has indices of which it is not known how many axes they number")
    if not 1 <= width <= len(value.shape) - batch:
        node.refuse(f"has indices of {width} axes, of data of rank {len(value.shape)}")
    rest = value.shape[batch + int(width) :]
    return [any_of(node, value, (*indices.shape[:-1], *rest))]


def scatter(node: Node) -> list[Value]:
    """The data with some elements replaced."""
    value, updates = node.input(0), node.input(2)
    node.input(1)
    if node.op_type == "ScatterElements":
        node.axis(node.number("axis", 0), len(value.shape))
    known = None
    if (
        value.numbers is not None
        and updates.numbers is not None
        and "reduction" not in (node.attributes)
    ):
        known = Contents.any_of(hull([value.numbers.all, updates.numbers.all]))
    return [node.result(value.dtype, value.shape, known)]


def tensor_scatter(node: Node) -> list[Value]:
    """A cache with some positions replaced."""
    value, update = node.input(0), node.input(1)
    if len(value.shape) != len(update.shape) or len(value.shape) < 2:
        node.refuse("has an update of another rank than its data")
    node.axis(node.number("axis", -2), len(value.shape))
    return [node.result(value.dtype, value.shape)]


def pad(node: Node) -> list[Value]:
    """Larger at both ends of some axes, or smaller."""
    value = node.input(0)
    rank = len(value.shape)
    pads = _numbers_of(node, 1, "pads")
    axes = [node.axis(x, rank) for x in node.exact(3, "axes")] if node.has(3) else range(rank)
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        node.refuse(f"has {len(pads)} pads of {len(axes)} axes")
    shape = list(value.shape)
    for index, axis in enumerate(axes):
        change = add(pads[index], pads[index + len(axes)])
        shape[axis] = as_size(add(shape[axis], change))
        if _mode(node) != b"constant":
            # onnxruntime copies from where the axis would be longer than it is.
            node.nonempty(value, [axis])
    known = None
    if value.numbers is not None and value.dtype in INTEGERS and _mode(node) == b"constant":
        fill = node.input(2).numbers if node.has(2) else Contents.of([0])
        known = None if fill is None else Contents.any_of(hull([value.numbers.all, fill.all]))
    return [node.result(value.dtype, shape, known)]


def _mode(node: Node) -> bytes:
    return node.attributes.get("mode", {}).get("text", b"constant")  # type: ignore[no-any-return]


def _numbers_of(node: Node, index: int, what: str) -> Sequence[Number]:
    """Numbers within known bounds, which may be negative."""
    value = node.ranked(index, 1)
    if value.count is None or value.count > KEPT or value.numbers is None:
        node.refuse(f"has {what} (input {index}) of which it is not known how many they are")
    known = value.numbers
    if known.low < -(1 << 40) or known.high > 1 << 60:
        node.refuse(
            f"has {what} (input {index}) that do not come from constants and the sizes of the "
            "inputs by known arithmetic"
        )
    return each_number(node, value, value.count)


def trilu(node: Node) -> list[Value]:
    """A triangle of a matrix, and 0 elsewhere."""
    value = node.input(0)
    if len(value.shape) < 2:
        node.refuse("has no matrix")
    if node.has(1):
        known = node.input(1).numbers
        if known is None or known.low < -(1 << 40) or known.high > 1 << 40:
            node.refuse("has a diagonal that does not come from the sizes of its inputs")
    numbers_ = value.numbers
    known = None if numbers_ is None else Contents.any_of(hull([numbers_.all, 0]))
    return [node.result(value.dtype, value.shape, known)]


def one_hot(node: Node) -> list[Value]:
    """Rows of one 1 each, of a stated width."""
    indices, values = node.input(0), node.input(2)
    width = node.input(1)
    if width.count != 1 or width.numbers is None or width.numbers.high >= 1 << 62:
        node.refuse("has a depth that does not come from constants or the sizes of its inputs")
    axis = node.axis(node.number("axis", -1), len(indices.shape) + 1)
    shape = list(indices.shape)
    shape.insert(axis, as_size(width.numbers.all))
    return [any_of(node, values, shape)]


def nonzero(node: Node) -> list[Value]:
    """Where the elements are that are not 0."""
    value = node.input(0)
    count = between((0,), high_of(product(value.shape)))
    places = Contents.any_of(between((0,), high_of(hull([*value.shape, 0]))))
    return [node.result(INT64, (max(len(value.shape), 1), count), places)]


def compress(node: Node) -> list[Value]:
    """Some of the elements, by a condition."""
    value = node.input(0)
    node.ranked(1, 1)
    if "axis" not in node.attributes:
        return [any_of(node, value, (between((0,), high_of(product(value.shape))),))]
    axis = node.axis(node.number("axis"), len(value.shape))
    shape = list(value.shape)
    shape[axis] = between((0,), high_of(shape[axis]))
    return [any_of(node, value, shape)]


def reverse_sequence(node: Node) -> list[Value]:
    """Beginnings of rows, turned around."""
    value = node.input(0)
    node.ranked(1, 1)
    batch, time = node.number("batch_axis", 1), node.number("time_axis", 0)
    if {batch, time} != {0, 1} or len(value.shape) < 2:
        node.refuse("has axes of time and batch that are not the first two")
    return [node.result(value.dtype, value.shape)]


def depth_to_space(node: Node) -> list[Value]:
    """Channels as pixels."""
    batch, channels, height, width = node.ranked(0, 4).shape
    block = node.number("blocksize")
    less = divide(channels, block * block)
    shape = (batch, less, multiply(height, block), multiply(width, block))
    return [node.result(node.input(0).dtype, shape)]


def space_to_depth(node: Node) -> list[Value]:
    """Pixels as channels."""
    batch, channels, height, width = node.ranked(0, 4).shape
    block = node.number("blocksize")
    shape = (batch, multiply(channels, block * block), divide(height, block), divide(width, block))
    return [node.result(node.input(0).dtype, shape)]


def split(node: Node) -> list[Value]:
    """Parts along an axis."""
    value = node.input(0)
    rank = len(value.shape)
    axis = node.axis(node.number("axis", 0), rank)
    size = value.shape[axis]
    stated = node.several("split")
    if node.has(1):
        given = node.ranked(1, 1)
        if given.count != node.outputs:
            node.refuse(f"has {given.count} sizes of {node.outputs} parts")
        sizes = [as_size(item) for item in stated_numbers(node, 1, "sizes of parts")]
    elif stated is not None:
        sizes = [max(part, 0) for part in stated]
    else:
        count = node.number("num_outputs", node.outputs)
        if count < 1 or count != node.outputs:
            node.refuse(f"makes {count} parts and has {node.outputs} outputs")
        whole = quotient(size, count)
        part = divide(add(size, count - 1), count) if whole is None else whole
        sizes = [part] * count
        if whole is None:
            sizes[-1] = between((0,), high_of(part))
            if not isinstance(size, Size):
                sizes[-1] = max(int(size) - int(part) * (count - 1), 0)  # type: ignore[arg-type]
    if len(sizes) != node.outputs:
        node.refuse(f"has {len(sizes)} sizes of {node.outputs} parts")
    results, begun = [], 0
    items = value.known.items if value.known is not None and rank == 1 else None
    for part in sizes:
        shape = [part if index == axis else x for index, x in enumerate(value.shape)]
        result = any_of(node, value, shape)
        if items is not None and not isinstance(part, Size):
            chosen = items[begun : begun + int(part)]
            begun += int(part)
            if chosen:
                result = node.result(value.dtype, shape, Contents.of(chosen))
        results.append(result)
    return results
