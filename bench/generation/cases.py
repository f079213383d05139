"""What is done with the model, and the models that it is done with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.sizes import ModelSizes

__all__ = [
    "BATCH",
    "BATCH_POSITIONS",
    "BATCH_ROW",
    "GGUF_KINDS",
    "LONG",
    "PEERLESS",
    "PRECISIONS",
    "TARGET",
    "TINY",
    "WORKS",
    "Batch",
    "Work",
    "as_small_as",
    "options_of",
    "work_of",
]

TINY = ModelSizes(
    name="tiny",
    vocab_size=512,
    embed_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=128,
    max_seq_len=256,
)
"""Computes next to nothing, so that what is around the graph shows."""


PRECISIONS = ("fp32", "int4", "int4-128", "w8a8")
"""What is measured on the CPU. "int4-128" is int4 in blocks of 128; w8a8 has no peer of its own."""

PEERLESS = ("w8a8",)
"""Precisions that the builder has not: they are set beside all others."""

TARGET = "ort-1.32"
"""Of our files on the CPU: the onnxruntime that runs them has the operator, as the peer's has."""

GGUF_KINDS = ("q8_0", "q4_0", "f32")
"""Of files for peers that read GGUF."""


def options_of(precision: str, device: str = "cpu") -> dict[str, Any]:
    """The arguments of our `export`."""
    name, _, block_size = precision.partition("-")
    # CUDA computes attention of the form for onnxruntime in half precision only.
    target = TARGET if device == "cpu" else "portable" if name == "fp32" else "ort"
    blocks = {"block_size": int(block_size)} if block_size else {}
    return {"target": target, "precision": name, **blocks}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Work:
    """One call of batch 1: read a prompt, or choose `new` tokens greedily after one."""

    kind: Literal["prefill", "decode"]
    prompt: int
    new: int = 0

    def __post_init__(self) -> None:
        if self.prompt < 1 or (self.new < 1) == (self.kind == "decode"):
            raise ValueError(
                "prompt must be at least 1, and new at least 1 for decoding and 0 else, got "
                f"prompt {self.prompt} and new {self.new} for {self.kind!r}"
            )

    @property
    def tokens(self) -> int:
        """Those that count: read, or chosen."""
        return self.prompt if self.kind == "prefill" else self.new

    @property
    def is_long(self) -> bool:
        """Whether it takes so long that it is measured less."""
        return self.prompt > LONG

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.prompt}"
        return f"decode {self.new} after {self.prompt}"


def work_of(case: Mapping[str, Any]) -> Work:
    """The work that was sent to a worker."""
    return Work(kind=case["kind"], prompt=case["prompt"], new=case["new"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Several prompts of one length, each continued greedily."""

    rows: int = 8
    prompt: int = 16
    new: int = 64

    @property
    def tokens(self) -> int:
        """Those that are chosen, of all rows."""
        return self.rows * self.new

    def __str__(self) -> str:
        return f"batch of {self.rows}"


LONG = 1024
"""Prompts that are longer are read in one set of processes, by the runtimes in process alone: four
times the tokens of the others, to say how attention weighs."""

WORKS = (
    Work(kind="prefill", prompt=512),
    Work(kind="prefill", prompt=2048),
    Work(kind="decode", prompt=16, new=128),
)
BATCH = Batch()
BATCH_ROW = "batch"
"""What its figures are called."""
BATCH_POSITIONS = 256
"""Of the cache of each sequence of a batch, where a peer asks for it beforehand."""


def as_small_as(tiny: ModelSizes, model: ModelSizes) -> ModelSizes:
    """`tiny` with as many layers as `model`: what Python does grows with them, if with anything."""
    return replace(tiny, name=f"{tiny.name}-{model.num_layers}", num_layers=model.num_layers)
