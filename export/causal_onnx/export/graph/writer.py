"""Writes nodes into a graph, with the notes of the node whose place they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant

__all__ = ["Writer"]


class Writer:
    """Writes nodes before the node that they replace, or at the end of a branch."""

    def __init__(
        self,
        graph: ir.Graph,
        before: ir.Node | None,
        outer: ir.Graph | None = None,
        core: ir.Node | None = None,
    ):
        """Write into `graph`; constants go to `outer`, which a branch reads as its own."""
        self.graph, self._before = graph, before
        self._outer = outer or graph
        origin = core if core is not None else before
        self._notes = {} if origin is None else dict(origin.metadata_props)

    def inside(self, graph: ir.Graph, core: ir.Node) -> Writer:
        """A writer at the end of `graph`, a subgraph of a node that takes the place of `core`."""
        return Writer(graph, None, self._outer, core)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        node.metadata_props.update(self._notes)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return node

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        return self.node(op_type, inputs, attributes, domain=domain).outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self._outer, np.array(numbers, np.int64))

    def scalar(self, number: int) -> ir.Value:
        return constant(self._outer, np.array(number, np.int64))

    def array(self, array: npt.NDArray[Any]) -> ir.Value:
        return constant(self._outer, array)

    def true(self) -> ir.Value:
        return constant(self._outer, np.array(True))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar in the dtype of `like`."""
        dtype = (like.dtype or ir.DataType.FLOAT).numpy()
        return constant(self._outer, np.array(number, dtype))

    def shape(
        self, value: ir.Value, axis: int, before: Sequence[int], after: Sequence[int]
    ) -> ir.Value:
        """int64 shape: `before`, the size of `value` along `axis`, `after`."""
        size = self("Shape", value, start=axis, end=axis + 1)
        return self("Concat", self.ints(*before), size, self.ints(*after), axis=0)
