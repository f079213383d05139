"""Attention cores, recognised by what they compute: softmax(score(q k) + mask) v, or fused.

From each softmax over keys the graph is followed back, through whatever rearranges or scales the
scores, to the product that made them, and forward to the product with the values. Which element is
(batch, head, query, key) is read off the analysis, so any arrangement of axes will do.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError, attr
from causal_onnx.export.analysis.elements import Abstract, Elements, Known
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.attention.axis_map import Index, Layout
from causal_onnx.export.attention.core import AttentionCore, MaskTerm, Operand
from causal_onnx.export.attention.operands import outcome, plainest, tensor_of
from causal_onnx.export.attention.softmax import SoftmaxCore

__all__ = ["core_at", "recognise"]

FUSED = {
    ("", "Attention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "Attention"),
}

BOOLEAN = {"And", "Or", "Not", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
"""Operators with a boolean result."""


def recognise(analysis: Analysis) -> list[AttentionCore]:
    """All attention cores of a graph outside its branches, in the order it computes them.

    Their footprints are left open.
    """
    sizes = analysis.probe_sizes()
    probe = None if sizes is None else analysis.by_position(sizes)
    if probe is None or sizes is None:
        return []
    rows = analysis.by_batch(sizes)
    cores = (core_at(analysis, probe, rows, node) for node in analysis.model.graph)
    return [core for core in cores if core is not None]


def core_at(
    analysis: Analysis, probe: Run, rows: Run | None, node: ir.Node
) -> AttentionCore | None:
    """The core around a softmax or a fused operator, its footprint left open; None at any other.

    Args:
        analysis: Of the graph.
        probe: A run that computed the node.
        rows: The run by batch rows at the same sizes.
        node: Of the graph, or of a body in it.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) in FUSED:
        return _fused(analysis, probe, node)
    if node.op_type == "Softmax" and not domain:
        return SoftmaxCore(analysis, probe, rows, node).build()
    return None


def _fused(analysis: Analysis, probe: Run, node: ir.Node) -> AttentionCore:
    """An attention operator: its operands are its inputs."""
    contrib = node.domain == "com.microsoft"
    heads = attr(node, "num_heads" if contrib else "q_num_heads")
    kv_heads = attr(node, "kv_num_heads", heads)
    core = AttentionCore(node=node, kind="fused", softcap=attr(node, "softcap", 0.0) or None)
    packed = node.op_type == "Attention" and contrib
    values = [node.inputs[i] if i < len(node.inputs) else None for i in range(3)]
    if packed or any(value is None for value in values):
        problem = "its queries, keys and values are packed in one tensor"
        return replace(core, problem=problem, num_heads=heads, num_kv_heads=kv_heads)
    operands: list[Operand] = []
    counts: list[int] = []
    for value, count in zip(values, (heads, kv_heads, kv_heads), strict=True):
        assert value is not None
        operand = _operand(value, tensor_of(probe, value), count)
        if operand is None:
            return replace(core, problem=f"input {value.name} has an unexpected shape")
        counts.append(operand.layout.heads)
        operands.append(_plainer(probe, operand, scaled=len(operands) < 2))
    q, k, v = operands
    output = _operand(node.outputs[0], tensor_of(probe, node.outputs[0]), counts[0])
    index = None if output is None else _index(probe, output)
    if output is not None and index is not None:
        output = outcome(probe, output.value, index)
    head_dim = _width(q, probe)
    scale = attr(node, "scale", 0.0) or (1 / math.sqrt(head_dim or 1))
    terms: tuple[MaskTerm, ...] = ()
    if not contrib and len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = node.inputs[3]
        found = tensor_of(probe, mask)
        known = isinstance(found, Known)
        scores = Layout((("b",), ("h",), ("s",), ("d",)), counts[0])
        kind = "where" if _is_choice(mask, found) else "add"
        terms = (MaskTerm(kind=kind, value=mask, known=known, fill=-math.inf, scores=scores),)
    return replace(
        core,
        q=q,
        k=k,
        v=v,
        output=output,
        num_heads=counts[0],
        num_kv_heads=counts[1] if k.layout.picks else k.layout.heads,
        head_dim=head_dim,
        v_dim=_width(v, probe),
        scale=scale * q.factor * k.factor,
        is_causal=bool(attr(node, "unidirectional" if contrib else "is_causal", 0)),
        terms=terms,
    )


def _is_choice(mask: ir.Value, found: Abstract) -> bool:
    """Whether a mask says which keys count, rather than what is added to their scores."""
    if isinstance(found, Known):
        return found.value.dtype == np.bool_
    maker = mask.producer()
    return mask.dtype == ir.DataType.BOOL or (maker is not None and maker.op_type in BOOLEAN)


def _operand(value: ir.Value, tensor: Abstract, heads: int | None) -> Operand | None:
    if not isinstance(tensor, Elements | Known):
        return None
    if len(tensor.shape) == 4:
        return Operand(value, Layout((("b",), ("h",), ("s",), ("d",)), tensor.shape[1]))
    if len(tensor.shape) == 3 and heads:
        return Operand(value, Layout((("b",), ("s",), ("h", "d")), heads))
    return None


def _plainer(run: Run, operand: Operand, *, scaled: bool) -> Operand:
    """The operand of a fused operator before the moves (a transpose, repeated heads) into it."""
    index = _index(run, operand)
    if index is None:
        return operand
    try:
        return plainest(run, operand.value, index, scaled=scaled)
    except UnsupportedError:
        return operand


def _index(run: Run, operand: Operand) -> Index | None:
    """(batch, head, position, feature) -> flat index, of an operand in one of two usual layouts."""
    tensor = tensor_of(run, operand.value)
    if not isinstance(tensor, Elements):
        return None
    index = np.arange(tensor.size).reshape(tensor.shape)
    if len(tensor.shape) == 3:
        batch, seq, width = tensor.shape
        heads = operand.layout.heads
        index = index.reshape(batch, seq, heads, width // heads).transpose(0, 2, 1, 3)
    return index


def _width(operand: Operand, run: Run) -> int | None:
    tensor = tensor_of(run, operand.value)
    if not isinstance(tensor, Elements | Known):
        return None
    sizes = [1, 1]
    for axis, letters in zip(tensor.shape, operand.layout.axes, strict=True):
        if "d" in letters:
            sizes[0] = axis
            sizes[1] = operand.layout.heads if "h" in letters else 1
    return sizes[0] // sizes[1]
