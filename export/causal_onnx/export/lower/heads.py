"""Heads split from, and merged into, the axis of features around a core."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer

__all__ = ["give_merged", "merge_heads", "split_heads"]


def split_heads(write: Writer, value: ir.Value, heads: int, width: int) -> ir.Value:
    """(batch, seq, heads * width) -> (batch, heads, seq, width)."""
    return write("Transpose", write("Reshape", value, write.ints(0, 0, heads, width)), perm=SWAPPED)


def merge_heads(write: Writer, value: ir.Value, heads: int, width: int) -> ir.Value:
    """(batch, heads, seq, width) -> (batch, seq, heads * width)."""
    return write(
        "Reshape", write("Transpose", value, perm=SWAPPED), write.ints(0, 0, heads * width)
    )


SWAPPED = (0, 2, 1, 3)


def give_merged(write: Writer, core: CanonicalCore, merged: ir.Value) -> ir.Value:
    """Hand an output with merged heads to its reader; returns it with the heads split, for others.

    The reader of the transposed and merged output takes this one; what led there falls away.
    """
    wanted = core.packed_output
    assert wanted is not None
    if not wanted.is_graph_output():
        wanted.replace_all_uses_with(merged)
    return split_heads(write, merged, core.num_heads, core.value_dim)
