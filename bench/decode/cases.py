"""The models and the steps that are measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.rounds import Clock

__all__ = ["FULL", "SMALL", "ModelSizes", "Step", "clock_of", "default_steps"]


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

DECODE_PASTS = (16, 128, 512, 1024, 2000)
PROMPTS = (16, 128, 512)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Step:
    """One call of batch 1: `seq` new positions after `past_seq` earlier ones."""

    past_seq: int
    seq: int

    def __post_init__(self) -> None:
        if self.past_seq < 0 or self.seq < 1:
            raise ValueError(
                "past_seq must be at least 0 and seq at least 1, got "
                f"{self.past_seq} and {self.seq}"
            )

    def __str__(self) -> str:
        if self.past_seq == 0:
            return f"prompt of {self.seq}"
        return f"{self.seq} after {self.past_seq}"


def default_steps(max_seq_len: int) -> list[Step]:
    """Single tokens after pasts of many lengths, then prompts; those that fit."""
    steps = [
        *(Step(past_seq=past, seq=1) for past in DECODE_PASTS),
        *(Step(past_seq=0, seq=seq) for seq in PROMPTS),
    ]
    return [step for step in steps if step.past_seq + step.seq <= max_seq_len]


def clock_of(threads: int) -> Clock:
    """Processor time for one thread, the steadiest figure on a shared machine; else wall time."""
    return "cpu" if threads == 1 else "wall"
