"""Feed token ids to a stream and get the logits after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["CHUNK", "feed", "read"]

CHUNK = 512
"""Positions of a prompt that are read at once: its logits are held for no more than these."""


def read(stream: Stream, prompts: Sequence[Sequence[int]]) -> Array:
    """Read the prompts, one per row, padded to one another; the logits (batch, vocab) after each.

    Every prompt holds at least one id.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    last: Array | None = None
    for start in range(0, ids.shape[1], CHUNK):
        chunk = ids[:, start : start + CHUNK]
        new = np.clip(lengths - start, 0, chunk.shape[1])
        # A cache without a mask has rows of one length, and takes no word about it.
        logits = feed(stream, chunk, None if (new == chunk.shape[1]).all() else new.tolist())
        ending = (lengths > start) & (lengths <= start + chunk.shape[1])
        here = logits[np.arange(len(prompts)), np.maximum(new - 1, 0)]
        last = here if last is None else np.where(ending[:, None], here, last)
    assert last is not None
    return last


def feed(stream: Stream, ids: Array, lengths: Sequence[int] | None = None) -> Array:
    """Read ids (batch, seq); the logits (batch, seq, vocab) after each of them."""
    results = stream.run(ids, lengths=lengths)
    return results["logits"] if "logits" in results else next(iter(results.values()))
