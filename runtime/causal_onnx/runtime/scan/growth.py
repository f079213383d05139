"""What a graph may take: bytes and work, added up over all nodes at a stated size of its axes.

onnxruntime computes what depends on constants while it loads a file, and the rest at each call. So
a file of some hundred bytes could ask for any amount of either.
"""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan.limits import Limits, Overrun
from causal_onnx.runtime.scan.sizes import STATED, degree
from causal_onnx.runtime.scan.values import Node, Value

__all__ = ["Growth"]

PER_NODE = 1 << 13
"""Work of a node that does nothing: some microseconds, which a loop multiplies."""

WORK_PER_WEIGHT_BYTE = 8 * STATED**2
"""A model may use each of its weights for each position of each sequence, some of them twice."""

BYTES_PER_WEIGHT_BYTE = 16
"""A model of larger weights has more of everything; a byte of them may be two of 4 bits."""

ARENAS = 2
"""Nodes run one after the other, so that the memory which each needs while it runs is that of the
largest; but a block that one has given back may be too small for the next."""

MAX_DEGREE = 8
"""Scores of attention grow with the third power of the axes: (batch, heads, seq, total_seq)."""


class Growth:
    """Adds up what the nodes of one file take, and says which one takes too much."""

    def __init__(self, limits: Limits, weight_bytes: int, *, rows: int = STATED) -> None:
        """Start with nothing.

        Args:
            limits: What the nodes may take together.
            weight_bytes: Those of the file's weights.
            rows: The batch rows at which the values were measured.
        """
        self._limits = limits
        self._sizes = f"with every open axis of its inputs at {STATED}"
        if rows != STATED:
            self._sizes += f", its batch at {rows}"
        self._bytes, self._transient, self._work = 0.0, 0.0, 0.0
        self._most_bytes = limits.max_memory_bytes + BYTES_PER_WEIGHT_BYTE * weight_bytes
        self._most_work = limits.max_work + WORK_PER_WEIGHT_BYTE * weight_bytes

    def take(self, node: Node, results: Sequence[Value], cost: float, *, times: float = 1) -> None:
        """Add one node, which runs `times` times in a call.

        Raises:
            Overrun: It gives too much, or the nodes up to here take too much together.
            Refused: A result grows too fast with the axes.
        """
        most = self._limits.max_value_elements
        elements = 0.0
        for value in results:
            if value.elements > most:
                raise Overrun(
                    f"{node.where} gives {value.elements:.3g} elements, {self._sizes}, more than "
                    f"{most}",
                    "raise it: limits=Limits(max_value_elements=...)",
                )
            power = sum(map(degree, value.shape))
            if power > MAX_DEGREE:
                node.refuse(
                    f"gives a tensor that grows with the power {power} of the sizes of the inputs, "
                    f"more than {MAX_DEGREE}"
                )
            elements += value.elements
            self._bytes += value.bytes
        self._bytes += node.scratch
        self._transient = max(self._transient, node.transient)
        total = self._bytes + ARENAS * self._transient
        elements += sum(value.elements for value in node.inputs if value is not None)
        self._work += times * (PER_NODE + node.work + cost * elements)
        if total > self._most_bytes:
            raise Overrun(
                f"{node.where} and the nodes before it make {total:.3g} bytes, {self._sizes}, "
                f"more than {self._most_bytes}",
                "raise it: limits=Limits(max_memory_bytes=...)",
            )
        if self._work > self._most_work:
            raise Overrun(
                f"{node.where} and the nodes before it take {self._work:.3g} operations, "
                f"{self._sizes}, more than {self._most_work}",
                "raise it: limits=Limits(max_work=...)",
            )
