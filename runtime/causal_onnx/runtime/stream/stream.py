"""Feed sequences to a cached model in chunks of any length."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import LARGEST_AXIS, LAST_ONLY, TensorSpec
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.request.computed import computed_inputs
from causal_onnx.runtime.request.convert import read_array
from causal_onnx.runtime.request.whole_numbers import MOST_ROWS, whole_number, whole_numbers
from causal_onnx.runtime.session.device_memory import on_host
from causal_onnx.runtime.stream.binding import Binding
from causal_onnx.runtime.stream.given import GivenInputs
from causal_onnx.runtime.stream.kv_cache import KVCache, Read, token_mask
from causal_onnx.runtime.stream.repeated_step import RepeatedStep
from causal_onnx.runtime.stream.staying import Begun, free_axis_places

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.device import Device
    from causal_onnx.runtime.session.runner import Runner
    from causal_onnx.runtime.stream.given import Given

    Array = npt.NDArray[Any]

__all__ = ["Stream"]

MOST = (1 << 63) - 1
"""What int64 holds."""


class Stream:
    """Sequences that a cached model reads chunk by chunk; made by `Model.stream`.

    The outputs for the positions of a chunk are those that one pass over the whole sequence would
    return. The rows of a batch may have different lengths. Only one thread may use a stream at a
    time, and a second one gets a RuntimeError; the model may be used by several threads.

    Whatever ends a call, an interrupt (KeyboardInterrupt) or a lack of memory among them, the
    stream has read all of the chunk or none of it, and `lengths` says which; or it was interrupted
    where it cannot know, and refuses any further use with a RuntimeError that says so.
    """

    def __init__(
        self,
        model: Runner,
        *,
        batch: int = 1,
        capacity: int | None = None,
        inputs: Mapping[str, Given] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> None:
        """Start `batch` empty sequences with room for `capacity` positions each.

        `inputs` are part of every call, or of those for the first positions (`GivenInputs`).
        `adapters` names that of each row; None: none has one.

        Raises:
            ValueError: The model has no cache, or `batch`, `capacity`, `inputs` or `adapters` do
                not fit it.
        """
        contract = model.contract
        if not contract.cache:
            raise ValueError(
                "this model has no KV cache, so it cannot be fed in chunks; export it with "
                "cache=True"
            )
        batch = whole_number("batch", batch, most=MOST_ROWS, wanted="a positive integer")
        if batch > 1 and not any("batch" in spec.axes for spec in contract.inputs):
            raise ValueError(f"this model takes one sequence at a time, got batch={batch}")
        limit = contract.max_seq_len
        if capacity is not None:
            at_most = f", at most the model's {limit}" if limit else ""
            capacity = whole_number(
                "capacity",
                capacity,
                most=limit,
                wanted=f"a positive number of positions{at_most}, or None",
            )
        self._model = model
        self._capacity = capacity
        self._limit = capacity or limit or LARGEST_AXIS
        # What a caller gives is checked; what the stream makes itself is right.
        self._own = contract.without_cache()
        self._checker = model.checker_of(self._own, batch=batch)
        given = GivenInputs(self._own, inputs or {}, batch, cast=model.options.cast)
        self._given, self._covered = given, given.covered
        self.adapters = self._checked_adapters(adapters, batch)
        """The name of each row's adapter, or None."""
        self._adapted = model.adapters.inputs(self.adapters) if contract.adapters else {}
        """Those adapters, as inputs of every call."""
        # A repeated step checks nothing but ids.
        is_ranged = any(spec.value_range is not None for spec in self._own.inputs)
        self._may_repeat = not model.options.check_finite and not is_ranged
        self._outputs = {spec.name: spec for spec in self._own.outputs}
        self._only = self._own.outputs[0].name if len(self._outputs) == 1 else None
        self._pasts = {pair.present: pair.past for pair in contract.cache}
        self._cache = KVCache(
            contract,
            batch,
            capacity,
            in_place=model.writes_in_place,
            device=model.cache_device,
        )
        self._read = Read(np.zeros(batch, np.int64), {})
        self._begun = Begun(contract)
        self._free = free_axis_places(contract)
        self._is_in_use = False
        """While a call changes something."""
        self._is_bound = model.writes_in_place or model.cache_device is not None
        # Both are taken out of here by the call that uses them, and put back when it is done: one
        # that was interrupted leaves neither behind.
        self._binding: Binding | None = None
        self._repeated: RepeatedStep | None = None
        """Where the last call read one position per row, and the next may do the same."""

    def _checked_adapters(
        self, adapters: Sequence[str | None] | None, batch: int
    ) -> tuple[str | None, ...]:
        if adapters is None:
            return (None,) * batch
        if isinstance(adapters, str) or len(adapters) != batch:
            raise ValueError(
                f"adapters must hold a name or None for each of {batch} rows, got {adapters!r}"
            )
        self._model.adapters.check_names(adapters)
        return tuple(adapters)

    @classmethod
    def on(
        cls,
        model: Runner,
        cache: KVCache,
        lengths: Array,
        *,
        capacity: int,
        adapters: Sequence[str | None] | None = None,
    ) -> Stream:
        """A stream of rows that have read `lengths` positions, which `cache` holds in buffers.

        Args:
            model: Whose cache it is.
            cache: All of it in buffers, with room for `capacity` positions, which are written to.
            lengths: (batch,), int64.
            capacity: Positions that each row may have.
            adapters: The name of each row's adapter, or None.
        """
        stream = cls(model, batch=len(lengths), capacity=capacity, adapters=adapters)
        stream._cache = cache
        stream._read = Read(lengths, {})
        return stream

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions each row has read."""
        return tuple(self._read.lengths.tolist())

    @property
    def covered(self) -> tuple[int, ...]:
        """For how many of its first positions each row was given inputs when it was started."""
        return tuple(self._covered.tolist())

    @property
    def device(self) -> Device:
        """Where the model computes."""
        return self._model.device

    @property
    def takes_chunks(self) -> bool:
        """Whether one call of the graph may read several positions behind others."""
        return self._model.contract.ragged not in ("steps", "single")

    @property
    def _moving(self) -> list[str]:
        """The inputs that each call is given."""
        names = self._given.names
        return [spec.name for spec in self._own.inputs if spec.name not in names]

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
            RuntimeError: Another thread uses the stream, or a call of it was interrupted.
            RunError: onnxruntime failed.
        """
        if self._only is None:
            raise ValueError(
                f"this model has {len(self._outputs)} outputs besides its cache "
                f"({', '.join(self._outputs)}); call stream.run(...), which returns all of them "
                "by name"
            )
        return self.run(*inputs, lengths=lengths, last_only=last_only, **named)[self._only]

    def run(
        self,
        /,
        *inputs: npt.ArrayLike,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
        **named: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Read the next positions and return every output but the cache by its name.

        Like calling the stream otherwise.
        """
        if self._is_in_use:
            raise self._refusal()
        # No call stands between the question and this, so no other thread and no interrupt does.
        self._is_in_use = True
        try:
            repeated, self._repeated = self._repeated, None
            if repeated is None or lengths is not None or named or not repeated.takes(inputs):
                return self._step(inputs, named, lengths, last_only=last_only)
            outputs = repeated.run(inputs)
            self._read = Read(repeated.lengths, self._read.others)
            self._repeated = repeated
            return outputs
        finally:
            self._is_in_use = False

    def _step(
        self,
        inputs: Sequence[npt.ArrayLike],
        named: Mapping[str, npt.ArrayLike],
        lengths: Sequence[int] | None,
        *,
        last_only: bool,
    ) -> dict[str, Array]:
        """Any call."""
        contract, read = self._model.contract, self._read
        if self._given.names:
            inputs, named = (), self._with_given(inputs, named)
        request = self._checker.check(inputs, named)
        feeds = request.feeds
        seq = self._new_positions(feeds)
        new = self._checked_lengths(lengths, seq)
        self._begun.check(feeds, read.lengths)
        if not self._shares_a_call(read, new, seq):
            return self._one_by_one(feeds, new, seq, last_only=last_only)
        feeds |= self._made_up(read, new, seq) | self._adapted
        if contract.last_only is not None:
            feeds[LAST_ONLY] = np.array(last_only)
        after = read.lengths + new
        binding, self._binding = self._binding, None
        repeated = None
        if self._is_bound:
            binding = binding or Binding(self._model, self._cache, len(new))
            is_regular = bool((new == seq).all()) and (seq == 1 or len(new) == 1)
            in_place = read.used == 0 or is_regular or contract.shares_every_call
            outputs, presents = binding.run(feeds, read, seq=seq, in_place=in_place)
            # The next step is like this one only if this one has left behind what was given.
            is_alike = seq == 1 and is_regular and bool((read.lengths >= self._covered).all())
            if is_alike and self._may_repeat and not request.unbatched:
                repeated = binding.repeated_step(self._own, feeds, self._moving, after, self._limit)
        else:
            free = {axis: feeds[name].shape[at] for axis, (name, at) in self._free.items()}
            past = {name: on_host(kept) for name, kept in self._cache.feeds(read, free).items()}
            outputs = self._model.run_step({**feeds, **past})
            presents = {name: outputs.pop(name) for name in self._pasts}
        found = {self._pasts[name]: x for name, x in presents.items()}
        read = self._cache.put(self._cache.packed(found, read), after)
        if last_only:
            outputs = {name: self._last(name, x, new) for name, x in outputs.items()}
        if request.unbatched:
            outputs = {
                name: x if (axis := spec.axis_of("batch")) is None else x.squeeze(axis)
                for name, x in outputs.items()
                if (spec := self._outputs[name])
            }
        self._read = read
        self._binding, self._repeated = binding, repeated
        return outputs

    def _with_given(
        self, inputs: Sequence[npt.ArrayLike], named: Mapping[str, npt.ArrayLike]
    ) -> dict[str, npt.ArrayLike]:
        """All inputs of a call by name, those among them that were given at the start."""
        moving, names = self._moving, self._given.names
        if len(inputs) > len(moving):
            raise ValueError(
                f"got {len(inputs)} positional inputs, expected at most {len(moving)}: "
                f"{', '.join(moving)} (beside what the stream was started with, "
                f"{', '.join(sorted(names))})"
            )
        found = dict(zip(moving, inputs, strict=False))
        for name in named:
            if name in found or name in names:
                how = "when the stream was started" if name in names else "by position"
                raise ValueError(f"input {name!r} was given {how}, and now by name")
        found |= named
        return found | self._given.feeds(self._read.lengths, self._stated_positions(found))

    def _stated_positions(self, inputs: Mapping[str, npt.ArrayLike]) -> int:
        """How many positions inputs that are not checked yet state; 1 where they do not fit."""
        for spec in self._own.inputs:
            axis = spec.axis_of("seq")
            if axis is not None and spec.name in inputs:
                shape = read_array(spec, inputs[spec.name], cast=self._model.options.cast).shape
                if len(shape) == len(spec.axes):
                    seq = int(shape[axis])
                    self._check_room(seq)
                    return seq
        return 1

    def _made_up(self, read: Read, new: Array, seq: int) -> dict[str, Array]:
        """The mask and the computed inputs of a call."""
        contract = self._model.contract
        feeds, mask = {}, None
        if contract.mask is not None:
            dtype = next(spec.dtype for spec in contract.inputs if spec.name == contract.mask)
            mask = token_mask(read.lengths, new, seq, dtype=dtype, ragged=contract.ragged)
            feeds[contract.mask] = mask
        if contract.computed:
            sizes = {"batch": len(new), "past_seq": read.used, "seq": seq}
            feeds |= computed_inputs(contract, mask, **sizes)
        return feeds

    def _shares_a_call(self, read: Read, new: Array, seq: int) -> bool:
        """Whether one call of the graph may read this for all rows."""
        ragged = self._model.contract.ragged
        if ragged == "packed_steps":
            is_full = bool((new == seq).all())
            return read.used == 0 or (is_full and (seq == 1 or len(new) == 1))
        if ragged in ("none", "steps", "single"):
            is_even = bool((new == seq).all() and (read.lengths == read.lengths[0]).all())
            return is_even and (seq == 1 or self._takes_chunks(read))
        return True

    def _takes_chunks(self, read: Read) -> bool:
        """Whether a call for rows that were read so far may be of several positions."""
        is_start = self._model.contract.ragged == "steps" and read.used == 0
        return self.takes_chunks or is_start

    def _one_by_one(
        self, feeds: Mapping[str, Array], new: Array, seq: int, *, last_only: bool
    ) -> dict[str, Array]:
        """Read the new positions of each row alone, without padding, and join the rows again.

        Where the graph takes no chunk there, one position after the other.
        """
        read, batch = self._read, len(new)
        sizes = {
            axis: size
            for spec in self._own.inputs
            for axis, size in zip(spec.axes, feeds[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        sizes |= {"batch": batch, "seq": 1 if last_only else seq}
        outputs = {
            name: np.zeros(spec.shape(sizes), spec.host_dtype)
            for name, spec in self._outputs.items()
        }
        pieces = []
        for row in range(batch):
            alone = Stream(self._model, adapters=self.adapters[row : row + 1])
            alone.take_over(read.lengths[[row]], self._cache.rows(np.array([row]), read))
            count = int(new[row])
            with alone.reading() as (own_read, _):
                step = max(count, 1) if self._takes_chunks(own_read) else 1
            for start in range(0, count, step):
                places = slice(start, start + step)
                own = [_part(spec, feeds[spec.name], row, places) for spec in self._own.inputs]
                for name, value in alone.run(*own, last_only=last_only).items():
                    given = slice(0, 1) if last_only else places
                    _part(self._outputs[name], outputs[name], row, given)[...] = value
            with alone.reading() as (_, held):
                pieces.append(dict(held))
        lengths = read.lengths + new
        self._cache.reserve(read.used, int(lengths.max()))
        self._read = self._cache.put(self._cache.joined(pieces, int(lengths.max())), lengths)
        return outputs

    def rewind(self, lengths: int | Sequence[int]) -> None:
        """Forget all but the first `lengths` positions, of every row or row by row.

        Raises:
            ValueError: A row is shorter, or the cache keeps a window only and what it would need
                is gone.
        """
        if self._is_in_use:
            raise self._refusal()
        self._is_in_use = True
        try:
            self._rewind(lengths)
        finally:
            self._is_in_use = False

    def _rewind(self, lengths: int | Sequence[int]) -> None:
        read = self._read
        if isinstance(lengths, Sequence) or np.ndim(lengths):
            wanted = whole_numbers("lengths", lengths, count=len(read.lengths))
        else:
            one = whole_number("lengths", lengths, least=-MOST, most=MOST, wanted="whole numbers")
            wanted = np.full(len(read.lengths), one)
        if (wanted < 0).any() or (wanted > read.lengths).any():
            raise ValueError(
                f"cannot rewind to {_listed(wanted)}: the rows have {_listed(read.lengths)} "
                "positions"
            )
        if (wanted == read.lengths).all():
            return
        if self._model.contract.mask is None and (wanted != wanted[0]).any():
            raise ValueError("the rows of this model's cache must have the same length")
        for pair in self._model.contract.cache:
            is_lost = pair.bounded is not None and not pair.computed_from
            if is_lost and read.used > (pair.bounded or 0):
                raise ValueError(
                    f"cannot rewind: {pair.past!r} keeps the last {pair.bounded} positions only, "
                    "and earlier ones are gone; fork() the stream before steps that you may "
                    "want to undo"
                )
        # Buffers keep what no row uses any more as room.
        read = self._cache.put(read.others, wanted)
        self._repeated = None
        self._read = read

    def fork(self) -> Stream:
        """Copy the stream: the copy has read the same, and continues by itself."""
        with self.reading() as (read, held):
            twin = self._twin(np.arange(len(read.lengths)))
            twin.take_over(read.lengths, held)
        return twin

    def select(self, rows: Sequence[int]) -> Stream:
        """Another stream of these rows, in this order; a row may be left out, or taken twice.

        Raises:
            ValueError: There is no such row, or none is chosen.
        """
        chosen = whole_numbers("rows", rows)
        with self.reading() as (read, _):
            if (chosen < 0).any() or (chosen >= len(read.lengths)).any():
                raise ValueError(f"rows are 0 to {len(read.lengths) - 1}, got {_listed(chosen)}")
            twin = self._twin(chosen)
            twin.take_over(read.lengths[chosen], self._cache.rows(chosen, read))
        return twin

    def _twin(self, rows: Array) -> Stream:
        """An empty stream of these rows, with the inputs that they were started with."""
        twin = Stream(
            self._model,
            batch=len(rows),
            capacity=self._capacity,
            adapters=[self.adapters[row] for row in rows.tolist()],
        )
        twin._given, twin._covered = self._given.rows(rows), self._covered[rows]
        twin._begun = Begun(self._model.contract, self._begun.rows(rows))
        return twin

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Read, Mapping[str, Array]]]:
        """What was read and the used slots of the cache, to be copied inside; not for writing.

        Several threads may read at once.

        Raises:
            RuntimeError: The stream changed, or changes, meanwhile.
        """
        read = self._read
        if self._is_in_use:
            raise self._refusal()
        yield read, self._cache.held(read)
        if self._is_in_use or self._read is not read:
            raise self._refusal()

    def _refusal(self) -> RuntimeError:
        return RuntimeError(
            "this stream is in use by another thread, or a call of it was interrupted where it "
            "could not be undone; give each thread a stream of its own (fork() one that is idle), "
            "and after an interrupt go on with model.stream(), or model.restore() of a saved one"
        )

    def take_over(self, lengths: Array, held: Mapping[str, Array]) -> None:
        """Have read what `held` is the cache of, in place of what was read before.

        Args:
            lengths: Positions of each row, (batch,).
            held: Name of the past -> its used slots, of all rows.
        """
        self._cache.reserve(0, int(lengths.max()))
        self._read = self._cache.put(held, lengths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was read so far; `Model.restore` continues from it, also in another process.

        The file is written whole or not at all, whoever else writes there at the same time, and
        carries a hash of its content. The inputs that the stream was started with are not in it:
        they are given to `restore` again, or to every call. Where the model reads them once, others
        than before are refused.

        Raises:
            OSError: The place is not writable, or there is no room.
        """
        from causal_onnx.runtime.artifact import drafts  # noqa: PLC0415 - few save any
        from causal_onnx.runtime.stream import saved  # noqa: PLC0415 - few save any

        with self.reading() as (read, held):
            digests = self._model.adapters.digests
            used = [None if name is None else (name, digests[name]) for name in self.adapters]
            begun = self._begun.values
            content = saved.encode(self._model.contract, read.lengths, {**held, **begun}, used)
        drafts.write_whole(Path(path), content)

    @classmethod
    def restore(
        cls,
        model: Runner,
        path: str | os.PathLike[str],
        *,
        inputs: Mapping[str, Given] | None = None,
    ) -> Stream:
        """Take up what `save` wrote, with the inputs that the stream was started with.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: `inputs` do not fit.
            ArtifactError: The file is damaged, no saved stream, or of another model.
        """
        if not model.contract.cache:
            raise ArtifactError(
                f"{model.artifact.name} has no cache, so it cannot restore a saved stream"
            )
        from causal_onnx.runtime.stream import saved  # noqa: PLC0415 - few restore any

        lengths, found, adapters = saved.read_saved(
            path, model.contract, model=model.artifact.name, loaded=model.adapters.digests
        )
        stream = cls(model, batch=len(lengths), inputs=inputs, adapters=adapters)
        stream.take_over(lengths, found)
        begun = {name: found[name] for name in model.contract.once_names & found.keys()}
        stream._begun = Begun(model.contract, begun)
        return stream

    def _new_positions(self, feeds: Mapping[str, Array]) -> int:
        """How many positions the inputs hold."""
        axes = ((spec.name, spec.axis_of("seq")) for spec in self._own.inputs)
        return next((feeds[name].shape[axis] for name, axis in axes if axis is not None), 0)

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
            new = np.full(len(self._read.lengths), seq, np.int64)
        else:
            new = whole_numbers("lengths", lengths, count=len(self._read.lengths))
            if (new < 0).any() or (new > seq).any():
                raise ValueError(f"lengths must lie in [0, {seq}], got {_listed(new)}")
            if contract.mask is None and (new != seq).any():
                raise ValueError("the rows of this model's cache must have the same length")
        self._check_room(seq)
        return new

    def _check_room(self, seq: int) -> None:
        """Raise `ValueError` where so many positions more are too many."""
        # Padding is computed too, at positions that a table of the model must have.
        most = int(self._read.lengths.max()) + seq
        if most > self._limit:
            whose = "the model accepts" if self._capacity is None else "the stream has room for"
            raise ValueError(
                f"{seq} positions after {int(self._read.lengths.max())} make {most}; {whose} "
                f"at most {self._limit}"
            )


def _part(spec: TensorSpec, array: Array, row: int, positions: slice) -> Array:
    """A view of some of one row's positions."""
    place = {"batch": slice(row, row + 1), "seq": positions}
    return array[tuple(place.get(str(axis), slice(None)) for axis in spec.axes)]


def _listed(numbers: Array) -> str:
    return ", ".join(str(int(n)) for n in numbers)
