"""How a tensor holds (batch, head, position, feature): found by following its elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Layout", "layout_of"]

Index = npt.NDArray[np.int64]

LETTERS = ("b", "h", "s", "d")


@dataclass(frozen=True, slots=True)
class Layout:
    """What each axis of a tensor runs over, outermost first.

    Letters: b batch, h head, s position, d feature. An axis over several is merged: (batch, seq,
    heads * dim) is (("b",), ("s",), ("h", "d")). An axis of size 1 that runs over nothing is ().
    """

    axes: tuple[tuple[str, ...], ...]
    heads: int
    """Heads that the tensor holds: for keys and values, the key-value heads."""

    def __str__(self) -> str:
        return " ".join(
            "".join(axis) if len(axis) == 1 else f"({''.join(axis)})" for axis in self.axes
        )

    @property
    def spare(self) -> int:
        """Axes of size 1 that run over nothing."""
        return sum(not axis for axis in self.axes)

    def is_plainer(self, other: Layout) -> bool:
        """Fewer copies of heads, or as many and no more empty axes."""
        return self.heads < other.heads or (self.heads == other.heads and self.spare <= other.spare)

    def axis_of(self, letter: str) -> int | None:
        """The axis over just this letter; None if it is merged or absent."""
        return self.axes.index((letter,)) if (letter,) in self.axes else None


def layout_of(index: Index, shape: Sequence[int]) -> Layout | None:
    """The layout of a tensor from where each of its elements is used.

    Args:
        index: (batch, heads, seq, dim): the flat index into the tensor that stands there. Query
            heads may share a key-value head: heads h and h + 1 then have the same index.
        shape: Of the tensor.

    Returns:
        None where the tensor is not just a rearrangement of (batch, kv_heads, seq, dim).
    """
    groups = _group(index)
    if groups is None:
        return None
    index = index[:, ::groups]
    total = int(np.prod(shape, dtype=np.int64))
    if index.size != total or int(index.flat[0]) != 0:
        return None
    strides = {}
    for axis, letter in enumerate(LETTERS):
        if index.shape[axis] > 1:
            strides[letter] = int(np.take(index, 1, axis=axis).flat[0])
    grid = np.zeros(index.shape, np.int64)
    for axis, letter in enumerate(LETTERS):
        if letter in strides:
            steps = np.arange(index.shape[axis]) * strides[letter]
            grid = grid + steps.reshape([-1 if i == axis else 1 for i in range(4)])
    if not np.array_equal(grid, index):
        return None
    sizes = dict(zip(LETTERS, index.shape, strict=True))
    order = sorted(strides, key=lambda letter: -strides[letter])
    step = total
    for letter in order:
        step //= sizes[letter]
        if strides[letter] != step:
            return None
    axes = _assign(order, sizes, shape)
    return None if axes is None else Layout(axes, sizes["h"])


def _group(index: Index) -> int | None:
    """How many neighbouring heads share one; None where they share in another way."""
    heads = index.shape[1]
    first = index[:, 0:1]
    same = [bool((index[:, i : i + 1] == first).all()) for i in range(heads)]
    groups = same.index(False) if False in same else heads
    if heads % groups:
        return None
    shared = np.repeat(index[:, ::groups], groups, axis=1)
    return groups if np.array_equal(shared, index) else None


def _assign(
    order: Sequence[str], sizes: Mapping[str, int], shape: Sequence[int]
) -> tuple[tuple[str, ...], ...] | None:
    """Distribute the letters, outermost first, over the axes of the tensor."""
    axes: list[tuple[str, ...]] = []
    rest = list(order)
    for size in shape:
        own: list[str] = []
        have = 1
        while have < size and rest:
            letter = rest.pop(0)
            own.append(letter)
            have *= sizes[letter]
        if have != size:
            return None
        axes.append(tuple(own))
    return tuple(axes) if not rest else None


def flat_index(shape: Sequence[int], *parts: Any) -> Index:
    """The flat index of elements given by one (broadcasting) index per axis."""
    found = np.zeros((), np.int64)
    for size, part in zip(shape, parts, strict=True):
        found = found * size + part
    return np.asarray(found, np.int64)
