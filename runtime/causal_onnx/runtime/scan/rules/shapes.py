"""Operators that state a shape, change one, or fill one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.decode import KEPT, Numbers
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents
from causal_onnx.runtime.scan.rules.elementwise import broadcast
from causal_onnx.runtime.scan.rules.stated import as_size, stated_numbers
from causal_onnx.runtime.scan.sizes import (
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
    "constant",
    "constant_of_shape",
    "expand",
    "eye_like",
    "flatten",
    "identity",
    "random",
    "random_like",
    "range_of",
    "reshape",
    "shape_of",
    "size_of",
    "squeeze",
    "tile",
    "transpose",
    "unsqueeze",
]


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


def reshape(node: Node) -> list[Value]:
    """To a stated shape; 0 keeps an axis, and -1 is what remains."""
    value = node.input(0)
    if not node.has(1) and node.several("shape") is not None:
        goal: Sequence[Number] = tuple(node.several("shape") or ())
    else:
        goal = stated_numbers(node, 1, "a shape", least=-1)
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
    candidates = [between((0,), high_of(rest)), as_size(stated)]
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
    shape = broadcast(node, [value.shape, tuple(map(as_size, stated_numbers(node, 1, "a shape")))])
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
    repeats = stated_numbers(node, 1, "repeats")
    if len(repeats) != len(value.shape):
        node.refuse(f"has {len(repeats)} repeats of a tensor of rank {len(value.shape)}")
    shape = [multiply(a, as_size(b)) for a, b in zip(value.shape, repeats, strict=True)]
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
    shape = tuple(map(as_size, stated_numbers(node, 0, "a shape")))
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
        most = between((0,), high_of(as_size(apart)))
        count = between((0,), high_of(add(multiply(most, 1 / least), 1)))
    if start.dtype in INTEGERS and all(not isinstance(x, Size) for x in (first, last, step)):
        whole = range(int(first), int(last), int(step))  # type: ignore[arg-type]
        count = len(whole)
        if 0 < count <= KEPT:
            return [node.result(start.dtype, (count,), Contents.of(list(whole)))]
    known = Contents.any_of(hull([first, last]))
    return [node.result(start.dtype, (count,), numbers.of_type(known, start.dtype))]


def eye_like(node: Node) -> list[Value]:
    """Ones on a diagonal."""
    value = node.ranked(0, 2)
    dtype = node.number("dtype", value.dtype)
    return [node.result(dtype, value.shape, Contents.any_of(between((0,), (1,))))]


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
