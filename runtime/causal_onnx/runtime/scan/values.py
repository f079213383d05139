"""The values of a graph as far as the scan follows them, and one node with what it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from causal_onnx.runtime.scan.attributes import integers
from causal_onnx.runtime.scan.decode import Message, Numbers
from causal_onnx.runtime.scan.limits import Refused
from causal_onnx.runtime.scan.numbers import Contents, anything
from causal_onnx.runtime.scan.sizes import (
    Number,
    Size,
    infimum,
    low_of,
)
from causal_onnx.runtime.scan.tensors import BITS

__all__ = ["BOOL", "FLOAT", "INT64", "Node", "Shape", "Value", "extent"]

Shape = tuple[Number, ...]

FLOAT, INT64, BOOL = 1, 7, 9
UINT8, INT8, INT32, FLOAT16, BFLOAT16 = 2, 3, 6, 10, 16


def extent(size: Number) -> float:
    """What an axis is taken to have where bytes and work are judged: 1 at least."""
    return size.extent if isinstance(size, Size) else max(size, 1)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a graph."""

    dtype: int
    """TensorProto.DataType."""
    shape: Shape
    known: Contents | None = None
    """Of its elements, if they are whole numbers or few."""
    parts: tuple[Value, ...] | None = None
    """Of a list of tensors: each of them. None: one tensor."""

    @property
    def elements(self) -> float:
        """How many there are where bytes and work are judged, no axis counted as empty."""
        if self.parts is not None:
            return sum(part.elements for part in self.parts)
        return math.prod(map(extent, self.shape))

    @property
    def bytes(self) -> float:
        # On the CPU half precision is computed in single.
        bits = BITS.get(self.dtype, 64)
        return self.elements * (48 if self.dtype in (FLOAT16, BFLOAT16) else max(bits, 8)) / 8

    @property
    def count(self) -> int | None:
        """How many elements there are, where that is known exactly."""
        count = 1
        for size in self.shape:
            if isinstance(size, Size):
                return None
            count *= int(size)
        return count

    @property
    def numbers(self) -> Contents | None:
        """What is known of its elements; of an integer type, its range at least."""
        return self.known if self.known is not None else anything(self.dtype)


@dataclass(slots=True)
class Node:
    """One node: its inputs and attributes, and the work that its rule finds."""

    op_type: str
    domain: str
    where: str
    """How messages call it."""
    opset: int
    inputs: Sequence[Value | None]
    outputs: int
    attributes: dict[str, Message]
    work: float = 0
    """Multiplications, and steps that take as long."""
    scratch: float = 0
    """Bytes that it needs besides its outputs, and may keep."""
    transient: float = 0
    """Bytes that it needs besides its outputs while it runs."""
    ints: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.ints = integers(self.attributes)

    def refuse(self, found: str, remedy: str = "") -> NoReturn:
        raise Refused(f"{self.where} {found}", remedy)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> Value:
        """An input that must be there."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.refuse(f"lacks its input {index}")
        if value.parts is not None:
            self.refuse(f"has a list of tensors as input {index}, expected a tensor")
        return value

    def listed(self, index: int) -> tuple[Value, ...]:
        """The tensors of an input that is a list of some."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None or not value.parts:
            self.refuse(f"has no list of tensors as input {index}")
        return value.parts

    def ranked(self, index: int, *ranks: int) -> Value:
        """An input of one of these ranks."""
        value = self.input(index)
        if len(value.shape) not in ranks:
            self.refuse(
                f"has an input {index} of rank {len(value.shape)}, expected "
                f"{' or '.join(map(str, ranks))}"
            )
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """An integer attribute; one that holds 0 has no field."""
        if name in self.ints:
            found = self.ints[name]
            return found[0] if found else 0
        if name in self.attributes:
            return 0
        if default is None:
            self.refuse(f"lacks the attribute {name!r}")
        return default

    def several(self, name: str) -> list[int] | None:
        """A list of integers; None where it is absent."""
        if name not in self.attributes:
            return None
        found = self.ints.get(name, [])
        whole = self.attributes[name].get("ints", Numbers(count=len(found))).count
        if whole != len(found):
            self.refuse(f"has {whole} numbers as {name!r}, more than this scan reads")
        return found

    def exact(self, index: int, what: str) -> list[int]:
        """The whole numbers of an input, which must be known."""
        value = self.input(index)
        if value.count == 0:
            return []
        found = None if value.known is None else value.known.exact
        if found is None:
            self.refuse(f"has {what} (input {index}) that the file does not state as constants")
        return [int(number) for number in found]

    def axis(self, number: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= number < rank:
            self.refuse(f"has the axis {number} of a tensor of rank {rank}")
        return number % rank

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Axes given as an attribute or as an input; None where they are absent."""
        found = self.several("axes")
        if found is None and self.has(index):
            found = self.exact(index, "axes")
        return None if found is None else [self.axis(number, rank) for number in found]

    def nonempty(self, value: Value, axes: Sequence[int] | None = None, *, what: str = "") -> None:
        """Refuse a tensor of which an axis may have no elements."""
        for position in range(len(value.shape)) if axes is None else axes:
            size = value.shape[position]
            if infimum(low_of(size)) < 1:
                self.refuse(
                    f"works on {what or 'a tensor'} whose axis {position} may be empty, which can "
                    "end the process"
                )

    def result(self, dtype: int, shape: Sequence[Number], known: Contents | None = None) -> Value:
        value = Value(dtype, tuple(shape), known)
        if known is not None and known.items is None and value.count == 1:
            return replace(value, known=Contents((known.all,), known.all))
        return value


def with_shape(value: Value, shape: Sequence[Number]) -> Value:
    """The same elements in another shape."""
    return replace(value, shape=tuple(shape))
