"""How a tensor holds (batch, head, position, feature): found by following its elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Index", "Layout", "flat_index", "layout_of"]

Index = npt.NDArray[np.int64]

LETTERS = ("b", "h", "s", "d")


@dataclass(frozen=True, slots=True)
class Layout:
    """What each axis of a tensor runs over, outermost first.

    Letters: b batch, h head, s position, d feature. An axis over several is merged: (batch, seq,
    heads * dim) is (("b",), ("s",), ("h", "d")). An axis of size 1 that runs over nothing is ().
    Heads may run over two axes, g outside of h: (batch, groups, heads of a group, seq, dim).
    """

    axes: tuple[tuple[str, ...], ...]
    heads: int
    """Heads that the tensor holds: for keys and values, the key-value heads."""
    picks: tuple[int, ...] | None = None
    """For each head of the core the head of the tensor that it reads; None: all of them in order,
    each by as many neighbouring heads of the core."""
    groups: int = 1
    """Entries of g: h has `heads` // `groups`."""

    def __str__(self) -> str:
        text = " ".join(
            "".join(axis) if len(axis) == 1 else f"({''.join(axis)})" for axis in self.axes
        )
        return text if self.picks is None else f"{text}, heads {', '.join(map(str, self.picks))}"

    @property
    def spare(self) -> int:
        """Axes of size 1 that run over nothing."""
        return sum(not axis for axis in self.axes)

    def is_plainer(self, other: Layout) -> bool:
        """All heads rather than some, then fewer copies of heads, then no more empty axes."""
        if (self.picks is None) != (other.picks is None):
            return self.picks is None
        return self.heads < other.heads or (self.heads == other.heads and self.spare <= other.spare)

    def axis_of(self, letter: str) -> int | None:
        """The axis over just this letter; None if it is merged or absent."""
        return self.axes.index((letter,)) if (letter,) in self.axes else None

    def sizes(self, *, batch: int, seq: int, width: int) -> dict[str, int]:
        """The size of each letter."""
        inner = self.heads // self.groups
        return {"b": batch, "g": self.groups, "h": inner, "s": seq, "d": width}

    def shape(self, *, batch: int, seq: int, width: int) -> tuple[int, ...]:
        """The shape of the tensor for these sizes."""
        sizes = self.sizes(batch=batch, seq=seq, width=width)
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self.axes)


def layout_of(index: Index, shape: Sequence[int]) -> Layout | None:
    """The layout of a tensor from where each of its elements is used.

    Args:
        index: (batch, heads, seq, dim): the flat index into the tensor that stands there. Query
            heads may share a key-value head, and the tensor may hold heads that none reads.
        shape: Of the tensor.

    Returns:
        None where the tensor is not just a rearrangement of (batch, kv_heads, seq, dim).
    """
    total = int(np.prod(shape, dtype=np.int64))
    batch, heads, seq, width = index.shape
    rest = batch * seq * width
    if index.size == 0 or total % rest:
        return None
    own_heads = total // rest
    sizes = {"b": batch, "h": own_heads, "s": seq, "d": width}
    strides = {}
    for axis, letter in enumerate(LETTERS):
        if letter != "h" and sizes[letter] > 1:
            strides[letter] = int(np.take(index, 1, axis=axis).flat[0] - index.flat[0])
    stride = _head_stride(strides, sizes, total)
    if stride is None:
        return None
    if own_heads > 1:
        strides["h"] = stride
    picks, remainder = np.divmod(index[0, :, 0, 0], stride)
    if remainder.any() or picks.min() < 0 or picks.max() >= own_heads:
        return None
    grid = (picks * stride).reshape(1, -1, 1, 1)
    for axis, letter in enumerate(LETTERS):
        if letter != "h" and letter in strides:
            steps = np.arange(index.shape[axis]) * strides[letter]
            grid = grid + steps.reshape([-1 if i == axis else 1 for i in range(4)])
    if not np.array_equal(np.broadcast_to(grid, index.shape), index):
        return None
    order = sorted(strides, key=lambda letter: -strides[letter])
    plain = heads % own_heads == 0 and np.array_equal(
        picks, np.repeat(np.arange(own_heads), heads // own_heads)
    )
    found = _assign(order, sizes, shape)
    if found is None or (found[1] > 1 and not plain):
        return None
    axes, groups = found
    return Layout(axes, own_heads, None if plain else tuple(int(n) for n in picks), groups)


def _head_stride(strides: Mapping[str, int], sizes: Mapping[str, int], total: int) -> int | None:
    """The stride of the heads: the one that fills the gap which the other letters leave."""
    order = sorted(strides, key=lambda letter: -strides[letter])
    for place in range(len(order) + 1):
        step = total
        found = None
        for letter in [*order[:place], "h", *order[place:]]:
            step //= sizes[letter]
            if letter == "h":
                found = step
            elif strides[letter] != step:
                break
        else:
            return found
    return None


def _assign(
    order: Sequence[str], sizes: Mapping[str, int], shape: Sequence[int]
) -> tuple[tuple[tuple[str, ...], ...], int] | None:
    """Distribute the letters, outermost first, over the axes of the tensor.

    Returns:
        The letters of each axis, and how many groups the heads are split into.
    """
    axes: list[tuple[str, ...]] = []
    rest = list(order)
    left = dict(sizes)
    groups = 1
    for size in shape:
        own: list[str] = []
        have = 1
        while have < size and rest:
            letter = rest[0]
            part = size // have
            if letter == "h" and groups == 1 and part < left["h"] and left["h"] % part == 0:
                groups, left["h"] = part, left["h"] // part
                own.append("g")
                have *= part
                continue
            own.append(rest.pop(0))
            have *= left[letter]
        if have != size:
            return None
        axes.append(tuple(own))
    return (tuple(axes), groups) if not rest else None


def flat_index(shape: Sequence[int], *parts: Any) -> Index:
    """The flat index of elements given by one (broadcasting) index per axis."""
    found = np.zeros((), np.int64)
    for size, part in zip(shape, parts, strict=True):
        found = found * size + part
    return np.asarray(found, np.int64)
