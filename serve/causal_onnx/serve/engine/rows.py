"""The rows of a model's cache that sequences are read into and decoded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from causal_onnx.runtime.generation.plan import vocab_size
from causal_onnx.runtime.generation.prompt import feed
from causal_onnx.runtime.stream.row_pool import RowPool

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime import Model, Stream

    Array = npt.NDArray[Any]

__all__ = ["PooledRows", "Rows", "SeparateRows", "open_rows"]


class Rows(Protocol):
    """Sequences that are decoded, in places 0 to `running` - 1, and at most one prompt that is
    being read."""

    count: int
    """The most sequences, the one that is being read included."""
    sizes: tuple[int, ...]
    """Numbers of rows that a decoding call may have."""

    @property
    def running(self) -> int:
        """How many are decoded."""
        ...

    def begin(self, adapter: str | None = None) -> Stream:
        """Start to read a prompt: the empty stream that takes it, one row, with this adapter."""
        ...

    def abandon(self) -> None:
        """Give up the prompt that is being read."""
        ...

    def join(self, copies: int) -> None:
        """Let what was read be decoded, in the `copies` places behind the others."""
        ...

    def step(self, ids: Sequence[int]) -> Array:
        """Read one id for each sequence that is decoded; the logits (running, vocab) after it."""
        ...

    def read(self, place: int, ids: Sequence[int]) -> Array:
        """Read several ids for one sequence that is decoded; the logits (ids, vocab) after each."""
        ...

    def take_back(self, place: int, count: int) -> None:
        """Let a sequence have read `count` ids less; the model's cache must keep all positions."""
        ...

    def leave(self, place: int) -> None:
        """End the sequence in a place, which the last one then takes."""
        ...


PROBED = 150, 67
"""Positions of the two sequences by which the bits of calls are compared."""


def open_rows(model: Model, *, count: int, capacity: int) -> Rows:
    """Rows for up to `count` sequences of up to `capacity` positions.

    They share buffers and are decoded together where the model's cache allows it, and where some
    number of rows gives the same bits as others; elsewhere each has a stream of its own.
    """
    together = min(count, model.runner.largest_batch or count)
    if together > 1 and RowPool.fits(model.runner):
        sizes = equal_sizes(model, count=together, capacity=capacity)
        if len(sizes) > 1:
            return PooledRows(model, count=sizes[-1], capacity=capacity, sizes=sizes)
    return SeparateRows(model, count=count, capacity=capacity)


def equal_sizes(model: Model, *, count: int, capacity: int) -> tuple[int, ...]:
    """The numbers of rows, up to `count`, whose decoding calls have the same bits on this machine.

    A kernel may go another way for one row, for an odd one, or where all rows are equally long. It
    is seen by decoding two sequences of different lengths, in turn in all rows and each in all of
    them, with each number of rows. Where not all numbers agree, the largest set that agrees within
    itself is it.
    """
    pool = RowPool(model.runner, rows=count + 2, capacity=capacity)
    seen: dict[int, list[bytes]] = {size: [] for size in range(1, count + 1)}
    for pair in _adapter_pairs(model):
        for size, (one, other) in _bits_by_size(model, pool, count, pair).items():
            if len(one) > 1 or len(other) > 1:
                seen.pop(size, None)
            elif size in seen:
                seen[size] += [*one, *other]
    found: dict[tuple[bytes, ...], list[int]] = {}
    for size, whole in seen.items():
        found.setdefault(tuple(whole), []).append(size)
    sets = sorted(found.values(), key=lambda sizes: (len(sizes), sizes[-1]))
    return tuple(sets[-1]) if sets else ()


def _adapter_pairs(model: Model) -> list[tuple[str | None, str | None]]:
    """Adapters of two sequences that stand for all: none, and those of the extreme ranks."""
    ranked = model.runner.adapters.by_rank
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if ranked:
        pairs.append((None, ranked[-1]))
    if len(ranked) > 1:
        pairs.append((ranked[0], ranked[-1]))
    return pairs


def _bits_by_size(
    model: Model, pool: RowPool, count: int, adapters: Sequence[str | None]
) -> dict[int, tuple[set[bytes], set[bytes]]]:
    """For each number of rows the logits that each of two sequences has in such calls."""
    lengths = [min(length, pool.capacity - 1) for length in PROBED]
    random = np.random.default_rng(0)
    for kind, length in enumerate(lengths):
        if length:
            ids = random.integers(0, vocab_size(model), (1, length))
            stream = pool.stream(count + kind, [0], adapters=[adapters[kind]])
            feed(stream, ids, last_only=True)
    found: dict[int, tuple[set[bytes], set[bytes]]] = {}
    for size in range(1, count + 1):
        bits: tuple[set[bytes], set[bytes]] = (set(), set())
        for first, step in ((0, 1), (1, 1), (0, 0), (1, 0)):
            kinds = [(first + step * row) % 2 for row in range(size)]
            for row, kind in enumerate(kinds):
                pool.copy(count + kind, row, lengths[kind])
            stream = pool.stream(
                0,
                [lengths[kind] for kind in kinds],
                adapters=[adapters[kind] for kind in kinds],
            )
            logits = feed(stream, np.ones((size, 1), np.int64))[:, 0]
            for row, kind in enumerate(kinds):
                bits[kind].add(logits[row].tobytes())
        found[size] = bits
    return found


class PooledRows:
    """Rows of shared buffers: those that are decoded lie next to each other and are one call."""

    def __init__(self, model: Model, *, count: int, capacity: int, sizes: Sequence[int]) -> None:
        self.count, self.running, self.sizes = count, 0, tuple(sizes)
        self._pool = RowPool(model.runner, rows=count, capacity=capacity)
        self._lengths = [0] * count
        self._adapters: list[str | None] = [None] * count
        self._reading: int | None = None
        self._prompt: Stream | None = None
        self._decoding: Stream | None = None

    def begin(self, adapter: str | None = None) -> Stream:
        assert self._prompt is None
        assert self.running < self.count
        self._reading = self.running
        self._lengths[self._reading] = 0
        self._prompt = self._pool.stream(self._reading, [0], adapters=[adapter])
        return self._prompt

    def abandon(self) -> None:
        self._prompt = self._reading = None

    def join(self, copies: int) -> None:
        assert self._prompt is not None
        assert self._reading is not None
        (length,), (adapter,) = self._prompt.lengths, self._prompt.adapters
        for place in range(self.running, self.running + copies):
            if place != self._reading:  # since it began, others may have left
                self._pool.copy(self._reading, place, length)
            self._lengths[place], self._adapters[place] = length, adapter
        self.running += copies
        self._prompt = self._reading = self._decoding = None

    def step(self, ids: Sequence[int]) -> Array:
        running = self.running
        size = next(size for size in self.sizes if size >= running)
        # Rows that fill up are computed for nothing, and with whatever adapter.
        adapters = [*self._adapters[:running], *[None] * (size - running)]
        stream = self._decoding or self._pool.stream(0, self._padded(size), adapters=adapters)
        column = np.zeros((size, 1), np.int64)
        column[:running, 0] = ids
        # A stream whose call raised must not be used again.
        self._decoding = None
        logits = feed(stream, column)[:running, 0]
        for place in range(running):
            self._lengths[place] += 1
        # Rows that only fill up have read nothing, and are written to at their old end each time.
        self._decoding = stream if size == running else None
        return logits

    def read(self, place: int, ids: Sequence[int]) -> Array:
        self._decoding = None
        adapters = [self._adapters[place]]
        stream = self._pool.stream(place, [self._lengths[place]], adapters=adapters)
        logits: Array = feed(stream, np.array([ids], np.int64))[0]
        self._lengths[place] += len(ids)
        return logits

    def take_back(self, place: int, count: int) -> None:
        self._lengths[place] -= count
        self._decoding = None

    def leave(self, place: int) -> None:
        last = self.running - 1
        if place != last:
            self._pool.copy(last, place, self._lengths[last])
            self._lengths[place] = self._lengths[last]
            self._adapters[place] = self._adapters[last]
        self._lengths[last] = 0
        self.running, self._decoding = last, None

    def _padded(self, size: int) -> list[int]:
        """The lengths of the first rows. What fills up is written to where nothing was read."""
        lengths = self._lengths[:size]
        for place in range(self.running, size):
            is_read = place == self._reading and self._prompt is not None
            lengths[place] = self._prompt.lengths[0] if is_read and self._prompt else 0
        return lengths


class SeparateRows:
    """A stream for each sequence: they are decoded one after the other, whatever the cache is."""

    sizes: tuple[int, ...] = (1,)

    def __init__(self, model: Model, *, count: int, capacity: int) -> None:
        self.count = count
        self._model, self._capacity = model, capacity
        self._streams: list[Stream] = []
        self._prompt: Stream | None = None

    @property
    def running(self) -> int:
        return len(self._streams)

    def begin(self, adapter: str | None = None) -> Stream:
        assert self._prompt is None
        assert self.running < self.count
        # Whole rows are not taken at once: the room doubles when it is needed.
        self._prompt = self._model.stream(adapter=adapter)
        return self._prompt

    def abandon(self) -> None:
        self._prompt = None

    def join(self, copies: int) -> None:
        assert self._prompt is not None
        self._streams += [self._prompt, *(self._prompt.fork() for _ in range(copies - 1))]
        self._prompt = None

    def step(self, ids: Sequence[int]) -> Array:
        return np.concatenate(
            [
                feed(stream, np.array([[token]], np.int64))[:, 0]
                for stream, token in zip(self._streams, ids, strict=True)
            ]
        )

    def read(self, place: int, ids: Sequence[int]) -> Array:
        logits: Array = feed(self._streams[place], np.array([ids], np.int64))[0]
        return logits

    def take_back(self, place: int, count: int) -> None:
        stream = self._streams[place]
        stream.rewind(stream.lengths[0] - count)

    def leave(self, place: int) -> None:
        last = self._streams.pop()
        if place < len(self._streams):
            self._streams[place] = last
