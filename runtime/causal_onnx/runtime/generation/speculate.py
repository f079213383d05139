"""Guess tokens ahead, and let the model judge several of them in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from causal_onnx.runtime.generation.continuation import GrowingSequence, Plan, Speculation
from causal_onnx.runtime.generation.heads import DraftHeads, HeadsGuesser, check_heads
from causal_onnx.runtime.generation.plan import check_model, vocab_size
from causal_onnx.runtime.generation.prompt import can_rewind, feed, logits_of, prefill, start
from causal_onnx.runtime.generation.sampling import Choice, Sampling, draw, probabilities
from causal_onnx.runtime.request.whole_numbers import whole_number

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.language_model import LanguageModel

    Array = npt.NDArray[Any]

__all__ = [
    "Draft",
    "DraftGuesser",
    "DraftHeads",
    "DraftModel",
    "Guesser",
    "LookupGuesser",
    "PromptLookup",
    "Speculator",
    "check_draft",
]

MOST_UNREAD = 16
"""Tokens that are read anew, at most, where a cache cannot take back what it has read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLookup:
    """Guess that what followed the last tokens earlier follows again.

    Costs nothing but a search, and pays where a text repeats what it has, such as code, quotations
    and corrections. Source: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding.
    """

    count: int = 8
    """Tokens that are guessed at a time, at most."""
    max_ngram: int = 3
    """So many last tokens are looked for at first, then fewer."""

    def __post_init__(self) -> None:
        whole_number("count", self.count, wanted="at least 1")
        whole_number("max_ngram", self.max_ngram, wanted="at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftModel:
    """Let another model guess: one with the same ids, and much smaller."""

    model: LanguageModel
    count: int = 4
    """Tokens that are guessed at a time, at most."""

    def __post_init__(self) -> None:
        whole_number("count", self.count, wanted="at least 1")
        check_model(self.model)


Draft = PromptLookup | DraftModel
"""What guesses for a server, too."""

Guess = tuple[int, "Array | None"]
"""An id, and the distribution it was drawn from; None where there was no choice."""


class Guesser(Protocol):
    """What a speculator asks for tokens."""

    calls: int
    """Of a draft model."""

    def guess(self, sequence: GrowingSequence, most: int) -> list[Guess]:
        """Up to `most` tokens that may come next."""
        ...


class Speculator:
    """Continues one sequence with guesses.

    Each call of the model reads the tokens that are certain and some guesses behind them, and gives
    the logits after each. The guesses are taken as long as they are what the model chooses; where
    they were drawn at random, by rejection sampling, which leaves the distribution of the text as
    it is without guesses. Source: Leviathan et al. 2023, https://arxiv.org/abs/2211.17192,
    section 2.3 and theorem 1 (appendix A.1).
    """

    def __init__(
        self,
        model: LanguageModel,
        sequence: GrowingSequence,
        plan: Plan,
        draft: Draft | DraftHeads,
    ) -> None:
        self._model, self._sequence, self._plan = model, sequence, plan
        self._heads: HeadsGuesser | None = None
        self._guesser: Guesser
        if isinstance(draft, PromptLookup):
            self._guesser = LookupGuesser(draft)
        elif isinstance(draft, DraftModel):
            self._guesser = DraftGuesser(draft, plan.sampling, sequence.generator)
        else:
            self._guesser = self._heads = HeadsGuesser(model.contract, draft)
        self._model_calls = self._proposed = self._accepted = 0

    @property
    def speculation(self) -> Speculation:
        """What was saved so far."""
        return Speculation(
            model_calls=self._model_calls,
            draft_calls=self._guesser.calls,
            proposed=self._proposed,
            accepted=self._accepted,
            calls_saved=max(len(self._sequence.ids) - 1, 0) - self._model_calls,
        )

    def tokens(self) -> Iterator[Choice]:
        """Choose token after token to the end of the sequence."""
        sequence, limit = self._sequence, self._model.contract.max_seq_len
        stream, logits = start(self._model, [sequence.prompt], self._plan.reader)
        rewinds = can_rewind(self._model)
        yield sequence.choose(logits[0], is_last=len(sequence.prompt) == limit)
        unread = sequence.ids[-1:]
        while sequence.finish is None:
            read_so_far = stream.lengths[0]
            most = sequence.left - 1
            if limit is not None:
                most = min(most, limit - read_so_far - len(unread))
            if len(unread) > MOST_UNREAD:
                most = 0
            guesses = self._guesser.guess(sequence, most) if most > 0 else []
            # Where nothing can be taken back, the guesses are read by a copy.
            before = stream if rewinds or not guesses else stream.fork()
            ids = [*unread, *(token for token, _ in guesses)]
            results = stream.run(np.array([ids], np.int64))
            logits = logits_of(results)[0, len(unread) - 1 :]
            self._model_calls += 1
            self._proposed += len(guesses)
            accepted = 0
            for place in range(len(guesses) + 1):
                is_last = len(sequence.prompt) + len(sequence.ids) == limit
                guess = guesses[place] if place < len(guesses) else None
                choice, is_right = self._judge(logits[place], guess, is_last)
                accepted += is_right
                yield choice
                if sequence.finish is not None or not is_right:
                    break
            self._accepted += accepted
            if self._heads is not None:
                self._heads.look(results, len(unread) - 1 + accepted)
            if accepted == len(guesses):
                unread = sequence.ids[-1:]
            elif rewinds:
                stream.rewind(read_so_far + len(unread) + accepted)
                unread = sequence.ids[-1:]
            else:
                stream = before
                unread = sequence.ids[read_so_far - len(sequence.prompt) :]

    def _judge(self, logits: Array, guess: Guess | None, is_last: bool) -> tuple[Choice, bool]:
        """The next token, and whether it is the guess."""
        sequence = self._sequence
        drafted = None if guess is None else guess[1]
        if guess is None or drafted is None:
            choice = sequence.choose(logits, is_last=is_last)
            return choice, guess is not None and choice.id == guess[0]
        token = guess[0]
        wanted = sequence.distribution(logits)
        is_right = sequence.generator.random() * drafted[token] < wanted[token]
        if not is_right:
            rest = np.maximum(wanted - drafted, 0.0)
            # All of it is rounding where the two agree.
            token = draw(rest if rest.any() else wanted, sequence.generator.random())
        return sequence.add(token, logits, is_last=is_last), is_right


class LookupGuesser:
    """Finds the last n tokens of one sequence among those before."""

    def __init__(self, settings: PromptLookup) -> None:
        self.calls = 0
        self._settings = settings
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """n-gram -> where it was followed by a token, the last time."""

    def guess(self, sequence: GrowingSequence, most: int) -> list[Guess]:
        """What followed the last n tokens earlier."""
        ids, sizes = self._ids, range(1, self._settings.max_ngram + 1)
        known = len(ids) - len(sequence.prompt)
        for token in sequence.ids[known:] if ids else [*sequence.prompt, *sequence.ids]:
            # Entered when its next token is known: the end of the text must not find itself.
            for size in sizes:
                if size <= len(ids):
                    self._after[tuple(ids[-size:])] = len(ids)
            ids.append(int(token))
        for size in reversed(sizes):
            place = self._after.get(tuple(ids[-size:])) if size <= len(ids) else None
            if place is not None:
                count = min(self._settings.count, most)
                return [(token, None) for token in ids[place : place + count]]
        return []


class DraftGuesser:
    """Lets a smaller model continue one sequence."""

    def __init__(
        self,
        settings: DraftModel,
        sampling: Sampling,
        generator: np.random.Generator,
        *,
        most_read: int | None = None,
    ) -> None:
        """Begin a stream of the smaller model.

        Args:
            settings: The model, and how many tokens it guesses at a time.
            sampling: How its tokens are chosen.
            generator: What they are drawn with, unless they are the likeliest.
            most_read: Tokens that it reads before it guesses, at most; where there are more, it
                reads so many and guesses nothing yet. None: all.
        """
        self.calls = 0
        self._settings, self._sampling, self._generator = settings, sampling, generator
        self._most_read = most_read
        self._stream = settings.model.stream()
        self._can_rewind = can_rewind(settings.model)

    def guess(self, sequence: GrowingSequence, most: int) -> list[Guess]:
        """What the smaller model writes next."""
        sampling, limit = self._sampling, self._settings.model.contract.max_seq_len
        ids = [*sequence.prompt, *sequence.ids]
        count = min(self._settings.count, most)
        if limit is not None:
            count = min(count, limit - len(ids) + 1)
        if count < 1:
            return []
        unread = ids[self._stream.lengths[0] :]
        if self._most_read is not None and len(unread) > self._most_read:
            self._prefill(unread[: self._most_read])
            return []
        logits = self._prefill(unread)
        stream = self._stream if self._can_rewind or count == 1 else self._stream.fork()
        guesses: list[Guess] = []
        for place in range(count):
            drafted = probabilities(
                logits, sampling, prompt=sequence.prompt, continuation=ids[len(sequence.prompt) :]
            )
            token = int(drafted.argmax())
            if not sampling.is_greedy:
                token = draw(drafted, self._generator.random())
            guesses.append((token, None if sampling.is_greedy else drafted))
            ids.append(token)
            if place < count - 1:
                logits = feed(stream, np.array([[token]], np.int64))[0, -1]
                self.calls += 1
        if self._can_rewind:
            self._stream.rewind(len(sequence.prompt) + len(sequence.ids))
        return guesses

    def _prefill(self, new: Sequence[int]) -> Array:
        self.calls += 1
        return np.asarray(prefill(self._stream, [new])[0])


def check_draft(
    model: LanguageModel, draft: Draft | DraftHeads | LanguageModel
) -> Draft | DraftHeads:
    """The settings that `draft` stands for.

    Raises:
        ValueError: A draft model has other ids, or the model no such heads.
    """
    if isinstance(draft, PromptLookup):
        return draft
    if isinstance(draft, DraftHeads):
        check_heads(model.contract, draft)
        return draft
    if not isinstance(draft, DraftModel):
        if not hasattr(draft, "contract"):
            raise TypeError(
                "draft must be a PromptLookup, a DraftModel or a model, or DraftHeads, got "
                f"{draft!r}"
            )
        draft = DraftModel(model=draft)
    sizes = vocab_size(draft.model), vocab_size(model)
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the draft model has {sizes[0]} ids, this one {sizes[1]}; they must be the same ids"
        )
    return draft
