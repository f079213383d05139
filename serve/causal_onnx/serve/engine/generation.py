"""A request to a language model as its caller sees it: tokens as they come, and how it ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from causal_onnx.runtime.generation.continuation import GrowingSequence, Plan

if TYPE_CHECKING:
    from causal_onnx.runtime import Continuation

__all__ = ["Generation", "Score", "Times", "Token"]


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a token was, and which tokens were the most likely."""

    id: int
    logprob: float | None
    """The natural logarithm of its probability; None for the first token of a prompt."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely ids with their log-probabilities, as many as `top_logprobs` asks for."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a continuation."""

    index: int
    """Which of the `n` continuations it belongs to."""
    score: Score
    text: str | None
    """The text that became certain with this token; see `causal_onnx.runtime.Choice.text`."""
    finish: str | None
    """Why the continuation ends with it, as in `Continuation.finish`; None: it continues."""


@dataclass(slots=True)
class Times:
    """When things happened to a request, by `time.monotonic()`."""

    queued: float = field(default_factory=time.monotonic)
    started: float | None = None
    tokens: list[float] = field(default_factory=list)
    """Of each token, whichever continuation it belongs to."""
    ended: float | None = None


class Generation:
    """The result of a request to an engine, as it is generated; made by `Engine.submit`.

    Iterate over it for tokens, in a thread (`for`) or an event loop (`async for`), or wait for all
    of them with `results()` or `await wait()`. `cancel()` ends it early, and so does leaving a
    `with` or `async with` block.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        plan: Plan,
        sequences: Sequence[GrowingSequence],
        *,
        seed: int,
        top_logprobs: int,
        priority: int,
        scores_prompt: bool,
        only_scores: bool,
        prediction: Sequence[int] = (),
        adapter: str | None = None,
        replay_of: Generation | None = None,
    ) -> None:
        """Take a request that was checked."""
        self.prompt = tuple(prompt)
        """The ids that are continued."""
        self.plan, self.sequences = plan, tuple(sequences)
        self.seed = seed
        """The seed; with it, the same request gives the same tokens again."""
        self.top_logprobs, self.priority = top_logprobs, priority
        self.scores_prompt, self.only_scores = scores_prompt, only_scores
        self.prediction = tuple(prediction)
        """The ids that its caller expects; empty: none."""
        self.adapter = adapter
        """The name of the adapter that changes the model; None: none does."""
        self.replay_of = replay_of
        """What this repeats, to see whether the same comes of it."""
        self.prompt_scores: list[Score] = []
        """The score of each id of the prompt, if `score_prompt` asked for them."""
        self.cached_tokens = 0
        """Positions of the prompt that were in the prefix cache."""
        self.proposed_tokens = self.accepted_tokens = 0
        """Tokens that were guessed ahead, and those of them that came true."""
        self.accepted_prediction_tokens = self.rejected_prediction_tokens = 0
        """Of tokens that were guessed from `prediction`: those that came true, and the others."""
        self.times = Times()
        self.is_one_by_one = False
        """Whether whoever writes the answer takes each token by itself, however many came."""
        self.is_cancelled = False
        self._error: Exception | None = None
        self._is_done = False
        self._tokens: deque[Token] = deque()
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_engine: Callable[[], None] = lambda: None

    # What the caller does.

    def cancel(self) -> None:
        """End the request after the step that is running now."""
        self.is_cancelled = True
        self._wake_engine()

    def __iter__(self) -> Iterator[Token]:
        while (token := self._next()) is not None:
            yield token

    async def __aiter__(self) -> AsyncIterator[Token]:
        while True:
            for token in await self.arrived():
                yield token
            if self._is_over():
                return

    async def arrived(self) -> list[Token]:
        """Wait for a token, and return all that came since the last call; none: it has ended.

        Raises:
            Exception: The error that ended the request.
        """
        while True:
            with self._changed:
                if self._tokens or self._is_done:
                    return self._taken()
                loop = asyncio.get_running_loop()
                waiter = self._waiter = loop.create_future()
            await waiter

    def results(self) -> list[Continuation]:
        """Wait for the end, and return the `n` continuations.

        Raises:
            Exception: The error that ended the request.
        """
        for _ in self:
            pass
        return self._continuations()

    async def wait(self) -> list[Continuation]:
        """Like `results`, in an event loop; cancelling the wait cancels the request."""
        try:
            async for _ in self:
                pass
        finally:
            if not self._is_over():
                self.cancel()
        return self._continuations()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    # What the engine does, from its thread.

    def called_by(self, wake: Callable[[], None]) -> None:
        """Let `cancel` wake whoever should see it."""
        self._wake_engine = wake

    def post(self, token: Token) -> None:
        """Hand over a token; whoever waits for it is woken by `wake`."""
        with self._changed:
            self.times.tokens.append(time.monotonic())
            self._tokens.append(token)

    def count_guesses(self, right: int, proposed: int, *, is_prediction: bool) -> None:
        """Count tokens that were guessed ahead, of which the first ones came true."""
        self.proposed_tokens += proposed
        self.accepted_tokens += right
        if is_prediction:
            self.accepted_prediction_tokens += right
            self.rejected_prediction_tokens += proposed - right

    def end(self, error: Exception | None = None) -> None:
        """Say that nothing follows; whoever waits for that is woken by `wake`."""
        with self._changed:
            self.times.ended = time.monotonic()
            self._error, self._is_done = error, True
            for sequence in self.sequences:
                sequence.interrupt()  # unless it has ended

    def wake(self) -> asyncio.Future[None] | None:
        """Wake the threads that wait; who waits in an event loop, and must be woken there."""
        with self._changed:
            self._changed.notify_all()
            waiter, self._waiter = self._waiter, None
            return waiter

    def became_the_same(self, other: Generation) -> bool:
        """Whether two that have ended gave the same tokens, with the same probabilities."""
        return (
            self.prompt_scores == other.prompt_scores
            and self._continuations() == other._continuations()
        )

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self._is_done

    @property
    def written_tokens(self) -> int:
        """The number of tokens generated so far, in all continuations."""
        return 0 if self.only_scores else sum(len(item.ids) for item in self.sequences)

    def _next(self) -> Token | None:
        with self._changed:
            while not (self._tokens or self._is_done):
                self._changed.wait()
            if self._tokens:
                return self._tokens.popleft()
            if self._error is not None:
                raise self._error
            return None

    def _taken(self) -> list[Token]:
        found = list(self._tokens)
        self._tokens.clear()
        if not found and self._error is not None:
            raise self._error
        return found

    def _is_over(self) -> bool:
        with self._changed:
            return self._is_done and not self._tokens and self._error is None

    def _continuations(self) -> list[Continuation]:
        return [] if self.only_scores else [item.continuation() for item in self.sequences]
