"""Products in integers: activations rounded to 8 bits, each row by a scale of its own.

onnxruntime multiplies unsigned by signed bytes two to three times as fast as fp32, and sums them
exactly. A row x is divided by r = max|x|, rounded to multiples of 1/127, and its product multiplied
by r: no row depends on another, so that the graph stays causal, and a row's bits are the same
whatever rows are computed beside it. One scale for the whole tensor, as DynamicQuantizeLinear takes
it, would let later positions move earlier ones.
Source: Xiao et al. 2023 (SmoothQuant), https://arxiv.org/abs/2211.10438, "per-token" quantisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.graph.cleanup import tidy
from causal_onnx.export.graph.edit import constant_value, replace_node
from causal_onnx.export.graph.writer import Writer
from causal_onnx.runtime.contract import CONTRIB, ORT_FORMS

__all__ = ["round_activations"]

STEP = np.float32(1 / 127)
ZERO = np.uint8(128)
"""Codes are unsigned: onnxruntime is an order of magnitude slower with signed ones."""

SMALLEST_ROW = np.float32(1e-30)
"""Rows of smaller numbers become zero."""

AXES_ARE_INPUTS = 18
"""From this operator set on."""


def round_activations(model: ir.Model, target: str) -> int:
    """Write every product with a decoded weight of one scale a column in integers, in place.

    What several products read is rounded once.

    Args:
        model: Whose weights `quantise` made codes of, one scale for each row of them.
        target: Of the export: `ORT_FORMS` get onnxruntime's operator, others the standard ones.

    Returns:
        How many products there are.
    """
    rounded: dict[tuple[int, int], tuple[ir.Value, ir.Value]] = {}
    count = 0
    for node in list(model.graph.all_nodes()):
        weight = _weight(node)
        if weight is None:
            continue
        codes, scales = weight
        source, owner = node.inputs[0], node.graph
        assert source is not None
        assert isinstance(owner, ir.Graph)
        write = Writer(owner, node, model.graph)
        key = id(source), id(owner)
        if key not in rounded:
            rounded[key] = _rounded(write, source, model.opset_imports[""])
        row, largest = rounded[key]
        product = _product(write, row, codes, scales, target)
        result = write("Mul", product, largest)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = write("Add", result, node.inputs[2])
        replace_node(node, result)
        count += 1
    if count and target in ORT_FORMS:
        model.opset_imports[CONTRIB] = 1
    tidy(model)
    return count


Array = npt.NDArray[Any]


def _weight(node: ir.Node) -> tuple[Array, Array] | None:
    """The codes (width, columns) and the scales (columns,) that a product decodes."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    decoder = node.inputs[1].producer() if node.inputs[1] is not None else None
    if decoder is None or decoder.op_type != "DequantizeLinear" or len(decoder.inputs) != 2:
        return None
    codes, scales = (constant_value(value) for value in decoder.inputs)
    if codes is None or scales is None or codes.dtype != np.int8 or scales.ndim != 1:
        return None
    turned = node.attributes.get("transB")
    is_turned = turned is not None and bool(turned.as_int())
    return (np.ascontiguousarray(codes.T) if is_turned else codes), scales


def _rounded(write: Writer, source: ir.Value, opset: int) -> tuple[ir.Value, ir.Value]:
    """The codes of each row of `source`, and its largest magnitude (..., 1)."""
    magnitudes = write("Abs", source)
    if opset >= AXES_ARE_INPUTS:
        axes = write.ints(-1)
        top = write("ReduceMax", magnitudes, axes, keepdims=1)
        mean = write("ReduceMean", magnitudes, axes, keepdims=1)
    else:
        top = write("ReduceMax", magnitudes, axes=[-1], keepdims=1)
        mean = write("ReduceMean", magnitudes, axes=[-1], keepdims=1)
    # The mean is never larger; but where a number is NaN it is NaN, which ReduceMax passes over and
    # an integer cannot say.
    largest = write("Max", top, mean, write.array(np.array(SMALLEST_ROW)))
    share = write("Div", source, largest)
    step, zero = write.array(np.array(STEP)), write.array(np.array(ZERO))
    return write("QuantizeLinear", share, step, zero), largest


def _product(write: Writer, row: ir.Value, codes: Array, scales: Array, target: str) -> ir.Value:
    zero, weight = write.array(np.array(ZERO)), write.array(codes)
    if target in ORT_FORMS:
        step = write.array(np.array(STEP))
        return write(
            "MatMulIntegerToFloat", row, weight, step, write.array(scales), zero, domain=CONTRIB
        )
    whole = write("Cast", write("MatMulInteger", row, weight, zero), to=int(ir.DataType.FLOAT))
    return write("Mul", whole, write.array(np.asarray(scales * STEP, np.float32)))
