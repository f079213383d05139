"""The module and the language models that are measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SMALL", "ModelSizes", "ModuleSizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleSizes:
    """Causal multi-head attention without positions or biases."""

    embed_dim: int = 768
    num_heads: int = 12
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """A Llama-style decoder with random weights and a tied head."""

    name: str
    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    max_seq_len: int = 2048
    seed: int = 0

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


SMALL = ModelSizes(
    name="32M",
    vocab_size=16_384,
    embed_dim=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    mlp_dim=1408,
)
FULL = ModelSizes(  # SmolLM-135M
    name="135M",
    vocab_size=49_152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    mlp_dim=1536,
)
