"""What of a contract depends on inputs that stay as they are for all calls of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract

    Array = npt.NDArray[Any]

__all__ = ["Begun", "free_axis_places", "without_inputs"]


class Begun:
    """The inputs that rows began with, where the model reads these in a row's first call only.

    What later calls give in their place is not read, so it must be the same.
    """

    def __init__(self, contract: Contract, values: Mapping[str, Array] | None = None) -> None:
        """Hold what other rows began with; None: nothing.

        Args:
            contract: Of the model.
            values: By name, one row for each of the stream.
        """
        self._names = sorted(contract.once_names)
        self._axes = {spec.name: spec.axis_of("batch") for spec in contract.inputs}
        self.values: Mapping[str, Array] = dict(values or {})
        """By name; of rows that have read nothing they mean nothing."""

    def check(self, feeds: Mapping[str, Array], lengths: Array) -> None:
        """Compare with what a call gives, and hold that for the rows that begin.

        Args:
            feeds: The inputs, checked.
            lengths: (batch,), what the rows have read before.

        Raises:
            ValueError: A row that has read something is given another value.
        """
        if not self._names or self._are_held(feeds):
            return
        for name, value in self.values.items():
            begun, axis = np.flatnonzero(lengths), self._axes[name]
            held, given = (
                x if axis is None or x.shape != value.shape else x.take(begun, axis)
                for x in (value, feeds[name])
            )
            if len(begun) and not np.array_equal(held, given):
                raise ValueError(
                    f"input {name!r} is not what the sequence began with: this model reads it in "
                    "the first call, and computes once what follows from it. Give the same in "
                    "every call, or start another stream"
                )
        self.values = {name: feeds[name].copy() for name in self._names}

    def _are_held(self, feeds: Mapping[str, Array]) -> bool:
        return bool(self.values) and all(
            np.array_equal(self.values[name], feeds[name]) for name in self._names
        )

    def rows(self, chosen: Array) -> dict[str, Array]:
        """The values of the chosen rows."""
        return {
            name: value if (axis := self._axes[name]) is None else value.take(chosen, axis)
            for name, value in self.values.items()
        }


def free_axis_places(contract: Contract) -> dict[str, tuple[str, int]]:
    """Where the sizes of the free axes are seen: axis -> an input that a caller gives, its axis."""
    free, pasts = {axis.name for axis in contract.free_axes}, contract.past_names
    return {
        axis: (spec.name, place)
        for spec in contract.inputs
        if spec.name not in pasts
        for place, axis in enumerate(spec.axes)
        if isinstance(axis, str) and axis in free
    }


def without_inputs(contract: Contract, names: Mapping[str, object]) -> Contract:
    """What is left for the caller where these inputs are given beforehand.

    Outputs along their axes are left out, and so is what a cache computes of them once.

    Raises:
        ValueError: One is no input of the contract.
    """
    known = [spec.name for spec in contract.inputs]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown input {name!r}; the inputs are {', '.join(known)}")
    once = [pair for pair in contract.cache if not names.keys().isdisjoint(pair.computed_from)]
    pasts, presents = {pair.past for pair in once}, {pair.present for pair in once}
    inputs = tuple(s for s in contract.inputs if s.name not in names and s.name not in pasts)
    used = {axis for spec in inputs for axis in spec.axes}
    free = tuple(axis for axis in contract.free_axes if axis.name in used)
    gone = {axis.name for axis in contract.free_axes} - {axis.name for axis in free}
    outputs = tuple(
        s for s in contract.outputs if not gone & set(s.axes) and s.name not in presents
    )
    cache = tuple(pair for pair in contract.cache if pair not in once)
    return replace(contract, inputs=inputs, outputs=outputs, free_axes=free, cache=cache)
