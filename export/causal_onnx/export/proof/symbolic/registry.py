"""Where the symbolic rules are registered, and what a rule is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from causal_onnx.export.proof.symbolic.poly import Poly
from causal_onnx.export.proof.symbolic.tensor import OpenError, Space, Symbolic

__all__ = ["RULES", "Given", "SymbolicContext", "SymbolicRule", "rule", "whole"]

Given: TypeAlias = Symbolic | None


@dataclass
class SymbolicContext:
    """What the rules may ask."""

    space: Space
    opsets: Mapping[str, int]
    run_graph: Callable[..., list[Symbolic]]
    """Follows a subgraph, with what its inputs are, if it has some."""
    lookup: Callable[[ir.Value], Given]
    """What is known of a value of the graphs around."""
    dtype: Callable[[ir.Value], ir.DataType | None] = lambda value: value.dtype
    """The type of a value, as declared or as evaluated."""


SymbolicRule: TypeAlias = Callable[[SymbolicContext, ir.Node, Sequence[Given]], Sequence[Symbolic]]

RULES: dict[tuple[str, str], SymbolicRule] = {}


def rule(
    *op_types: str, domain: str = "", follows: Sequence[int] | None = None
) -> Callable[[SymbolicRule], SymbolicRule]:
    """Register a symbolic rule for some operators of one domain.

    Args:
        op_types: The operators.
        domain: Theirs.
        follows: The inputs whose data the rule takes account of; data in any other is refused.
            None: all.
    """

    def register(function: SymbolicRule) -> SymbolicRule:
        for op_type in op_types:
            if (domain, op_type) in RULES:
                raise ValueError(f"two symbolic rules for {domain}:{op_type}")
            RULES[domain, op_type] = function if follows is None else _guarded(function, follows)
        return function

    return register


def _guarded(function: SymbolicRule, follows: Sequence[int]) -> SymbolicRule:
    def checked(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
        for index, value in enumerate(inputs):
            if index not in follows and value is not None and value.terms:
                raise OpenError(f"input {index} depends on data, which is not followed")
        return function(ctx, node, inputs)

    return checked


def tensor(inputs: Sequence[Given], index: int) -> Symbolic:
    """Input `index`.

    Raises:
        OpenError: It is absent.
    """
    if index >= len(inputs) or inputs[index] is None:
        raise OpenError(f"input {index} is missing")
    found = inputs[index]
    assert found is not None
    return found


def optional(inputs: Sequence[Given], index: int) -> Given:
    return inputs[index] if index < len(inputs) else None


def ints(inputs: Sequence[Given], index: int) -> tuple[Poly, ...] | None:
    """The whole numbers that input `index` holds; None where it is absent.

    Raises:
        OpenError: They are not known as polynomials.
    """
    found = optional(inputs, index)
    if found is None:
        return None
    if found.ints is None:
        raise OpenError(f"input {index} is not known as a polynomial of the sizes")
    return found.ints


def whole(poly: Poly) -> int:
    """The number that a polynomial is.

    Raises:
        OpenError: It depends on the sizes.
    """
    value = poly.constant
    if value is None:
        raise OpenError(f"{poly!r} is not a fixed number")
    return value


def numbers(inputs: Sequence[Given], index: int) -> list[int] | None:
    """The fixed numbers of input `index`, None where it is absent."""
    found = ints(inputs, index)
    return None if found is None else [whole(poly) for poly in found]


__all__ += ["ints", "numbers", "optional", "tensor"]
