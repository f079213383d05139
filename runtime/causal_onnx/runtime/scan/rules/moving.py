"""Operators that move, copy, join, drop or fill elements, and those that state a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.decode import KEPT, Numbers
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents
from causal_onnx.runtime.scan.rules.elementwise import broadcast
from causal_onnx.runtime.scan.sizes import (
    STATED,
    Bound,
    Number,
    Size,
    add,
    at_least_one,
    between,
    divide,
    high_of,
    hull,
    infimum,
    is_chosen,
    is_nonnegative,
    low_of,
    multiply,
    product,
    quotient,
    relaxed,
    subtract,
    supremum,
)
from causal_onnx.runtime.scan.sizes import (
    axis as open_axis,
)
from causal_onnx.runtime.scan.values import FLOAT, INT64, Node, Shape, Value, with_shape

__all__ = [
    "compress", "concat", "concat_sequence", "constant", "constant_of_shape", "depth_to_space",
    "expand", "eye_like", "flatten", "gather", "gather_elements", "gather_nd", "identity",
    "nonzero", "one_hot", "pad", "random", "random_like", "range_of", "reshape",
    "reverse_sequence", "scatter", "sequence", "sequence_at", "sequence_length", "shape_of",
    "size_below", "size_of", "slice_of", "space_to_depth", "split", "split_to_sequence",
    "squeeze", "tensor_scatter", "tile", "transpose", "trilu", "unsqueeze",
]  # fmt: skip


def identity(node: Node) -> list[Value]:
    """The same tensor, or list of tensors."""
    value = node.inputs[0] if node.inputs else None
    if value is None:
        node.refuse("lacks its input 0")
    return [value]


def shape_of(node: Node) -> list[Value]:
    """The sizes of some axes."""
    shape = node.input(0).shape
    end = node.number("end") if "end" in node.attributes else None
    part = shape[slice(node.number("start", 0), end)]
    return [node.result(INT64, (len(part),), Contents.of(part) if part else None)]


def size_of(node: Node) -> list[Value]:
    """How many elements there are."""
    value = node.input(0)
    known = numbers.of_type(Contents.of([product(value.shape)]), INT64)
    return [node.result(INT64, (), known)]


def _stated(node: Node, index: int, what: str, *, least: int = 0) -> Sequence[Number]:
    """The sizes that an input states: each within known bounds, in a vector of known length."""
    value = node.ranked(index, 1)
    if value.count == 0:
        return ()
    known = value.numbers
    if value.count is None or value.count > KEPT or known is None:
        node.refuse(f"has {what} (input {index}) of which it is not known how many numbers it has")
    items = _each(node, value, value.count)
    for item in items:
        if is_chosen(item):
            continue
        low, high = INTEGERS[INT64]
        if infimum(low_of(item)) <= low or supremum(high_of(item)) >= high:
            node.refuse(
                f"has {what} (input {index}) that does not come from constants and the sizes of "
                "the inputs by known arithmetic"
            )
        if supremum(high_of(item)) < least:
            node.refuse(f"has {what} with the number {supremum(high_of(item)):g}")
    return items


def _size_high(number: Number) -> Bound:
    return high_of(_size(number))


def _size(number: Number) -> Number:
    """A size: what is negative ends in an error of onnxruntime."""
    if is_chosen(number):
        return open_axis(0)
    if not isinstance(number, Size):
        return max(int(number), 0)
    if is_nonnegative(number):
        return number
    return between((0,), high_of(number))


def size_below(number: Number, most: Number) -> Number:
    """A size that is a number of the graph, and at most another size."""
    return numbers.minimum(_size(number), most)


def reshape(node: Node) -> list[Value]:
    """To a stated shape; 0 keeps an axis, and -1 is what remains."""
    value = node.input(0)
    if not node.has(1) and node.several("shape") is not None:
        goal: Sequence[Number] = tuple(node.several("shape") or ())
    else:
        goal = _stated(node, 1, "a shape", least=-1)
    keeps = not node.number("allowzero", 0)
    shape: list[Number] = []
    open_axes = []
    for position, item in enumerate(goal):
        low, high = infimum(low_of(item)), supremum(high_of(item))
        if low == high == 0 and keeps:
            if position >= len(value.shape):
                node.refuse("keeps an axis that its input does not have")
            shape.append(value.shape[position])
        elif low < 0:
            open_axes.append(position)
            shape.append(item)
        elif low == 0 and keeps and position < len(value.shape):
            shape.append(hull([item, value.shape[position]]))  # which a 0 would keep
        else:
            shape.append(item)
    for position in open_axes:
        shape[position] = _remaining(value, goal, shape, position, keeps=keeps)
    if all(infimum(low_of(size)) >= 1 for size in value.shape):
        # As many elements as before: none of the axes is empty.
        shape = [at_least_one(size) for size in shape]
    return [with_shape(value, shape)]


def _remaining(
    value: Value,
    goal: Sequence[Number],
    shape: Sequence[Number],
    position: int,
    *,
    keeps: bool,
) -> Number:
    """The size of an axis that is -1, or may be."""
    others = [size for index, size in enumerate(shape) if index != position]
    if any(infimum(low_of(size)) < 0 for size in others):
        others = []
    total = product(value.shape)
    rest = quotient(total, product(others))
    if rest is None:
        tried = (quotient(more, product(others)) for more in relaxed(total))
        most = next((found for found in tried if found is not None), None)
        rest = None if most is None else between((0,), high_of(most), most)
    if rest is None:
        rest, least = total, 1.0
        for size in others:
            smaller = quotient(rest, size)
            if smaller is None:
                least *= max(infimum(low_of(size)), 1)
            else:
                rest = smaller
        rest = divide(rest, int(least))
        if others:
            rest = between((0,), high_of(rest))
    stated = goal[position]
    if stated == -1:
        return rest
    candidates = [between((0,), high_of(rest)), _size(stated)]
    if keeps and position < len(value.shape):
        candidates.append(value.shape[position])
    return hull(candidates)


def flatten(node: Node) -> list[Value]:
    """To two axes."""
    value = node.input(0)
    axis = node.number("axis", 1)
    rank = len(value.shape)
    if not -rank <= axis <= rank:
        node.refuse(f"has the axis {axis} of a tensor of rank {rank}")
    axis = axis + rank if axis < 0 else axis
    return [with_shape(value, (product(value.shape[:axis]), product(value.shape[axis:])))]


def squeeze(node: Node) -> list[Value]:
    """Without axes of one element."""
    value = node.input(0)
    axes = node.axes(1, len(value.shape))
    if axes is None:
        if any(isinstance(size, Size) for size in value.shape):
            node.refuse("drops the axes of one element, of which it is not known which they are")
        axes = [index for index, size in enumerate(value.shape) if size == 1]
    return [
        with_shape(value, [size for index, size in enumerate(value.shape) if index not in axes])
    ]


def unsqueeze(node: Node) -> list[Value]:
    """With more axes of one element."""
    value = node.input(0)
    given = node.several("axes") if not node.has(1) else node.exact(1, "axes")
    rank = len(value.shape) + len(given or [])
    axes = {node.axis(number, rank) for number in given or []}
    left = iter(value.shape)
    if len(axes) != len(given or []):
        node.refuse("adds an axis twice")
    return [with_shape(value, [1 if index in axes else next(left) for index in range(rank)])]


def transpose(node: Node) -> list[Value]:
    """The axes in another order."""
    value = node.input(0)
    rank = len(value.shape)
    order = node.several("perm")
    order = list(range(rank))[::-1] if order is None else order
    if sorted(order) != list(range(rank)):
        node.refuse(f"has the order {order} of the axes of a tensor of rank {rank}")
    known = value.known
    if known is not None and sum(size != 1 for size in value.shape) > 1:
        known = Contents.any_of(known.all)
    return [node.result(value.dtype, [value.shape[axis] for axis in order], known)]


def expand(node: Node) -> list[Value]:
    """Broadcast to a stated shape."""
    value = node.input(0)
    shape = broadcast(node, [value.shape, tuple(map(_size, _stated(node, 1, "a shape")))])
    return [_copied(node, value, shape)]


def _copied(node: Node, value: Value, shape: Shape) -> Value:
    """Copies of the elements in a larger shape."""
    result = node.result(value.dtype, shape)
    known = value.known
    if known is None:
        return result
    count = result.count
    if (
        known.items is not None
        and len(known.items) == 1
        and count is not None
        and 0 < count <= KEPT
    ):
        return node.result(value.dtype, shape, Contents.of(known.items * count))
    if known.items is not None and len(known.items) == count:
        return node.result(value.dtype, shape, known)
    return node.result(value.dtype, shape, Contents.any_of(known.all))


def tile(node: Node) -> list[Value]:
    """Repeated along each axis."""
    value = node.input(0)
    repeats = _stated(node, 1, "repeats")
    if len(repeats) != len(value.shape):
        node.refuse(f"has {len(repeats)} repeats of a tensor of rank {len(value.shape)}")
    shape = [multiply(a, _size(b)) for a, b in zip(value.shape, repeats, strict=True)]
    return [_copied(node, value, tuple(shape))]


def constant(node: Node) -> list[Value]:
    """A tensor of the file."""
    if len(node.attributes) != 1:
        node.refuse(f"has {len(node.attributes)} attributes, expected one value")
    ((key, attribute),) = node.attributes.items()
    if key == "value" and "value" in attribute:
        return [attribute["value"]]
    if key == "value_int":
        return [node.result(INT64, (), Contents.of([node.number(key)]))]
    if key == "value_ints":
        count = attribute.get("ints", Numbers()).count
        known = Contents.of(node.ints[key]) if 0 < count <= KEPT else None
        return [node.result(INT64, (count,), known)]
    if key in ("value_float", "value_floats"):
        count = attribute.get("floats", Numbers()).count
        return [node.result(FLOAT, () if key == "value_float" else (count,))]
    return node.refuse(f"holds texts or a sparse tensor as {key!r}, expected numbers")


def constant_of_shape(node: Node) -> list[Value]:
    """Filled with one number."""
    shape = tuple(map(_size, _stated(node, 0, "a shape")))
    # The checker of the graph puts the tensors of attributes there.
    fill = node.attributes.get("value", {}).get("value") or Value(FLOAT, (1,), Contents.of([0]))
    return [_copied(node, fill, shape)]


def range_of(node: Node) -> list[Value]:
    """From a number to a limit by steps."""
    start, limit, delta = (node.ranked(index, 0, 1) for index in range(3))
    ends = [value.numbers for value in (start, limit, delta)]
    if any(end is None for end in ends):
        node.refuse("counts between numbers that do not come from the sizes of its inputs")
    first, last, step = (end.all for end in ends if end is not None)
    if infimum(low_of(step)) <= 0 <= supremum(high_of(step)):
        node.refuse("counts by steps that may be 0")
    apart = subtract(last, first) if infimum(low_of(step)) > 0 else subtract(first, last)
    if is_chosen(apart):
        apart = open_axis(0)
    if not math.isfinite(supremum(high_of(apart))) or supremum(high_of(apart)) >= 1 << 62:
        node.refuse("counts between numbers that do not come from the sizes of its inputs")
    least = min(abs(infimum(low_of(step))), abs(supremum(high_of(step))))
    if step == 1:
        count = numbers.maximum(apart, 0)
        if start.dtype not in INTEGERS:
            count = between(low_of(count), high_of(add(count, 1)))  # rounded up
    else:
        most = between((0,), high_of(_size(apart)))
        count = between((0,), high_of(add(multiply(most, 1 / least), 1)))
    if start.dtype in INTEGERS and all(not isinstance(x, Size) for x in (first, last, step)):
        whole = range(int(first), int(last), int(step))  # type: ignore[arg-type]
        count = len(whole)
        if 0 < count <= KEPT:
            return [node.result(start.dtype, (count,), Contents.of(list(whole)))]
    known = Contents.any_of(hull([first, last]))
    return [node.result(start.dtype, (count,), numbers.of_type(known, start.dtype))]


def concat(node: Node) -> list[Value]:
    """Joined along an axis."""
    return [_joined(node, [node.input(index) for index in range(len(node.inputs))])]


def _joined(node: Node, values: Sequence[Value]) -> Value:
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
    begin, end = (_each(node, part, count) for part in (starts, ends))
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


def _each(node: Node, value: Value, count: int) -> Sequence[Number]:
    known = value.numbers
    if known is None:
        node.refuse("has numbers of another type than whole ones")
    if known.items is not None:
        return known.items
    return [Contents.any_of(known.all).all for _ in range(count)]  # each may be another


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
                return _size(count)
            if is_nonnegative(start) == is_nonnegative(end) and supremum(
                high_of(apart), STATED
            ) < supremum(high_of(size), STATED):
                return between((0,), _size_high(apart), _size(apart))
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


def _any_of(node: Node, value: Value, shape: Sequence[Number]) -> Value:
    known = None if value.known is None else Contents.any_of(value.known.all)
    return node.result(value.dtype, shape, known)


def gather_elements(node: Node) -> list[Value]:
    """One element for each index."""
    value, indices = node.input(0), node.input(1)
    node.axis(node.number("axis", 0), len(value.shape))
    if len(value.shape) != len(indices.shape):
        node.refuse("has indices of another rank than its data")
    return [_any_of(node, value, indices.shape)]


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
    return [_any_of(node, value, (*indices.shape[:-1], *rest))]


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
        shape[axis] = _size(add(shape[axis], change))
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
    return _each(node, value, value.count)


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


def eye_like(node: Node) -> list[Value]:
    """Ones on a diagonal."""
    value = node.ranked(0, 2)
    dtype = node.number("dtype", value.dtype)
    return [node.result(dtype, value.shape, Contents.any_of(between((0,), (1,))))]


def one_hot(node: Node) -> list[Value]:
    """Rows of one 1 each, of a stated width."""
    indices, values = node.input(0), node.input(2)
    width = node.input(1)
    if width.count != 1 or width.numbers is None or width.numbers.high >= 1 << 62:
        node.refuse("has a depth that does not come from constants or the sizes of its inputs")
    axis = node.axis(node.number("axis", -1), len(indices.shape) + 1)
    shape = list(indices.shape)
    shape.insert(axis, _size(width.numbers.all))
    return [_any_of(node, values, shape)]


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
        return [_any_of(node, value, (between((0,), high_of(product(value.shape))),))]
    axis = node.axis(node.number("axis"), len(value.shape))
    shape = list(value.shape)
    shape[axis] = between((0,), high_of(shape[axis]))
    return [_any_of(node, value, shape)]


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
        sizes = [_size(item) for item in _stated(node, 1, "sizes of parts")]
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
        result = _any_of(node, value, shape)
        if items is not None and not isinstance(part, Size):
            chosen = items[begun : begun + int(part)]
            begun += int(part)
            if chosen:
                result = node.result(value.dtype, shape, Contents.of(chosen))
        results.append(result)
    return results


def random_like(node: Node) -> list[Value]:
    """Random numbers in the shape of the input."""
    value = node.input(0)
    return [node.result(node.number("dtype", value.dtype), value.shape)]


def random(node: Node) -> list[Value]:
    """Random numbers in a stated shape."""
    shape = node.several("shape")
    if shape is None or min(shape, default=0) < 0:
        node.refuse(f"has the shape {shape}")
    return [node.result(node.number("dtype", FLOAT), shape)]


MAX_PARTS = 256
"""Tensors of one list."""


def _list_of(node: Node, parts: Sequence[Value]) -> list[Value]:
    if not 1 <= len(parts) <= MAX_PARTS or any(part.dtype != parts[0].dtype for part in parts):
        node.refuse(f"lists {len(parts)} tensors, expected 1 to {MAX_PARTS} of one type")
    return [Value(parts[0].dtype, (), parts=tuple(parts))]


def sequence(node: Node) -> list[Value]:
    """A list of the inputs."""
    return _list_of(node, [node.input(index) for index in range(len(node.inputs))])


def sequence_at(node: Node) -> list[Value]:
    """One of a list."""
    parts = node.listed(0)
    (index,) = node.exact(1, "a place in the list") or [0]
    return [parts[node.axis(index, len(parts))]]


def sequence_length(node: Node) -> list[Value]:
    """How many a list has."""
    return [node.result(INT64, (), Contents.of([len(node.listed(0))]))]


def concat_sequence(node: Node) -> list[Value]:
    """A list joined along an axis, which may be a new one."""
    parts = node.listed(0)
    if not node.number("new_axis", 0):
        return [_joined(node, parts)]
    rank = len(parts[0].shape) + 1
    axis = node.axis(node.number("axis"), rank)
    if any(len(part.shape) != rank - 1 for part in parts):
        node.refuse("joins tensors of several ranks")
    return [_any_of(node, parts[0], (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:]))]


def split_to_sequence(node: Node) -> list[Value]:
    """A list of parts along an axis."""
    value = node.input(0)
    rank = len(value.shape)
    axis = node.axis(node.number("axis", 0), rank)
    size = value.shape[axis]
    if node.has(1) and len(node.input(1).shape) == 1:
        sizes: list[Number] = list(node.exact(1, "sizes of parts"))
    elif isinstance(size, Size):
        node.refuse("makes a list of which it is not known how long it is")
    else:
        (each,) = node.exact(1, "a size of parts") if node.has(1) else [1]
        if each < 1 or size > each * MAX_PARTS:
            node.refuse(f"splits {size} into parts of {each}")
        sizes = [min(each, int(size) - begun) for begun in range(0, int(size), each)]
    if not node.has(1) and not node.number("keepdims", 1):
        shapes = [(*value.shape[:axis], *value.shape[axis + 1 :])] * len(sizes)
    else:
        shapes = [(*value.shape[:axis], _size(x), *value.shape[axis + 1 :]) for x in sizes]
    return _list_of(node, [_any_of(node, value, shape) for shape in shapes])
