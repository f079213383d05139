"""Reading the attributes and constant inputs of a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from causal_onnx.export.analysis.elements import (
    Abstract,
    Array,
    Elements,
    Known,
    RefusedByOnnxError,
    Tensor,
)

__all__ = [
    "UnsupportedError",
    "attr",
    "known_ints",
    "known_value",
    "malformed",
    "normal_axis",
    "required",
    "required_attr",
    "required_value",
    "tensor_at",
]


class UnsupportedError(Exception):
    """A rule cannot say what this node does; the message is the reason, for the certificate."""


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default` where the node has none."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def required_attr(node: ir.Node, name: str) -> Any:
    """The value of an attribute that the operator cannot do without.

    Raises:
        RefusedByOnnxError: The node has none.
    """
    found = attr(node, name)
    if found is None:
        raise RefusedByOnnxError(f"attribute {name} is missing")
    return found


def tensor_at(inputs: Sequence[Abstract], index: int) -> Tensor | None:
    """Input `index`, None where absent.

    Raises:
        UnsupportedError: It is a sequence.
    """
    if index >= len(inputs):
        return None
    found = inputs[index]
    if isinstance(found, list):
        raise UnsupportedError(f"input {index} is a sequence, which this operator does not take")
    return found


def required(inputs: Sequence[Abstract], index: int) -> Tensor:
    """Input `index`, which the operator cannot do without.

    Raises:
        UnsupportedError: It is a sequence.
        RefusedByOnnxError: It is absent.
    """
    found = tensor_at(inputs, index)
    if found is None:
        raise RefusedByOnnxError(f"input {index} is missing")
    return found


def known_value(inputs: Sequence[Abstract], index: int, what: str) -> Array | None:
    """The value of input `index`, None where absent.

    Raises:
        UnsupportedError: It depends on data.
    """
    found = tensor_at(inputs, index)
    if isinstance(found, Elements):
        raise UnsupportedError(
            f"its {what} depends on the data of the inputs; make it depend on their shapes alone "
            "(x.shape[1])"
        )
    return None if found is None else found.value


def required_value(inputs: Sequence[Abstract], index: int, what: str) -> Array:
    """The value of input `index`, which the operator cannot do without.

    Raises:
        UnsupportedError: It depends on data.
        RefusedByOnnxError: It is absent.
    """
    required(inputs, index)
    found = known_value(inputs, index, what)
    assert found is not None
    return found


def known_ints(inputs: Sequence[Abstract], index: int, what: str) -> list[int] | None:
    """The integers of input `index` as a list, None where absent or without elements to read.

    Raises:
        UnsupportedError: They depend on data.
    """
    found = known_value(inputs, index, what)
    return None if found is None else [int(x) for x in np.asarray(found).reshape(-1)]


def normal_axis(axis: int, rank: int) -> int:
    """The axis counted from the front.

    Raises:
        RefusedByOnnxError: The tensor has no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise RefusedByOnnxError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank if rank else 0


def malformed(node: ir.Node, opsets: Mapping[str, int]) -> str:
    """What the node lacks that its operator requires; "" where nothing, or the operator is unknown.

    For a node that a rule stumbled over: rules take nodes as ONNX defines them.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return ""
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for index, parameter in enumerate(schema.inputs):
        absent = index >= len(node.inputs) or node.inputs[index] is None
        if parameter.option == single and absent:
            return f"input {index} ({parameter.name}) is missing"
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            return f"attribute {name} is missing"
    return ""


def is_known(value: Abstract) -> bool:
    return value is None or isinstance(value, Known)
