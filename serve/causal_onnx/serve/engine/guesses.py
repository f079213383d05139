"""What may follow in a sequence: guessed ahead, as many tokens at a time as pay."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from causal_onnx.runtime import DraftModel, Sampling
from causal_onnx.runtime.generation.prompt import can_rewind, feed, prefill
from causal_onnx.runtime.generation.speculate import (
    Draft,
    DraftGuesser,
    Guess,
    Guesser,
    LookupGuesser,
)

if TYPE_CHECKING:
    from causal_onnx.runtime import Model
    from causal_onnx.runtime.generation.continuation import GrowingSequence
    from causal_onnx.serve.engine.rows import Rows

__all__ = ["ExpectedText", "Pieces", "RowGuesses", "probe_pieces"]

PROBED = 67, 150, 600, 1100
"""Positions behind which pieces are compared with single steps: products over positions change
their blocks at 128 to 1,024."""
READ = 64
"""Positions of these that are read at once."""
TIMED = 5
"""Times that a call is made to learn what it costs, of which the shortest counts."""
LEAST_GAIN = 1.05
"""Tokens in the time of one, below which nothing is guessed: proposing takes time, too."""
KEPT = 0.85
"""What the record of earlier guesses still counts after one more."""
FIRST_PAUSE, LONGEST_PAUSE = 16, 64
"""Steps until one token is guessed again where guessing did not pay; doubled each time that it is
wrong."""
MATCHED = 3, 2
"""So many last tokens are looked for in an expected text from which a sequence has departed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """What calls over several positions of one sequence cost, in steps of one position."""

    costs: tuple[float, ...]
    """Of a call over 1, 2, 3, ... positions; the first is 1."""
    guess: float = 0.0
    """Of guessing one token; 0 where no model does."""

    def best(self, rate: float, *, guess: float = 0.0) -> int:
        """How many tokens to guess, where each comes true with probability `rate`, if those before
        it did, and costs `guess`; 0: guessing does not pay."""
        best, gain, tokens, chance = 0, LEAST_GAIN, 1.0, 1.0
        for count, cost in enumerate(self.costs[1:], start=1):
            chance *= rate
            tokens += chance
            if tokens > gain * (cost + count * guess):
                best, gain = count, tokens / (cost + count * guess)
        return best


def probe_pieces(
    model: Model, rows: Rows, *, draft: Draft, vocab: int, capacity: int
) -> Pieces | str:
    """What calls over several positions cost; or why nothing may be guessed with this model.

    Guesses are judged by such a call, so it must give the bits of single steps. It is seen by
    making both, behind several lengths.

    Args:
        model: Whose cache the rows are of.
        rows: Without sequences, before and afterwards.
        draft: How many tokens are guessed, and by what.
        vocab: Ids lie in [0, vocab).
        capacity: Positions of a sequence.
    """
    if not can_rewind(model):
        return "its cache keeps a window, which cannot take back what was guessed wrongly"
    most = min(draft.count, capacity - 3)
    if most < 1:
        return f"its sequences have at most {capacity} positions"
    lengths = sorted({min(length, capacity - most - 2) for length in PROBED})
    ids = np.random.default_rng(0).integers(0, vocab, lengths[-1] + most + 2).tolist()
    costs: list[float] = []
    # With an adapter other kernels may run; the one of the highest rank stands for all.
    for adapter in (*model.runner.adapters.by_rank[-1:], None):
        rows.begin(adapter).run([ids[:1]])
        rows.join(1)
        try:
            read = 1
            for length in lengths:
                for start in range(read, length, READ):
                    rows.read(0, ids[start : min(start + READ, length)])
                read = length
                if not _are_equal(rows, ids[length : length + most + 2]):
                    return "a call over several positions gives other bits than single steps"
                if length <= PROBED[1]:  # as long as sequences often are
                    costs = piece_costs(rows, ids[length : length + most + 1])
        finally:
            rows.leave(0)
    guess = 0.0
    if isinstance(draft, DraftModel):
        guess = _step_s(draft) / costs[0]
    return Pieces(costs=tuple(cost / costs[0] for cost in costs), guess=guess)


def _are_equal(rows: Rows, ids: Sequence[int]) -> bool:
    """Whether ids have the same logits in pieces of every size, and the step behind each piece."""
    alone = [rows.step([token])[0].tobytes() for token in ids]
    rows.take_back(0, len(ids))
    for size in range(2, len(ids)):
        piece = [*rows.read(0, ids[:size]), rows.step([ids[size]])[0]]
        rows.take_back(0, size + 1)
        if [logits.tobytes() for logits in piece] != alone[: size + 1]:
            return False
    return True


def piece_costs(rows: Rows, ids: Sequence[int]) -> list[float]:
    """Seconds of a step, and of calls over the first 2, 3, ... ids that are then taken back."""
    found: list[float] = []
    for size in range(1, len(ids) + 1):
        times = []
        for _ in range(TIMED):
            begun = time.perf_counter()
            if size == 1:
                rows.step(ids[:1])
            else:
                rows.read(0, ids[:size])
            times.append(time.perf_counter() - begun)
            rows.take_back(0, size)
        # More positions never take less time, whatever was measured.
        found.append(max([min(times), *found[-1:]]))
    return found


def _step_s(draft: DraftModel) -> float:
    """Seconds in which a draft model guesses a token."""
    limit = draft.model.contract.max_seq_len
    if limit is not None and limit < 2 * TIMED:
        return float("inf")
    stream = draft.model.stream()
    prefill(stream, [[0] * TIMED])
    times = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        feed(stream, np.zeros((1, 1), np.int64))
        times.append(time.perf_counter() - begun)
    return min(times)


class ExpectedText:
    """Guesses that a continuation goes on like a text that its client expects."""

    calls = 0

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = tuple(ids)
        self._place, self._follows, self._known = 0, True, 0
        self._after: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """n-gram -> where it is followed by something."""
        for size in MATCHED:
            for place in range(size, len(self._ids)):
                self._after[self._ids[place - size : place]].append(place)

    def guess(self, sequence: GrowingSequence, most: int) -> list[Guess]:
        """What follows in the text."""
        for token in sequence.ids[self._known :]:
            self._follows = self._follows and self._ids[self._place : self._place + 1] == (token,)
            self._place += self._follows
        self._known = len(sequence.ids)
        if not self._follows:
            self._find(sequence.ids)
        if not self._follows:
            return []
        return [(token, None) for token in self._ids[self._place : self._place + most]]

    def _find(self, ids: Sequence[int]) -> None:
        """Go on where the last tokens stand: behind where it departed, if they do there."""
        for size in MATCHED:
            places = self._after.get(tuple(ids[-size:]), ())
            if places:
                later = bisect_left(places, self._place)
                self._place = places[later] if later < len(places) else places[0]
                self._follows = True
                return


class _Source:
    """A guesser of one sequence, and how often it was right."""

    def __init__(
        self, guesser: Guesser, pieces: Pieces, *, credit: float = 0.5, cost: float = 0.0
    ) -> None:
        self.guesser = guesser
        self._pieces, self._cost = pieces, cost
        self._right, self._judged = 2 * credit, 2.0
        self._count = self._best()
        self._pause, self._wait = FIRST_PAUSE, 0

    def _best(self) -> int:
        return self._pieces.best(self._right / self._judged, guess=self._cost)

    def propose(self, sequence: GrowingSequence, most: int) -> list[int]:
        if self._wait:
            self._wait -= 1
            return []
        found = self.guesser.guess(sequence, min(self._count or 1, most))
        return [token for token, _ in found]

    def judge(self, right: int, proposed: int) -> None:
        judged = right + (right < proposed)
        self._right = self._right * KEPT**judged + right
        self._judged = self._judged * KEPT**judged + judged
        was_trial = not self._count
        self._count = self._best()
        if self._count or right:
            self._pause, self._wait = FIRST_PAUSE, 0
            return
        if was_trial:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._wait = self._pause


class RowGuesses:
    """What one sequence guesses: more at a time where guesses come true, fewer where not."""

    def __init__(
        self, draft: Draft, pieces: Pieces, *, expected: Sequence[int], chunk: int
    ) -> None:
        """Begin.

        Args:
            draft: By what tokens are guessed.
            pieces: What calls cost.
            expected: The ids of a text that the client expects; empty: none.
            chunk: Positions that a draft model reads at most between two steps.
        """
        self._sources = []
        if expected:
            self._sources.append(_Source(ExpectedText(expected), pieces, credit=0.67))
        if isinstance(draft, DraftModel):
            # Only the likeliest is accepted for sure: a sequence draws its tokens by itself.
            guesser = DraftGuesser(draft, Sampling(), np.random.default_rng(0), most_read=chunk)
            self._sources.append(_Source(guesser, pieces, cost=pieces.guess))
        else:
            self._sources.append(_Source(LookupGuesser(draft), pieces))
        self._asked = self._sources[-1]

    @property
    def is_expected(self) -> bool:
        """Whether the last proposal was part of the text that the client expects."""
        return isinstance(self._asked.guesser, ExpectedText)

    def propose(self, sequence: GrowingSequence, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none where guessing does not pay."""
        for source in self._sources if most > 0 else ():
            if found := source.propose(sequence, most):
                self._asked = source
                return found
        return []

    def judge(self, right: int, proposed: int) -> None:
        """Learn how many of the last proposal came true, the first ones."""
        self._asked.judge(right, proposed)
