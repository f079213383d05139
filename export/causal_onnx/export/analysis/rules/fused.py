"""What onnxruntime's optimisers write in the place of several operators, but for attention itself.

Source: onnxruntime's ContribOperators.md. Those that have no rule here or elsewhere, such as
PackedAttention, RemovePadding and DecoderMaskedMultiHeadAttention, are taken to mix everything, by
name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_ints,
    normal_axis,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Elements,
    IntArray,
    Known,
    RefusedByOnnxError,
    Tensor,
    compress,
    lift,
)
from causal_onnx.export.analysis.rules import attention, contraction
from causal_onnx.export.analysis.rules.elementwise import combine
from causal_onnx.export.analysis.rules.moving import concatenate
from causal_onnx.export.analysis.rules.quantised import dense, dense_product
from causal_onnx.export.analysis.rules.reduction import mix
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["embedded"]

CONTRIB = "com.microsoft"


@rule("EmbedLayerNormalization", domain=CONTRIB, follows=(0, 1, 7, 8))
def embed_layer_norm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Embeddings of word, place and segment, added and normalised; and counts of the mask."""
    out = embedded(inputs, positions=8)
    count = _counted(required(inputs, 0), tensor_at(inputs, 7))
    return [out, count, Elements(out.shape, out.reach)][: len(node.outputs)]


@rule("QEmbedLayerNormalization", domain=CONTRIB, follows=(0, 1, 7))
def quantised_embed_layer_norm(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """The same from tables of 8 bits with fixed scales."""
    count = _counted(required(inputs, 0), tensor_at(inputs, 7))
    return [embedded(inputs, positions=None), count][: len(node.outputs)]


def embedded(inputs: Sequence[Abstract], *, positions: int | None) -> Elements:
    """(batch, seq, width), each position from its ids alone."""
    ids, table = required(inputs, 0), required(inputs, 2)
    if len(ids.shape) != 2 or len(table.shape) != 2:
        raise RefusedByOnnxError(f"ids of shape {ids.shape} and a table of shape {table.shape}")
    given = [tensor_at(inputs, index) for index in (0, 1, positions) if index is not None]
    reach: IntArray = np.full((1, 1), NONE, np.int32)
    for part in given:
        if part is not None:
            reach = np.maximum(reach, lift(part).reach)
    return Elements((*ids.shape, table.shape[1]), compress(reach[..., None]))


def _counted(ids: Tensor, mask: Tensor | None) -> Tensor:
    """How many entries of each row of the mask are set."""
    reach = np.full((1,), NONE, np.int32)
    if isinstance(mask, Elements):
        reach = mask.reach.max(axis=1, initial=NONE)
    return Elements((ids.shape[0],), reach)


@rule("BiasAdd", domain=CONTRIB)
def bias_add(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A bias of the last axis, and a skip."""
    return [combine("", [required(inputs, i) for i in range(3)], None)]


@rule("BiasSplitGelu", domain=CONTRIB)
def bias_split_gelu(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A bias, then halves of the last axis, one gating the other."""
    both = lift(combine("", [required(inputs, 0), required(inputs, 1)], None))
    shape = (*both.shape[:-1], both.shape[-1] // 2)
    return [Elements(shape, both.reach.max(axis=-1, keepdims=True, initial=NONE))]


@rule("GemmFastGelu", domain=CONTRIB)
def gemm_fast_gelu(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A product, a bias, and FastGelu."""
    product = contraction.matmul(required(inputs, 0), required(inputs, 1))
    return [combine("", [product, tensor_at(inputs, 2)], None)]


@rule("FusedGemm", domain=CONTRIB)
def fused_gemm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Gemm and an activation."""
    (out,) = contraction.gemm(ctx, node, inputs)
    assert isinstance(out, Known | Elements)
    return [combine("", [out], None)]


@rule("FusedConv", domain=CONTRIB)
def fused_conv(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Conv, a tensor that is added, and an activation."""
    (out,) = contraction.conv(ctx, node, inputs[:3])
    assert isinstance(out, Elements)
    return [combine("", [out, tensor_at(inputs, 3)], None)]


@rule("NhwcConv", domain=CONTRIB)
def channels_last_conv(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Conv with the channels in the last axis, of the weight as well."""
    first, weight = required(inputs, 0), required(inputs, 1)
    rank = len(first.shape)
    to_front = [0, rank - 1, *range(1, rank - 1)]
    moved = [contraction.transposed(part, to_front) for part in (first, weight)]
    (out,) = contraction.conv(ctx, node, [*moved, *inputs[2:]])
    assert isinstance(out, Elements)
    return [contraction.transposed(out, [0, *range(2, rank), 1])]


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


@rule("BiasSoftmax", domain=CONTRIB)
def bias_softmax(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A bias, then a softmax over the axes from one on."""
    total = lift(combine("", [required(inputs, 0), required(inputs, 1)], None))
    rank = len(total.shape)
    return [mix(total, range(normal_axis(attr(node, "axis", 1), rank), rank))]


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


@rule("QAttention", domain=CONTRIB, follows=(0, 5, 8))
def quantised_attention(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Attention whose projection is of 8 bits, with fixed scales."""
    mask, past = tensor_at(inputs, 5), tensor_at(inputs, 8)
    given = [dense(required(inputs, 0)), required(inputs, 1), None, mask, past]
    return attention.contrib_attention(ctx, node, given)


@rule("QLinearAdd", "QLinearMul", domain=CONTRIB, follows=(0, 3))
def quantised_pair(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Element by element; a stored zero is no zero."""
    return [combine("", [dense(required(inputs, 0)), dense(required(inputs, 3))], None)]


@rule("QLinearSigmoid", "QLinearLeakyRelu", "QOrderedGelu", domain=CONTRIB, follows=(0,))
def quantised_activation(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Functions of one number."""
    return [dense(required(inputs, 0))]


@rule("QLinearWhere", domain=CONTRIB, follows=(0, 1, 4))
def quantised_where(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A known condition drops one side."""
    sides = [dense(required(inputs, 1)), dense(required(inputs, 4))]
    return [combine("Where", [required(inputs, 0), *sides], None)]


@rule("QLinearSoftmax", domain=CONTRIB, follows=(0,))
def quantised_softmax(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Along one axis, or before opset 13 along all from one on; no code stands for -inf."""
    source = dense(required(inputs, 0))
    rank = len(source.shape)
    axis = normal_axis(attr(node, "axis", -1), rank)
    return [mix(source, range(axis, rank) if attr(node, "opset", 13) < 13 else (axis,))]


@rule("QLinearConcat", domain=CONTRIB)
def quantised_concat(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Tensors with fixed scales, joined."""
    for index, value in enumerate(inputs):
        if (index < 2 or index % 3 != 2) and isinstance(value, Elements):
            raise UnsupportedError(f"input {index}, a scale, depends on data")
    parts = [dense(required(inputs, index)) for index in range(2, len(inputs), 3)]
    return [concatenate(parts, attr(node, "axis"))]


@rule("QGemm", domain=CONTRIB, follows=(0, 3, 6))
def quantised_gemm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Gemm of codes."""
    bias = tensor_at(inputs, 6)
    sides = [dense(required(inputs, 0)), dense(required(inputs, 3))]
    return contraction.gemm(ctx, node, [*sides, None if bias is None else dense(bias)])


@rule("QOrderedMatMul", domain=CONTRIB, follows=(0, 2, 5, 6))
def ordered_matmul(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A product of codes, a bias and a tensor that is added."""
    picked = [required(inputs, 0), required(inputs, 2), *(tensor_at(inputs, i) for i in (5, 6))]
    return [dense_product(picked, 0, 1)]


@rule("QOrderedLayerNormalization", domain=CONTRIB, follows=(0,))
def ordered_norm(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Over the axes from `axis` on."""
    source = dense(required(inputs, 0))
    rank = len(source.shape)
    return [mix(source, range(normal_axis(attr(node, "axis", -1), rank), rank))]
