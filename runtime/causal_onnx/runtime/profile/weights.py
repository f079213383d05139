"""Count the bytes of constants that a node reads."""

from __future__ import annotations

from causal_onnx.runtime.profile.events import Event
from causal_onnx.runtime.profile.graph import GraphNode, Stored

__all__ = ["weight_bytes"]

SELECTING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""They read of their first input what they give, not all of it."""
UNREAD = frozenset({"Shape", "Size", "If", "Loop", "Scan"})
ROTARY_TABLES = (7, 8)
"""Inputs of GroupQueryAttention, of which each position reads a row."""


def weight_bytes(event: Event, node: GraphNode | None) -> int:
    """Bytes of constants that one execution reads.

    They are counted as the file stores them, but for 16-bit floating point that is computed with
    as float32: onnxruntime then holds it as that. An embedding reads the rows that are asked for.
    """
    if node is None:
        return event.parameter_bytes
    if event.op_type in UNREAD:
        return 0
    is_wide = bool(event.outputs) and event.outputs[0].dtype == "float"
    sizes = {place: _held(stored, is_wide) for place, stored in node.constants.items()}
    if event.op_type in SELECTING and 0 in sizes and event.outputs:
        sizes[0] = min(sizes[0], event.outputs[0].size_bytes)
    elif event.op_type == "GatherBlockQuantized" and 1 not in sizes:
        # One row of each table (values, scales, zero points) for each index.
        rows, indices = event.inputs[0].shape[0], event.inputs[1].elements
        sizes = {place: size * min(rows, indices) // rows for place, size in sizes.items()}
    elif event.op_type == "GroupQueryAttention":
        for place in ROTARY_TABLES:
            stored = node.constants.get(place)
            if stored is not None and stored.shape:
                rows, positions = stored.shape[0], event.inputs[0].shape[1]
                sizes[place] = sizes[place] * min(rows, positions) // rows
    return sum(sizes.values())


def _held(stored: Stored, is_wide: bool) -> int:
    return stored.size_bytes * 2 if stored.is_half and is_wide else stored.size_bytes
