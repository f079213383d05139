"""What operators that state sizes have in common: numbers of an input, read as sizes."""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan import numbers
from causal_onnx.runtime.scan.decode import KEPT
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents
from causal_onnx.runtime.scan.sizes import (
    Bound,
    Number,
    Size,
    between,
    high_of,
    infimum,
    is_chosen,
    is_nonnegative,
    low_of,
    supremum,
)
from causal_onnx.runtime.scan.sizes import (
    axis as open_axis,
)
from causal_onnx.runtime.scan.values import INT64, Node, Value

__all__ = ["any_of", "as_size", "each_number", "size_below", "size_high", "stated_numbers"]


def stated_numbers(node: Node, index: int, what: str, *, least: int = 0) -> Sequence[Number]:
    """The sizes that an input states: each within known bounds, in a vector of known length."""
    value = node.ranked(index, 1)
    if value.count == 0:
        return ()
    known = value.numbers
    if value.count is None or value.count > KEPT or known is None:
        node.refuse(f"has {what} (input {index}) of which it is not known how many numbers it has")
    items = each_number(node, value, value.count)
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


def size_high(number: Number) -> Bound:
    return high_of(as_size(number))


def as_size(number: Number) -> Number:
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
    return numbers.minimum(as_size(number), most)


def each_number(node: Node, value: Value, count: int) -> Sequence[Number]:
    known = value.numbers
    if known is None:
        node.refuse("has numbers of another type than whole ones")
    if known.items is not None:
        return known.items
    return [Contents.any_of(known.all).all for _ in range(count)]  # each may be another


def any_of(node: Node, value: Value, shape: Sequence[Number]) -> Value:
    known = None if value.known is None else Contents.any_of(value.known.all)
    return node.result(value.dtype, shape, known)
