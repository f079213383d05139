"""Reading the attributes and constant inputs of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import Abstract, Array, Elements, Known, Tensor

__all__ = ["UnsupportedError", "attr", "known_ints", "known_value", "normal_axis", "tensor_at"]


class UnsupportedError(Exception):
    """A rule cannot say what this node does; the message is the reason, for the certificate."""


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default` where the node has none."""
    found = node.attributes.get(name)
    return default if found is None else found.value


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


def known_value(inputs: Sequence[Abstract], index: int, what: str) -> Array | None:
    """The value of input `index`, None where absent.

    Raises:
        UnsupportedError: It depends on data.
    """
    found = tensor_at(inputs, index)
    if isinstance(found, Elements):
        raise UnsupportedError(f"its {what} depends on the data of the inputs")
    return None if found is None else found.value


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
        ValueError: The tensor has no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank if rank else 0


def is_known(value: Abstract) -> bool:
    return value is None or isinstance(value, Known)
