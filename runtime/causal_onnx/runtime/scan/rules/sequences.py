"""Operators on lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan.numbers import Contents
from causal_onnx.runtime.scan.rules.selecting import joined
from causal_onnx.runtime.scan.rules.stated import any_of, as_size
from causal_onnx.runtime.scan.sizes import (
    Number,
    Size,
)
from causal_onnx.runtime.scan.values import INT64, Node, Value

__all__ = [
    "concat_sequence",
    "sequence",
    "sequence_at",
    "sequence_length",
    "split_to_sequence",
]

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
        return [joined(node, parts)]
    rank = len(parts[0].shape) + 1
    axis = node.axis(node.number("axis"), rank)
    if any(len(part.shape) != rank - 1 for part in parts):
        node.refuse("joins tensors of several ranks")
    return [any_of(node, parts[0], (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:]))]


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
        shapes = [(*value.shape[:axis], as_size(x), *value.shape[axis + 1 :]) for x in sizes]
    return _list_of(node, [any_of(node, value, shape) for shape in shapes])
