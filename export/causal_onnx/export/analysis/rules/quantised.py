"""Quantised operators, down to the bits: what a scale is computed from is part of the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    attr,
    normal_axis,
    required,
    required_attr,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Elements,
    Known,
    RefusedByOnnxError,
    compress,
    lift,
)
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__: list[str] = []


@rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
@rule("QuantizeLinear", "DequantizeLinear")
def scale_elements(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Element by element with given scales."""
    source = lift(required(inputs, 0))
    reach = source.reach
    rank = len(source.shape)
    for index in (1, 2):
        extra = tensor_at(inputs, index)
        if not isinstance(extra, Elements):
            continue
        if extra.reach.ndim == 1 and rank > 1:
            axis = normal_axis(attr(node, "axis", 1), rank)
            shape = [1] * rank
            shape[axis] = extra.reach.shape[0]
            reach = np.maximum(reach, extra.reach.reshape(shape))
        elif attr(node, "block_size", 0):
            reach = np.maximum(reach, np.int32(extra.reach.max(initial=NONE)))
        else:
            reach = np.maximum(reach, extra.reach)
    return [Elements(source.shape, compress(np.asarray(reach, np.int32)))]


@rule("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", domain="com.microsoft", follows=(0,))
def matmul_nbits(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A times a packed weight of N columns; activations are quantised row by row at most."""
    source = lift(required(inputs, 0))
    columns = required_attr(node, "N")
    reach = source.reach.max(axis=-1, keepdims=True)
    return [Elements((*source.shape[:-1], columns), compress(reach))]


@rule("GatherBlockQuantized", domain="com.microsoft", follows=(1,))
def gather_block_quantized(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """An embedding stored in blocks of few bits."""
    data, indices = required(inputs, 0), lift(required(inputs, 1))
    axis = normal_axis(attr(node, "gather_axis", 0), len(data.shape))
    if axis != 0 or isinstance(data, Elements):
        raise RefusedByOnnxError("GatherBlockQuantized is followed for constant tables and axis 0")
    bits = attr(node, "bits", 4)
    scales = required(inputs, 2)
    width = list(data.shape[1:])
    if width:
        # uint8 storage packs 8 / bits numbers in a byte; int4 and uint4 tensors are not packed.
        packed = isinstance(data, Known) and scales.shape[-1] * attr(node, "block_size", 128)
        if packed and width[-1] * (8 // bits) <= int(packed) and width[-1] < int(packed):
            width[-1] = width[-1] * (8 // bits)
    lead = indices.reach.reshape(indices.reach.shape + (1,) * len(width))
    return [Elements((*indices.shape, *width), lead)]
