"""The cache of a core whose rows stand at different positions: join, mark, and keep.

The new keys of row b go behind its own tokens, over the padding of earlier calls. That makes all
rows alike: slot s of a row is a fixed distance from its queries, whatever the row's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer

__all__ = ["JoinedRows", "join_rows"]


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


def join_rows(write: Writer, core: CanonicalCore) -> JoinedRows:
    """Put new keys and values behind the past of each row.

    Slots are counted from the first position that the past holds: `held` tokens of row b are
    there, its query i looks at slots up to held + i.
    """
    assert core.past is not None
    assert core.rows is not None
    (_, k, v), (past_k, past_v), (row_past, row_total) = core.operands, core.past, core.rows
    seq, past = _lengths(write, core, k, past_k)
    bounded, window, heads = core.bounded, core.window, core.num_kv_heads
    slots = write("Min", past, write.ints(bounded)) if bounded else past
    held = write("Min", row_past, slots) if bounded else row_past
    total = write("Add", slots, seq)
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


def _lengths(
    write: Writer, core: CanonicalCore, k: ir.Value, past_k: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """(seq, past_seq), of the whole graph where the core knows them: computed once for all."""
    if core.seq is None or core.past_seq is None:
        return write("Shape", k, start=2, end=3), write("Shape", past_k, start=2, end=3)
    return core.seq, core.past_seq
