"""Give each row of a batch its own part of what only positions decide.

With a cache, the rows of one call may stand at different positions: row b's first new token is
position row_past[b]. A rotary table or a position embedding is then looked up row by row instead
of cut at one place.

The lookup stands as early as it can. What treats positions one by one (the cosines of a rotary
table) is computed for the new positions alone, whatever their number so far; what comes before it
(usually the numbers 0, 1, 2, ...) for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.attention.canonical_core import is_canonical
from causal_onnx.export.cache.lengths import Lengths
from causal_onnx.export.cache.row_operands import BROADCASTING, rows_of_operands
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Axis, Layouts
from causal_onnx.export.graph.position_region import Array, PositionRegion
from causal_onnx.export.graph.writer import Writer

__all__ = ["RaggedError", "RowPlan", "plan_rows", "write_new_positions", "write_rows"]

_SPARE = 16
"""Positions that are computed behind the new ones, and not read. onnxruntime's `Cos` and `Sin` take
16 numbers at a time and those left over one by one, with other last bits: these are never read."""
_BY_ENTRY = ("Concat", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
"""Operators that take whole entries of positions, of each row its own."""


class RaggedError(NotSupportedError):
    """A cache can be derived, but only for rows that all stand at the same position."""


@dataclass(frozen=True)
class RowPlan:
    """How a value of one row of positions becomes one of a row for each of the batch."""

    rank: int
    """Of the value."""
    new_rank: int
    """Of the reader's output, and of the new value."""
    batch: int | None
    """The axis of the reader's output that is the batch; None: the module has none."""
    seq: int
    """The axis of the reader's output that is the sequence."""
    drop: int | None
    """The axis of the value that stands where the batch does, all of whose entries are equal."""


def plan_rows(
    layouts: Layouts, value: ir.Value, row_axis: int, reader: ir.Node, whole: Array
) -> RowPlan:
    """Find where the batch goes.

    Args:
        layouts: Of the graph.
        value: A position-only value that a data-dependent node reads.
        row_axis: Its axis of query positions.
        reader: That node, or the core whose bias `value` is.
        whole: The value at a batch of 2.

    Raises:
        RaggedError: The reader has no place for a batch axis, or the value differs between rows.
    """
    rank = len(layouts.axes(value))
    if is_canonical(reader):  # the bias of a core: (batch, heads, seq, total_seq)
        axes: tuple[Axis, ...] = (Axis(1, 1, 0), Axis(0), Axis(1, 0, 1), Axis(0))
    elif reader.op_type in BROADCASTING or reader.op_type in _BY_ENTRY:
        axes = layouts.axes(reader.outputs[0])
    else:
        raise _no_place(value, reader, "it does not work entry by entry")
    lead = len(axes) - rank
    if row_axis + lead < 0 or not axes[row_axis + lead].is_seq:
        raise _no_place(value, reader, "its positions are not those of the result")
    if not any("batch" in spec.axes for spec in layouts.signature.inputs):
        return RowPlan(rank, len(axes), None, row_axis + lead, None)
    batch = next((i for i, axis in enumerate(axes) if axis == Axis(1, 1, 0)), None)
    if batch is None:
        raise _no_place(value, reader, "the result has no batch axis of its own")
    own = batch - lead
    if own < 0:
        return RowPlan(rank, len(axes), batch, row_axis + lead, None)
    rows = whole.take(range(1), own)
    if not np.array_equal(np.broadcast_to(rows, whole.shape), whole):
        raise _no_place(value, reader, "it is not the same for each row of the batch")
    return RowPlan(rank, len(axes), batch, row_axis + lead, own)


def _no_place(value: ir.Value, reader: ir.Node, reason: str) -> RaggedError:
    return RaggedError(
        f"rows of different lengths cannot share a call: {reader.op_type} {reader.name!r} reads "
        f"{value.name}, which positions decide, and {reason}"
    )


class _NewPositions:
    """Writes a position-only value for some positions of all that there are."""

    def __init__(
        self, layouts: Layouts, graph: ir.Graph, before: ir.Node, lengths: Lengths, index: ir.Value
    ):
        """`index`: int64 (n,), the positions wanted."""
        self._layouts, self._graph, self._before = layouts, graph, before
        self._lengths, self._index = lengths, index
        self._write = Writer(graph, before)
        self._done: dict[tuple[ir.Value, int], ir.Value] = {}

    def __call__(self, value: ir.Value, axis: int) -> ir.Value:
        """The value with n entries along `axis`, where it has one for each position."""
        key = (value, axis)
        if key not in self._done:
            self._done[key] = self._written(value, axis)
            self._done[key].type = value.type
        return self._done[key]

    def _written(self, value: ir.Value, axis: int) -> ir.Value:
        node = value.producer()
        rows = None if node is None else _operands(self._layouts, node, axis)
        if node is None or not rows:
            table = _table(self._layouts, value, axis)
            whole = self._whole(value) if table is None else table
            return self._write("Gather", whole, self._index, axis=axis)
        inputs = [
            operand
            if operand is None or not self._layouts.is_position_only(operand)
            else self(operand, rows[place])
            if place in rows
            else self._whole(operand)
            for place, operand in enumerate(node.inputs)
        ]
        attributes = {a.name: a.value for a in node.attributes.values()}
        return self._write.node(node.op_type, inputs, attributes, domain=node.domain).outputs[0]

    def _whole(self, value: ir.Value) -> ir.Value:
        region = PositionRegion(self._layouts, value)
        return region.write_for_total(
            self._graph, self._before, self._lengths.seq, self._lengths.total
        )


def _operands(layouts: Layouts, node: ir.Node, axis: int) -> dict[int, int] | None:
    """As `rows_of_operands`, of a node that positions alone decide: which may join and look up."""
    if node.domain or len(node.outputs) != 1:
        return None
    if node.op_type == "Concat":
        other = attr(node, "axis", 0) % len(layouts.axes(node.outputs[0])) != axis
        return dict.fromkeys(range(len(node.inputs)), axis) if other else None
    if node.op_type == "Gather":  # of a table that is no position's own
        table, index = node.inputs
        assert table is not None
        assert index is not None
        place = axis - attr(node, "axis", 0) % len(layouts.axes(table))
        axes = layouts.axes(index)
        found = 0 <= place < len(axes) and axes[place].is_seq
        return {1: place} if found and layouts.constant(table) is not None else None
    return rows_of_operands(layouts, node, axis)


def _table(layouts: Layouts, value: ir.Value, axis: int) -> ir.Value | None:
    """The constant of which `value` is the first entries along `axis`: no copy is needed."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or node.inputs[0] is None:
        return None
    constant, known = layouts.constant(node.inputs[0]), layouts.known(value)
    if constant is None or known is None:
        return None
    is_start = np.array_equal(constant.value.take(range(known.shape[axis]), axis), known)
    return node.inputs[0] if is_start else None


def write_new_positions(
    graph: ir.Graph,
    before: ir.Node,
    region: PositionRegion,
    axis: int,
    *,
    plan: RowPlan | None,
    lengths: Lengths,
) -> ir.Value:
    """Write a position-only value at the new positions of each row.

    Args:
        graph: Under construction.
        before: Where the nodes go.
        region: Of the value.
        axis: Of the value, its new positions.
        plan: From `plan_rows`; None: all rows stand at one position.
        lengths: Of the graph.

    Returns:
        With a plan a value of `plan.new_rank` axes, else one of as many as it has.
    """
    write, layouts, value = Writer(graph, before), region.layouts, region.value
    if plan is None or lengths.positions is None:
        every = write("Range", write.scalar(0), write("Squeeze", lengths.total), write.scalar(1))
        index = write("Slice", every, lengths.past_seq, lengths.total, write.ints(0))
        return _NewPositions(layouts, graph, before, lengths, index)(value, axis)
    node, whole = value.producer(), _table(layouts, value, axis)
    if whole is not None or node is None or not _operands(layouts, node, axis):
        if whole is None:
            whole = region.write_for_total(graph, before, lengths.seq, lengths.total)
        return write_rows(graph, before, whole, plan, lengths.positions)
    flat = write("Reshape", lengths.positions, write.ints(-1))
    index = write("Concat", flat, write.array(np.zeros(_SPARE, np.int64)), axis=0)
    new = _NewPositions(layouts, graph, before, lengths, index)(value, axis)
    count = write("Squeeze", write("Shape", flat, start=0))
    places = write("Range", write.scalar(0), count, write.scalar(1))
    places = write("Reshape", places, write("Shape", lengths.positions, start=0))
    return write_rows(graph, before, new, plan, places)


def write_rows(
    graph: ir.Graph, before: ir.Node, whole: ir.Value, plan: RowPlan, positions: ir.Value
) -> ir.Value:
    """Look up the rows of the new positions; returns a value of `plan.new_rank` axes.

    Args:
        graph: Under construction.
        before: Where the nodes go.
        whole: The value for all positions.
        plan: From `plan_rows`.
        positions: int64 (batch, seq), where each row's new tokens stand.
    """

    write = Writer(graph, before)

    def lead(value: ir.Value, count: int) -> ir.Value:
        return write("Unsqueeze", value, write.ints(*range(count))) if count else value

    if plan.batch is None:
        row = write("Squeeze", positions, write.ints(0))
        return write("Gather", lead(whole, plan.new_rank - plan.rank), row, axis=plan.seq)
    value, rank = whole, plan.rank
    if plan.drop is not None:
        value = write("Gather", value, write.scalar(0), axis=plan.drop)
        rank -= 1
    value = lead(value, plan.new_rank - 1 - rank)
    at = plan.seq - (plan.batch < plan.seq)
    value = write("Gather", value, positions, axis=at)  # (.., batch, seq, ..)
    order = [axis for axis in range(plan.new_rank) if axis != at]
    order.insert(plan.batch, at)
    return value if order == sorted(order) else write("Transpose", value, perm=order)
