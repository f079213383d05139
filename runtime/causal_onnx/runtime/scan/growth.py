"""What a graph may take: bytes and work, added up over all nodes at a stated size of its axes.

onnxruntime computes what depends on constants while it loads a file, and the rest at each call. So
a file of some hundred bytes could ask for any amount of either.
"""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.scan.limits import Limits, Refused
from causal_onnx.runtime.scan.sizes import STATED, degree
from causal_onnx.runtime.scan.values import Node, Value

__all__ = ["Growth"]

PER_NODE = 1 << 13
"""Work of a node that does nothing: some microseconds, which a loop multiplies."""

WORK_PER_WEIGHT_BYTE = 8 * STATED**2
"""A model may use each of its weights for each position of each sequence, some of them twice."""

BYTES_PER_WEIGHT_BYTE = 16
"""A model of larger weights has more of everything; a byte of them may be two of 4 bits."""

MAX_DEGREE = 8
"""Scores of attention grow with the third power of the axes: (batch, heads, seq, total_seq)."""


class Growth:
    """Adds up what the nodes of one file take, and says which one takes too much."""

    def __init__(self, limits: Limits, weight_bytes: int) -> None:
        """Start with nothing, for a file with weights of that many bytes."""
        self._limits = limits
        self._bytes, self._work = 0.0, 0.0
        self._most_bytes = limits.max_memory_bytes + BYTES_PER_WEIGHT_BYTE * weight_bytes
        self._most_work = limits.max_work + WORK_PER_WEIGHT_BYTE * weight_bytes

    def take(self, node: Node, results: Sequence[Value], cost: float, *, times: float = 1) -> None:
        """Add one node, which runs `times` times in a call.

        Raises:
            Refused: It gives too much, or the nodes up to here take too much together.
        """
        most = self._limits.max_value_elements
        elements = 0.0
        for value in results:
            if value.elements > most:
                node.refuse(
                    f"gives {value.elements:.3g} elements, more than {most}",
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
        elements += sum(value.elements for value in node.inputs if value is not None)
        self._work += times * (PER_NODE + node.work + cost * elements)
        sizes = f"with every open axis of its inputs at {STATED}"
        if self._bytes > self._most_bytes:
            raise Refused(
                f"{node.where} and the nodes before it make {self._bytes:.3g} bytes, {sizes}, more "
                f"than {self._most_bytes}",
                "raise it: limits=Limits(max_memory_bytes=...)",
            )
        if self._work > self._most_work:
            raise Refused(
                f"{node.where} and the nodes before it take {self._work:.3g} operations, {sizes}, "
                f"more than {self._most_work}",
                "raise it: limits=Limits(max_work=...)",
            )
