"""Continue prompts, text or token ids, with a cached language model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np

from causal_onnx.runtime.generation.continuation import Continuation, GrowingSequence, Plan
from causal_onnx.runtime.generation.language_model import conditioned
from causal_onnx.runtime.generation.plan import make_plan, prompt_ids
from causal_onnx.runtime.generation.prompt import feed, start
from causal_onnx.runtime.generation.sampling import Choice, Sampling
from causal_onnx.runtime.generation.source import Source
from causal_onnx.runtime.generation.speculate import Draft, DraftHeads, Speculator, check_draft
from causal_onnx.runtime.request.whole_numbers import MOST_ROWS, whole_number

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.codebooks import Codebooks
    from causal_onnx.runtime.generation.constraint import Constraint
    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.generation.prefix_cache import PrefixCache
    from causal_onnx.runtime.generation.prompt import PromptReader

    Array = npt.NDArray[Any]

__all__ = [
    "Growing",
    "generate",
    "generate_batch",
    "generator_of",
    "grow",
    "grow_alone",
    "grow_together",
    "tokens",
]

Chosen = TypeVar("Chosen")
Grown = TypeVar("Grown", bound="Growing")
Choose: TypeAlias = Callable[[Sequence[Grown], "Array", Sequence[bool]], list[Chosen]]


def tokens(
    model: LanguageModel,
    prompt: Sequence[int] | str | None = None,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Collection[int | str] | str = (),
    seed: int | None = None,
    constraint: Constraint | None = None,
    prefix_cache: PrefixCache | None = None,
    draft: Draft | DraftHeads | LanguageModel | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> Iterator[Choice]:
    """Continue a prompt, yielding each token as soon as it is chosen.

    Args:
        model: A language model with a cache: token ids (batch, seq) in, logits (batch, seq, vocab)
            out.
        prompt: At least one id; or text, where the model has a tokenizer. None: the id with which
            the model's decoder begins (`start_ids`), which also stands before a text.
        max_new_tokens: The most to yield; fewer where something of `stop` comes or the model takes
            no longer sequence. None: 1024.
        sampling: How tokens are chosen; None: the likeliest (`greedy`).
        stop: Ids that end the continuation, which are yielded too, and texts, which are not part of
            `Choice.text` and may begin and end within tokens. The ids that end a text by the
            tokenizer's files (`Tokenizer.end_ids`) always do; a `Sampling` whose `logit_bias` of
            one is -inf forbids it.
        seed: Of the random numbers; the same seed gives the same tokens. None: other ones each
            time.
        constraint: What the continuation must be.
        prefix_cache: Keeps what was read of this prompt for others that begin alike.
        draft: Guess tokens ahead, by `PromptLookup()`, a smaller model with the same ids, or the
            heads of the model itself (`DraftHeads()`), and have several judged in one call. Greedy
            continuations are the same with and without, up to the rounding of logits; random ones
            have the same distribution.
        inputs: What the model takes beside the ids, by name; of one row. Without an axis of
            positions it stays for the whole continuation: a source text, a memory, a label. For the
            ids of a source also a text; a mask of a source, which says what of it counts, may be
            left out. Along the positions, such as embeddings of an image, it is for the first ones
            of the prompt, at which ids stand too, and zero (False) behind them.
        adapter: The name of the adapter that changes the model, of those that it was loaded with.

    Raises:
        ValueError: The model is no language model with a cache, or an argument does not fit.
        ImportError: Text or a constraint needs the extra `text`.
    """
    model = conditioned(model, inputs, adapter)
    plan = make_plan(
        model,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        constraint=constraint,
        reader=prefix_cache,
        needs_text=isinstance(prompt, str),
    )
    (ids,) = prompt_ids(model, [prompt])
    if draft is None:
        return grow(model, ids, plan, seed=seed)[1]
    sequence = GrowingSequence(ids, plan, generator_of(seed, 0))
    return Speculator(model, sequence, plan, check_draft(model, draft)).tokens()


def generate(
    model: LanguageModel,
    prompt: Sequence[int] | str | None = None,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Collection[int | str] | str = (),
    seed: int | None = None,
    constraint: Constraint | None = None,
    prefix_cache: PrefixCache | None = None,
    draft: Draft | DraftHeads | LanguageModel | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> Continuation:
    """Continue a prompt to its end.

    Args:
        model: As for `tokens`.
        prompt: As for `tokens`.
        max_new_tokens: As for `tokens`.
        sampling: As for `tokens`.
        stop: As for `tokens`.
        seed: As for `tokens`.
        constraint: As for `tokens`.
        prefix_cache: As for `tokens`.
        draft: As for `tokens`; `Continuation.speculation` says what it saved.
        inputs: As for `tokens`.
        adapter: As for `tokens`.

    Raises:
        ValueError: As for `tokens`.
        ImportError: As for `tokens`.
    """
    model = conditioned(model, inputs, adapter)
    plan = make_plan(
        model,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        constraint=constraint,
        reader=prefix_cache,
        needs_text=isinstance(prompt, str),
    )
    (ids,) = prompt_ids(model, [prompt])
    if draft is None:
        return _batch(model, [ids], plan, n=1, seed=seed)[0]
    sequence = GrowingSequence(ids, plan, generator_of(seed, 0))
    speculator = Speculator(model, sequence, plan, check_draft(model, draft))
    for _ in speculator.tokens():
        pass
    return sequence.continuation(speculator.speculation)


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | str | None],
    *,
    max_new_tokens: int | None = None,
    n: int = 1,
    sampling: Sampling | None = None,
    stop: Collection[int | str] | str = (),
    seed: int | None = None,
    constraint: Constraint | None = None,
    prefix_cache: PrefixCache | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | Sequence[str | None] | None = None,
) -> list[Continuation]:
    """Continue several prompts together; sequences that have ended leave the batch.

    What a sequence becomes does not depend on the others, except that the last digits of its logits
    may differ. The random numbers of result i are those of `numpy.random.default_rng([seed, i])`,
    so that equal prompts get different continuations.

    Args:
        model: As for `tokens`.
        prompts: At least one, of any lengths, each as for `tokens`.
        max_new_tokens: As for `tokens`, for each sequence.
        n: Continuations of each prompt, which is read once.
        sampling: As for `tokens`.
        stop: As for `tokens`.
        seed: As for `tokens`.
        constraint: As for `tokens`, for each sequence.
        prefix_cache: As for `tokens`.
        inputs: As for `tokens`; of one row that all prompts share, or of one for each: an array,
            for the ids of a source a list of texts or of ids, of any lengths, or along the
            positions a list of arrays without the axis of rows, for any numbers of positions, in
            which None stands for none.
        adapter: As for `tokens`; one that all prompts have, or for each prompt one or None.

    Returns:
        len(prompts) * n, those of one prompt next to each other.

    Raises:
        ValueError: As for `tokens`.
        ImportError: As for `tokens`.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of prompts, got the text {prompts!r}")
    n = whole_number("n", n, most=MOST_ROWS, wanted="a positive integer")
    model = conditioned(model, inputs, adapter)
    plan = make_plan(
        model,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        constraint=constraint,
        reader=prefix_cache,
        needs_text=any(isinstance(prompt, str) for prompt in prompts),
    )
    ids = prompt_ids(model, prompts)
    return _batch(model, ids, plan, n=n, seed=seed)


def grow(
    model: LanguageModel, prompt: Sequence[int], plan: Plan, *, seed: int | None
) -> tuple[GrowingSequence, Iterator[Choice]]:
    """A sequence, and the steps by which it grows: `tokens` for those who look at it meanwhile."""
    sequence = GrowingSequence(prompt, plan, generator_of(seed, 0))
    return sequence, grow_alone(model, prompt, sequence, _choose, reader=plan.reader)


class Growing(Protocol):
    """What is continued position by position until it has a `finish`."""

    finish: str | None

    @property
    def last(self) -> int | Sequence[int]:
        """What was chosen last, and the model reads next: one id, or one of each codebook."""
        ...


def grow_together(
    model: LanguageModel,
    prompts: Sequence[Sequence[Any]],
    sequences: Sequence[Grown],
    choose: Choose[Grown, Chosen],
    *,
    reader: PromptReader | None = None,
    codebooks: Codebooks | None = None,
) -> None:
    """Continue sequences to their ends; those that have ended leave the batch.

    Args:
        model: A language model with a cache.
        prompts: What the sequences continue, each of them as many, next to each other.
        sequences: A multiple of the prompts.
        choose: Chooses what comes next in each sequence, from the sequences, the logits after
            them, and for each whether the model takes no more.
        reader: What may have read the prompts before.
        codebooks: Of a model with several; None: it has one.
    """
    stream, logits = start(model, prompts, reader, codebooks)
    if len(sequences) > len(prompts):
        copies = np.repeat(np.arange(len(prompts)), len(sequences) // len(prompts))
        stream, logits = stream.select(copies.tolist()), logits[copies]
    running = sequences
    limit = model.contract.max_seq_len
    while True:
        choose(running, logits, [length == limit for length in stream.lengths])
        going = [place for place, sequence in enumerate(running) if sequence.finish is None]
        if not going:
            return
        if len(going) < len(running):
            stream, running = stream.select(going), [running[place] for place in going]
        ids = np.array([[sequence.last] for sequence in running], np.int64)
        logits = feed(stream, ids, codebooks=codebooks)[:, -1]


def grow_alone(
    model: LanguageModel,
    prompt: Sequence[Any],
    sequence: Grown,
    choose: Choose[Grown, Chosen],
    *,
    reader: PromptReader | None = None,
    codebooks: Codebooks | None = None,
) -> Iterator[Chosen]:
    """Continue one sequence, yielding what is chosen at each position; see `grow_together`."""
    stream, logits = start(model, [prompt], reader, codebooks)
    limit = model.contract.max_seq_len
    while True:
        yield from choose([sequence], logits, [stream.lengths[0] == limit])
        if sequence.finish is not None:
            return
        logits = feed(stream, np.array([[sequence.last]], np.int64), codebooks=codebooks)[:, -1]


def generator_of(seed: int | None, index: int) -> np.random.Generator:
    """The random numbers of sequence `index` of a call."""
    if seed is None:
        return np.random.default_rng()
    wanted = "an integer of at least 0, or None"
    return np.random.default_rng([whole_number("seed", seed, least=0, wanted=wanted), index])


def _batch(
    model: LanguageModel, prompts: Sequence[Sequence[int]], plan: Plan, *, n: int, seed: int | None
) -> list[Continuation]:
    sequences = [
        GrowingSequence(prompts[index // n], plan, generator_of(seed, index))
        for index in range(len(prompts) * n)
    ]
    grow_together(model, prompts, sequences, _choose, reader=plan.reader)
    return [sequence.continuation() for sequence in sequences]


def _choose(
    sequences: Sequence[GrowingSequence], logits: Array, is_last: Sequence[bool]
) -> list[Choice]:
    return [
        sequence.choose(scores, is_last=last)
        for sequence, scores, last in zip(sequences, logits, is_last, strict=True)
    ]
