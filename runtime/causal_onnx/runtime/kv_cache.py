"""Where a stream keeps keys and values: arrays as the graph gives them, or buffers it writes into.

Most caches come out of each call as new arrays, past and new positions together. A pair that the
contract calls shared may be one buffer with room for positions to come: the graph reads the past
from it and writes the new positions behind, and nothing is copied from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import CachePair, Contract

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["KVCache"]

SMALLEST = 64
"""Positions that a buffer has room for at first, unless the caller says how many."""


class KVCache:
    """Keys and values of the rows of one stream.

    `used` in the methods is the most positions that any row holds.
    """

    def __init__(self, contract: Contract, batch: int, capacity: int | None) -> None:
        """Start empty; `capacity` positions have room at once, None: it doubles when needed."""
        self._contract, self._batch = contract, batch
        self._capacity = capacity
        self._specs = {spec.name: spec for spec in contract.inputs}
        self._shared = [pair for pair in contract.cache if pair.shared]
        self._exact = [pair for pair in contract.cache if not pair.shared]
        self.arrays: dict[str, Array] = {}
        """Name of the past -> what it holds, of pairs that are not shared; none at the start."""
        self.buffers: dict[str, Array] = {}
        """Name of the past -> buffer, of those that are."""
        self.generation = 0
        """How often there were new buffers."""

    def reserve(self, used: int, total: int) -> None:
        """Make room for `total` positions."""
        if not self._shared or total <= self._room:
            return
        if self._capacity is None:
            room = max(SMALLEST, self._room)
            while room < total:
                room *= 2
            room = min(room, self._contract.max_seq_len or room)
        else:
            room = self._capacity
        for pair in self._shared:
            shape = [
                a if isinstance(a, int) else {"batch": self._batch, "past_seq": room}[a]
                for a in self._specs[pair.past].axes
            ]
            # Zeros from the system cost nothing until they are written to.
            fresh = np.zeros(shape, self._specs[pair.past].dtype)
            if used:
                part = self._slots(pair, used)
                fresh[part] = self.buffers[pair.past][part]
            self.buffers[pair.past] = fresh
        self.generation += 1

    def put(self, presents: Mapping[str, Array], used: int) -> None:
        """Keep what a call gave: of pairs that are not shared, or that it could not write into."""
        for pair in self._contract.cache:
            if pair.present not in presents:
                continue
            found = presents[pair.present][self._slots(pair, used)]
            if pair.shared:
                self.buffers[pair.past][self._slots(pair, used)] = found
            else:
                self.arrays[pair.past] = found

    def trim(self, used: int) -> None:
        """Forget the slots that no row uses any more; buffers keep them as room."""
        for pair in self._exact:
            if pair.past in self.arrays:
                self.arrays[pair.past] = self.arrays[pair.past][self._slots(pair, used)]

    def held(self, used: int) -> dict[str, Array]:
        """Name of the past -> its used slots, of all pairs; empty at the start."""
        return {
            pair.past: source[pair.past][self._slots(pair, used)]
            for pair in self._contract.cache
            for source in (self.arrays, self.buffers)
            if pair.past in source
        }

    def take(self, held: Mapping[str, Array], used: int) -> None:
        """Keep copies of what another cache of as many rows held."""
        self.reserve(0, used)
        for pair in self._contract.cache:
            if pair.past not in held:
                continue
            found = held[pair.past][self._slots(pair, used)]
            if pair.shared:
                self.buffers[pair.past][self._slots(pair, used)] = found
            else:
                self.arrays[pair.past] = found

    def rows(self, chosen: Array, used: int) -> dict[str, Array]:
        """`held`, of the chosen rows."""
        return {
            name: np.take(array, chosen, self._axis(name, "batch"))
            for name, array in self.held(used).items()
        }

    @property
    def shared_pairs(self) -> Iterable[CachePair]:
        return self._shared

    @property
    def _room(self) -> int:
        if not self.buffers:
            return 0
        name = self._shared[0].past
        return int(self.buffers[name].shape[self._axis(name, "past_seq")])

    def _slots(self, pair: CachePair, used: int) -> tuple[slice, ...]:
        """The part of a past with the slots in use."""
        bounded = pair.bounded
        count = used if bounded is None else min(used, bounded)
        axis = self._axis(pair.past, "past_seq" if bounded is None else "past_slots")
        return (*(slice(None),) * axis, slice(0, count))

    def _axis(self, name: str, axis: str) -> int:
        axes = self._specs[name].axes
        # A cache of a model without a batch axis has one of size 1 in its place.
        return axes.index(axis) if axis in axes else 0
