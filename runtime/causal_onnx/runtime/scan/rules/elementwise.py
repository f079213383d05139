"""Operators that compute each element of their result from one of each input, broadcast."""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.numbers import INTEGERS, PRECISION, Contents, elementwise
from causal_onnx.runtime.scan.sizes import (
    Number,
    Size,
    between,
    high_of,
    hull,
    infimum,
    is_limited_by,
    low_of,
    supremum,
)
from causal_onnx.runtime.scan.values import BOOL, Node, Shape, Value

__all__ = [
    "broadcast", "cast", "cast_like", "clip", "comparison", "divisor", "gelu", "like_first",
    "mapped", "power", "prelu", "to_bool", "where",
]  # fmt: skip


def broadcast(node: Node, shapes: Sequence[Shape]) -> Shape:
    """The shape that tensors of these shapes are broadcast to."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_together(node, sizes) for sizes in zip(*padded, strict=True))


def _together(node: Node, sizes: Sequence[Number]) -> Number:
    result: Number = 1
    for size in sizes:
        if size in (1, result):
            continue
        if result == 1:
            result = size
        elif is_limited_by(result, size) or is_limited_by(size, result):
            most, least = (size, result) if is_limited_by(result, size) else (result, size)
            # Of 1 and 0, the result is 0.
            never_empty = infimum(low_of(least)) >= 1 or infimum(low_of(most)) < 1
            result = most if never_empty else between((0,), high_of(most), most)
        elif isinstance(size, Size) and isinstance(result, Size):
            either = hull([size, result])
            # Of two axes that are never empty, the result is never empty either.
            result = between(low_of(either), high_of(either))
        elif isinstance(size, Size) or isinstance(result, Size):
            # One is a number above 1, so the other is that number or 1.
            result = result if isinstance(size, Size) else size
        else:
            node.refuse(f"joins axes of the sizes {result} and {size}, which do not fit")
    return result


def _inputs(node: Node) -> list[Value]:
    return [node.input(index) for index in range(len(node.inputs))]


def mapped(node: Node) -> list[Value]:
    """Arithmetic on any number of tensors of one type."""
    values = _inputs(node)
    if not values:
        node.refuse("has no inputs")
    dtype = values[0].dtype
    if any(value.dtype != dtype for value in values):
        node.refuse("has inputs of several types")
    result = node.result(dtype, broadcast(node, [value.shape for value in values]))
    return [node.result(dtype, result.shape, _computed(node, values, dtype, result.count))]


def comparison(node: Node) -> list[Value]:
    """Truth values of two tensors."""
    values = _inputs(node)
    result = node.result(BOOL, broadcast(node, [value.shape for value in values]))
    known = _computed(node, values, BOOL, result.count)
    return [node.result(BOOL, result.shape, known)]


def to_bool(node: Node) -> list[Value]:
    """A truth value of each element."""
    value = node.input(0)
    known = None
    if node.op_type == "Not":
        known = _computed(node, [value], BOOL, value.count)
    return [node.result(BOOL, value.shape, known)]


def power(node: Node) -> list[Value]:
    """Two tensors, of which the first has the type of the result."""
    values = _inputs(node)
    if len(values) != 2:
        node.refuse(f"has {len(values)} inputs, expected 2")
    return [node.result(values[0].dtype, broadcast(node, [value.shape for value in values]))]


def gelu(node: Node) -> list[Value]:
    """onnxruntime's, some with a bias for each of the last axis."""
    value = node.input(0)
    if node.has(1) and node.ranked(1, 1).shape[0] != (value.shape or (0,))[-1]:
        node.refuse("has a bias of another width than its data")
    return [node.result(value.dtype, value.shape)]


def _computed(
    node: Node, values: Sequence[Value], dtype: int, count: int | None
) -> Contents | None:
    knowns = [value.numbers for value in values]
    is_whole = dtype in INTEGERS
    if node.op_type in numbers.ALONE:
        if knowns[0] is None:
            return None
        return numbers.of_type(knowns[0].map(numbers.ALONE[node.op_type]), dtype)
    function = numbers.ARITHMETIC.get(node.op_type)
    if node.op_type == "Div":
        function = numbers.divided if is_whole else numbers.real_quotient
    elif node.op_type == "Mod" and is_whole:
        function = numbers.signed_remainder if node.number("fmod", 0) else numbers.remainder
    if function is None or len(knowns) < 2:
        return numbers.anything(dtype)
    known = knowns[0]
    for other in knowns[1:]:
        before, known = known, elementwise(function, [known, other], count)
        if known is not None and before is not None and other is not None and not is_whole:
            known = numbers.rounded(known, before, other)
        known = numbers.of_type(known, dtype)
    return known


def divisor(node: Node) -> None:
    """Whole numbers: 0 as the divisor, and -1 of the least number, end the process (SIGFPE)."""
    values = _inputs(node)
    if len(values) != 2 or not any(value.dtype in INTEGERS for value in values):
        return
    if values[0].dtype != values[1].dtype:
        node.refuse("divides numbers of one type by numbers of another, which ONNX does not allow")
    least = INTEGERS[values[1].dtype][0]
    dividend, by = (value.numbers for value in values)
    assert dividend is not None
    assert by is not None
    spans = [by.all] if by.items is None else by.items
    bounds = [(infimum(low_of(span)), supremum(high_of(span))) for span in spans]
    if any(low <= 0 <= high for low, high in bounds):
        node.refuse(
            "divides whole numbers by what may be 0, which ends the process",
            "state the divisor as a constant, or keep it above 0 with Max",
        )
    if least < 0 and dividend.low <= least and any(low <= -1 <= high for low, high in bounds):
        node.refuse(
            f"divides by what may be -1 what may be {least}, which ends the process",
            "state the divisor as a constant",
        )


def where(node: Node) -> list[Value]:
    """One of two, by a condition."""
    condition, a, b = (node.input(index) for index in range(3))
    result = node.result(a.dtype, broadcast(node, [condition.shape, a.shape, b.shape]))
    parts = [condition.numbers, a.numbers, b.numbers]
    known = elementwise(numbers.chosen, parts, result.count)
    return [node.result(a.dtype, result.shape, known)]


def like_first(node: Node) -> list[Value]:
    """A function of each element, of the type of the first input."""
    first = node.input(0)
    return [node.result(first.dtype, first.shape)]


def prelu(node: Node) -> list[Value]:
    """The second input is broadcast to the first."""
    first = node.input(0)
    return [node.result(first.dtype, broadcast(node, [first.shape, node.input(1).shape]))]


def clip(node: Node) -> list[Value]:
    """Between two numbers, each of which may be absent."""
    value = node.input(0)
    known = value.numbers
    for index, function in ((1, numbers.maximum), (2, numbers.minimum)):
        if node.has(index):
            known = elementwise(function, [known, node.input(index).numbers], value.count)
    return [node.result(value.dtype, value.shape, numbers.of_type(known, value.dtype))]


def cast(node: Node) -> list[Value]:
    """Another type."""
    return [_converted(node, node.input(0), node.number("to"))]


def cast_like(node: Node) -> list[Value]:
    """The type of the second input."""
    return [_converted(node, node.input(0), node.input(1).dtype)]


def _converted(node: Node, value: Value, to: int) -> Value:
    known: Contents | None = value.numbers
    from_whole = value.dtype in INTEGERS
    if known is not None and to in PRECISION:
        # Larger numbers are rounded to others.
        exact = from_whole and max(-known.low, known.high) <= PRECISION[to]
        known = known if exact else numbers.rounded(known, known)
    elif known is not None and to == BOOL:
        known = known.map(lambda a: numbers.opposite(numbers.equal(a, 0)))
    elif known is not None and not from_whole:
        known = known.map(numbers.truncated)
    if to not in INTEGERS and to not in PRECISION:
        known = None
    return node.result(to, value.shape, numbers.of_type(known, to))
