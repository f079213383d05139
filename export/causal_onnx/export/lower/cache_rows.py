"""The cache of a core whose rows stand at different positions: join, mark, and keep.

The new keys of row b go behind its own tokens, over the padding of earlier calls. That makes all
rows alike: slot s of a row is a fixed distance from its queries, whatever the row's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from causal_onnx.export.attention.notes import notes_of
from causal_onnx.export.graph.writer import Writer

__all__ = ["JoinedRows", "has_rows", "join_rows"]


@dataclass(frozen=True)
class JoinedRows:
    """Past and new keys of each row, in the order of its positions."""

    k: ir.Value
    """(batch, num_kv_heads, slots, head_dim)"""
    v: ir.Value
    held: ir.Value
    """int64 (batch,): the slot of each row's first query."""
    allowed: Callable[[Writer], ir.Value]
    """Writes (batch, 1, seq, slots) bool: where the causal rule and the window let a query look."""
    present_k: ir.Value
    present_v: ir.Value


def has_rows(node: ir.Node) -> bool:
    """Whether the rows of this core may stand at different positions."""
    return len(node.inputs) > 6 and node.inputs[6] is not None


def join_rows(write: Writer, node: ir.Node) -> JoinedRows:
    """Put new keys and values behind the past of each row.

    Slots are counted from the first position that the past holds: `held` tokens of row b are
    there, its query i looks at slots up to held + i.
    """
    k, v, past_k, past_v, row_past, row_total = (_input(node, i) for i in (1, 2, 4, 5, 6, 7))
    seq, past = _lengths(write, node, k, past_k)
    bounded = node.attributes["bounded"].as_int()
    slots = write("Min", past, write.ints(bounded)) if bounded else past
    held = write("Min", row_past, slots) if bounded else row_past
    total = write("Add", slots, seq)
    heads = notes_of(node).num_kv_heads
    zero, one = write.scalar(0), write.scalar(1)
    steps = write("Range", zero, write("Squeeze", seq), one)
    places = write("Add", write("Unsqueeze", held, write.ints(1)), steps)  # (batch, seq)
    # Not TensorScatter: onnxruntime 1.32 logs a warning with every call that cannot reuse memory.
    index = _slot_index(write, places, heads)
    joined = [
        write("ScatterND", write("Concat", old, new, axis=2), index, new)
        for old, new in ((past_k, k), (past_v, v))
    ]

    # All cores share what is outside; only what is as large as the mask may stand in a branch.
    rows = write("Unsqueeze", places, write.ints(1, 3))
    columns = write("Range", zero, write("Squeeze", total), one)
    window = node.attributes["window"].as_int()
    least = write("Sub", rows, write.ints(window - 1)) if window else None

    def allowed(write: Writer) -> ir.Value:
        result = write("LessOrEqual", columns, rows)
        return (
            result
            if least is None
            else write("And", result, write("GreaterOrEqual", columns, least))
        )

    if not bounded:
        return JoinedRows(joined[0], joined[1], held, allowed, joined[0], joined[1])
    # The last ones of each row: from its new first position on, counted in slots of the old.
    kept = write("Min", total, write.ints(bounded))
    first = write("Max", write("Sub", row_past, slots), write.ints(0))
    next_first = write("Max", write("Sub", row_total, kept), write.ints(0))
    shift = write("Unsqueeze", write("Sub", next_first, first), write.ints(1))
    left = write("Add", shift, write("Range", zero, write("Squeeze", kept), one))
    last = _slot_index(write, left, heads)
    present_k, present_v = (write("GatherND", value, last) for value in joined)
    return JoinedRows(joined[0], joined[1], held, allowed, present_k, present_v)


def _slot_index(write: Writer, slots: ir.Value, heads: int) -> ir.Value:
    """(batch, heads, count, 3): the entries [row, head, slot] for `slots`, (batch, count)."""
    zero, one = write.scalar(0), write.scalar(1)
    batch = write("Squeeze", write("Shape", slots, start=0, end=1))
    shape = write(
        "Concat",
        write("Shape", slots, start=0, end=1),
        write.ints(heads),
        write("Shape", slots, start=1, end=2),
        write.ints(1),
        axis=0,
    )
    rows = write("Unsqueeze", write("Range", zero, batch, one), write.ints(1, 2, 3))
    each = write("Unsqueeze", write("Range", zero, write.scalar(heads), one), write.ints(0, 2, 3))
    own = write("Unsqueeze", slots, write.ints(1, 3))
    parts = [write("Expand", part, shape) for part in (rows, each, own)]
    return write("Concat", *parts, axis=3)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _lengths(
    write: Writer, node: ir.Node, k: ir.Value, past_k: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """(seq, past_seq), of the whole graph where the core knows them: computed once for all."""
    seq, past = notes_of(node).seq, notes_of(node).past_seq
    if seq is None or past is None:
        return write("Shape", k, start=2, end=3), write("Shape", past_k, start=2, end=3)
    return seq, past
