"""Of which operands an operator needs only the rows that are wanted of its result."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.graph.facts import Axis, Layouts

__all__ = ["BROADCASTING", "rows_of_operands"]

BROADCASTING = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "And", "Or",
        "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "PRelu", "BitwiseAnd",
    }
)  # fmt: skip
"""Operators that align the axes of their inputs from the last one backwards."""

_ONE_BY_ONE = frozenset(
    {
        "Abs", "Cast", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
        "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
        "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
        "Sqrt", "Tanh", "Clip",
    }
)  # fmt: skip


def rows_of_operands(layouts: Layouts, node: ir.Node, axis: int) -> dict[int, int] | None:
    """The operands of which some rows are enough for the same rows of the result, and their axes.

    Args:
        layouts: Of the graph.
        node: Of one output.
        axis: Of the output, along which the rows lie.

    Returns:
        Place of the operand -> its axis of rows. None: all of every operand is needed.
    """
    shapes = [None if operand is None else layouts.axes(operand) for operand in node.inputs]
    rank = len(layouts.axes(node.outputs[0]))
    first = shapes[0]
    if first is None:
        return None

    def broadcast(index: int, lead: int) -> int | None:
        """The axis of an operand that `axis` is, if it has one there."""
        axes = shapes[index]
        place = axis - lead
        if axes is None or place < 0 or not axes[place].is_seq:
            return None
        return place

    if node.op_type in (*_ONE_BY_ONE, "Softmax"):
        along = node.op_type == "Softmax" and attr(node, "axis", -1) % rank == axis
        return None if along else {0: axis}
    if node.op_type in BROADCASTING and node.op_type not in ("Mean", "Sum", "PRelu"):
        places = {i: broadcast(i, rank - len(s)) for i, s in enumerate(shapes) if s is not None}
        return {i: place for i, place in places.items() if place is not None}
    if node.op_type == "MatMul":
        return _of_product(shapes, axis, rank)
    if node.op_type == "Attention" and rank == 4 and axis == 2:
        place = broadcast(3, rank - len(shapes[3])) if len(shapes) > 3 and shapes[3] else None
        return _of_attention(node, place)
    if node.op_type == "Transpose":
        order = attr(node, "perm") or list(range(rank))[::-1]
        return {0: order[axis]}
    if node.op_type in ("Unsqueeze", "Squeeze"):
        return _of_reshaped(layouts, node, axis, max(rank, len(first)))
    return None


def _of_attention(node: ir.Node, mask: int | None) -> dict[int, int] | None:
    """Of the queries, and of the mask where it has a row for each."""
    others = any(operand is not None for operand in node.inputs[4:])
    if others or attr(node, "is_causal", 0):
        return None
    return {0: 2} if mask is None else {0: 2, 3: mask}


def _of_product(
    shapes: Sequence[Sequence[Axis] | None], axis: int, rank: int
) -> dict[int, int] | None:
    a, b = shapes[0], shapes[1]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    if axis == rank - 2:
        return {0: len(a) - 2}
    if axis == rank - 1:
        return {1: len(b) - 1}
    place = axis - (rank - len(a))
    return {0: place} if place >= 0 and len(b) == 2 else None


def _of_reshaped(layouts: Layouts, node: ir.Node, axis: int, rank: int) -> dict[int, int] | None:
    known = layouts.known(node.inputs[1]) if len(node.inputs) > 1 else None
    if known is None:
        return None
    changed = sorted(int(n) % rank for n in known.reshape(-1))
    if node.op_type == "Unsqueeze":
        return None if axis in changed else {0: axis - sum(n < axis for n in changed)}
    left = [n for n in range(rank) if n not in changed]
    return {0: left[axis]}
