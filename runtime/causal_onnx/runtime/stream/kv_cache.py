"""Where a stream keeps keys and values: tensors as the graph gives them, or buffers it writes into.

Most caches come out of each call as new arrays, past and new positions together. A pair that the
contract calls shared may be one buffer with room for positions to come: the graph reads the past
from it and writes the new positions behind, and nothing is copied from step to step. Both kinds
lie in host memory, or on the GPU that the model runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from causal_onnx.runtime.contract import CachePair, Contract
from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.session.device_memory import DeviceMemory, on_host

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["KVCache", "Read", "token_mask"]

SMALLEST = 64
"""Positions that a buffer has room for at first, unless the caller says how many."""


class Read(NamedTuple):
    """What the rows of a stream have read. It is never changed, only replaced by another, in one
    assignment: whatever interrupts a call, the stream has all of the old or all of the new."""

    lengths: Array
    """(batch,) int64, positions of each row."""
    others: Mapping[str, Array | DeviceMemory]
    """What the pairs hold that are no buffers, by the name of the past; none at the start."""

    @property
    def used(self) -> int:
        """The most positions that any row holds."""
        return int(self.lengths.max())


class KVCache:
    """Memory for keys and values of the rows of one stream, by the name of the past.

    Of the buffers only what lies behind a row's positions changes its content, so that a call that
    ends halfway has changed nothing of what was read before.
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
        self.buffers: Mapping[str, Array | DeviceMemory] = {}
        """None before there is room; others, all at once, when the room grows. See `reserve`."""

    def reserve(self, used: int, total: int) -> None:
        """Make room in the buffers for `total` positions, of which the first `used` are kept."""
        if not self.in_place or total <= self.room:
            return
        if self._capacity is None:
            room = max(SMALLEST, self.room)
            while room < total:
                room *= 2
            room = min(room, self._contract.max_seq_len or room)
        else:
            room = self._capacity
        grown = {}
        for pair in self.in_place:
            spec = self._specs[pair.past]
            # Zeros from the system cost nothing until they are written to.
            fresh = np.zeros(spec.shape({"batch": self._batch, "past_seq": room}), spec.host_dtype)
            if used:
                part = self._slots(pair, used)
                fresh[part] = on_host(self.buffers[pair.past])[part]
            grown[pair.past] = self._placed(fresh)
        self.buffers = grown

    def put(self, found: Mapping[str, Array | DeviceMemory], lengths: Array) -> Read:
        """What rows of these lengths have read, where a call gave `found` or another cache held it.

        Buffers must have room. They get the new positions; those before hold the same already.
        """
        used, others = int(lengths.max()), {}
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
                others[pair.past] = self._cut(given, part)
        return Read(lengths, others)

    def held(self, read: Read) -> dict[str, Array]:
        """The used slots of all pairs, in host memory; empty at the start. Not for writing."""
        stored = {**read.others, **self.buffers}
        return {
            pair.past: on_host(stored[pair.past])[self._slots(pair, read.used)]
            for pair in self._contract.cache
            if pair.past in stored
        }

    def feeds(self, read: Read, free: Mapping[str, int]) -> dict[str, Array | DeviceMemory]:
        """The past of the pairs that are no buffers, as the graph wants it.

        Args:
            read: What the rows have read.
            free: The sizes of the free axes in this call.
        """
        nothing = {"batch": self._batch, "past_seq": 0, "past_slots": 0, **free}
        found: dict[str, Array | DeviceMemory] = {}
        for pair in self._contract.cache:
            if pair.past in self._buffered:
                continue
            spec, kept = self._specs[pair.past], read.others.get(pair.past)
            if kept is None or not read.used:  # free axes may have other sizes than before
                kept = np.zeros(spec.shape(nothing), spec.host_dtype)
            elif self._is_aligned(read.lengths):
                kept = self._shifted(pair, on_host(kept), read.used - read.lengths)
            found[pair.past] = (
                kept if isinstance(kept, DeviceMemory) else np.ascontiguousarray(kept)
            )
        return found

    def packed(
        self, presents: Mapping[str, Array | DeviceMemory], read: Read
    ) -> Mapping[str, Array | DeviceMemory]:
        """What a call gave, by the name of the past, with each row's positions from slot 0 on."""
        if not self._is_aligned(read.lengths):
            return presents
        return {
            pair.past: self._shifted(pair, on_host(presents[pair.past]), read.lengths - read.used)
            for pair in self._contract.cache
        }

    def _is_aligned(self, lengths: Array) -> bool:
        """Whether the graph wants the rows' pasts to end in the same column, padding first."""
        return self._contract.ragged == "left" and bool((lengths != lengths[0]).any())

    def _shifted(self, pair: CachePair, array: Array, steps: Array) -> Array:
        """A copy with each row moved along the positions, zeros where nothing is then."""
        axis = self._axis(pair.past, "past_seq")
        moved = np.zeros_like(array)
        before = (slice(None),) * axis
        for row, step in enumerate(steps.tolist()):
            source = slice(max(0, -step), array.shape[axis] - max(0, step))
            target = slice(max(0, step), array.shape[axis] - max(0, -step))
            moved[row : row + 1][(*before, target)] = array[row : row + 1][(*before, source)]
        return moved

    def rows(self, chosen: Array, read: Read) -> dict[str, Array]:
        """`held`, of the chosen rows."""
        return {
            name: np.take(array, chosen, self._axis(name, "batch"))
            for name, array in self.held(read).items()
        }

    def joined(self, pieces: Sequence[Mapping[str, Array]], used: int) -> dict[str, Array]:
        """What rows of their own held, each with `used` slots at most, as `held` has it of all."""
        found = {}
        for pair in self._contract.cache:
            spec = self._specs[pair.past]
            whole = np.zeros(spec.shape({"batch": len(pieces), "past_seq": used}), spec.host_dtype)
            for row, piece in enumerate(pieces):
                if pair.past in piece:  # of a row without positions there may be nothing
                    part = piece[pair.past]
                    slots = self._slots(pair, part.shape[self._axis(pair.past, "past_seq")])
                    whole[row : row + 1][slots] = part
            found[pair.past] = whole
        return found

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


def token_mask(
    lengths: Array, new: Array, seq: int, *, dtype: str = "int64", ragged: str = "packed"
) -> Array:
    """1 for the positions that count, past columns first; rows differ by their sums only.

    Args:
        lengths: (batch,), positions that each row has read before the call.
        new: (batch,), how many of the call's count.
        seq: How many the call has.
        dtype: Of the mask.
        ragged: `Contract.ragged`; "left": the past columns are as `KVCache.feeds` aligns them.

    Returns:
        (batch, max(lengths) + seq), as `Contract.mask` says.
    """
    if (lengths == lengths[0]).all() and (new == seq).all():
        return np.ones((len(new), int(lengths[0]) + seq), dtype)
    past = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    if ragged == "left":
        past = past[:, ::-1]
    now = np.arange(seq)[None, :] < new[:, None]
    return np.concatenate([past, now], axis=1).astype(dtype)
