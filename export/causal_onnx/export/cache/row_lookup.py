"""Give each row of a batch its own part of what only positions decide.

With a cache, the rows of one call may stand at different positions: row b's first new token is
position row_past[b]. A rotary table or a position embedding, computed for all positions, is then
looked up row by row instead of cut at one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Axis, Layouts
from causal_onnx.export.graph.position_region import Array
from causal_onnx.export.graph.writer import Writer

__all__ = ["BROADCASTING", "RaggedError", "RowPlan", "plan_rows", "write_rows"]

BROADCASTING = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "And", "Or",
        "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "PRelu", "BitwiseAnd",
    }
)  # fmt: skip
"""Operators that align the axes of their inputs from the last one backwards."""


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
    if reader.domain == "causal_onnx":  # the bias of a core: (batch, heads, seq, total_seq)
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
