"""Write tensors of any layout as (batch, heads, positions, features), and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.signature import Signature
from causal_onnx.export.attention.axis_map import Layout
from causal_onnx.export.graph.edit import constant

__all__ = ["Arranger"]

Axes = Sequence[tuple[str, ...]]
"""The letters that each axis runs over, as in `Layout.axes`."""

ORDER = "bghsd"
"""As in `Layout`: batch, groups of heads, heads, positions, features."""


class Arranger:
    """Writes nodes before one node of the graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node, signature: Signature):
        self.graph, self._before = graph, before
        self._signature = signature

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Node:
        node = ir.node(op_type, inputs, domain=domain, attributes=attributes or {})
        self.graph.insert_before(self._before, node)
        if inputs[0] is not None and op_type not in ("Shape", "Cast"):
            node.outputs[0].type = inputs[0].type
        return node

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.node(op_type, inputs, attributes=attributes).outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self.graph, np.array(numbers, np.int64))

    def cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """`value` in `dtype`; as it is where either is not known."""
        if dtype is None or value.dtype is None or value.dtype == dtype:
            return value
        result = self("Cast", value, to=int(dtype))
        result.type = ir.TensorType(dtype)
        return result

    def four_axes(self, value: ir.Value, layout: Layout, width: int | None = None) -> ir.Value:
        """`value` as (batch, heads, positions, features).

        Args:
            value: In `layout`.
            layout: What its axes are.
            width: The number of features; None where that depends on the inputs.
        """
        letters = self.letters(layout.axes)
        value = self.ordered(value, layout.axes, layout, width)
        missing = [axis for axis, letter in enumerate("bhsd") if letter not in letters]
        if missing:
            value = self("Unsqueeze", value, self.ints(*missing))
        if layout.picks is not None:
            value = self("Gather", value, self.ints(*layout.picks), axis=1)
        return value

    def ordered(
        self, value: ir.Value, axes: Axes, layout: Layout, width: int | None = None
    ) -> ir.Value:
        """One axis for each of batch, heads, positions and features that is in `axes`."""
        sizes = _sizes(layout, width)
        letters = self.letters(axes)
        value = self._reshape(value, axes, [(letter,) for letter in letters], sizes)
        present = [letter for letter in ORDER if letter in letters]
        value = self._transpose(value, [letters.index(letter) for letter in present])
        return self._reshape(value, [(letter,) for letter in present], _merged(present), sizes)

    def restore(self, value: ir.Value, layout: Layout, width: int) -> ir.Value:
        """(batch, heads, positions, features) in the axes of `layout`."""
        sizes = _sizes(layout, width)
        letters = self.letters(layout.axes)
        present = [letter for letter in ORDER if letter in letters]
        missing = [axis for axis, letter in enumerate("bhsd") if letter not in letters]
        if missing:
            value = self("Squeeze", value, self.ints(*missing))
        value = self._reshape(value, _merged(present), [(letter,) for letter in present], sizes)
        value = self._transpose(value, [present.index(letter) for letter in letters])
        return self._reshape(value, [(letter,) for letter in letters], layout.axes, sizes)

    @staticmethod
    def letters(axes: Axes) -> list[str]:
        """All letters of the axes, outermost first."""
        return [letter for axis in axes for letter in axis]

    def _transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        if list(order) == list(range(len(order))):
            return value
        return self("Transpose", value, perm=list(order))

    def _reshape(
        self, value: ir.Value, source: Axes, target: Axes, sizes: Mapping[str, int]
    ) -> ir.Value:
        """The same letters in the same order, split over other axes."""
        if list(source) == list(target):
            return value
        if [axis for axis in source if axis] == list(target):
            spare = [index for index, axis in enumerate(source) if not axis]
            return self("Squeeze", value, self.ints(*spare))
        if [axis for axis in target if axis] == list(source):
            new = [index for index, axis in enumerate(target) if not axis]
            return self("Unsqueeze", value, self.ints(*new))
        parts: list[int | ir.Value] = []
        for index, axis in enumerate(target):
            free = [letter for letter in axis if letter not in sizes]
            if not free:
                parts.append(math.prod(sizes[letter] for letter in axis))
            elif index < len(source) and source[index] == axis:
                parts.append(0)  # copied
            elif -1 not in parts:
                parts.append(-1)
            else:
                fixed = math.prod(sizes[letter] for letter in axis if letter in sizes)
                parts.append(self._size(value, source, free, fixed))
        return self("Reshape", value, self._shape(parts))

    def _size(self, value: ir.Value, source: Axes, free: Sequence[str], fixed: int) -> ir.Value:
        """int64 (1,): the product of sizes that only the inputs tell, times `fixed`."""
        total: ir.Value | None = None
        for letter in free:
            if (letter,) in source:
                axis = list(source).index((letter,))
                size = self("Shape", value, start=axis, end=axis + 1)
            else:
                size = self._input_size("batch" if letter == "b" else "seq")
            total = size if total is None else self("Mul", total, size)
        assert total is not None
        return total if fixed == 1 else self("Mul", total, self.ints(fixed))

    def _input_size(self, name: str) -> ir.Value:
        spec = next(spec for spec in self._signature.inputs if name in spec.axes)
        tokens = next(value for value in self.graph.inputs if value.name == spec.name)
        axis = spec.axes.index(name)
        return self("Shape", tokens, start=axis, end=axis + 1)

    def _shape(self, parts: Sequence[int | ir.Value]) -> ir.Value:
        joined: list[ir.Value] = []
        numbers: list[int] = []
        for part in parts:
            if isinstance(part, int):
                numbers.append(part)
                continue
            if numbers:
                joined.append(self.ints(*numbers))
            joined.append(part)
            numbers = []
        if numbers:
            joined.append(self.ints(*numbers))
        return joined[0] if len(joined) == 1 else self("Concat", *joined, axis=0)


def _sizes(layout: Layout, width: int | None) -> dict[str, int]:
    """The letters whose size does not depend on the inputs."""
    sizes = layout.sizes(batch=0, seq=0, width=width or 0)
    return {letter: sizes[letter] for letter in ("g", "h") + (("d",) if width else ())}


def _merged(letters: Sequence[str]) -> list[tuple[str, ...]]:
    """One axis per letter, but groups and heads on one."""
    return [
        ("g", "h") if letter == "h" and "g" in letters else (letter,)
        for letter in letters
        if letter != "g"
    ]
