"""Which rows of a region need to be computed where only the results of new positions are wanted.

Attention has a row of scores for each query. Of a region that is computed again from all its
inputs, an operator that treats the positions of the result one by one needs those of its operand
at the new positions only; where that leads back to a source, no state of the source is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from causal_onnx.export.cache.region import Region
from causal_onnx.export.cache.row_lookup import RaggedError, RowPlan, plan_rows
from causal_onnx.export.cache.row_operands import rows_of_operands
from causal_onnx.export.cache.spans import BATCH, own_axis
from causal_onnx.export.graph.position_region import PositionRegion
from causal_onnx.export.graph.subgraphs import outer_values

__all__ = ["NewRows"]

Select = Callable[[ir.Value, ir.Value, int, ir.Node], ir.Value]
"""(the value, its copy for all positions, the axis of positions, its reader) -> the copy's entries
at the new positions."""


class NewRows:
    """The values of a region that are wanted at new positions only, along one axis each."""

    def __init__(self, region: Region, *, axis: int | None = None, ragged: bool):
        """Plan it.

        Args:
            region: Computed again from all inputs.
            axis: Of the result's positions. None: it has one such axis.
            ragged: Rows of a batch may stand at different positions.

        Raises:
            RaggedError: The new positions of some value cannot be taken row by row.
        """
        self._ragged = ragged
        self.plans: dict[tuple[ir.Value, ir.Node], RowPlan] = {}
        """For values that positions alone decide, and their readers, where the batch goes."""
        self._region, self._layouts = region, region.layouts
        self._inside = set(region.nodes)
        self._full: dict[ir.Value, None] = {}
        self._operands: dict[tuple[ir.Value, int], dict[int, int]] = {}
        """For a value and its axis: of which operands only new rows are needed, and their axis."""
        axis = own_axis(region.layouts, region.output) if axis is None else axis
        assert axis is not None
        self._axis: int = axis
        self._plan(region.output, axis)
        for node in region.nodes:
            if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
                self._full[node.inputs[0]] = None  # the lengths are those of all positions
        self.needed = self._sources()
        """The sources of which all positions are needed."""

    def _plan(self, value: ir.Value, axis: int) -> None:
        stack = [(value, axis)]
        while stack:
            current = stack.pop()
            if current in self._operands or current[0] in self._region.sources:
                continue
            found = self._narrowed(*current)
            if found is None:
                self._refuse_unselectable(current[0])
                self._full[current[0]] = None
                continue
            self._operands[current] = found
            node = current[0].producer()
            assert node is not None
            for index, operand in enumerate(node.inputs):
                if operand is None:
                    continue
                if index not in found:
                    self._full[operand] = None
                elif self._layouts.is_tainted(operand):
                    stack.append((operand, found[index]))
                elif self._ragged:
                    whole = PositionRegion(self._layouts, operand).evaluate(
                        self._layouts.sizes[0].batch, self._layouts.sizes[0].seq
                    )
                    place = found[index]
                    plan = plan_rows(self._layouts, operand, place, node, whole)
                    self.plans[operand, node] = plan

    def _refuse_unselectable(self, value: ir.Value) -> None:
        batches = [axis for axis in self._layouts.axes(value) if axis.batches]
        if self._ragged and batches != [BATCH] * self._layouts.signature.has_batch:
            raise RaggedError(f"{value.name} has no axis of rows of its own")

    def _narrowed(self, value: ir.Value, axis: int) -> dict[int, int] | None:
        """Of which operands new rows are enough; None: the node needs all to give any."""
        node = value.producer()
        if node is None or node not in self._inside or node.domain or len(node.outputs) != 1:
            return None
        return rows_of_operands(self._layouts, node, axis)

    def _sources(self) -> set[ir.Value]:
        found: set[ir.Value] = set()
        seen: set[ir.Value] = set()
        stack = list(self._full)
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self._region.sources:
                found.add(value)
                continue
            node = value.producer()
            if node in self._inside:
                assert node is not None
                stack.extend(v for v in (*node.inputs, *outer_values(node)) if v is not None)
        return found

    def write(
        self,
        graph: ir.Graph,
        before: ir.Node,
        full: Mapping[ir.Value, ir.Value],
        new: Mapping[ir.Value, ir.Value],
        select: Select,
    ) -> ir.Value:
        """Write the nodes for new rows; returns the output at the new positions.

        Args:
            graph: Under construction.
            before: Where the nodes go.
            full: Of the values of the region their copies for all positions.
            new: Of the sources those of the new positions.
            select: Takes the new positions of a copy for all.
        """
        done: dict[tuple[ir.Value, int], ir.Value] = {}

        def rows(value: ir.Value, axis: int, reader: ir.Node) -> ir.Value:
            if value in new:
                return new[value]
            key = (value, axis)
            if key in done:
                return done[key]
            narrowed = self._operands.get(key)
            if narrowed is None:
                return select(value, full.get(value, value), axis, reader)
            node = value.producer()
            assert node is not None
            inputs = [
                None
                if operand is None
                else rows(operand, narrowed[index], node)
                if index in narrowed
                else full.get(operand, operand)
                for index, operand in enumerate(self._region.operands(node))
            ]
            twin = ir.node(
                node.op_type,
                inputs,
                attributes={a.name: a.value for a in node.attributes.values()},
                metadata_props=dict(node.metadata_props),
            )
            twin.outputs[0].type = value.type
            graph.insert_before(before, twin)
            done[key] = twin.outputs[0]
            return done[key]

        return rows(self._region.output, self._axis, self._region.node)
