"""Run a model with buffers of a stream's cache bound as past and present at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import LAST_ONLY, Contract, TensorSpec
from causal_onnx.runtime.session.device_memory import DeviceMemory
from causal_onnx.runtime.session.ort import import_onnxruntime
from causal_onnx.runtime.stream.kv_cache import KVCache, Read
from causal_onnx.runtime.stream.repeated_step import RepeatedStep
from causal_onnx.runtime.stream.staying import free_axis_places

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.runner import Runner

    Array = npt.NDArray[Any]

__all__ = ["Binding"]


class Binding:
    """The inputs and outputs of one stream, bound by name; the buffers stay so from call to call.

    A binding whose call raised is of no further use: it may know less than what is bound.

    Source: https://onnxruntime.ai/docs/api/python/api_summary.html (IOBinding).
    """

    def __init__(self, model: Runner, cache: KVCache, batch: int) -> None:
        self._model, self._cache, self._batch = model, cache, batch
        self._device = model.cache_device
        contract = model.contract
        self._bounded = {pair.present: pair.bounded for pair in contract.cache}
        shared = {pair.present for pair in cache.in_place}
        others = [spec for spec in contract.outputs if spec.name in self._bounded.keys() - shared]
        self._in_place = [spec for spec in contract.outputs if spec.name in shared]
        self._copied = others if self._device is None else []
        """Presents that come as arrays of their own."""
        self._handed_on = {pair.present: pair.past for pair in contract.cache if pair.computed_from}
        """Presents that are the past where no row begins, and are bound to its memory then."""
        self._staying = [] if self._device is None else [spec.name for spec in others]
        """Presents that stay on the device, where onnxruntime allocates them."""
        self._outputs = [spec for spec in contract.outputs if spec.name not in self._bounded]
        self._free = free_axis_places(contract)
        self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._io = model.new_binding()
        self._bound: Mapping[str, Array | DeviceMemory] = {}
        """The buffers that are bound as past."""
        self._are_bound = False
        """Whether they are bound as present too."""
        self._order: dict[str, None] = {}
        """Names of the outputs, as they were bound first."""

    def run(
        self, feeds: Mapping[str, Array], read: Read, *, seq: int, in_place: bool
    ) -> tuple[dict[str, Array], dict[str, Array | DeviceMemory]]:
        """One call.

        Args:
            feeds: The inputs but for the past, checked; the mask, if there is one, among them.
            read: What the rows have read before this call.
            seq: How many positions are new.
            in_place: Whether the graph writes the new positions into the buffers.

        Returns:
            The outputs, and the presents that were not written into buffers, where they lie.

        Raises:
            RunError: onnxruntime failed.
        """
        contract, used = self._model.contract, read.used
        self._cache.reserve(used, used + seq)
        if self._bound is not self._cache.buffers:
            self._bound, self._are_bound = self._cache.buffers, False
            for name, buffer in self._cache.buffers.items():
                self._io.bind_ortvalue_input(name, self._value_of(buffer))
        free = {str(axis): feeds[name].shape[place] for axis, (name, place) in self._free.items()}
        inputs = {**feeds, **self._cache.feeds(read, free)}
        for name, kept in inputs.items():
            self._io.bind_ortvalue_input(name, self._value_of(kept))
        sizes = {"batch": self._batch, "seq": seq, "past_seq": used, "total_seq": used + seq}
        sizes |= free
        last_only = LAST_ONLY in feeds and bool(feeds[LAST_ONLY])
        # An output's memory is bound anew for each call: the caller may keep what he got.
        outputs = {
            spec.name: self._allocated(
                spec,
                {**sizes, "seq": 1} if last_only and spec.name == contract.last_only else sizes,
            )
            for spec in self._outputs
        }
        copied = self._copied if in_place else (*self._copied, *self._in_place)
        handed_on = self._handed_on if read.lengths.all() else {}
        presents: dict[str, Array | DeviceMemory] = {
            spec.name: inputs[handed_on[spec.name]]
            if spec.name in handed_on
            else self._allocated(spec, sizes)
            for spec in copied
        }
        if not in_place:
            self._are_bound = False
        elif not self._are_bound:
            for pair in self._cache.in_place:
                self._bind_output(pair.present, self._cache.buffers[pair.past])
            self._are_bound = True
        for name, kept in (*outputs.items(), *presents.items()):
            self._bind_output(name, kept)
        for name in self._staying:
            assert self._device is not None
            self._io.bind_output(name, self._device.kind, self._device.index)
            self._order[name] = None
        self._model.run_bound(self._io, inputs)
        if self._staying:
            given = dict(zip(self._order, self._io.get_outputs(), strict=True))
            presents |= {name: DeviceMemory(given[name]) for name in self._staying}
        return outputs, presents

    def _value_of(self, kept: Array | DeviceMemory) -> Any:
        return kept.value if isinstance(kept, DeviceMemory) else self._value(kept)

    def _bind_output(self, name: str, kept: Array | DeviceMemory) -> None:
        self._io.bind_ortvalue_output(name, self._value_of(kept))
        self._order[name] = None

    def repeated_step(
        self,
        own: Contract,
        feeds: Mapping[str, Array],
        moving: Sequence[str],
        lengths: Array,
        most: int | None,
    ) -> RepeatedStep | None:
        """What takes more steps like the last run; None where not all can stay bound.

        Args:
            own: The contract without the cache.
            feeds: As for that run, of one position per row.
            moving: Those of the inputs of `own` that are not the same in the next steps.
            lengths: Positions that the rows have read, that run's among them.
            most: Positions that a row may have, if there is a limit.
        """
        is_all = len(self._cache.in_place) == len(self._model.contract.cache)
        if not self._are_bound or not is_all or not RepeatedStep.fits(own):
            return None
        room = self._cache.room
        most = room if most is None else min(room, most)
        return RepeatedStep(
            self._model, self._io, own, feeds, moving=moving, lengths=lengths, most=most
        )

    def _allocated(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
        bounded = self._bounded.get(spec.name)
        slots = 0 if bounded is None else min(bounded, sizes["total_seq"])
        return np.empty(spec.shape({**sizes, "present_slots": slots}), spec.dtype)
