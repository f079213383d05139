"""What an attention core is: its operands, masks, scale and footprint."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from causal_onnx.export.attention.axis_map import Layout
from causal_onnx.export.attention.footprint import UNKNOWN, Footprint

__all__ = ["AttentionCore", "MaskTerm", "Operand"]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a core: q, k, v or the output."""

    value: ir.Value
    layout: Layout
    factor: float = 1.0
    """The core uses the tensor times this (already part of the core's scale)."""


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One thing done to the scores between the product and the softmax."""

    kind: str
    """where: kept where `value` is `keep`, else `fill`; add: `value` times `factor` is added;
    multiply: the scores are multiplied by it; after: the weights are, and renormalised."""
    value: ir.Value
    known: bool
    """It depends on positions alone, not on data."""
    keep: bool = True
    fill: float | None = None
    factor: float = 1.0
    scores: Layout | None = None
    """Of the scores (or weights) it is applied to and broadcasts to: s is the query, d the key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCore:
    """One attention: out[t] = sum over j of softmax(scale q[t] k[j], masked)[j] v[j]."""

    node: ir.Node
    """The softmax, or the fused operator."""
    kind: str
    """"softmax" or "fused"."""
    q: Operand | None = None
    k: Operand | None = None
    v: Operand | None = None
    output: Operand | None = None
    scale: float | None = None
    softcap: float | None = None
    terms: tuple[MaskTerm, ...] = ()
    """In the order they are applied."""
    sink: ir.Value | None = None
    """Scores appended to each row and dropped after the softmax; the node's output for a padding
    that does it."""
    sink_scores: tuple[float, ...] | None = None
    """The appended score of each head (of several, the one that weighs as much); None: there is no
    sink, or data or the position decides it."""
    sink_columns: int = 1
    sink_first: bool = False
    """The sinks stand before the keys."""
    is_causal: bool = False
    """The fused operator masks later positions by itself."""
    footprint: Footprint = UNKNOWN
    bias: str = ""
    """"", "ALiBi" or "position bias": what known terms add to the scores that are seen."""
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    v_dim: int | None = None
    weights_used: bool = False
    """The weights have another use than the product with v, or are an output."""
    score_axes: tuple[int, int] | None = None
    """The axes of the softmax's input over queries and keys."""
    problem: str = ""
    """What keeps the core from being written in another form; "" if nothing."""

    @property
    def has_batch(self) -> bool:
        """Whether rows of a batch are attended apart."""
        return self.q is not None and any("b" in axis for axis in self.q.layout.axes)

    def describe(self) -> str:
        """Footprint and bias in words."""
        text = str(self.footprint)
        if self.bias:
            text += f" with {self.bias}"
        if self.softcap:
            text += f", softcap {self.softcap:g}"
        if self.sink is not None:
            text += ", sink"
        return text
