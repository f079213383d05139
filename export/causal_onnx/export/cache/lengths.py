"""Where the rows of a call stand: the lengths that a derived cache computes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.signature import InputAxes, Signature
from causal_onnx.export.graph.edit import constant

__all__ = ["MASK", "MASKS", "STAND_IN", "Lengths", "write_lengths"]

MASK = "attention_mask"
"""The input that says which positions of each row are tokens, named as everyone does."""

MASKS = (MASK, "decoder_attention_mask")
"""Its name where the first one is taken: an encoder with a decoder has a mask of its source."""

STAND_IN = "core_"
"""How the names of graph inputs begin that stand in the place of what is cut out."""


@dataclass(frozen=True)
class Lengths:
    """How long the sequence is, and where each row stands; int64."""

    seq: ir.Value
    """(1,), new positions."""
    total: ir.Value
    """(1,), past and new positions."""
    past_seq: ir.Value
    """(1,)"""
    mask: ir.Value | None = None
    """(batch, total_seq); with it the following, else all rows stand at `past_seq`."""
    row_past: ir.Value | None = None
    """(batch,), tokens of each row in the cache."""
    row_total: ir.Value | None = None
    """(batch,), those and the new tokens."""
    positions: ir.Value | None = None
    """(batch, seq), where the new tokens stand."""


def write_lengths(graph: ir.Graph, signature: Signature, *, aligned: ir.Value | None) -> Lengths:
    """Write at the top of the graph how long the sequence is, and where each row stands.

    Args:
        graph: Of which a cache is derived; it gets an input of `MASKS`, unless `aligned`.
        signature: Of that graph.
        aligned: Past keys: all rows have as many positions as those. None: the mask says it.
    """
    spec: InputAxes = next(
        s for s in signature.inputs if "seq" in s.axes and not s.name.startswith(STAND_IN)
    )
    tokens = next(value for value in graph.inputs if value.name == spec.name)
    axis = spec.axes.index("seq")
    first = next(iter(graph))

    def write(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        graph.insert_before(first, node)
        return node.outputs[0]

    def ints(*numbers: int) -> ir.Value:
        return constant(graph, np.array(numbers, np.int64))

    def scalar(number: int) -> ir.Value:
        return constant(graph, np.array(number, np.int64))

    seq = write("Shape", tokens, start=axis, end=axis + 1)
    if aligned is not None:
        past_seq = write("Shape", aligned, start=2, end=3)
        return Lengths(seq, write("Add", past_seq, seq), past_seq)
    batched = any("batch" in s.axes for s in signature.inputs)
    taken = {s.name for s in signature.inputs}
    mask = ir.Value(
        name=next(name for name in MASKS if name not in taken),
        shape=ir.Shape(["batch" if batched else 1, "total_seq"]),
        type=ir.TensorType(ir.DataType.INT64),
    )
    graph.inputs.append(mask)
    total = write("Shape", mask, start=1, end=2)
    past_seq = write("Sub", total, seq)
    row_past = write(
        "ReduceSum", write("Slice", mask, ints(0), past_seq, ints(1)), ints(1), keepdims=0
    )
    row_total = write("ReduceSum", mask, ints(1), keepdims=0)
    new = write("Range", scalar(0), write("Squeeze", seq), scalar(1))
    positions = write("Add", write("Unsqueeze", row_past, ints(1)), new)
    for value, name in ((row_past, "row_past"), (row_total, "row_total"), (positions, "positions")):
        value.name, value.type = name, ir.TensorType(ir.DataType.INT64)
    return Lengths(seq, total, past_seq, mask, row_past, row_total, positions)
