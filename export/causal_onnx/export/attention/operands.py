"""Following the operands of a product back through what only rearranges or scales them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import UnsupportedError, attr
from causal_onnx.export.analysis.elements import Abstract, Elements, Known, plain
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.moves import MOVES
from causal_onnx.export.analysis.rules.contraction import LETTERS, equation_terms
from causal_onnx.export.attention.axis_map import layout_of
from causal_onnx.export.attention.core import Operand

__all__ = ["Terms", "outcome", "plainest", "product", "scalar_of", "tensor_of"]

Index = npt.NDArray[np.int64]


def tensor_of(run: Run, value: ir.Value | None) -> Abstract:
    if value is None:
        return None
    if value in run.values:
        return run.values[value]
    return None if value.const_value is None else _constant(value)


def _constant(value: ir.Value) -> Known:
    tensor = value.const_value
    assert tensor is not None
    shape = tuple(int(str(dim)) for dim in tensor.shape)
    return Known(constant=True, shape=shape, load=lambda: plain(tensor.numpy()))


def scalar_of(found: Abstract) -> float | None:
    """The one number that a known tensor holds in every element; None if there is none."""
    if not isinstance(found, Known) or found.size == 0 or found.size > 1 << 16:
        return None
    values = found.value.reshape(-1)
    if values.dtype.kind not in "fiu":
        return None
    return float(values[0]) if (values == values[0]).all() else None


@dataclass(frozen=True, slots=True)
class Terms:
    """A product of two tensors in einsum letters, times a number."""

    a: str
    b: str
    out: str
    factor: float = 1.0


def product(node: ir.Node, run: Run) -> Terms | None:
    """The letters of a node that contracts two tensors made of data; None for any other."""
    if node.op_type not in ("MatMul", "Gemm", "Einsum", "FusedMatMul") or len(node.inputs) < 2:
        return None
    a, b = (tensor_of(run, value) for value in node.inputs[:2])
    if not isinstance(a, Elements) or not isinstance(b, Elements):
        return None
    if node.op_type == "Einsum":
        if len(node.inputs) != 2:
            return None
        terms, out = equation_terms(attr(node, "equation"), [len(a.shape), len(b.shape)])
        if len(set(terms[0])) < len(terms[0]) or len(set(terms[1])) < len(terms[1]):
            return None
        return Terms(terms[0], terms[1], out)
    if len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if node.op_type == "Gemm":
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return None
        left = "yx" if attr(node, "transA", 0) else "xy"
        right = "zy" if attr(node, "transB", 0) else "yz"
        return Terms(left, right, "xz", attr(node, "alpha", 1.0))
    lead_a, lead_b = len(a.shape) - 2, len(b.shape) - 2
    lead = max(lead_a, lead_b)
    batch = LETTERS[:lead]
    left = "yx" if attr(node, "transA", 0) else "xy"
    right = "zy" if attr(node, "transB", 0) else "yz"
    return Terms(
        batch[lead - lead_a :] + left,
        batch[lead - lead_b :] + right,
        batch + "xz",
        attr(node, "alpha", 1.0),
    )


def plainest(run: Run, value: ir.Value, index: Index, *, scaled: bool = True) -> Operand:
    """The operand past the scalings and moves that prepared it.

    Args:
        run: At the sizes of `index`.
        value: A factor of a product, or an input of a fused operator.
        index: (batch, head, position, feature) -> flat index into it.
        scaled: Whether to go past scalings too.

    Raises:
        UnsupportedError: It is no rearrangement of (batch, head, position, feature).
    """
    best: Operand | None = None
    factor = 1.0
    while True:
        tensor = tensor_of(run, value)
        if not isinstance(tensor, Elements):
            break
        layout = layout_of(index, tensor.shape)
        if layout is not None and (best is None or layout.is_plainer(best.layout)):
            best = Operand(value, layout, factor)
        node = value.producer()
        step = None if node is None else _source_step(run, node, value, index)
        if step is None or (step[2] != 1.0 and not scaled):
            break
        value, index, more = step
        factor *= more
    if best is None:
        raise UnsupportedError("a factor of the product is not laid out by position and head")
    return best


def outcome(run: Run, value: ir.Value, index: Index) -> Operand:
    """The output of a core as far forward as moves alone take it.

    Args:
        run: At the sizes of `index`.
        value: Where the sums over the keys come out.
        index: (batch, head, position, feature) -> flat index into it.

    Raises:
        UnsupportedError: It is no rearrangement of (batch, head, position, feature).
    """
    tensor = tensor_of(run, value)
    assert isinstance(tensor, Elements)
    layout = layout_of(index, tensor.shape)
    if layout is None or layout.picks is not None or layout.heads != index.shape[1]:
        raise UnsupportedError("the output is not laid out by position and head")
    best = Operand(value, layout)
    while True:
        uses = [use.node for use in value.uses()]
        if len(uses) != 1 or value.is_graph_output() or uses[0].op_type not in MOVES:
            return best
        node = uses[0]
        inputs = [tensor_of(run, v) for v in node.inputs]
        source = inputs[0]
        if not isinstance(source, Elements) or node.inputs[0] is not value:
            return best
        if any(isinstance(x, Elements) for x in inputs[1:]):
            return best
        places = MOVES[node.op_type](node, source.shape, inputs)(
            np.arange(source.size).reshape(source.shape), -1
        ).reshape(-1)
        if places.size != source.size or len(np.unique(places)) != places.size:
            return best
        inverse = np.empty_like(places)
        inverse[places] = np.arange(places.size)
        value, index = node.outputs[0], inverse[index]
        moved = tensor_of(run, value)
        assert isinstance(moved, Elements)
        layout = layout_of(index, moved.shape)
        if layout is None or layout.picks is not None or layout.heads != index.shape[1]:
            return best
        best = Operand(value, layout)


def _source_step(
    run: Run, node: ir.Node, value: ir.Value, index: Index
) -> tuple[ir.Value, Index, float] | None:
    """The tensor before a move or a scaling, where it is used, and the scale; None at any other."""
    inputs = [tensor_of(run, v) for v in node.inputs]
    source = node.inputs[0] if node.inputs else None
    if source is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Identity":
        return source, index, 1.0
    if node.op_type in MOVES:
        found = inputs[0]
        if not isinstance(found, Elements) or any(isinstance(x, Elements) for x in inputs[1:]):
            return None
        move = MOVES[node.op_type](node, found.shape, inputs)
        places = move(np.arange(found.size).reshape(found.shape), -1).reshape(-1)
        return source, places[index], 1.0
    if node.op_type in ("Mul", "Div"):
        for main, other in ((0, 1), (1, 0)):
            factor, target, found = scalar_of(inputs[other]), node.inputs[main], inputs[main]
            if factor is None or factor == 0 or not isinstance(found, Elements):
                continue
            if target is None or (node.op_type == "Div" and main == 1):
                continue
            out = tensor_of(run, value)
            if isinstance(out, Elements) and found.shape == out.shape:
                return target, index, factor if node.op_type == "Mul" else 1 / factor
    return None
