"""One attention site in canonical form: its node, and what the steps that follow ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.attention.footprint import Footprint

__all__ = [
    "DOMAIN",
    "CanonicalCore",
    "Heads",
    "Projected",
    "Rotary",
    "feature_pairs",
    "is_canonical",
]

Array = npt.NDArray[Any]

DOMAIN = "causal_onnx"


def is_canonical(node: ir.Node) -> bool:
    """Whether `node` is an attention core in canonical form."""
    return node.domain == DOMAIN and node.op_type == "Attention"


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
class CanonicalCore:
    """One canonical node (`canonical.py`), and what is known of it."""

    node: ir.Node
    footprint: Footprint
    """What positions alone decide."""
    has_bias: bool
    """Position changes scores that count."""
    has_batch: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    bias_is_whole: bool = True
    """The bias has an entry for each query and key."""
    bias_is_known: bool = True
    """No data decides it, as it would decide a mask of padding."""
    packed_inputs: tuple[ir.Value, ...] = ()
    """q, k and v as (batch, seq, heads * width), where the graph has them all so."""
    packed_output: ir.Value | None = None
    """The output as (batch, seq, heads * width), where the graph makes that of it at once."""
    projected: Projected | None = None
    """Where the operands come from, with a cache."""
    seq: ir.Value | None = None
    past_seq: ir.Value | None = None
    """int64 (1,): the new positions and those of the past, the same values for all cores."""

    @property
    def operands(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """q, k and v by head."""
        q, k, v = self.node.inputs[:3]
        assert q is not None
        assert k is not None
        assert v is not None
        return q, k, v

    @property
    def bias(self) -> ir.Value | None:
        """What is added to the scores."""
        return self._input(3)

    @property
    def past(self) -> tuple[ir.Value, ir.Value] | None:
        """Keys and values of the cache."""
        k, v = self._input(4), self._input(5)
        return None if k is None or v is None else (k, v)

    @property
    def rows(self) -> tuple[ir.Value, ir.Value] | None:
        """`row_past` and `row_total`; None: the rows do not differ in length."""
        past, total = self._input(6), self._input(7)
        return None if past is None or total is None else (past, total)

    @property
    def sink(self) -> ir.Value | None:
        """One more score per head."""
        return self._input(8)

    @property
    def is_causal(self) -> bool:
        """Whether a query sees no later key."""
        return bool(self.node.attributes["is_causal"].as_int())

    @property
    def window(self) -> int:
        """Itself and window - 1 keys before; 0: all before."""
        return self.node.attributes["window"].as_int()

    @property
    def bounded(self) -> int:
        """The most positions that the cache holds; 0: all."""
        return self.node.attributes["bounded"].as_int()

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.node.attributes["scale"].as_float()

    @property
    def softcap(self) -> float:
        """Of the scores; 0: none."""
        return self.node.attributes["softcap"].as_float()

    def _input(self, place: int) -> ir.Value | None:
        return self.node.inputs[place] if place < len(self.node.inputs) else None
