"""What onnxruntime's optimisers write in the place of several operators, where no body says it all.

Source: onnxruntime's ContribOperators.md. Most have a body in `expansion`. Those that have neither,
such as PackedAttention, RemovePadding and DecoderMaskedMultiHeadAttention, are taken to mix
everything, by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    known_ints,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Elements,
    RefusedByOnnxError,
    compress,
    lift,
)
from causal_onnx.export.analysis.rules.elementwise import combine
from causal_onnx.export.analysis.rules.reduction import mix
from causal_onnx.export.analysis.rules.registry import Context, rule
from causal_onnx.runtime.contract import CONTRIB


@rule("GroupNorm", "SkipGroupNorm", domain=CONTRIB)
def group_norm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Over groups of channels and all places of a row."""
    skip = node.op_type == "SkipGroupNorm"
    parts = [required(inputs, 0), *([required(inputs, 3), tensor_at(inputs, 4)] if skip else ())]
    total = lift(combine("", parts, None))
    parameters = [tensor_at(inputs, index) for index in (1, 2)]
    if any(
        isinstance(part, Elements) and part.reach.max(initial=NONE) > NONE for part in parameters
    ):
        raise UnsupportedError("its scale or bias depends on data, which is not followed")
    return [mix(total, range(1, len(total.shape))), total][: len(node.outputs)]


@rule("RelativePositionBias", domain=CONTRIB, follows=())
def relative_position_bias(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """(1, heads, queries, keys) from the distance alone; which number it is no rule needs."""
    table = required(inputs, 0)
    queries, keys = (known_ints(inputs, i, "length") for i in (1, 2))
    if not queries or not keys:
        raise RefusedByOnnxError("the number of queries or keys is missing")
    shape = (1, table.shape[1], queries[0], keys[0])
    return [Elements(shape, np.full((1, 1, 1, 1), NONE, np.int32))]


@rule("GatedRelativePositionBias", domain=CONTRIB, follows=(0, 2))
def gated_relative_position_bias(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """A bias per pair of positions, gated by the query of the first."""
    query, places = lift(required(inputs, 0)), lift(required(inputs, 2))
    if len(query.shape) != 3:
        raise UnsupportedError("queries without padding are not followed")
    batch, seq, _ = query.shape
    gate = query.reach.max(axis=2, keepdims=True, initial=NONE)[:, None]
    shape = (batch, required_attr(node, "num_heads"), seq, places.shape[-1])
    return [Elements(shape, compress(np.maximum(gate, places.reach)))]
