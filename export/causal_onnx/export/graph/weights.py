"""Where a graph multiplies by a weight or looks up a row of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Use", "find_uses"]

_MOVES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Slice"}


@dataclass(frozen=True, kw_only=True)
class Use:
    """One node that reads a stored matrix."""

    node: ir.Node
    weight: ir.Value
    """The initializer: 2-D, float32."""
    axis: int
    """The axis of `weight` that is summed over, or that one looked-up row runs along."""
    is_lookup: bool


def find_uses(model: ir.Model) -> list[Use]:
    """Every product with a stored matrix, and every look-up of its rows by ids from an input.

    Not found, and so left as they are: products of more than two axes on the weight's side, and
    tables that are looked up by positions which the graph computes itself.
    """
    return list(_uses(model))


def _uses(model: ir.Model) -> Iterator[Use]:
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Gather":
            axis = node.attributes.get("axis")
            weight, transposed = _stored(node.inputs[0])
            is_by_row = (axis is None or axis.as_int() == 0) and not transposed
            if weight is not None and is_by_row and _comes_from_input(node.inputs[1]):
                yield Use(node=node, weight=weight, axis=1, is_lookup=True)
        elif node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node)):
            weight, transposed = _stored(node.inputs[1])
            flag = node.attributes.get("transB")
            transposed ^= flag is not None and bool(flag.as_int())
            if weight is not None and _stored(node.inputs[0])[0] is None:
                yield Use(node=node, weight=weight, axis=int(transposed), is_lookup=False)


def _stored(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The stored float32 matrix that `value` is, and whether it is its transpose."""
    transposed = False
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "Transpose" and producer.domain == "":
            perm = producer.attributes.get("perm")
            if perm is not None and list(perm.as_ints()) != [1, 0]:
                return None, False
            transposed = not transposed
        elif producer.op_type != "Identity":
            return None, False
        value = producer.inputs[0]
    if value is None or value.const_value is None or not value.is_initializer():
        return None, False
    tensor = value.const_value
    if len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None, False
    return value, transposed


def _is_plain(gemm: ir.Node) -> bool:
    """A Gemm that is a product and a sum, no more."""
    expected = {"alpha": 1.0, "beta": 1.0}
    for name, number in expected.items():
        attribute = gemm.attributes.get(name)
        if attribute is not None and attribute.as_float() != number:
            return False
    flag = gemm.attributes.get("transA")
    return flag is None or flag.as_int() == 0


def _comes_from_input(indices: ir.Value | None) -> bool:
    """Whether the indices are a graph input as it is, and no positions made from one."""
    value = indices
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in _MOVES:
            return False
        value = producer.inputs[0]
    return value is not None and value.is_graph_input()
