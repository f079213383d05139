"""Where a stream keeps keys and values: tensors as the graph gives them, or buffers it writes into.

Most caches come out of each call as new arrays, past and new positions together. A pair that the
contract calls shared may be one buffer with room for positions to come: the graph reads the past
from it and writes the new positions behind, and nothing is copied from step to step. Both kinds
lie in host memory, or on the GPU that the model runs on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import CachePair, Contract
from causal_onnx.runtime.device import Device
from causal_onnx.runtime.device_memory import DeviceMemory, on_host

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["KVCache"]

SMALLEST = 64
"""Positions that a buffer has room for at first, unless the caller says how many."""


class KVCache:
    """Keys and values of the rows of one stream, by the name of the past.

    `used` in the methods is the most positions that any row holds.
    """

    def __init__(
        self,
        contract: Contract,
        batch: int,
        capacity: int | None,
        *,
        in_place: bool,
        device: Device | None = None,
    ) -> None:
        """Start empty.

        Args:
            contract: Of the model.
            batch: Rows.
            capacity: Positions that have room at once; None: the room doubles when needed.
            in_place: Keep shared pairs in buffers.
            device: Where all of it lies; None: in host memory.
        """
        self._contract, self._batch, self._capacity = contract, batch, capacity
        self._device = device
        self._specs = {spec.name: spec for spec in contract.inputs}
        self.in_place = [pair for pair in contract.cache if in_place and pair.shared]
        """The pairs that are buffers."""
        self._buffered = {pair.past for pair in self.in_place}
        self.buffers: dict[str, Array | DeviceMemory] = {}
        """None before there is room; see `reserve`."""
        self.generation = 0
        """How often there were new buffers."""
        self._others: dict[str, Array | DeviceMemory] = {}
        """What the other pairs hold; none at the start."""

    def reserve(self, used: int, total: int) -> None:
        """Make room for `total` positions in the buffers."""
        if not self.in_place or total <= self.room:
            return
        if self._capacity is None:
            room = max(SMALLEST, self.room)
            while room < total:
                room *= 2
            room = min(room, self._contract.max_seq_len or room)
        else:
            room = self._capacity
        for pair in self.in_place:
            spec = self._specs[pair.past]
            # Zeros from the system cost nothing until they are written to.
            fresh = np.zeros(spec.shape({"batch": self._batch, "past_seq": room}), spec.host_dtype)
            if used:
                part = self._slots(pair, used)
                fresh[part] = on_host(self.buffers[pair.past])[part]
            self.buffers[pair.past] = self._placed(fresh)
        self.generation += 1

    def put(self, found: Mapping[str, Array | DeviceMemory], used: int) -> None:
        """Keep what a call gave, or another cache of as many rows held; buffers must have room."""
        for pair in self._contract.cache:
            if pair.past not in found:
                continue
            part, given = self._slots(pair, used), found[pair.past]
            if pair.past in self.buffers:
                buffer, new = self.buffers[pair.past], on_host(given)[part]
                if isinstance(buffer, DeviceMemory):
                    buffer.write(part, new)
                else:
                    buffer[part] = new
            elif pair.past not in self._buffered:
                self._others[pair.past] = self._cut(given, part)

    def trim(self, used: int) -> None:
        """Forget the slots that no row uses any more; buffers keep them as room."""
        self.put(dict(self._others), used)

    def held(self, used: int) -> dict[str, Array]:
        """The used slots of all pairs, in host memory; empty at the start."""
        stored = {**self._others, **self.buffers}
        return {
            pair.past: on_host(stored[pair.past])[self._slots(pair, used)]
            for pair in self._contract.cache
            if pair.past in stored
        }

    def feeds(self) -> dict[str, Array | DeviceMemory]:
        """The past of the pairs that are no buffers, as the graph wants it."""
        nothing = {"batch": self._batch, "past_seq": 0, "past_slots": 0}
        found: dict[str, Array | DeviceMemory] = {}
        for pair in self._contract.cache:
            if pair.past in self._buffered:
                continue
            spec, kept = self._specs[pair.past], self._others.get(pair.past)
            if kept is None:
                kept = np.zeros(spec.shape(nothing), spec.host_dtype)
            found[pair.past] = (
                kept if isinstance(kept, DeviceMemory) else np.ascontiguousarray(kept)
            )
        return found

    def rows(self, chosen: Array, used: int) -> dict[str, Array]:
        """`held`, of the chosen rows."""
        return {
            name: np.take(array, chosen, self._axis(name, "batch"))
            for name, array in self.held(used).items()
        }

    @property
    def room(self) -> int:
        """Positions that the buffers hold."""
        if not self.buffers:
            return 0
        name = self.in_place[0].past
        return int(self.buffers[name].shape[self._axis(name, "past_seq")])

    def _cut(self, given: Array | DeviceMemory, part: tuple[slice, ...]) -> Array | DeviceMemory:
        """A part of a tensor, where the cache keeps it; all of one that lies there is itself."""
        if isinstance(given, DeviceMemory):
            sizes = zip(part, given.shape, strict=False)
            if all(one.stop is None or one.stop >= size for one, size in sizes):
                return given
        return self._placed(on_host(given)[part])

    def _placed(self, array: Array) -> Array | DeviceMemory:
        return array if self._device is None else DeviceMemory.of(array, self._device)

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
