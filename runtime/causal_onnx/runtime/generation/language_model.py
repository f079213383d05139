"""What generating needs of a model: its contract, its tokenizer and streams of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from causal_onnx.runtime.contract import Contract
    from causal_onnx.runtime.stream.stream import Stream
    from causal_onnx.runtime.text.tokenizer import Tokenizer

__all__ = ["LanguageModel"]


class LanguageModel(Protocol):
    """A model that `tokens`, `generate` and the others continue prompts with, such as a `Model`."""

    @property
    def contract(self) -> Contract:
        """What it takes and gives: ids (batch, seq) in, logits (batch, seq, vocab) out."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into ids; None where it takes ids only."""
        ...

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        """Start `batch` sequences with a cache."""
        ...
