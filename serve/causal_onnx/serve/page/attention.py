"""Which outputs of a model are attention weights over the ids that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["AttentionOutputs", "NoAttentionError", "attention_outputs"]

SQUARES = (("seq", "seq"), ("seq", "total_seq"))
"""The last two axes of weights: each position, and those that it attends to."""


class NoAttentionError(Exception):
    """A model returns no attention weights that the page can draw; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionOutputs:
    """Where a model's attention weights are."""

    ids: TensorSpec
    """The input, (batch, seq)."""
    names: tuple[str, ...]
    """Of the outputs. Each is, for a batch of one, `maps` squares one after the other."""
    layers: int
    heads: int


def attention_outputs(contract: Contract) -> AttentionOutputs:
    """Find the outputs whose last two axes are positions twice, by their axes and not by names.

    One output holds all layers, (layers, batch, heads, seq, seq), or each holds one.

    Raises:
        NoAttentionError: There are none, or they cannot be drawn.
    """
    optional, presents = contract.optional_names, contract.present_names
    inputs = [spec for spec in contract.inputs if spec.name not in optional]
    if len(inputs) != 1 or inputs[0].axes != ("batch", "seq") or "int" not in inputs[0].dtype:
        raise NoAttentionError("it needs inputs other than token ids, (batch, seq).")
    found = [
        spec
        for spec in contract.outputs
        if spec.name not in presents and _leading_sizes(spec) is not None
    ]
    if not found:
        raise NoAttentionError(
            "its file returns no attention weights, because fused attention never stores them. "
            "docs/serving.md shows how to serve a second file that returns them."
        )
    sizes = {_leading_sizes(spec) for spec in found}
    dtypes = {spec.dtype for spec in found}
    if len(sizes) > 1:
        raise NoAttentionError("its outputs of attention weights have different numbers of heads.")
    if dtypes != {"float32"}:
        raise NoAttentionError(
            f"its attention weights are {', '.join(sorted(dtypes))}, and only float32 can be drawn."
        )
    (leading,) = sizes
    *layers, heads = leading or (1,)
    return AttentionOutputs(
        ids=inputs[0],
        names=tuple(spec.name for spec in found),
        layers=len(found) * math.prod(layers),
        heads=heads,
    )


def _leading_sizes(spec: TensorSpec) -> tuple[int, ...] | None:
    """The fixed sizes before the two axes of positions; None where they are no such two."""
    leading, last = spec.axes[:-2], spec.axes[-2:]
    sizes = tuple(axis for axis in leading if isinstance(axis, int))
    others = [axis for axis in leading if isinstance(axis, str)]
    is_square = last in SQUARES and others == ["batch"] and "float" in spec.dtype
    return sizes if is_square else None
