"""What is known of a canonical core besides what the node says, for those that write it anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["CoreNotes", "Heads", "Projected", "Rotary", "feature_pairs", "note", "notes_of"]

Array = npt.NDArray[Any]

KEY = "causal_onnx.core"


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Queries, keys or values by head."""

    value: ir.Value
    """(batch, num_heads, seq, head_dim), or (batch, seq, num_heads, head_dim)."""
    heads_first: bool
    packed: ir.Value | None
    """The same as (batch, seq, num_heads * head_dim), where the graph has that."""


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """By what queries and keys are turned."""

    cos: Array
    """(positions, rotary_dim / 2); of position 0, 1, ..., in the dtype of the queries."""
    sin: Array
    complete: bool
    """The tables have all positions that there can be."""
    interleaved: bool
    """Pairs are (2 i, 2 i + 1), not (i, i + rotary_dim / 2)."""

    def turn(self, x: Array) -> Array:
        """Turn (batch, seq, width): Su et al. 2021, equation 34."""
        half, seq = self.cos.shape[1], x.shape[1]
        first, second = feature_pairs(half, self.interleaved)
        cos, sin = self.cos[:seq].astype(np.float32), self.sin[:seq].astype(np.float32)
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return y

    def equals(self, other: Rotary) -> bool:
        return (
            self.interleaved == other.interleaved
            and np.array_equal(self.cos, other.cos)
            and np.array_equal(self.sin, other.sin)
        )


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Where the operands of one core come from."""

    q: Heads
    k: Heads
    v: Heads
    rotary: Rotary | None
    """Turns `q` and `k` before they enter the core; None: they enter as they are."""


def feature_pairs(half: int, interleaved: bool) -> tuple[slice, slice]:
    """The features that are turned with each other."""
    if interleaved:
        return slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    return slice(0, half), slice(half, 2 * half)


@dataclass(frozen=True, kw_only=True)
class CoreNotes:
    """Of one canonical node."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    bias_is_whole: bool = True
    """The bias has an entry for each query and key."""
    bias_is_known: bool = True
    """No data decides it."""
    packed_inputs: tuple[ir.Value, ...] = ()
    """q, k and v as (batch, seq, heads * width), where the graph has them all so."""
    packed_output: ir.Value | None = None
    """The output as (batch, seq, heads * width), where the graph makes that of it at once."""
    projected: Projected | None = None
    """Where the operands come from, with a cache."""
    seq: ir.Value | None = None
    past_seq: ir.Value | None = None
    """int64 (1,): the new positions and those of the past, the same values for all cores."""


def note(node: ir.Node, notes: CoreNotes) -> None:
    """Keep this of a canonical node, in the place of what was known."""
    node.meta[KEY] = notes


def notes_of(node: ir.Node) -> CoreNotes:
    """What is known of a canonical node."""
    found: CoreNotes = node.meta[KEY]
    return found
