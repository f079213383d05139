"""Feed sequences to a cached model in chunks of any length."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.binding import Binding
from causal_onnx.runtime.contract import LAST_ONLY
from causal_onnx.runtime.device_memory import on_host
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.kv_cache import KVCache
from causal_onnx.runtime.request import RequestChecker
from causal_onnx.runtime.steady import SteadyStep
from causal_onnx.runtime.token_mask import token_mask

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.model import Model

    Array = npt.NDArray[Any]

__all__ = ["Stream"]


class Stream:
    """Sequences that a cached model reads chunk by chunk; made by `Model.stream`.

    The outputs for the positions of a chunk are those that one pass over the whole sequence would
    give. The rows of a batch may have different lengths. A stream is not for several threads at
    once; its model is.
    """

    def __init__(self, model: Model, *, batch: int = 1, capacity: int | None = None) -> None:
        """Start `batch` empty sequences with room for `capacity` positions each.

        Raises:
            ValueError: The model has no cache, or `batch` or `capacity` does not fit it.
        """
        contract = model.contract
        if not contract.cache:
            raise ValueError(
                "this model has no KV cache, so it cannot be fed in chunks; export it with "
                "cache=True"
            )
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch must be a positive integer, got {batch!r}")
        if batch > 1 and not any("batch" in spec.axes for spec in contract.inputs):
            raise ValueError(f"this model takes one sequence at a time, got batch={batch}")
        limit = contract.max_seq_len
        if capacity is not None and (
            isinstance(capacity, bool)
            or not isinstance(capacity, int)
            or not 1 <= capacity <= (limit or capacity)
        ):
            raise ValueError(
                "capacity must be a positive number of positions"
                + (f", at most the model's {limit}" if limit else "")
                + f", or None, got {capacity!r}"
            )
        self._model = model
        self._capacity = capacity
        self._limit = capacity or limit
        # What a caller gives is checked; what the stream makes itself is right.
        self._own = contract.without_cache()
        self._checker = RequestChecker(self._own, **model.checks)
        self._may_repeat = not model.checks["check_finite"]
        self._outputs = {spec.name: spec for spec in self._own.outputs}
        self._pasts = {pair.present: pair.past for pair in contract.cache}
        self._lengths = np.zeros(batch, np.int64)
        self._cache = KVCache(
            contract,
            batch,
            capacity,
            in_place=model.writes_in_place,
            device=model.cache_device,
        )
        is_bound = model.writes_in_place or model.cache_device is not None
        self._binding = Binding(model, self._cache, batch) if is_bound else None
        self._steady: SteadyStep | None = None
        """Where the last call read one position per row, and the next may do the same."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions each row has read."""
        return tuple(int(n) for n in self._lengths)

    def __call__(
        self,
        /,
        *inputs: npt.ArrayLike,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
        **named: npt.ArrayLike,
    ) -> Array:
        """Read the next positions, with a model of one output.

        Args:
            *inputs: Arrays (batch, seq, ...) in the contract's order, the new positions only.
            lengths: How many of the `seq` positions count in each row, the first ones; what stands
                behind them is padding, and the output there means nothing. None: all.
            last_only: Give the outputs for the last position that counts of each row only, a
                sequence of one. A language model then computes no other logits.
            **named: Arrays by the name of the input.

        Returns:
            The output for the new positions; of a row without any, with `last_only`, it means
            nothing.

        Raises:
            ValueError: The inputs do not fit, or rows would become longer than the model allows.
        """
        results = self.run(*inputs, lengths=lengths, last_only=last_only, **named)
        if len(results) != 1:
            raise ValueError(
                f"this model has {len(results)} outputs beside its cache ({', '.join(results)}); "
                "call stream.run(...), which gives all by name"
            )
        return next(iter(results.values()))

    def run(
        self,
        /,
        *inputs: npt.ArrayLike,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
        **named: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Read the next positions and give every output but the cache by its name.

        Like calling the stream otherwise. Where it raises, the stream is as it was.
        """
        steady = self._steady
        if steady is not None and lengths is None and not named and steady.takes(inputs):
            outputs = steady.run(inputs)
            self._lengths = self._lengths + 1
            return outputs
        self._steady = None
        contract = self._model.contract
        request = self._checker.check(inputs, named)
        feeds = request.feeds
        seq = self._new_positions(feeds)
        new = self._checked_lengths(lengths, seq)
        used = int(self._lengths.max())
        if contract.mask is not None:
            feeds[contract.mask] = token_mask(self._lengths, new, seq)
        if contract.last_only is not None:
            feeds[LAST_ONLY] = np.array(last_only)
        after = self._lengths + new
        if self._binding is not None:
            is_regular = (new == seq).all() and (seq == 1 or len(new) == 1)
            in_place = used == 0 or bool(is_regular)
            outputs, presents = self._binding.run(feeds, used=used, seq=seq, in_place=in_place)
            if seq == 1 and is_regular and self._may_repeat and not request.unbatched:
                self._steady = self._binding.steady_step(self._own, feeds, after, self._limit)
        else:
            past = {name: on_host(kept) for name, kept in self._cache.feeds().items()}
            outputs = self._model.run_step({**feeds, **past})
            presents = {name: outputs.pop(name) for name in self._pasts}
        self._lengths = after
        self._cache.put({self._pasts[name]: x for name, x in presents.items()}, int(after.max()))
        if last_only:
            outputs = {name: self._last(name, x, new) for name, x in outputs.items()}
        if request.unbatched:
            outputs = {
                name: x if (axis := spec.axis_of("batch")) is None else x.squeeze(axis)
                for name, x in outputs.items()
                if (spec := self._outputs[name])
            }
        return outputs

    def rewind(self, lengths: int | Sequence[int]) -> None:
        """Forget all but the first `lengths` positions, of every row or row by row.

        Raises:
            ValueError: A row is shorter, or the cache keeps a window only and what it would need
                is gone.
        """
        wanted = np.broadcast_to(np.asarray(lengths, np.int64), self._lengths.shape).copy()
        if (wanted < 0).any() or (wanted > self._lengths).any():
            raise ValueError(
                f"cannot rewind to {_listed(wanted)}: the rows have {_listed(self._lengths)} "
                "positions"
            )
        if (wanted == self._lengths).all():
            return
        self._steady = None
        if self._model.contract.mask is None and (wanted != wanted[0]).any():
            raise ValueError("the rows of this model's cache must have the same length")
        for pair in self._model.contract.cache:
            if pair.bounded is not None and self._lengths.max() > pair.bounded:
                raise ValueError(
                    f"cannot rewind: {pair.past!r} keeps the last {pair.bounded} positions only, "
                    "and earlier ones are gone; fork() the stream before what you may take back"
                )
        self._lengths = wanted
        self._cache.trim(int(wanted.max()))

    def fork(self) -> Stream:
        """Another stream that has read the same, and goes on by itself."""
        twin = Stream(self._model, batch=len(self._lengths), capacity=self._capacity)
        twin._take(self._lengths.copy(), self._cache.held(int(self._lengths.max())))
        return twin

    def select(self, rows: Sequence[int]) -> Stream:
        """Another stream of these rows, in this order; a row may be left out, or taken twice.

        Raises:
            ValueError: There is no such row, or none is chosen.
        """
        chosen = np.asarray(rows, np.int64)
        if chosen.ndim != 1 or not len(chosen):
            raise ValueError(f"rows must be a list of at least one row, got {rows!r}")
        if (chosen < 0).any() or (chosen >= len(self._lengths)).any():
            raise ValueError(f"rows are 0 to {len(self._lengths) - 1}, got {_listed(chosen)}")
        twin = Stream(self._model, batch=len(chosen), capacity=self._capacity)
        twin._take(self._lengths[chosen], self._cache.rows(chosen, int(self._lengths.max())))
        return twin

    def _take(self, lengths: Array, held: Mapping[str, Array]) -> None:
        self._lengths, used = lengths, int(lengths.max())
        self._cache.reserve(0, used)
        self._cache.put(held, used)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was read so far, to be taken up by `Model.restore`, in another process too.

        The file is written whole or not at all, and carries a hash of its content.
        """
        from causal_onnx.runtime.saved import write_saved  # noqa: PLC0415 - few save any

        held = self._cache.held(int(self._lengths.max()))
        write_saved(path, self._model.contract, self._lengths, held)

    @classmethod
    def restore(cls, model: Model, path: str | os.PathLike[str]) -> Stream:
        """Take up what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ArtifactError: The file is damaged, no saved stream, or of another model.
        """
        if not model.contract.cache:
            raise ArtifactError(f"{model!r} has no cache, so it takes up no saved stream")
        from causal_onnx.runtime.saved import read_saved  # noqa: PLC0415 - few restore any

        lengths, found = read_saved(path, model.contract, model=repr(model))
        stream = cls(model, batch=len(lengths))
        stream._take(lengths, found)
        return stream

    def _new_positions(self, feeds: Mapping[str, Array]) -> int:
        """How many positions the inputs hold, checked against the batch of the stream."""
        seq = 0
        for spec in self._own.inputs:
            array = feeds[spec.name]
            batch = spec.axis_of("batch")
            if batch is not None and array.shape[batch] != len(self._lengths):
                raise ValueError(
                    f"input {spec.name!r} has a batch of {array.shape[batch]}, but the stream was "
                    f"started with batch={len(self._lengths)}"
                )
            axis = spec.axis_of("seq")
            seq = seq if axis is None else array.shape[axis]
        return seq

    def _last(self, name: str, output: Array, new: Array) -> Array:
        """`output` at the last new position of each row, where the graph has not chosen it."""
        spec = self._outputs[name]
        axis, batch = spec.axis_of("seq"), spec.axis_of("batch")
        if axis is None or name == self._model.contract.last_only:
            return output
        places = np.maximum(new - 1, 0)
        if batch is None:
            first: Array = np.take(output, places, axis)
            return first
        shape = [1] * output.ndim
        shape[batch] = len(places)
        chosen: Array = np.take_along_axis(output, places.reshape(shape), axis)
        return chosen

    def _checked_lengths(self, lengths: Sequence[int] | None, seq: int) -> Array:
        """The new positions of each row."""
        contract = self._model.contract
        if lengths is None:
            new = np.full(len(self._lengths), seq, np.int64)
        else:
            new = np.asarray(lengths, np.int64)
            if new.shape != self._lengths.shape:
                raise ValueError(
                    f"lengths must hold one number for each of the {len(self._lengths)} rows, got "
                    f"{lengths!r}"
                )
            if (new < 0).any() or (new > seq).any():
                raise ValueError(f"lengths must lie in [0, {seq}], got {_listed(new)}")
            if contract.mask is None and (new != seq).any():
                raise ValueError("the rows of this model's cache must have the same length")
        # Padding is computed too, at positions that a table of the model must have.
        most = int(self._lengths.max()) + seq
        if self._limit is not None and most > self._limit:
            whose = "the model accepts" if self._capacity is None else "the stream has room for"
            raise ValueError(
                f"{seq} positions after {int(self._lengths.max())} make {most}; {whose} "
                f"at most {self._limit}"
            )
        return new


def _listed(numbers: Array) -> str:
    return ", ".join(str(int(n)) for n in numbers)
