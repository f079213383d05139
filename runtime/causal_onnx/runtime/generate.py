"""Continue sequences of token ids with a cached language model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.sampling import Choice, Sampling, choose

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.model import Model
    from causal_onnx.runtime.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["Continuation", "generate_batch", "tokens"]

CHUNK = 512
"""Positions of a prompt that are read at once: its logits are held for no more than these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What a model wrote after a prompt."""

    ids: tuple[int, ...]
    """The token that ended it is the last, if one did."""
    logprobs: tuple[float, ...]
    """Of each id, under the model itself; see `Choice.logprob`."""
    finish: str
    """Why it ended: "stop" (a token of `stop`), "length" (`max_new_tokens`), or "limit" (the
    longest sequence that the model takes)."""


def tokens(
    model: Model,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    seed: int | None = None,
) -> Iterator[Choice]:
    """Continue a prompt, yielding each token as soon as it is chosen.

    Args:
        model: A language model with a cache: token ids (batch, seq) in, logits (batch, seq, vocab)
            out.
        prompt: At least one id.
        max_new_tokens: The most to yield; fewer where a token of `stop` comes, which is yielded
            too, or where the model takes no longer sequence.
        sampling: How tokens are chosen; None: the likeliest.
        stop: Ids that end the continuation.
        seed: Of the random numbers, one per token; the same seed gives the same tokens. None:
            other ones each time.

    Raises:
        ValueError: The model is no language model with a cache, or an argument does not fit.
    """
    _check(model, [prompt], max_new_tokens)
    return _tokens(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        stop=stop,
        generator=_generator(seed, 0),
    )


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    seed: int | None = None,
) -> list[Continuation]:
    """Continue several prompts together; rows that have ended leave the batch.

    What a row becomes does not depend on the others, except that the last digits of its logits may
    differ. The random numbers of row i are those of `numpy.random.default_rng([seed, i])`, so that
    equal prompts get different continuations.

    Args:
        model: As for `tokens`.
        prompts: At least one, of any lengths.
        max_new_tokens: As for `tokens`, for each row.
        sampling: As for `tokens`.
        stop: As for `tokens`.
        seed: As for `tokens`.

    Raises:
        ValueError: As for `tokens`.
    """
    _check(model, prompts, max_new_tokens)
    if len(prompts) > 1 and model.contract.mask is None:
        raise ValueError(
            "the rows of this model's cache must have the same length; generate one by one"
        )
    sampling = sampling or Sampling()
    generators = [_generator(seed, row) for row in range(len(prompts))]
    chosen: list[list[Choice]] = [[] for _ in prompts]
    finish = ["length"] * len(prompts)
    stream, logits = _read(model.stream(batch=len(prompts)), prompts)
    rows = list(range(len(prompts)))
    limit = model.contract.max_seq_len
    while True:
        going = []
        for place, row in enumerate(rows):
            choice = _next(logits[place], sampling, prompts[row], chosen[row], generators[row])
            chosen[row].append(choice)
            if choice.id in stop:
                finish[row] = "stop"
            elif len(chosen[row]) == max_new_tokens:
                pass
            elif limit is not None and stream.lengths[place] == limit:
                finish[row] = "limit"
            else:
                going.append(place)
        if not going:
            break
        if len(going) < len(rows):
            stream, rows = stream.select(going), [rows[place] for place in going]
        ids = np.array([[chosen[row][-1].id] for row in rows], np.int64)
        logits = _logits(stream, ids)[:, -1]
    return [
        Continuation(
            ids=tuple(choice.id for choice in row),
            logprobs=tuple(choice.logprob for choice in row),
            finish=why,
        )
        for row, why in zip(chosen, finish, strict=True)
    ]


def _tokens(
    model: Model,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    generator: np.random.Generator,
) -> Iterator[Choice]:
    stream, logits = _read(model.stream(), [prompt])
    chosen: list[Choice] = []
    while True:
        choice = _next(logits[0], sampling, prompt, chosen, generator)
        chosen.append(choice)
        yield choice
        if choice.id in stop or len(chosen) == max_new_tokens:
            return
        if stream.lengths[0] == model.contract.max_seq_len:
            return
        logits = _logits(stream, np.array([[choice.id]], np.int64))[:, -1]


def _next(
    logits: Array,
    sampling: Sampling,
    prompt: Sequence[int],
    chosen: Sequence[Choice],
    generator: np.random.Generator,
) -> Choice:
    return choose(
        logits,
        sampling,
        prompt=prompt,
        continuation=[choice.id for choice in chosen],
        uniform=generator.random(),
    )


def _generator(seed: int | None, row: int) -> np.random.Generator:
    return np.random.default_rng() if seed is None else np.random.default_rng([seed, row])


def _read(stream: Stream, prompts: Sequence[Sequence[int]]) -> tuple[Stream, Array]:
    """Read the prompts, padded to one another; the logits (batch, vocab) after each."""
    lengths = np.array([len(prompt) for prompt in prompts])
    ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    last: Array | None = None
    for start in range(0, ids.shape[1], CHUNK):
        chunk = ids[:, start : start + CHUNK]
        new = np.clip(lengths - start, 0, chunk.shape[1])
        # A cache without a mask has rows of one length, and takes no word about it.
        logits = _logits(stream, chunk, None if (new == chunk.shape[1]).all() else new.tolist())
        ending = (lengths > start) & (lengths <= start + chunk.shape[1])
        here = logits[np.arange(len(prompts)), np.maximum(new - 1, 0)]
        last = here if last is None else np.where(ending[:, None], here, last)
    assert last is not None
    return stream, last


def _logits(stream: Stream, ids: Array, lengths: Sequence[int] | None = None) -> Array:
    """Of the new positions, (batch, seq, vocab)."""
    results = stream.run(ids, lengths=lengths)
    return results["logits"] if "logits" in results else next(iter(results.values()))


def _check(model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    contract = model.contract
    inputs = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    outputs = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    logits = next((spec for spec in outputs if spec.name == "logits"), outputs[0])
    if (
        not contract.cache
        or len(inputs) != 1
        or inputs[0].axes != ("batch", "seq")
        or "int" not in inputs[0].dtype
        or logits.axes[:2] != ("batch", "seq")
        or len(logits.axes) != 3
    ):
        raise ValueError(
            "generating needs a language model exported with cache=True: one input of ids "
            "(batch, seq), and logits (batch, seq, vocab); this one is "
            f"{', '.join(spec.describe() for spec in inputs)} -> "
            f"{', '.join(spec.describe() for spec in outputs)}"
            + ("" if contract.cache else ", without a cache")
        )
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise TypeError(f"max_new_tokens must be an integer, got {max_new_tokens!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not prompts:
        raise ValueError("prompts must hold at least one")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty; a model needs one id to begin with")
        if contract.max_seq_len is not None and len(prompt) > contract.max_seq_len:
            raise ValueError(
                f"prompt {row} has {len(prompt)} ids, the model takes {contract.max_seq_len}"
            )
