"""Constant arrays as nested conditions on their indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Leaf", "Split", "Table", "leaves", "tabulate"]

MOST_LEAVES = 600
"""A table of more pieces is told by the values that a mask may have alone, then by its extremes."""

LARGEST = 1 << 22
"""Elements up to which every value is told apart at first."""

NOTABLE = (0.0, 1.0, -np.inf, np.inf)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value between two numbers; anything where they are None."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Split:
    """Pieces by an index, or by the difference of two."""

    axis: int
    minus: int | None
    """The axis whose index is taken away; None: none."""
    pieces: tuple[tuple[int, Table], ...]
    """(first index beyond the piece, what it holds), rising; the last goes on for ever."""


Table: TypeAlias = Leaf | Split

Codes: TypeAlias = npt.NDArray[np.intp]


class _TooFineError(Exception):
    """A table has more pieces than are worth writing down."""


def tabulate(array: npt.NDArray[Any], *, masked: float) -> Table:
    """The array as conditions on its indices.

    Args:
        array: Of numbers; NaN stands for anything.
        masked: Values at or below this are told apart from others in any case.
    """
    values = array.astype(np.float64)
    if values.size == 0:
        return Leaf(None, None)
    if values.size <= LARGEST:
        distinct, codes = np.unique(values, return_inverse=True)
        found = _try(codes.reshape(values.shape), [_exactly(v) for v in distinct])
        if found is not None:
            return found
    codes, meaning = _coarse(values, masked)
    return _try(codes, meaning) or _hull(values)


def leaves(table: Table) -> Iterator[Leaf]:
    """All that the table may hold."""
    if isinstance(table, Leaf):
        yield table
    else:
        for _, piece in table.pieces:
            yield from leaves(piece)


def _exactly(value: float) -> Leaf:
    return Leaf(None, None) if np.isnan(value) else Leaf(float(value), float(value))


def _hull(values: npt.NDArray[np.float64]) -> Leaf:
    if np.isnan(values).any():
        return Leaf(None, None)
    return Leaf(float(values.min()), float(values.max()))


def _coarse(values: npt.NDArray[np.float64], masked: float) -> tuple[Codes, list[Leaf]]:
    """Classes: each notable value, what counts as masked, anything, the rest."""
    classes = [
        *(values == number for number in NOTABLE),
        (values <= masked) & np.isfinite(values),
        np.isnan(values),
    ]
    codes = np.full(values.shape, len(classes), np.intp)
    for code, inside in reversed(list(enumerate(classes))):
        codes[inside] = code
    meaning = [
        _hull(values[codes == code]) if (codes == code).any() else Leaf(None, None)
        for code in range(len(classes) + 1)
    ]
    return codes, meaning


def _try(codes: Codes, meaning: Sequence[Leaf]) -> Table | None:
    budget = [MOST_LEAVES]

    def leaf(code: int) -> Leaf:
        budget[0] -= 1
        if budget[0] < 0:
            raise _TooFineError
        return meaning[code]

    try:
        return _build(codes, list(range(codes.ndim)), leaf)
    except _TooFineError:
        return None


def _build(codes: Codes, axes: list[int], leaf: Callable[[int], Leaf]) -> Table:
    """The table of an array whose axes have these numbers."""
    for place in reversed(range(codes.ndim)):
        first = codes.take([0], axis=place)
        if (codes == first).all():
            codes, axes = first.squeeze(place), axes[:place] + axes[place + 1 :]
    if codes.ndim == 0:
        return leaf(int(codes))
    if codes.ndim == 2 and (codes[1:, 1:] == codes[:-1, :-1]).all():
        # A function of column - row, from the last row's first to the first row's last.
        line = np.concatenate([codes[::-1, 0], codes[0, 1:]])
        pieces = _pieces(line, [0], leaf, 1 - codes.shape[0])
        return Split(axes[1], axes[0], pieces)
    return Split(axes[0], None, _pieces(codes, axes, leaf, 0))


def _pieces(
    codes: Codes, axes: list[int], leaf: Callable[[int], Leaf], start: int
) -> tuple[tuple[int, Table], ...]:
    """Runs of equal entries along the first axis."""
    rows = codes.reshape(len(codes), -1)
    new = np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1
    bounds = [0, *new.tolist(), len(codes)]
    return tuple(
        (start + end, _build(codes[begin], axes[1:], leaf)) for begin, end in pairwise(bounds)
    )
