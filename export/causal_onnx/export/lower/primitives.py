"""A core in MatMul and Softmax, which every opset has."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.attend import attend, hiding
from causal_onnx.export.lower.cache_rows import JoinedRows, has_rows, join_rows
from causal_onnx.export.lower.positions import allowed_pairs, core_inputs

__all__ = ["primitives_of_rows", "write_primitives"]


def write_primitives(write: Writer, node: ir.Node) -> Sequence[ir.Value]:
    """Attention with the scores of all queries at once."""
    q, k, v, bias, past_k, past_v = core_inputs(node)
    count = write("Shape", q, start=2, end=3)
    if has_rows(node):
        joined = join_rows(write, node)
        result = primitives_of_rows(write, node, joined)
        return [result, joined.present_k, joined.present_v]
    if past_k is not None and past_v is not None:
        k = write("Concat", past_k, k, axis=2)
        v = write("Concat", past_v, v, axis=2)
    mask = hiding(write, allowed_pairs(write, node, q, k), bias, like=q)
    result = attend(write, node, q, k, v, mask=mask, count=count)
    return [result, k, v][: len(node.outputs)]


def primitives_of_rows(write: Writer, node: ir.Node, joined: JoinedRows) -> ir.Value:
    """With a cache of rows of different lengths, joined to the new keys already."""
    q, _, _, bias, *_ = core_inputs(node)
    mask = hiding(write, joined.allowed(write), bias, like=q)
    count = write("Shape", q, start=2, end=3)
    return attend(write, node, q, joined.k, joined.v, mask=mask, count=count)
