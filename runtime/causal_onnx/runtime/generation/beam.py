"""Beam search: the likeliest continuation as a whole, of those that a few at a time lead to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.generation.continuation import Continuation, Plan
from causal_onnx.runtime.generation.language_model import conditioned
from causal_onnx.runtime.generation.plan import make_plan, prompt_ids
from causal_onnx.runtime.generation.prompt import feed, start
from causal_onnx.runtime.generation.sampling import adjusted, log_softmax
from causal_onnx.runtime.generation.source import Source
from causal_onnx.runtime.request.whole_numbers import MOST_ROWS, whole_number
from causal_onnx.runtime.text.detokenise import text_after

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.generation.prefix_cache import PrefixCache

    Array = npt.NDArray[Any]

__all__ = ["beam_search"]


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation, whole or not."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: float
    """Sum of `logprobs`, with what is forced counted as certain."""

    def score(self, length_penalty: float) -> float:
        return float(self.total / len(self.ids) ** length_penalty)


def beam_search(
    model: LanguageModel,
    prompt: Sequence[int] | str | None = None,
    *,
    max_new_tokens: int | None = None,
    beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stop: Collection[int] = (),
    prefix_cache: PrefixCache | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> list[Continuation]:
    """Search for the continuations with the largest score.

    The score is the sum of the log-probabilities divided by length ** length_penalty. At each step
    the `beams` best unfinished continuations go on. The rules, which candidates count as finished
    and when the search ends among them, are those of transformers, and so are the results.
    Source: Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 7, without its coverage
    penalty, and with transformers' form of the length penalty.

    Args:
        model: As for `causal_onnx.runtime.generation.generate.tokens`.
        prompt: As for `tokens`.
        max_new_tokens: The longest continuation; None: as for `tokens`.
        beams: How many continuations go on at each step; 1 is greedy search.
        length_penalty: Above 0 favours long continuations, below 0 short ones; 0 compares sums.
        early_stopping: When a search that has `beams` finished continuations ends. True: at once.
            False: when the best unfinished one, if it ended now, could not be among them. "never":
            when it could not whatever came, judged by the longest length where `length_penalty` is
            above 0.
        stop: Ids that end a continuation, besides those that end a text by the tokenizer's files.
        prefix_cache: As for `tokens`.
        inputs: As for `tokens`.
        adapter: As for `tokens`.

    Returns:
        Up to `beams` continuations, the best first.

    Raises:
        ValueError: The model is no language model with a cache, or an argument does not fit.
        ImportError: Text needs the extra `text`.
    """
    beams = whole_number("beams", beams, most=MOST_ROWS, wanted="at least 1")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    if isinstance(stop, str) or any(isinstance(item, str) for item in stop):
        raise TypeError(f"a beam search stops at ids only, not at texts; got stop={stop!r}")
    model = conditioned(model, inputs, adapter)
    plan = make_plan(
        model,
        max_new_tokens=max_new_tokens,
        sampling=None,
        stop=stop,
        constraint=None,
        reader=prefix_cache,
        needs_text=isinstance(prompt, str),
    )
    (ids,) = prompt_ids(model, [prompt])
    limit = model.contract.max_seq_len
    most = plan.max_new_tokens
    longest = most if limit is None else min(most, limit - len(ids) + 1)
    found = _search(
        model,
        ids,
        longest=longest,
        beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        plan=plan,
    )
    results = []
    for beam in found:
        stopped = beam.ids[-1] in plan.stop_ids
        written = beam.ids[:-1] if stopped else beam.ids
        ended = "length" if longest == most else "limit"
        results.append(
            Continuation(
                ids=beam.ids,
                logprobs=beam.logprobs,
                finish="stop" if stopped else ended,
                text=None
                if plan.tokenizer is None
                else text_after(ids, written, plan.tokenizer.decode),
            )
        )
    return results


def _search(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    longest: int,
    beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    plan: Plan,
) -> list[Beam]:
    stop = plan.stop_ids
    stream, logits = start(model, [prompt], plan.reader)
    running = [Beam((), (), 0.0)]
    finished: list[Beam] = []
    # Even if all the best ones end, `beams` are left to go on.
    width = max(2, 1 + len(stop)) * beams

    def score(beam: Beam) -> float:
        return beam.score(length_penalty)

    def scores(beam: Beam, logprobs: Array) -> Array:
        is_final = len(beam.ids) + 1 == longest
        return adjusted(logprobs.copy(), plan.sampling, prompt, beam.ids, is_final=is_final)

    while True:
        candidates = _best(running, logits, width, scores)
        ends = [beam.ids[-1] in stop or len(beam.ids) == longest for _, beam in candidates]
        new = [beam for (_, beam), end in zip(candidates[:beams], ends, strict=False) if end]
        if not (early_stopping is True and len(finished) == beams):
            finished = sorted([*finished, *new], key=score, reverse=True)[:beams]
        if all(ends) or (early_stopping is True and len(finished) == beams):
            return finished
        going = [candidate for candidate, end in zip(candidates, ends, strict=True) if not end][
            :beams
        ]
        running = [beam for _, beam in going]
        best = running[0].total
        if early_stopping == "never" and length_penalty > 0:
            possible = best / longest**length_penalty
        else:
            possible = running[0].score(length_penalty)
        if len(finished) == beams and possible <= score(finished[-1]):
            return finished
        stream = stream.select([parent for parent, _ in going])
        logits = feed(stream, np.array([[beam.ids[-1]] for beam in running], np.int64))[:, -1]


def _best(
    running: Sequence[Beam],
    logits: Array,
    width: int,
    scores: Callable[[Beam, Array], Array],
) -> list[tuple[int, Beam]]:
    """The `width` best continuations by one token, best first, with the row they come from.

    `scores` are made of a beam's log-probabilities; they count, and the latter are reported. What
    they forbid is none of the continuations.
    """
    logprobs = log_softmax(logits)
    counted = np.array([scores(beam, row) for beam, row in zip(running, logprobs, strict=True)])
    totals = (np.array([beam.total for beam in running])[:, None] + counted).ravel()
    width = min(width, len(totals))
    best = np.argpartition(-totals, width - 1)[:width]
    best = best[np.lexsort((best, -totals[best]))]
    best = best[totals[best] > -np.inf]
    rows, tokens = np.divmod(best, logprobs.shape[1])
    return [
        (
            int(row),
            Beam(
                (*running[row].ids, int(token)),
                (*running[row].logprobs, float(logprobs[row, token])),
                float(total),
            ),
        )
        for row, token, total in zip(rows, tokens, totals[best], strict=True)
    ]
