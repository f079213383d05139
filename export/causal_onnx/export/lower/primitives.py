"""A core in MatMul and Softmax, which every opset has."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.attend import attend, hiding
from causal_onnx.export.lower.cache_rows import JoinedRows, join_rows
from causal_onnx.export.lower.positions import allowed_pairs

__all__ = ["primitives_of_rows", "write_primitives"]


def write_primitives(write: Writer, core: CanonicalCore) -> Sequence[ir.Value]:
    """Attention with the scores of all queries at once."""
    q, k, v = core.operands
    count = write("Shape", q, start=2, end=3)
    if core.rows is not None:
        joined = join_rows(write, core)
        result = primitives_of_rows(write, core, joined)
        return [result, joined.present_k, joined.present_v]
    if core.past is not None:
        k, v = (write("Concat", old, x, axis=2) for old, x in zip(core.past, (k, v), strict=True))
    mask = hiding(write, allowed_pairs(write, core, q, k), core.bias, like=q)
    result = attend(write, core, q, k, v, mask=mask, count=count)
    return [result, k, v][: len(core.node.outputs)]


def primitives_of_rows(write: Writer, core: CanonicalCore, joined: JoinedRows) -> ir.Value:
    """With a cache of rows of different lengths, joined to the new keys already."""
    q = core.operands[0]
    mask = hiding(write, joined.allowed(write), core.bias, like=q)
    count = write("Shape", q, start=2, end=3)
    return attend(write, core, q, joined.k, joined.v, mask=mask, count=count)
