"""Continue codes of several codebooks, such as those of a sound: a frame holds one id of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.generation.codebooks import Codebooks, find_codebooks
from causal_onnx.runtime.generation.depth import (
    DepthCodebooks,
    DepthDecoder,
    check_depth,
    find_depth_codebooks,
)
from causal_onnx.runtime.generation.generate import generator_of, grow_alone, grow_together
from causal_onnx.runtime.generation.language_model import conditioned
from causal_onnx.runtime.generation.plan import MOST_NEW_TOKENS
from causal_onnx.runtime.generation.sampling import Sampling, choose
from causal_onnx.runtime.generation.source import Source
from causal_onnx.runtime.request.whole_numbers import (
    MOST_ROWS,
    is_whole,
    shown,
    whole_number,
    whole_numbers,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.language_model import LanguageModel

    Array = npt.NDArray[Any]

__all__ = ["Codes", "Frame", "frames", "generate_codes", "generate_codes_batch"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One id of each codebook, which belong to the same time."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each id under the model itself; see `Choice.logprob`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """What a model wrote after a prompt of codes; the delays are taken out."""

    ids: tuple[tuple[int, ...], ...]
    """(codebooks, frames)."""
    logprobs: tuple[tuple[float, ...], ...]
    """(codebooks, frames)."""
    finish: str
    """Why it ended: "stop" (the last frame holds an id of `stop`), "length" (`max_new_frames`) or
    "limit" (the longest sequence that the model takes)."""


def frames(
    model: LanguageModel,
    prompt: npt.ArrayLike | None = None,
    *,
    max_new_frames: int | None = None,
    delays: Sequence[int] | None = None,
    fill: int | Sequence[int] | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Collection[int] | Sequence[Collection[int]] = (),
    seed: int | None = None,
    depth: DepthDecoder | LanguageModel | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> Iterator[Frame]:
    """Continue codes, yielding each frame as soon as all of its codebooks are chosen.

    With delays, a model reads the codebooks of a frame at different positions: codebook k of frame
    t at position t + delays[k]. So it chooses later codebooks knowing the earlier ones of the same
    frame. Source: Copet et al. 2023, https://arxiv.org/abs/2306.05284, section 2.2. Positions
    before a codebook's first frame and after its last one hold `fill`.

    Args:
        model: A model with several codebooks and a cache: ids (batch, codebooks, seq) or
            (batch, seq, codebooks) in, logits with the same axes and the vocabulary, last, out; or
            an input (batch, seq) and an output (batch, seq, vocab) for each codebook.
        prompt: Ids (codebooks, frames), as codecs of sounds give them, at least one frame, without
            delays. A model that begins with a frame of special ids (MusicGen does) takes that as
            the first. None: one frame of `fill`.
        max_new_frames: The most to yield; fewer where something of `stop` comes or the model takes
            no longer sequence. None: 1024.
        delays: For each codebook, by how many positions it comes later. None: by none. MusicGen
            with four codebooks has (0, 1, 2, 3), and with two channels (0, 0, 1, 1, 2, 2, 3, 3).
        fill: The id that stands where a codebook has none, or one for each codebook. None:
            `Contract.pad_token_id`.
        sampling: How ids are chosen, in all codebooks or one for each; penalties count the ids of
            the same codebook. None: the likeliest.
        stop: Ids that end the continuation with the frame that holds one, in whatever codebook; or
            for each codebook a list of its own. The contract's `eos_token_ids` always do.
        seed: Of the random numbers; the same seed gives the same ids. Each position takes one
            number for each codebook that is chosen there, in their order. None: other ones each
            time.
        depth: A second, small decoder that chooses the codebooks of each position one after the
            other, from the model's hidden state there: a loaded model, or a `DepthDecoder` with
            its settings. None: the model scores all codebooks itself.
        inputs: As for `Model.tokens`; the depth decoder has none of them.
        adapter: As for `Model.tokens`.

    Raises:
        ValueError: The model has no such inputs and outputs or no cache, or an argument does not
            fit.
        TypeError: The prompt is a text, or `sampling` no `Sampling`.
    """
    model = conditioned(model, inputs, adapter)
    plan = _plan(
        model,
        max_new_frames,
        delays=delays,
        fill=fill,
        sampling=sampling,
        stop=stop,
        depth=depth,
    )
    sequence = _Growing(_prompt(plan, prompt), plan, generator_of(seed, 0))
    choosing = partial(_choose, plan.codebooks)
    return _flattened(
        grow_alone(model, sequence.delayed_prompt, sequence, choosing, codebooks=plan.codebooks)
    )


def generate_codes(
    model: LanguageModel,
    prompt: npt.ArrayLike | None = None,
    *,
    max_new_frames: int | None = None,
    delays: Sequence[int] | None = None,
    fill: int | Sequence[int] | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Collection[int] | Sequence[Collection[int]] = (),
    seed: int | None = None,
    depth: DepthDecoder | LanguageModel | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> Codes:
    """Continue codes to their end.

    Args:
        model: As for `frames`.
        prompt: As for `frames`.
        max_new_frames: As for `frames`.
        delays: As for `frames`.
        fill: As for `frames`.
        sampling: As for `frames`.
        stop: As for `frames`.
        seed: As for `frames`.
        depth: As for `frames`.
        inputs: As for `frames`.
        adapter: As for `frames`.

    Raises:
        ValueError: As for `frames`.
        TypeError: As for `frames`.
    """
    return generate_codes_batch(
        model,
        [prompt],
        max_new_frames=max_new_frames,
        delays=delays,
        fill=fill,
        sampling=sampling,
        stop=stop,
        seed=seed,
        depth=depth,
        inputs=inputs,
        adapter=adapter,
    )[0]


def generate_codes_batch(
    model: LanguageModel,
    prompts: Sequence[npt.ArrayLike | None],
    *,
    max_new_frames: int | None = None,
    n: int = 1,
    delays: Sequence[int] | None = None,
    fill: int | Sequence[int] | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Collection[int] | Sequence[Collection[int]] = (),
    seed: int | None = None,
    depth: DepthDecoder | LanguageModel | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | Sequence[str | None] | None = None,
) -> list[Codes]:
    """Continue the codes of several prompts together; those that have ended leave the batch.

    The random numbers of result i are those of `numpy.random.default_rng([seed, i])`.

    Args:
        model: As for `frames`.
        prompts: At least one, with any numbers of frames, each as for `frames`.
        max_new_frames: As for `frames`, for each prompt.
        n: Continuations of each prompt, which is read once.
        delays: As for `frames`.
        fill: As for `frames`.
        sampling: As for `frames`.
        stop: As for `frames`.
        seed: As for `frames`.
        depth: As for `frames`.
        inputs: As for `Model.generate_batch`.
        adapter: As for `Model.generate_batch`.

    Returns:
        len(prompts) * n, those of one prompt next to each other.

    Raises:
        ValueError: As for `frames`; or the prompts have different numbers of frames, and the rows
            of the model's cache may not.
        TypeError: As for `frames`.
    """
    n = whole_number("n", n, most=MOST_ROWS, wanted="a positive integer")
    model = conditioned(model, inputs, adapter)
    plan = _plan(
        model,
        max_new_frames,
        delays=delays,
        fill=fill,
        sampling=sampling,
        stop=stop,
        depth=depth,
    )
    if not len(prompts):
        raise ValueError("prompts must hold at least one")
    found = [_prompt(plan, prompt) for prompt in prompts]
    counts = [len(prompt) for prompt in found]
    if model.contract.mask is None and len(set(counts)) > 1:
        raise ValueError(
            "the rows of this model's cache must have the same length, and the prompts have "
            f"{', '.join(map(str, counts))} frames; generate one by one"
        )
    sequences = [
        _Growing(found[index // n], plan, generator_of(seed, index))
        for index in range(len(found) * n)
    ]
    delayed = [sequence.delayed_prompt for sequence in sequences[::n]]
    choosing = partial(_choose, plan.codebooks)
    grow_together(model, delayed, sequences, choosing, codebooks=plan.codebooks)
    return [sequence.codes() for sequence in sequences]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What the continuations of one call have in common; of lists, one item for each codebook."""

    codebooks: Codebooks
    max_new_frames: int
    max_seq_len: int | None
    delays: tuple[int, ...]
    fill: tuple[int, ...] | None
    sampling: tuple[Sampling, ...]
    stop: tuple[frozenset[int], ...]


class _Growing:
    """One sequence of frames that is being continued, position by position."""

    def __init__(self, prompt: Array, plan: _Plan, generator: np.random.Generator) -> None:
        """`prompt`: (frames, codebooks)."""
        self.finish: str | None = None
        self._plan, self._prompt, self._generator = plan, prompt, generator
        self._ids: list[list[int]] = [[] for _ in plan.delays]
        self._logprobs: list[list[float]] = [[] for _ in plan.delays]
        self._position = len(prompt)
        self._last: list[int] = []
        self._next: list[int] = []
        """The ids of the next position, of the codebooks that have one already."""
        self._count, self._why = plan.max_new_frames, "length"
        """Frames that the continuation has at the end, and why no more."""
        if plan.max_seq_len is not None:
            # The last position is chosen and not read.
            room = plan.max_seq_len + 1 - len(prompt) - max(plan.delays)
            if room < 1:
                raise ValueError(
                    f"a prompt of {len(prompt)} frames and delays of up to {max(plan.delays)} "
                    f"leave no room in the {plan.max_seq_len} positions that the model takes; "
                    "shorten the prompt"
                )
            if room < self._count:
                self._count, self._why = room, "limit"
        self._complete = 0

    @property
    def delayed_prompt(self) -> list[list[int]]:
        """What the model reads first, (seq, codebooks): as many positions as the prompt's frames.

        What the delays shift beyond comes at the positions after, beside what is chosen.
        """
        return [
            [self._given(position, book) for book in range(len(self._ids))]
            for position in range(len(self._prompt))
        ]

    @property
    def last(self) -> Sequence[int]:
        """The ids of the position before the next, one of each codebook."""
        return self._last

    def choose(self, logits: Array) -> int:
        """Choose the next codebook's id at the next position from logits (vocab,).

        The id is that of the prompt, or the one that fills, where nothing is to be chosen.
        """
        plan, book = self._plan, len(self._next)
        frame = self._position - plan.delays[book] - len(self._prompt)
        if not 0 <= frame < self._count:
            self._next.append(self._given(self._position, book))
            return self._next[-1]
        choice = choose(
            logits,
            plan.sampling[book],
            prompt=self._prompt[:, book].tolist(),
            continuation=self._ids[book],
            is_final=frame == self._count - 1,
            uniform=self._generator.random(),
        )
        self._next.append(choice.id)
        self._ids[book].append(choice.id)
        self._logprobs[book].append(choice.logprob)
        if choice.id in plan.stop[book]:
            self._count, self._why = frame + 1, "stop"
        return choice.id

    def advance(self) -> list[Frame]:
        """Go to the position after, once all codebooks have an id; the frames that are complete."""
        self._last, self._next = self._next, []
        self._position += 1
        before = self._complete
        done = self._position - max(self._plan.delays) - len(self._prompt)
        self._complete = min(max(done, 0), self._count)
        if self._complete == self._count:
            self.finish = self._why
        return [self._frame(index) for index in range(before, self._complete)]

    def codes(self) -> Codes:
        """The result, once `finish` is set."""
        assert self.finish is not None
        return Codes(
            ids=tuple(tuple(ids[: self._count]) for ids in self._ids),
            logprobs=tuple(tuple(values[: self._count]) for values in self._logprobs),
            finish=self.finish,
        )

    def _frame(self, index: int) -> Frame:
        return Frame(
            tuple(ids[index] for ids in self._ids),
            tuple(values[index] for values in self._logprobs),
        )

    def _given(self, position: int, book: int) -> int:
        """What stands at a position for which nothing is chosen."""
        frame = position - self._plan.delays[book]
        if 0 <= frame < len(self._prompt):
            return int(self._prompt[frame, book])
        assert self._plan.fill is not None, "only delays lead here, and those need an id to fill"
        return self._plan.fill[book]


def _choose(
    codebooks: Codebooks, sequences: Sequence[_Growing], logits: Array, _: Sequence[bool]
) -> list[list[Frame]]:
    """Choose the next position of each sequence; what room there is they know by themselves."""
    ids = np.zeros((len(sequences), codebooks.count), np.int64)
    for book, scores in enumerate(codebooks.scores(logits, ids)):
        ids[:, book] = [
            sequence.choose(own) for sequence, own in zip(sequences, scores, strict=True)
        ]
    return [sequence.advance() for sequence in sequences]


def _flattened(steps: Iterator[list[Frame]]) -> Iterator[Frame]:
    for complete in steps:
        yield from complete


def _plan(
    model: LanguageModel,
    max_new_frames: int | None,
    *,
    delays: Sequence[int] | None,
    fill: int | Sequence[int] | None,
    sampling: Sampling | Sequence[Sampling] | None,
    stop: Collection[int] | Sequence[Collection[int]],
    depth: DepthDecoder | LanguageModel | None,
) -> _Plan:
    """Check all but the prompts."""
    contract = model.contract
    codebooks: Codebooks
    if depth is None:
        codebooks = find_codebooks(contract)
    else:
        codebooks = find_depth_codebooks(contract, check_depth(depth))
    count = codebooks.count
    if max_new_frames is None:
        max_new_frames = MOST_NEW_TOKENS
    lags = [0] * count if delays is None else _one_each("delays", delays, count)
    if fill is None:
        fill = contract.pad_token_id
    fills: list[int] | None = None
    if fill is not None:
        fills = _one_each("fill", [fill] * count if is_whole(fill) else fill, count)
    if any(lags) and fills is None:
        raise ValueError(
            f"delays={tuple(lags)} leave places without an id, and the contract names no "
            "pad_token_id; say which id stands there: fill=..."
        )
    if isinstance(codebooks, DepthCodebooks) and any(lags):
        codebooks.check_fill(fills or ())
    one = Sampling() if sampling is None else sampling
    each = list(one) if isinstance(one, Sequence) else [one] * count
    if len(each) != count or not all(isinstance(item, Sampling) for item in each):
        raise TypeError(
            f"sampling must be a Sampling, one for each of {count} codebooks, or None, got "
            f"{shown(sampling)}"
        )
    return _Plan(
        codebooks=codebooks,
        max_new_frames=whole_number("max_new_frames", max_new_frames, wanted="at least 1"),
        max_seq_len=contract.max_seq_len,
        delays=tuple(lags),
        fill=None if fills is None else tuple(fills),
        sampling=tuple(each),
        stop=_stop(stop, count, frozenset(contract.eos_token_ids)),
    )


def _one_each(name: str, values: object, count: int) -> list[int]:
    """Whole numbers of at least 0, one for each codebook."""
    given = list(values) if isinstance(values, range) else values
    if not isinstance(given, list | tuple | np.ndarray) or len(given) != count:
        raise ValueError(
            f"{name} must hold a number for each of {count} codebooks, got {shown(values)}"
        )
    return [
        whole_number(f"{name}[{index}]", value, least=0, most=MOST_ROWS)
        for index, value in enumerate(given)
    ]


def _stop(
    stop: Collection[int] | Sequence[Collection[int]], count: int, ends: frozenset[int]
) -> tuple[frozenset[int], ...]:
    """The ids that end a continuation, for each codebook."""
    items: list[Any] = list(stop)
    if not isinstance(stop, str) and all(is_whole(item) for item in items):
        return (frozenset(map(int, items)) | ends,) * count
    if any(is_whole(item) or isinstance(item, str) for item in items) or len(items) != count:
        raise ValueError(
            f"stop must hold ids, or a list of ids for each of {count} codebooks, got {shown(stop)}"
        )
    for book, own in enumerate(items):
        for item in own:
            if not is_whole(item):
                raise ValueError(f"stop[{book}] must hold ids, got {shown(item)}")
    return tuple(frozenset(map(int, own)) | ends for own in items)


def _prompt(plan: _Plan, prompt: npt.ArrayLike | None) -> Array:
    """The prompt as (frames, codebooks)."""
    count = plan.codebooks.count
    if prompt is None:
        if plan.fill is None:
            raise ValueError(
                f"a prompt of {count} codebooks is needed, (codebooks, frames), or fill=..., the "
                "id with which each begins"
            )
        return np.array([plan.fill], np.int64)
    if isinstance(prompt, str):
        raise TypeError(f"the prompt of a model with codebooks is ids, not a text: {prompt!r}")
    rows: Any = np.asarray(prompt) if hasattr(prompt, "__array__") else prompt
    if not isinstance(rows, list | tuple | np.ndarray) or len(rows) != count:
        raise ValueError(
            f"a prompt must be ids (codebooks, frames) of {count} codebooks, got {shown(prompt)}"
        )
    books = [
        whole_numbers(f"codebook {index} of the prompt", row) for index, row in enumerate(rows)
    ]
    if len({len(book) for book in books}) > 1:
        raise ValueError(
            "the codebooks of a prompt must have equally many frames, got "
            f"{', '.join(str(len(book)) for book in books)}"
        )
    return np.stack(books, axis=1)
