"""Which keys a query may look at, computed from the lengths."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer

__all__ = ["allowed_pairs", "positions", "window_mask"]


def allowed_pairs(write: Writer, core: CanonicalCore, q: ir.Value, k: ir.Value) -> ir.Value | None:
    """(seq, total_seq) bool: where the causal rule and the window let a query look."""
    if not core.is_causal:
        return None
    rows, columns = positions(write, q, k)
    allowed = write("LessOrEqual", columns, rows)
    if core.window:
        least = write("Sub", rows, write.ints(core.window - 1))
        allowed = write("And", allowed, write("GreaterOrEqual", columns, least))
    return allowed


def window_mask(
    write: Writer,
    q: ir.Value,
    k: ir.Value,
    past_k: ir.Value | None,
    window: int,
    *,
    axis: int = 2,
) -> ir.Value:
    rows, columns = positions(write, q, k, past_k, axis)
    least = write("Sub", rows, write.ints(window - 1))
    return write("GreaterOrEqual", columns, least)


def positions(
    write: Writer, q: ir.Value, k: ir.Value, past_k: ir.Value | None = None, axis: int = 2
) -> tuple[ir.Value, ir.Value]:
    """Positions of the queries (seq, 1) and of the keys (1, total_seq)."""
    seq = write("Shape", q, start=axis, end=axis + 1)
    total = write("Shape", k, start=axis, end=axis + 1)
    if past_k is not None:
        total = write("Add", total, write("Shape", past_k, start=2, end=3))
    zero, one = write.scalar(0), write.scalar(1)
    past, end = write("Squeeze", write("Sub", total, seq)), write("Squeeze", total)
    rows = write("Range", past, end, one)
    columns = write("Range", zero, end, one)
    return write("Unsqueeze", rows, write.ints(1)), write("Unsqueeze", columns, write.ints(0))
