"""Sizes and options of attention layers and decoders; no invalid configuration can exist."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from causal_onnx.models.validate import (
    check_at_least,
    check_choice,
    check_positive,
    check_probability,
    check_size,
)

__all__ = [
    "Activation",
    "AttentionConfig",
    "DecoderConfig",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "NormKind",
    "RopeScaling",
    "RotaryStyle",
]

RotaryStyle = Literal["half", "interleaved"]
"""Which features a rotation pairs: "half" pairs i with i + head_dim / 2 (GPT-NeoX, and Llama as
Hugging Face stores it), "interleaved" pairs 2 i with 2 i + 1 (RoFormer, GPT-J)."""

Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
"""The feed-forward layer: two matrices with GELU (exact, or by tanh as GPT-2 has it) or ReLU
between them, or the three matrices of SwiGLU."""

NormKind = Literal["layer", "rms"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRopeScaling:
    """Positions divided by `factor`: a longer context in the range of angles that was trained.

    Source: Chen et al. 2023, https://arxiv.org/abs/2306.15595.
    """

    factor: float

    def __post_init__(self) -> None:
        check_at_least("factor", self.factor, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling: slow rotations divided by `factor`, fast ones kept, a ramp between.

    Source: https://github.com/meta-llama/llama-models, `apply_scaling`.
    """

    factor: float
    low_freq_factor: float
    """Rotations with fewer than this many turns over the original context are slowed down."""
    high_freq_factor: float
    """Rotations with more than this many turns over the original context are kept."""
    original_max_seq_len: int
    """The context the model was first trained on."""

    def __post_init__(self) -> None:
        check_at_least("factor", self.factor, 1.0)
        check_size("original_max_seq_len", self.original_max_seq_len)
        check_positive("low_freq_factor", self.low_freq_factor)
        if not self.high_freq_factor > self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be greater than "
                f"low_freq_factor ({self.low_freq_factor})"
            )


RopeScaling = LinearRopeScaling | Llama3RopeScaling


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Sizes and options of one causal attention layer."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    """Key-value heads; None: one per query head (multi-head attention); 1: multi-query attention;
    between: each is shared by `num_heads / num_kv_heads` query heads."""
    head_dim: int | None = None
    """Width of one head; None: `embed_dim / num_heads`."""
    max_seq_len: int | None = None
    """Longest sequence accepted; None: no limit."""
    rotary: RotaryStyle | None = None
    """Rotary positions on queries and keys; None: off."""
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    alibi: bool = False
    """Add a bias to the scores that falls linearly with the distance, with one slope per head."""
    window: int | None = None
    """A position attends to itself and the `window - 1` positions before it; None: to all."""
    softcap: float | None = None
    """Bound the scores to (-softcap, softcap) by tanh, before bias and mask; None: off."""
    scale: float | None = None
    """Factor on q k^T; None: 1 / sqrt(head_dim)."""
    qk_norm: bool = False
    """RMSNorm over `head_dim` on every query and key head, before the rotation."""
    norm_eps: float = 1e-6
    """Epsilon of the query and key norm."""
    qkv_bias: bool = False
    out_bias: bool = False
    dropout: float = 0.0
    """On the attention weights and on the output, in training only."""

    def __post_init__(self) -> None:
        check_size("embed_dim", self.embed_dim)
        check_size("num_heads", self.num_heads)
        if self.num_kv_heads is not None:
            check_size("num_kv_heads", self.num_kv_heads)
            if self.num_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_heads ({self.num_heads}) must be a multiple of "
                    f"num_kv_heads ({self.num_kv_heads})"
                )
        if self.head_dim is not None:
            check_size("head_dim", self.head_dim)
        elif self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim ({self.embed_dim}) must be a multiple of num_heads "
                f"({self.num_heads}), or head_dim must be given"
            )
        if self.max_seq_len is not None:
            check_size("max_seq_len", self.max_seq_len)
        if self.rotary is not None:
            check_choice("rotary", self.rotary, get_args(RotaryStyle))
            if self.resolved_head_dim % 2:
                raise ValueError(
                    "rotary positions turn pairs of features: head_dim must be even, "
                    f"got {self.resolved_head_dim}"
                )
            if self.alibi:
                raise ValueError("rotary and alibi are both set; choose one kind of positions")
        elif self.rope_scaling is not None:
            raise ValueError("rope_scaling is set, but rotary is None")
        check_positive("rope_base", self.rope_base)
        if self.window is not None:
            check_size("window", self.window)
        if self.softcap is not None:
            check_positive("softcap", self.softcap)
        if self.scale is not None:
            check_positive("scale", self.scale)
        check_positive("norm_eps", self.norm_eps)
        check_probability("dropout", self.dropout)

    @property
    def resolved_num_kv_heads(self) -> int:
        """`num_kv_heads`, or `num_heads` where that is None."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """`head_dim`, or `embed_dim / num_heads` where that is None."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def resolved_scale(self) -> float:
        """`scale`, or 1 / sqrt(head_dim) where that is None."""
        return 1.0 / math.sqrt(self.resolved_head_dim) if self.scale is None else self.scale


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes and options of a decoder-only language model."""

    vocab_size: int
    num_layers: int
    attention: AttentionConfig
    """The same in every layer; its `embed_dim` and `max_seq_len` are the model's."""
    mlp_dim: int
    activation: Activation = "gelu"
    mlp_bias: bool = False
    norm: NormKind = "layer"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    """LayerNorm has a bias; RMSNorm never has one."""
    learned_positions: bool = False
    """Add a trained vector per position to the token embedding; needs `attention.max_seq_len`."""
    tied_head: bool = True
    """The head shares the weight of the token embedding."""
    dropout: float = 0.0
    """On the embeddings and the feed-forward output, in training only; see also
    `attention.dropout`."""

    def __post_init__(self) -> None:
        check_size("vocab_size", self.vocab_size)
        check_size("num_layers", self.num_layers)
        check_size("mlp_dim", self.mlp_dim)
        check_choice("activation", self.activation, get_args(Activation))
        check_choice("norm", self.norm, get_args(NormKind))
        check_positive("norm_eps", self.norm_eps)
        check_probability("dropout", self.dropout)
        if self.learned_positions and self.attention.max_seq_len is None:
            raise ValueError(
                "learned_positions needs attention.max_seq_len: it is the size of their table"
            )

    @property
    def embed_dim(self) -> int:
        """The width of the embeddings, as in `attention`."""
        return self.attention.embed_dim

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence accepted, as in `attention`; None: no limit."""
        return self.attention.max_seq_len
