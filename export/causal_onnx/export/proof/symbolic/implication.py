"""What the symbolic proof concludes, for a second judge to look at.

Each step that rests on arithmetic (an inequality that follows from others, an exact division, a
rounding, a minimum, a value that a mask has) passes through `conclude`. It costs nothing unless
`logging_implications` is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import onnx_ir as ir

    from causal_onnx.export.proof.symbolic.expression import Expression
    from causal_onnx.export.proof.symbolic.poly import Bounds, Poly

__all__ = [
    "Implication",
    "ImplicationLog",
    "Operation",
    "Side",
    "adopted",
    "at",
    "conclude",
    "logging_implications",
]

Relation: TypeAlias = Literal["==", ">=", "<="]


@dataclass(frozen=True, slots=True, repr=False)
class Operation:
    """An operator on whole numbers, not yet carried out.

    The operators of ONNX for integers (Div rounds towards zero, Mod has the divisor's sign), and
    FloorDiv and CeilDiv, which round down and up.
    """

    op: str
    parts: tuple[Side, ...]

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(repr(part) for part in self.parts)})"


Side: TypeAlias = "Poly | Expression | Operation | float"


@dataclass(frozen=True, slots=True)
class Implication:
    """`left relation right` holds for all sizes and indices at which all of `given` are >= 0."""

    left: Side
    relation: Relation
    right: Side
    given: tuple[Poly, ...] = ()
    bounds: Bounds | None = None
    """What is known of the variables; None: nothing, it is an identity."""


class ImplicationLog:
    """The implications that were accepted, each with how often and at which node first."""

    def __init__(self) -> None:
        self.counts: dict[Implication, int] = {}
        self.first: dict[Implication, ir.Node | None] = {}
        self.node: ir.Node | None = None
        """The node that is being followed, or whose output is judged."""
        self.adopted = 0
        """Tensors that were read off the runs: no implications, but assumptions of the proof."""

    def add(self, implication: Implication) -> None:
        self.counts[implication] = self.counts.get(implication, 0) + 1
        self.first.setdefault(implication, self.node)


_log: ContextVar[ImplicationLog | None] = ContextVar("implications", default=None)


@contextmanager
def logging_implications() -> Iterator[ImplicationLog]:
    """Log every implication that proofs accept inside the block."""
    log = ImplicationLog()
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def at(node: ir.Node | None) -> None:
    """Name the node that the next implications belong to."""
    log = _log.get()
    if log is not None:
        log.node = node


def adopted() -> None:
    """Say that a tensor was read off the runs."""
    log = _log.get()
    if log is not None:
        log.adopted += 1


def conclude(
    left: Side,
    relation: Relation,
    right: Side,
    *,
    given: Sequence[Poly] = (),
    bounds: Bounds | None = None,
) -> None:
    """Accept an implication: the proof goes on as if it held."""
    log = _log.get()
    if log is not None:
        log.add(Implication(left, relation, right, tuple(given), bounds))
