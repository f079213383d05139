"""Keys and values of a stream in blocks of positions: cut out of it, and put together to another.

What a pair of the cache that keeps all positions holds of a block is the block's part of it. A pair
that keeps a window has no such part: with a block goes all of it as it was where the block ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import CachePair, Contract
    from causal_onnx.runtime.stream.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["Block", "cut", "has_window", "join", "windows"]

Block = Mapping[str, "Array"]
"""Name of the past -> what it holds of one row, with a batch axis of 1."""


def has_window(contract: Contract) -> bool:
    """Whether some of the cache keeps a window only."""
    return any(pair.bounded is not None for pair in contract.cache)


def windows(contract: Contract, stream: Stream, row: int) -> Block:
    """Copies of what the pairs that keep a window hold of a row now."""
    with stream.reading() as (read, held):
        length = int(read.lengths[row])
        return {
            pair.past: _part(
                contract, pair, held[pair.past], row, slice(0, min(pair.bounded, length))
            )
            for pair in contract.cache
            if pair.bounded is not None
        }


def cut(contract: Contract, stream: Stream, row: int, start: int, stop: int) -> Block:
    """Copies of what the other pairs hold of positions [start, stop) of a row."""
    with stream.reading() as (_, held):
        return {
            pair.past: _part(contract, pair, held[pair.past], row, slice(start, stop))
            for pair in contract.cache
            if pair.bounded is None
        }


def join(
    contract: Contract, rows: Sequence[Sequence[Block]], size: int
) -> tuple[Array, dict[str, Array]]:
    """The lengths and the cache of rows that have read these blocks, each of `size` positions.

    Where the cache has no mask, all rows have as many; some row has at least one.
    """
    lengths = np.array([len(blocks) * size for blocks in rows])
    longest = int(lengths.max())
    sample = next(blocks[0] for blocks in rows if blocks)
    past: dict[str, Array] = {}
    for pair in contract.cache:
        axis, batch = _axes(contract, pair)
        shape = list(sample[pair.past].shape)
        shape[axis] = longest if pair.bounded is None else min(pair.bounded, longest)
        shape[batch] = len(rows)
        whole = np.zeros(shape, sample[pair.past].dtype)
        for row, blocks in enumerate(rows):
            start = 0
            for block in blocks if pair.bounded is None else blocks[-1:]:
                part = block[pair.past]
                place: list[slice] = [slice(None)] * whole.ndim
                place[batch] = slice(row, row + 1)
                place[axis] = slice(start, start + part.shape[axis])
                whole[tuple(place)] = part
                start += part.shape[axis]
        past[pair.past] = whole
    return lengths, past


def _part(contract: Contract, pair: CachePair, array: Array, row: int, positions: slice) -> Array:
    axis, batch = _axes(contract, pair)
    place: list[slice] = [slice(None)] * array.ndim
    place[batch] = slice(row, row + 1)
    place[axis] = positions
    return array[tuple(place)].copy()


def _axes(contract: Contract, pair: CachePair) -> tuple[int, int]:
    """The axes of positions and of rows; without one, that of size 1 stands first."""
    axes = next(spec.axes for spec in contract.inputs if spec.name == pair.past)
    positions = axes.index("past_seq" if pair.bounded is None else "past_slots")
    return positions, axes.index("batch") if "batch" in axes else 0
