"""Rows that share one set of buffers, so that sequences can join, leave and wait without copies.

A graph that writes into its cache in place (`CachePair.shared`) takes any run of neighbouring rows
of a buffer as its whole cache: they are contiguous. So the sequences of a server each have a row,
those that are decoded lie next to each other and are one call, and a prompt is read into a row
behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import LARGEST_AXIS
from causal_onnx.runtime.request.whole_numbers import MOST_ROWS, whole_number, whole_numbers
from causal_onnx.runtime.stream.kv_cache import KVCache
from causal_onnx.runtime.stream.stream import Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.runner import Runner

    Array = npt.NDArray[Any]

__all__ = ["RowPool"]


class RowPool:
    """Keys and values of a fixed number of rows, of which any neighbours are a stream.

    The pool knows nothing of what a row holds: whoever uses it keeps the lengths, and lets no two
    streams that have a row in common run at once. Memory is taken as positions are written.
    """

    def __init__(self, model: Runner, *, rows: int, capacity: int) -> None:
        """Make room.

        Args:
            model: One that `fits`.
            rows: How many.
            capacity: Positions of each.

        Raises:
            ValueError: The model's cache cannot be shared so, or a number does not fit it.
        """
        contract = model.contract
        if not self.fits(model):
            raise ValueError(
                "the rows of this model's cache cannot share buffers: that takes a cache which is "
                "shared as a whole, with the batch as its first axis, in host memory; give each "
                "sequence a stream of its own"
            )
        rows = whole_number("rows", rows, most=MOST_ROWS, wanted="a positive integer")
        most = contract.max_seq_len or LARGEST_AXIS
        capacity = whole_number(
            "capacity", capacity, most=most, wanted=f"a number of positions from 1 to {most}"
        )
        self._model, self._rows, self._capacity = model, rows, capacity
        specs = {spec.name: spec for spec in contract.inputs}
        sizes = {"batch": rows, "past_seq": capacity}
        # Zeros from the system cost nothing until they are written to.
        self._buffers = {
            pair.past: np.zeros(specs[pair.past].shape(sizes), specs[pair.past].host_dtype)
            for pair in contract.cache
        }
        self._axes = {pair.past: specs[pair.past].axes.index("past_seq") for pair in contract.cache}

    @staticmethod
    def fits(model: Runner) -> bool:
        """Whether the rows of a model's cache can be used in place, each by itself."""
        contract = model.contract
        axes = [spec.axes for spec in contract.inputs if spec.name in contract.past_names]
        return (
            model.writes_in_place
            and model.cache_device is None
            and all(pair.shared for pair in contract.cache)
            and all(found[0] == "batch" for found in axes)
        )

    @property
    def capacity(self) -> int:
        """Positions of each row."""
        return self._capacity

    def stream(
        self,
        first: int,
        lengths: Sequence[int],
        *,
        adapters: Sequence[str | None] | None = None,
    ) -> Stream:
        """The rows from `first` on as one stream, which reads and writes them in place.

        Args:
            first: The first row.
            lengths: How many positions each of the rows holds, one number a row.
            adapters: The name of each row's adapter, or None; None: no row has one.

        Raises:
            ValueError: There are no such rows, a length is above the capacity, or there is no such
                adapter.
        """
        held = whole_numbers("lengths", lengths)
        stop = first + len(held)
        if first < 0 or stop > self._rows:
            raise ValueError(f"rows are 0 to {self._rows - 1}, got {first} to {stop - 1}")
        if (held < 0).any() or (held > self._capacity).any():
            raise ValueError(f"lengths must lie in [0, {self._capacity}], got {held.tolist()}")
        cache = KVCache(self._model.contract, len(held), self._capacity, in_place=True)
        cache.buffers = {name: buffer[first:stop] for name, buffer in self._buffers.items()}
        return Stream.on(self._model, cache, held, capacity=self._capacity, adapters=adapters)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a row hold the first `length` positions of another."""
        for name, buffer in self._buffers.items():
            part = (slice(None),) * (self._axes[name] - 1) + (slice(0, length),)
            buffer[target][part] = buffer[source][part]
