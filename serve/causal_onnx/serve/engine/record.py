"""What an engine has done so far, in numbers."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causal_onnx.serve.engine.generation import Generation

__all__ = ["EngineRecord", "Histogram"]

SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


class Histogram:
    """How many values were up to each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """Of values up to each bound and above the one before; above all of them the last."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


class EngineRecord:
    """Counts and histograms of the requests that have ended; read it under `lock`.

    `generation_tokens` and what is guessed ahead count as they come.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.prompt_tokens = self.generation_tokens = self.cached_tokens = 0
        self.drafts = self.proposed_tokens = self.accepted_tokens = 0
        """Calls that judged guesses, the tokens guessed, and those of them that came true."""
        self.replays_equal = self.replays_different = 0
        """Requests that were repeated, by whether the same came of them."""
        self.finished: Counter[str] = Counter()
        """Continuations by how they ended, as `Continuation.finish` says, or "error"."""
        self.time_to_first_token = Histogram(SECONDS)
        self.inter_token = Histogram(SECONDS)
        self.whole = Histogram(SECONDS)
        self.queued = Histogram(SECONDS)
        self.prefill = Histogram(SECONDS)
        self.decode = Histogram(SECONDS)
        self.prompt_length = Histogram(COUNTS)
        self.generation_length = Histogram(COUNTS)

    def add_token(self) -> None:
        """Count a token that was written."""
        with self.lock:
            self.generation_tokens += 1

    def add_guesses(self, right: int, proposed: int) -> None:
        """Count tokens that were guessed ahead, of which the first ones came true."""
        with self.lock:
            self.drafts += 1
            self.proposed_tokens += proposed
            self.accepted_tokens += right

    def add_replay(self, *, is_same: bool) -> None:
        """Count a request that was repeated."""
        with self.lock:
            self.replays_equal += is_same
            self.replays_different += not is_same

    def add(self, generation: Generation, *, is_error: bool) -> None:
        """Count a request that has ended."""
        times = generation.times
        ended = times.ended or times.queued
        with self.lock:
            self.whole.add(ended - times.queued)
            self.queued.add((times.started or ended) - times.queued)
            if times.started is not None:
                self.prompt_tokens += len(generation.prompt)
                self.cached_tokens += generation.cached_tokens
                self.prompt_length.add(len(generation.prompt))
            if times.started is not None and times.tokens:
                self.time_to_first_token.add(times.tokens[0] - times.queued)
                self.prefill.add(times.tokens[0] - times.started)
                self.decode.add(ended - times.tokens[0])
            # Those of several continuations come in turn, n at a step.
            n = len(generation.sequences)
            for before, after in zip(times.tokens, times.tokens[n:], strict=False):
                self.inter_token.add(after - before)
            for sequence in generation.sequences:
                count = 0 if generation.only_scores else len(sequence.ids)
                self.generation_length.add(count)
                self.finished["error" if is_error else sequence.finish or "interrupted"] += 1
