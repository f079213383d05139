"""What generating needs of a model: its contract, its tokenizer and streams of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from causal_onnx.runtime.stream.staying import without_inputs

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract
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

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        """Start `batch` sequences with a cache."""
        ...


class _Conditionable(Protocol):
    """A language model whose streams take inputs that stay."""

    @property
    def contract(self) -> Contract: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def stream(
        self,
        *,
        batch: int = 1,
        capacity: int | None = None,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
    ) -> Stream: ...


@dataclass(frozen=True)
class _Conditioned:
    """A model with inputs that stay: what is left of it is a language model."""

    model: _Conditionable
    inputs: Mapping[str, npt.ArrayLike]
    contract: Contract

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.model.tokenizer

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        return self.model.stream(batch=batch, capacity=capacity, inputs=self.inputs)


def conditioned(model: LanguageModel, inputs: Mapping[str, npt.ArrayLike] | None) -> LanguageModel:
    """The model with inputs that stay; itself where there are none.

    Raises:
        ValueError: One is no input of the model.
    """
    if not inputs:
        return model
    left = without_inputs(model.contract, inputs)
    return _Conditioned(model, inputs, left)  # type: ignore[arg-type]  # Model's streams take them
