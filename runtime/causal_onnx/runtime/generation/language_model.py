"""What generating needs of a model: its contract, its tokenizer and streams of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from causal_onnx.runtime.generation.plan import required_tokenizer
from causal_onnx.runtime.generation.source import Source, complete_inputs
from causal_onnx.runtime.stream.staying import without_inputs

if TYPE_CHECKING:
    from causal_onnx.runtime.contract import Contract
    from causal_onnx.runtime.generation.sampling import Sampling
    from causal_onnx.runtime.stream.given import Given
    from causal_onnx.runtime.stream.stream import Stream
    from causal_onnx.runtime.text.tokenizer import Tokenizer

__all__ = ["LanguageModel", "conditioned"]


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

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What a decoder begins with that has an encoder: before every text, and for a prompt where
        none is given. Empty for other models."""
        ...

    @property
    def greedy(self) -> Sampling:
        """How tokens are chosen where nobody says how."""
        ...

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        """Start `batch` sequences with a cache."""
        ...


class _Conditionable(Protocol):
    """A language model whose streams are started with inputs, and adapters."""

    @property
    def contract(self) -> Contract: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def start_ids(self) -> tuple[int, ...]: ...

    @property
    def greedy(self) -> Sampling: ...

    def stream(
        self,
        *,
        batch: int = 1,
        capacity: int | None = None,
        inputs: Mapping[str, Given] | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Stream: ...


@dataclass(frozen=True)
class _Conditioned:
    """A model with inputs that are given, or adapters: what is left of it is a language model."""

    model: _Conditionable
    inputs: Mapping[str, Given]
    contract: Contract
    adapter: str | Sequence[str | None] | None = None

    @property
    def unadapted(self) -> object:
        """The model of which prefix caches are: their keys and values depend on what is given, and
        are kept by adapter."""
        return self if self.inputs else self.model

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.model.tokenizer

    @property
    def start_ids(self) -> tuple[int, ...]:
        return self.model.start_ids

    @property
    def greedy(self) -> Sampling:
        return self.model.greedy

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        return self.model.stream(
            batch=batch, capacity=capacity, inputs=self.inputs, adapter=self.adapter
        )


def conditioned(
    model: LanguageModel,
    inputs: Mapping[str, Source] | None,
    adapter: str | Sequence[str | None] | None = None,
) -> LanguageModel:
    """The model with inputs that are given, and adapters; itself where there are none.

    Args:
        model: What is left of it is a language model.
        inputs: By name.
        adapter: The name of one that all rows have, or one for each row.

    Raises:
        ValueError: One is no input of the model, or a text without a tokenizer.
        ImportError: A text needs the extra `text`.
    """
    if not inputs and adapter is None:
        return model
    whole = complete_inputs(
        model.contract, inputs or {}, lambda text: required_tokenizer(model).encode(text)
    )
    left = without_inputs(model.contract, whole)
    return _Conditioned(model, whole, left, adapter)  # type: ignore[arg-type]  # Model's streams take them
