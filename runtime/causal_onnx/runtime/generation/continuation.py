"""One continuation as it grows: which token comes next, its text, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.generation.sampling import (
    Choice,
    Sampling,
    choose,
    logprob_of,
    probabilities,
)
from causal_onnx.runtime.text.detokenise import Detokeniser

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.constraint import Grammar
    from causal_onnx.runtime.generation.prompt import PromptReader
    from causal_onnx.runtime.text.tokenizer import Tokenizer

    Array = npt.NDArray[Any]

__all__ = ["Continuation", "GrowingSequence", "Plan", "Speculation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """What guessing ahead saved; see `causal_onnx.runtime.generation.generate.tokens`, `draft`."""

    model_calls: int
    """Of the model, after the prefill."""
    draft_calls: int
    """Of the draft model, its prefill included."""
    proposed: int
    """Tokens that were guessed."""
    accepted: int
    """Guesses that became part of the continuation."""
    calls_saved: int
    """How many calls of the model one token at a time would have taken more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What a model wrote after a prompt."""

    ids: tuple[int, ...]
    """The token that ended it is the last, if one did."""
    logprobs: tuple[float, ...]
    """Of each id, under the model itself; see `Choice.logprob`."""
    finish: str
    """Why it ended: "stop" (an id or a text of `stop`, or the tokenizer's end), "complete" (the
    constraint lets nothing follow), "length" (`max_new_tokens`), "limit" (the longest sequence
    that the model takes), or "interrupted" (whoever asked for it took no more)."""
    text: str | None = None
    """The text without what ended it, where the model has a tokenizer; the text of the prompt and
    this one, put together, are the text of all ids."""
    speculation: Speculation | None = None
    """Where tokens were guessed ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the continuations of one call have in common."""

    max_new_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    joins_prompt: bool = True
    """Whether the text continues that of the prompt, or begins anew."""
    grammar: Grammar | None = None
    reader: PromptReader | None = None


class GrowingSequence:
    """One sequence that is being continued."""

    def __init__(self, prompt: Sequence[int], plan: Plan, generator: np.random.Generator) -> None:
        self.prompt, self.generator = prompt, generator
        self.ids: list[int] = []
        self.finish: str | None = None
        self._plan = plan
        self._logprobs: list[float] = []
        self._texts: list[str] = []
        self._guide = None if plan.grammar is None else plan.grammar.start()
        tokenizer = plan.tokenizer
        self._detokeniser = (
            None
            if tokenizer is None
            else Detokeniser(
                tokenizer.decode, plan.stop_texts, after=prompt if plan.joins_prompt else ()
            )
        )

    @property
    def last(self) -> int:
        """The token that was chosen last."""
        return self.ids[-1]

    @property
    def left(self) -> int:
        """How many tokens more it may have."""
        return self._plan.max_new_tokens - len(self.ids)

    def choose(self, logits: Array, *, is_last: bool) -> Choice:
        """Choose the next token from logits (vocab,); `is_last`: the model takes no more."""
        choice = choose(
            logits,
            self._plan.sampling,
            prompt=self.prompt,
            continuation=self.ids,
            is_final=is_last or self.left == 1,
            allowed=self._allowed(),
            uniform=self.generator.random(),
        )
        return self._add(choice, is_last)

    def distribution(self, logits: Array) -> Array:
        """What the next token is drawn from: probabilities (vocab,), float64."""
        return probabilities(
            logits,
            self._plan.sampling,
            prompt=self.prompt,
            continuation=self.ids,
            is_final=self.left == 1,
            allowed=self._allowed(),
        )

    def add(self, token: int, logits: Array, *, is_last: bool) -> Choice:
        """Go on with a token that was drawn from `distribution(logits)`."""
        return self._add(Choice(token, logprob_of(token, logits)), is_last)

    def interrupt(self) -> None:
        """End here, unless it has ended."""
        self.finish = self.finish or "interrupted"

    def continuation(self, speculation: Speculation | None = None) -> Continuation:
        """The result, once `finish` is set."""
        assert self.finish is not None
        return Continuation(
            ids=tuple(self.ids),
            logprobs=tuple(self._logprobs),
            finish=self.finish,
            text=None if self._detokeniser is None else "".join(self._texts),
            speculation=speculation,
        )

    def _allowed(self) -> Array | None:
        return None if self._guide is None else self._guide.allowed()

    def _add(self, choice: Choice, is_last: bool) -> Choice:
        plan, guide = self._plan, self._guide
        self.ids.append(choice.id)
        self._logprobs.append(choice.logprob)
        ends = choice.id in plan.stop_ids
        if guide is not None:
            guide.accept(choice.id)
        stopped = False
        text = ""
        if self._detokeniser is not None and not ends:
            text, stopped = self._detokeniser.push(choice.id)
        if ends or stopped:
            self.finish = "stop"
        elif guide is not None and guide.is_complete:
            self.finish = "complete"
        elif not self.left:
            self.finish = "length"
        elif is_last:
            self.finish = "limit"
        if self._detokeniser is None:
            return choice
        if self.finish is not None and not stopped:
            rest, stopped = self._detokeniser.flush()
            text += rest
            self.finish = "stop" if stopped else self.finish
        self._texts.append(text)
        return Choice(choice.id, choice.logprob, text)
