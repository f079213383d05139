"""Store weights that lie on a grid of few bits as their codes; no number changes.

The forms: onnxruntime's MatMulNBits and GatherBlockQuantized for `ORT_FORMS`, where an
embedding and the head tied to it are one stored copy; the standard DequantizeLinear for the others,
in blocks from opset 21 on, one scale per output channel before.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import replace_node
from causal_onnx.export.graph.weights import Use, find_uses
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.precision.grid import SMALLEST_ELEMENTS, Coded, Grid, code, decode
from causal_onnx.runtime.contract import CONTRIB, ORT_FORMS

__all__ = ["FAST_LEVEL", "quantise", "set_accuracy_level"]


EXACT_LEVEL, FAST_LEVEL = 0, 4
"""Of MatMulNBits: products in fp32, or of activations that are rounded to 8 bits in blocks, too."""


def quantise(model: ir.Model, target: str, grids: Sequence[Grid]) -> int:
    """Replace stored matrices that lie on a grid by their codes; returns how many uses there are.

    What lies on no grid stays; what does is the same to the last bit when it is decoded.
    """
    coded: dict[int, Coded | None] = {}
    count = 0
    for use in find_uses(model):
        key = id(use.weight) * 2 + use.axis
        if key not in coded:
            coded[key] = next((c for grid in grids if (c := _coded(use, grid))), None)
        found = coded[key]
        if found is None:
            continue
        owner = use.node.graph
        assert isinstance(owner, ir.Graph)
        write = Writer(owner, use.node, model.graph)
        if target in ORT_FORMS and not grids[0].per_row:
            model.opset_imports[CONTRIB] = 1
            result = _contrib_lookup(write, use, found) if use.is_lookup else None
            result = result or _contrib_product(write, use, found)
        elif use.is_lookup:
            result = _standard_lookup(write, use, found)
        else:
            use.node.replace_input_with(1, _standard_weight(write, use, found))
            result = None
        if result is not None:
            replace_node(use.node, result)
        count += 1
    return count


def set_accuracy_level(model: ir.Model, level: int) -> int:
    """Set how exactly onnxruntime multiplies by coded weights; returns the number of products."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"]
    for node in nodes:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    return len(nodes)


def _coded(use: Use, grid: Grid) -> Coded | None:
    """The codes of the weight with its rows along the summed axis, or None if that loses a bit."""
    assert use.weight.const_value is not None
    array = use.weight.const_value.numpy()
    rows = array if use.axis == 1 else array.T
    block = grid.block(rows.shape[1])
    if block is None or array.size < SMALLEST_ELEMENTS or not np.isfinite(array).all():
        return None
    for part in (rows[:1], rows):  # the first row tells nearly always
        found = code(np.ascontiguousarray(part), bits=grid.bits, block=block)
        if not np.array_equal(decode(found), part):
            return None
    return found


def _contrib_product(write: Writer, use: Use, coded: Coded) -> ir.Value:
    """MatMulNBits, and an Add for the bias of a Gemm."""
    rows, width = coded.codes.shape
    result = write(
        "MatMulNBits",
        use.node.inputs[0],
        *_packed(write, coded),
        domain=CONTRIB,
        N=rows,
        K=width,
        bits=coded.bits,
        block_size=coded.block,
        accuracy_level=EXACT_LEVEL,
    )
    bias = use.node.inputs[2] if len(use.node.inputs) > 2 else None
    return result if bias is None else write("Add", result, bias)


def _contrib_lookup(write: Writer, use: Use, coded: Coded) -> ir.Value:
    """GatherBlockQuantized, from the copy that a tied head multiplies by."""
    packed, scales = _packed(write, coded)
    shape = write.array(np.array([coded.codes.shape[0], -1], np.int64))
    rows = write(
        "GatherBlockQuantized",
        write("Reshape", packed, shape),
        use.node.inputs[1],
        scales,
        domain=CONTRIB,
        gather_axis=0,
        quantize_axis=1,
        bits=coded.bits,
        block_size=coded.block,
    )
    width = coded.codes.shape[1]
    if width % coded.block == 0:
        return rows
    return write("Slice", rows, write.ints(0), write.ints(width), write.ints(-1))


def _packed(write: Writer, coded: Coded) -> tuple[ir.Value, ir.Value]:
    """(rows, blocks, bytes of a block) of unsigned codes, the lower half first, and the scales."""
    shifted = (coded.in_blocks.astype(np.int16) + (1 << coded.bits - 1)).astype(np.uint8)
    if coded.bits == 4:
        shifted = np.bitwise_or(shifted[..., 0::2], shifted[..., 1::2] << 4, dtype=np.uint8)
    return write.array(shifted), write.array(coded.scales)


def _standard_weight(write: Writer, use: Use, coded: Coded) -> ir.Value:
    """The weight as the node reads it, decoded when the graph runs."""
    is_turned = use.node.op_type == "MatMul" or not _flag(use.node, "transB")
    turn = (lambda array: np.ascontiguousarray(array.T)) if is_turned else (lambda array: array)
    axis = 0 if is_turned else 1
    dtype = np.int8 if coded.bits == 8 else ml_dtypes.int4
    codes = write.array(turn(coded.codes.astype(dtype)))
    if coded.scales.shape[1] == 1:
        scales = write.array(np.ascontiguousarray(coded.scales[:, 0]))
        return write("DequantizeLinear", codes, scales, axis=1 - axis)
    scales = write.array(turn(coded.scales))
    return write("DequantizeLinear", codes, scales, axis=axis, block_size=coded.block)


def _standard_lookup(write: Writer, use: Use, coded: Coded) -> ir.Value:
    """Rows of codes, decoded after the look-up.

    ONNX cannot look up 4-bit numbers, so a code takes a byte here.
    """
    ids = use.node.inputs[1]
    codes = write("Gather", write.array(coded.codes), ids, axis=0)
    scales = write("Gather", write.array(coded.scales), ids, axis=0)
    if coded.scales.shape[1] == 1:
        wide = write("Cast", codes, to=int(ir.DataType.FLOAT))
        return write("Mul", wide, scales)
    return write("DequantizeLinear", codes, scales, axis=-1, block_size=coded.block)


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())
