"""Where a decoder looks while it reads: attention maps of a passage, and what must hold of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from causal_onnx.models import DecoderLM

__all__ = ["AttentionMaps", "MapChecks", "check_maps", "choose_passage", "draw_maps"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MapChecks:
    """What attention weights must fulfil, counted over every layer, head and row."""

    seq: int
    rows: int
    largest_row_error: float
    """Largest |sum of a row - 1|, summed in float64."""
    entries_above_diagonal: int
    nonzero_above_diagonal: int
    """Entries above the diagonal that are not exactly 0."""

    @property
    def passed(self) -> bool:
        # A row is up to 1024 float32 numbers, each off by up to 6e-8 of its size.
        return self.nonzero_above_diagonal == 0 and self.largest_row_error < 1e-5

    def summary(self) -> str:
        """What was found, on one line."""
        return (
            f"{self.rows:,} rows sum to 1 (largest difference {self.largest_row_error:.1e}); "
            f"{self.nonzero_above_diagonal:,} of {self.entries_above_diagonal:,} entries above "
            "the diagonal differ from 0"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMaps:
    """The weights over one passage."""

    passage: str
    """ASCII, so that every byte is a character."""
    weights: Array
    """(num_layers, num_heads, seq, seq), float32; row i is what byte i attends to."""
    checks: MapChecks
    """Of a passage as long as the model can read, which holds the one above."""

    def mean_distance(self) -> Array:
        """How many bytes back each head looks on average over its rows: (num_layers, num_heads)."""
        seq = self.weights.shape[-1]
        distance = np.arange(seq)[:, None] - np.arange(seq)[None, :]
        return np.asarray((self.weights * distance).sum(axis=-1).mean(axis=-1))


def draw_maps(model: DecoderLM, text: bytes, *, length: int) -> AttentionMaps:
    """Run `model` over `text` and take the maps of a passage in it.

    Args:
        model: In eval mode.
        text: What to read; see `choose_passage`.
        length: Of the passage, at most.
    """
    passage = choose_passage(text, length=length)
    start = text.index(passage)
    limit = model.max_seq_len or len(text)
    return AttentionMaps(
        passage=passage.decode("ascii"),
        weights=_weights(model, passage),
        checks=check_maps(_weights(model, text[start : start + limit])),
    )


def choose_passage(text: bytes, *, length: int) -> bytes:
    """Give the first paragraph of plain prose, cut behind a word.

    Prose: ASCII without line breaks over the first `length` bytes, five in six of them letters or
    spaces, starting with a capital letter.

    Raises:
        ValueError: There is none.
    """
    for paragraph in text.split(b"\n\n"):
        head = paragraph.replace(b"\n", b" ")[:length]
        plain = sum(byte in _LETTERS for byte in head)
        if len(head) < length or not head.isascii() or plain < length * 5 / 6:
            continue
        if paragraph.startswith(head) and head[:1].isupper():
            return head[: head.rindex(b" ")] if b" " in head else head
    raise ValueError(f"the text has no paragraph of {length} bytes of plain prose")


def check_maps(weights: Array) -> MapChecks:
    """Sum the rows and look above the diagonal.

    Args:
        weights: (..., seq, seq), float.
    """
    seq = weights.shape[-1]
    above = weights[..., np.triu(np.ones((seq, seq), dtype=np.bool_), k=1)]
    sums = weights.sum(axis=-1, dtype=np.float64)
    return MapChecks(
        seq=seq,
        rows=sums.size,
        largest_row_error=float(np.abs(sums - 1.0).max()),
        entries_above_diagonal=above.size,
        nonzero_above_diagonal=int(np.count_nonzero(above)),
    )


def _weights(model: DecoderLM, text: bytes) -> Array:
    ids = torch.tensor([list(text)])
    with torch.inference_mode():
        weights: Array = model.attention_weights(ids)[:, 0].numpy()
    return weights


_LETTERS = b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
