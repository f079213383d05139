"""The footprint of an attention core: which keys a query sees, and how positions bias scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Known, Tensor, view

__all__ = [
    "UNKNOWN",
    "BoolMatrix",
    "Footprint",
    "Seen",
    "footprint_of",
    "pattern",
    "position_bias",
    "seen_keys",
]

BoolMatrix = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Which keys j the query at absolute position t sees.

    Kinds: "causal" (j <= t), "window" (t - size < j <= t), "chunk" (j <= t in the same block of
    `size`), "prefix" (j <= t or j < size), "full" (all), "other" (none of these, or unlike between
    heads).
    """

    kind: str
    size: int | None = None
    never_later: bool = True
    """No query sees a later key."""

    @property
    def window(self) -> int | None:
        """How many keys a query sees, itself included; None: no window limits them."""
        return self.size if self.kind == "window" else None

    @property
    def is_plain(self) -> bool:
        """The attributes of an attention operator can say it."""
        return self.kind in ("full", "causal", "window")

    def __str__(self) -> str:
        if self.kind in ("window", "chunk"):
            return f"causal {self.kind} {self.size}"
        if self.kind == "prefix":
            return f"prefix {self.size}"
        if self.kind == "other" and self.never_later:
            return "other, never a later key"
        return self.kind


UNKNOWN = Footprint(kind="other", never_later=False)
"""Of a core whose mask could not be read: a query may see any key."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen at one choice of sizes."""

    keys: BoolMatrix
    """(lead, seq, total); lead runs over batch and heads, or is 1."""
    past: int
    """Positions before query 0, so that query i stands at past + i."""

    @property
    def later(self) -> bool:
        """Some query sees a later key."""
        rows, columns = self.keys.shape[-2:]
        allowed = pattern(Footprint(kind="causal"), rows, columns, self.past)
        return bool((self.keys & ~allowed).any())


def pattern(footprint: Footprint, rows: int, columns: int, past: int) -> BoolMatrix:
    """The keys (rows, columns) that a footprint sees; "other" has no pattern."""
    t, j = np.arange(rows)[:, None] + past, np.arange(columns)[None, :]
    causal = j <= t
    size = footprint.size or 1
    if footprint.kind == "causal":
        return np.asarray(causal)
    if footprint.kind == "window":
        return np.asarray(causal & (t - j < size))
    if footprint.kind == "chunk":
        return np.asarray(causal & (t // size == j // size))
    if footprint.kind == "prefix":
        return np.asarray(causal | (j < size))
    if footprint.kind == "full":
        return np.ones((rows, columns), np.bool_)
    raise ValueError(f"a footprint of kind {footprint.kind!r} has no pattern")


def seen_keys(scores: Tensor) -> BoolMatrix:
    """Where masked scores (..., seq, total) are not masked for sure, as (lead, seq, total).

    A score that data may mask counts as seen.
    """
    shape = scores.shape
    if isinstance(scores, Known):
        seen = ~(scores.value <= VERY_NEGATIVE)
    else:
        seen = np.ones((1,) * len(shape), np.bool_)
        if scores.known is not None and scores.value is not None:
            seen = seen & ~(scores.known & (scores.value <= VERY_NEGATIVE))
        if scores.low is not None:
            seen = seen & ~scores.low
    full = np.asarray(view(np.asarray(seen), shape)).reshape(-1, *shape[-2:])
    return full[:1] if (full == full[:1]).all() else full


def footprint_of(found: Sequence[Seen]) -> Footprint:
    """The one footprint that explains what is seen at all sizes; the largest tells most."""
    never_later = not any(one.later for one in found)
    other = Footprint(kind="other", never_later=never_later)
    if not found or any(one.keys.shape[0] != 1 for one in found):
        return other
    largest = max(found, key=lambda one: one.keys.size)
    for guess in _guesses(largest):
        if all(_explains(guess, one) for one in found):
            return guess
    return other


def _guesses(seen: Seen) -> Iterator[Footprint]:
    columns = seen.keys.shape[-1]
    last = seen.keys[0, -1]
    yield Footprint(kind="causal")
    yield Footprint(kind="full", never_later=not seen.later)
    if not seen.later:
        yield Footprint(kind="window", size=int(last.sum()))
        starts = np.flatnonzero(last)
        if len(starts):
            # The last query's block begins at a multiple of its size.
            begin = int(starts[0])
            for size in range(columns - begin, begin + 1):
                if size and begin % size == 0:
                    yield Footprint(kind="chunk", size=size)
    else:
        yield Footprint(kind="prefix", size=int(seen.keys[0, 0].sum()), never_later=False)


def _explains(guess: Footprint, seen: Seen) -> bool:
    rows, columns = seen.keys.shape[-2:]
    if guess.kind == "full" and rows == 1 and not seen.later:
        return bool(seen.keys.all())
    return np.array_equal(seen.keys[0], pattern(guess, rows, columns, seen.past))


def position_bias(bias: npt.NDArray[np.float64], seen: BoolMatrix, past: int) -> str:
    """What a known additive term does to the scores that are seen.

    Args:
        bias: (heads, seq, total).
        seen: (seq, total).
        past: Positions before query 0.

    Returns:
        "" (nothing), "ALiBi" (a slope per head times the distance) or "position bias".
    """
    rows, columns = seen.shape
    t, j = np.arange(rows)[:, None] + past, np.arange(columns)[None, :]
    distance = (j - t).astype(np.float64)
    wide = np.broadcast_to(bias, (bias.shape[0], rows, columns))
    # A softmax row is blind to a constant: measure against the query's own position.
    # (Where queries read another sequence, of another length, there is no own position to clip to.)
    at = np.broadcast_to(np.clip(t, 0, columns - 1), (wide.shape[0], rows, 1))
    with np.errstate(invalid="ignore"):
        relative = np.where(seen, wide - np.take_along_axis(wide, at, axis=2), 0.0)
        scale = float(np.abs(relative).max(initial=0.0))
        if scale <= 1e-6:
            return ""
        norm = max(float((distance**2 * seen).sum()), 1.0)
        slopes = (relative * distance).sum(axis=(1, 2)) / norm
        straight = slopes[:, None, None] * distance * seen
        if float(np.abs(straight - relative).max()) <= 1e-3 * scale:
            return "ALiBi"
    return "position bias"
