"""Where the transfer rules are registered, and what a rule is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.analysis.attributes import UnsupportedError
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Array,
    Elements,
    Known,
    Tensor,
    lift,
    normal,
)
from causal_onnx.export.analysis.evaluate import evaluate

__all__ = ["RULES", "Context", "Rule", "rule"]


@dataclass
class Context:
    """What the rules may ask, and where they leave what the certificate must mention."""

    opsets: Mapping[str, int]
    run_graph: Callable[[ir.Graph, Sequence[Abstract]], list[Abstract]]
    """Analyses a subgraph with the given inputs, outer values in reach."""
    caveats: dict[tuple[AssumptionKind, str], set[str]] = field(default_factory=dict)
    """Assumption, by kind and text -> names of the nodes that needed it."""
    approximate: dict[ir.Node, str] = field(default_factory=dict)
    """Nodes whose rule claims more dependence than there may be, each with the reason."""
    scores: dict[ir.Node, Tensor] = field(default_factory=dict)
    """Fused attention node -> its masked scores (batch, heads, seq, total)."""
    random: set[str] = field(default_factory=set)
    """Nodes that draw random numbers."""
    entered: dict[ir.Node, set[bool]] = field(default_factory=dict)
    """`If` node -> the conditions under which its branches were followed."""
    blank: bool = False
    """Only shapes and position-only values are wanted, at a size too large for the rest."""
    _count: int = 0

    def next_number(self) -> int:
        """A number that no other call of this run gives."""
        self._count += 1
        return self._count

    def assume(self, node: ir.Node, kind: AssumptionKind, text: str) -> None:
        """Record that the proof rests on `text` at `node`."""
        self.caveats.setdefault((kind, text), set()).add(node.name or node.op_type)

    def approximated(self, node: ir.Node, reason: str) -> None:
        """Record that the outputs of `node` may depend on less than its rule says."""
        self.approximate.setdefault(node, reason)

    def function(self, node: ir.Node) -> Callable[[Sequence[Array | None]], Array]:
        """The node as a function on known arrays."""
        return lambda arrays: evaluate(node, arrays, self.opsets)[0]


Rule: TypeAlias = Callable[[Context, ir.Node, Sequence[Abstract]], Sequence[Abstract]]

RULES: dict[tuple[str, str], Rule] = {}
"""(domain, operator) -> rule; the default domain is ""."""


def rule(
    *op_types: str, domain: str = "", follows: Sequence[int] | None = None
) -> Callable[[Rule], Rule]:
    """Register a rule for some operators of one domain.

    Args:
        op_types: The operators.
        domain: Theirs.
        follows: The inputs whose data the rule takes account of; data in any other is refused.
            None: all.
    """

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if (domain, op_type) in RULES:
                raise ValueError(f"two rules for {domain}:{op_type}")
            RULES[domain, op_type] = function if follows is None else _guarded(function, follows)
        return function

    return register


def _guarded(function: Rule, follows: Sequence[int]) -> Rule:
    def checked(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
        for index, value in enumerate(inputs):
            if index in follows or not isinstance(value, Elements):
                continue
            if int(value.reach.max(initial=NONE)) > NONE:
                raise UnsupportedError(f"input {index} depends on data, which is not followed")
        return function(ctx, node, inputs)

    return checked


def known_or(tensor: Tensor) -> Tensor:
    """The tensor in its simplest form."""
    return normal(tensor)


def all_known(inputs: Sequence[Abstract]) -> bool:
    return all(value is None or isinstance(value, Known) for value in inputs)


__all__ += ["all_known", "lift"]
