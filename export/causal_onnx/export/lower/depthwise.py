"""Depthwise convolutions of a step as sums of shifted products.

onnxruntime's `Conv` takes each channel on its own: of one position and 2,048 channels it takes
135 us, where shifted products take 12, and eight rows together take eight times as long, not three.
Its `CausalConvWithState` takes 17 us, and for 512 positions six times as long as `Conv`. The
products take as long as `Conv` there; and a position's result does not depend on how many others
the call has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.match import producer
from causal_onnx.export.graph.writer import Writer

__all__ = ["MOST_TAPS", "write_depthwise"]

MOST_TAPS = 8
"""Beyond, the products are more nodes than they are worth."""


def write_depthwise(model: ir.Model) -> int:
    """Replace every depthwise convolution over one axis of few taps; returns how many there were.

    (batch, channels, length) is convolved with stride 1, in float32: in a narrower type each
    product would be rounded on its own.
    """
    found = [(node, taps) for node in model.graph if (taps := _taps(node)) is not None]
    for node, taps in found:
        _write(Writer(model.graph, node), node, taps)
        model.graph.remove(node, safe=True)
    return len(found)


def _taps(node: ir.Node) -> npt.NDArray[np.float32] | None:
    """(channels, taps) of a convolution that is written as products; None: it stays."""
    (result,) = node.outputs[:1]
    if producer(result, "Conv") is None or result.is_graph_output():
        return None
    weight = constant_value(node.inputs[1])
    if weight is None or weight.ndim != 3 or weight.dtype != np.float32:
        return None
    channels, inner, taps = weight.shape
    attributes = node.attributes
    is_plain = (
        attributes.get_int("group", 1) == channels
        and inner == 1
        and taps <= MOST_TAPS
        and set(attributes.get_ints("strides", (1,))) == {1}
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    return weight[:, 0] if is_plain else None


def _write(write: Writer, node: ir.Node, taps: npt.NDArray[np.float32]) -> None:
    (dilation,) = node.attributes.get_ints("dilations", (1,))
    before, after = node.attributes.get_ints("pads", (0, 0))
    count = taps.shape[1]
    rows = write("Transpose", node.inputs[0], perm=[0, 2, 1])
    if before or after:
        rows = write("Pad", rows, write.ints(0, before, 0, 0, after, 0))
    total = node.inputs[2] if len(node.inputs) > 2 else None
    for tap in range(count):
        behind = (count - 1 - tap) * dilation
        end = -behind if behind else np.iinfo(np.int64).max
        shifted = rows
        if count > 1:
            shifted = write(
                "Slice", rows, write.ints(tap * dilation), write.ints(end), write.ints(1)
            )
        product = write("Mul", shifted, write.array(np.ascontiguousarray(taps[:, tap])))
        total = product if total is None else write("Add", total, product)
    (old,) = node.outputs
    new = write("Transpose", total, perm=[0, 2, 1])
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new)
