"""Feed token ids to a stream and get the logits after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.codebooks import Codebooks
    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.stream.stream import Stream

    Array = npt.NDArray[Any]

__all__ = [
    "CHUNK",
    "Prefill",
    "PromptReader",
    "can_rewind",
    "feed",
    "logits_of",
    "prefill",
    "start",
]

CHUNK = 256
"""Positions of a prompt that a CPU reads at once. Attention computes the scores of all queries of a
call for all its keys, so that in one call of 2,048 half of them are of later positions and thrown
away; and what a longer call computes does not fit the processor's caches. The times stand in
docs/generation.md, "Long prompts"."""
GPU_CHUNK = 512
"""Positions of a prompt that a GPU reads at once: each call takes a while to begin there. Larger
than on a CPU without a measurement."""


class PromptReader(Protocol):
    """What has read prompts before and need not read all of the next, such as a prefix cache."""

    @property
    def model(self) -> LanguageModel:
        """Whose prompts."""
        ...

    def read(
        self, prompts: Sequence[Sequence[int]], stream: Stream | None = None
    ) -> tuple[Stream, Array]:
        """A stream that has read the prompts, and the logits (batch, vocab) after each.

        `stream` is what reads them, if not a new one of the model: one with adapters.
        """
        ...


def start(
    model: LanguageModel,
    prompts: Sequence[Sequence[Any]],
    reader: PromptReader | None,
    codebooks: Codebooks | None = None,
) -> tuple[Stream, Array]:
    """A stream that has read the prompts, and the logits (batch, vocab) after each.

    With `codebooks`, prompts hold lists of one id each, and logits are (batch, codebooks, vocab).
    """
    if codebooks is not None:
        stream = model.stream(batch=len(prompts))
        return stream, prefill(stream, prompts, codebooks)
    if reader is not None and reader.model is model:
        return reader.read(prompts)
    stream = model.stream(batch=len(prompts))
    if reader is not None:
        return reader.read(prompts, stream)
    return stream, prefill(stream, prompts)


def prefill(
    stream: Stream, prompts: Sequence[Sequence[Any]], codebooks: Codebooks | None = None
) -> Array:
    """Read the prompts, one per row, padded to one another; return the logits after each.

    Every prompt holds at least one id. The logits are (batch, vocab); for `codebooks` see `start`.
    """
    steps = Prefill(stream, prompts, codebooks)
    while steps.is_going:
        steps.step()
    return steps.logits


class Prefill:
    """Reads prompts, one per row, in steps."""

    def __init__(
        self,
        stream: Stream,
        prompts: Sequence[Sequence[Any]],
        codebooks: Codebooks | None = None,
    ) -> None:
        """Every prompt holds at least one id, or with `codebooks` one of each.

        Raises:
            ValueError: A prompt ends before the inputs that the stream was started with.
        """
        self._stream, self._codebooks = stream, codebooks
        self._lengths = np.array([len(prompt) for prompt in prompts])
        rows = zip(stream.lengths, self._lengths.tolist(), stream.covered, strict=True)
        for row, (read, new, covered) in enumerate(rows):
            if read + new < covered:
                raise ValueError(
                    f"{'the prompt' if len(prompts) == 1 else f'prompt {row}'} has {read + new} "
                    f"positions, and the inputs given with it are for the first {covered}; an id "
                    "stands at each of these too: put so many before the others, of whatever token "
                    "stood there in training, such as one that stands for an image"
                )
        each = () if codebooks is None else (codebooks.count,)
        self._ids = np.zeros((len(prompts), int(self._lengths.max()), *each), np.int64)
        for row, prompt in enumerate(prompts):
            self._ids[row, : len(prompt)] = prompt
        self._start = 0
        self._logits: Array | None = None

    @property
    def is_going(self) -> bool:
        """Whether something is left to read."""
        return self._start < int(self._ids.shape[1])

    @property
    def logits(self) -> Array:
        """(batch, vocab), after each prompt, once all are read."""
        assert self._logits is not None
        return self._logits

    def step(self, count: int | None = None) -> None:
        """Read up to `count` positions more; None: as many as are read fastest."""
        if count is None:
            count = CHUNK if self._stream.device.kind == "cpu" else GPU_CHUNK
            if not self._stream.takes_chunks:
                # Behind the first call, the graph would read one position after the other.
                count = int(self._ids.shape[1])
        start, lengths = self._start, self._lengths
        chunk = self._ids[:, start : start + count]
        new = np.clip(lengths - start, 0, chunk.shape[1])
        # A cache without a mask has rows of one length, and takes no word about it.
        is_full = (new == chunk.shape[1]).all()
        given = None if is_full else new.tolist()
        here = feed(self._stream, chunk, given, last_only=True, codebooks=self._codebooks)[:, 0]
        ending = (lengths > start) & (lengths <= start + chunk.shape[1])
        ending = ending.reshape(-1, *[1] * (here.ndim - 1))
        before = self._logits
        self._logits = here if before is None else np.where(ending, here, before)
        self._start += chunk.shape[1]


def feed(
    stream: Stream,
    ids: Array,
    lengths: Sequence[int] | None = None,
    *,
    last_only: bool = False,
    codebooks: Codebooks | None = None,
) -> Array:
    """Read ids (batch, seq); the logits (batch, seq, vocab) after each of them.

    With `last_only` those after each row's last one, (batch, 1, vocab). With `codebooks` the ids
    are (batch, seq, codebooks), and the logits (batch, seq, codebooks, vocab).
    """
    if codebooks is not None:
        arrays = codebooks.arrays(ids)
        return codebooks.logits(stream.run(*arrays, lengths=lengths, last_only=last_only))
    return logits_of(stream.run(ids, lengths=lengths, last_only=last_only))


def logits_of(results: Mapping[str, Array]) -> Array:
    """The logits of the next token among what a language model returned."""
    return results["logits"] if "logits" in results else next(iter(results.values()))


def can_rewind(model: LanguageModel) -> bool:
    """Whether a stream can take back what it read; a cache that keeps a window cannot."""
    return all(pair.bounded is None or pair.computed_from for pair in model.contract.cache)
