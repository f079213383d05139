"""Check a request against the contract, before onnxruntime sees it.

Some requests end the process inside onnxruntime (an empty batch in Einsum: SIGFPE), some give
numbers that mean nothing (big-endian bytes are taken as they lie), and its own messages do not
know the contract. So nothing reaches it that the contract does not allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import AXIS_NAMES, LARGEST_AXIS, SLOT_AXES, Contract, TensorSpec
from causal_onnx.runtime.request.computed import computed_inputs
from causal_onnx.runtime.request.convert import cast_array, read_array

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Request", "RequestChecker", "are_ids"]


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    feeds: dict[str, Array]
    """Input name -> native, aligned, C-contiguous array of the contract's dtype, batch axis
    included; bfloat16 is float32 here."""
    unbatched: bool
    """The caller gave no batch axis and expects none."""


class RequestChecker:
    """The checks that follow from one contract."""

    def __init__(
        self,
        contract: Contract,
        *,
        cast: bool = False,
        check_finite: bool = False,
        batch: int | None = None,
    ) -> None:
        """`batch`: how many rows each request must have; None: any."""
        self._contract = contract
        self._specs = {spec.name: spec for spec in contract.inputs}
        self._past = contract.past_names
        self._mask = contract.mask
        self._computed = [item.name for item in contract.computed]
        self._adapters = contract.adapter_names
        self._rank = contract.rank_axis
        optional = contract.optional_names
        self._positional = [name for name in self._specs if name not in optional]
        self._bounds = {
            pair.past: pair.bounded for pair in contract.cache if pair.bounded is not None
        }
        self._ids = [spec for spec in contract.inputs if spec.vocab_size is not None]
        self._ranged = [spec for spec in contract.inputs if spec.value_range is not None]
        self._cast = cast
        self._check_finite = check_finite
        self._batch = batch
        self._batch_axes = {
            spec.name: spec.axes.index("batch") for spec in contract.inputs if "batch" in spec.axes
        }

    def check(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Request:
        """Bind positional and named inputs, convert them, and check them.

        Args:
            inputs: The first inputs, in the contract's order.
            named: The others, by name.

        Raises:
            ValueError: The request is not what the contract allows; the message names the input,
                what it got, what it expects, and the remedy.
        """
        given = self._bind(inputs, named)
        arrays = {
            name: read_array(spec, given[name], cast=self._cast)
            for name, spec in self._specs.items()
            if name in given
        }
        unbatched = self._contract.unbatched and self._lacks_batch(arrays)
        if unbatched:
            for name, axis in self._batch_axes.items():
                if name in arrays:
                    arrays[name] = np.expand_dims(arrays[name], axis)
        if len(arrays) < len(self._specs):
            arrays |= self._left_out(arrays)
        computed = [name for name in self._computed if name not in arrays]
        # A view of one number can state any shape: only what fits is copied.
        self._check_sizes(arrays, unbatched)
        arrays = {name: cast_array(self._specs[name], array) for name, array in arrays.items()}
        if self._mask is not None:
            self._check_mask(arrays, unbatched)
        if computed:
            mask = None if self._mask is None else arrays[self._mask]
            batch, seq = self._size(arrays, "batch"), self._size(arrays, "seq")
            past = self._past_seq(arrays) if self._past else 0
            found = computed_inputs(self._contract, mask, batch=batch, past_seq=past, seq=seq)
            arrays |= {name: found[name] for name in computed}
        for spec in self._ids:
            _check_ids(spec, arrays[spec.name], unbatched)
        for spec in self._ranged:
            _check_range(spec, arrays[spec.name], unbatched)
        if self._check_finite:
            for name, array in arrays.items():
                _check_finite(self._specs[name], array, unbatched)
        return Request(arrays, unbatched)

    def _bind(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
        positional = self._positional
        if len(inputs) > len(positional):
            raise ValueError(
                f"got {len(inputs)} positional inputs, expected at most {len(positional)}: "
                f"{', '.join(positional)}"
            )
        given = dict(zip(positional, inputs, strict=False))
        for name, value in named.items():
            if name not in self._specs:
                known = ", ".join(self._specs)
                raise ValueError(f"unknown input {name!r}; the inputs are {known}")
            if name in given:
                raise ValueError(f"input {name!r} was given twice, by position and by name")
            given[name] = value
        # The cache is given whole or not at all; without it, the sequence starts here.
        needed = [
            name
            for name in self._specs
            if name in positional or (name in self._past and self._past & given.keys())
        ]
        missing = [self._specs[name].describe() for name in needed if name not in given]
        if missing:
            raise ValueError(
                f"got {len(needed) - len(missing)} of {len(needed)} inputs; missing: "
                f"{'; '.join(missing)}"
            )
        return given

    def _left_out(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Past keys and values of no positions, adapters of no rank, and a mask of ones.

        Of adapters that are given for some layers, those of the others are zeros.
        """
        sizes: dict[str, int] = dict.fromkeys(("past_seq", "past_slots"), 0)
        if self._rank is not None:
            sizes[self._rank] = 0
        for name, array in arrays.items():
            for axis, size in zip(self._specs[name].axes, array.shape, strict=False):
                if isinstance(axis, str) and axis not in SLOT_AXES:
                    sizes[axis] = size
        found: dict[str, Array] = {}
        for name in (self._past | self._adapters) - arrays.keys():
            spec = self._specs[name]
            found[name] = np.zeros(
                spec.shape({**dict.fromkeys(AXIS_NAMES, 1), **sizes}), spec.host_dtype
            )
        if self._mask is not None and self._mask not in arrays:
            past_seq = self._past_seq({**arrays, **found})
            batch, _ = self._specs[self._mask].axes
            rows = batch if isinstance(batch, int) else sizes.get(batch, 1)
            shape = rows, past_seq + sizes.get("seq", 0)
            ones = np.ones((), self._specs[self._mask].dtype)
            found[self._mask] = np.broadcast_to(ones, shape)
        return found

    def _past_seq(self, arrays: Mapping[str, Array]) -> int:
        """How many columns of the mask are past, from the cache alone."""
        slots: dict[str, int] = {}
        for name in sorted(self._past):
            axes, shape = self._specs[name].axes, arrays[name].shape
            if len(shape) != len(axes):
                continue  # refused by its rank, in a moment
            if "past_seq" in axes:
                return int(shape[axes.index("past_seq")])
            slots[name] = shape[axes.index("past_slots")]
        for name, count in slots.items():
            if count < self._bounds[name]:
                return count
        raise ValueError(
            f"input {self._mask!r} is needed: the cache is full ({max(slots.values(), default=0)} "
            "positions), so it does not tell how many came before; give one column of ones for "
            "each position so far, these included"
        )

    def _lacks_batch(self, arrays: Mapping[str, Array]) -> bool:
        given = [name for name in self._batch_axes if name in arrays]
        without = [name for name in given if arrays[name].ndim == len(self._specs[name].axes) - 1]
        if without and len(without) < len(given):
            having = [name for name in given if name not in without]
            raise ValueError(
                f"some inputs lack the batch axis ({', '.join(without)}) and others have it "
                f"({', '.join(having)}); give it to all or to none"
            )
        return bool(without)

    def _check_sizes(self, arrays: Mapping[str, Array], unbatched: bool) -> None:
        sizes: dict[str, int] = {}
        for name, spec in self._specs.items():
            if name not in arrays:  # computed, once the others are known to fit
                continue
            shape = arrays[name].shape
            if len(shape) != len(spec.axes):
                raise ValueError(self._wrong_rank(spec, shape))
            for axis, size in zip(spec.axes, shape, strict=True):
                if isinstance(axis, int):
                    if size != axis:
                        raise ValueError(self._wrong_size(spec, shape, unbatched))
                elif size == 0 and axis not in ("past_seq", "past_slots", self._rank):
                    raise ValueError(
                        f"input {name!r} has shape {_as_given(shape, spec, unbatched)}: its axis "
                        f"{axis!r} is empty; expected at least 1 in {spec.describe()}"
                    )
                elif axis not in SLOT_AXES and sizes.setdefault(axis, size) != size:
                    raise ValueError(self._disagreement(name, axis, size, arrays))
        if self._batch is not None and sizes.get("batch", self._batch) != self._batch:
            name = next(iter(self._batch_axes))
            raise ValueError(
                f"input {name!r} has a batch of {sizes['batch']}, but the stream was started with "
                f"batch={self._batch}"
            )
        if self._bounds:
            if "past_seq" not in sizes:
                sizes["past_seq"] = sizes["total_seq"] - sizes["seq"]
            for name, bounded in self._bounds.items():
                expected = min(bounded, sizes["past_seq"])
                slots = arrays[name].shape[self._specs[name].axes.index("past_slots")]
                if slots != expected:
                    raise ValueError(
                        f"input {name!r} holds {slots} positions, but of past_seq "
                        f"{sizes['past_seq']} it keeps the last {bounded} at most, so {expected}"
                    )
        self._check_lengths(sizes)
        self._check_largest(sizes)

    def _check_largest(self, sizes: Mapping[str, int]) -> None:
        for free in self._contract.free_axes:
            if free.largest is not None and sizes.get(free.name, 1) > free.largest:
                raise ValueError(
                    f"the axis {free.name!r} is {sizes[free.name]}, but this model accepts at most "
                    f"{free.largest}; shorten the input, or export a module that takes longer ones"
                )
        for axis, size in sizes.items():
            if size > LARGEST_AXIS:
                raise ValueError(f"the axis {axis!r} is {size}, expected at most {LARGEST_AXIS}")

    def _check_mask(self, arrays: Mapping[str, Array], unbatched: bool) -> None:
        """Zeros and ones, and in the new columns no token after padding."""
        assert self._mask is not None
        spec, mask = self._specs[self._mask], arrays[self._mask]
        wrong = (mask != 0) & (mask != 1)
        if wrong.any():
            where = np.unravel_index(int(np.argmax(wrong)), mask.shape)
            raise ValueError(
                f"input {spec.name!r} holds {mask[where]} at {_place(where, spec, unbatched)}, "
                "expected 1 for a token and 0 for padding"
            )
        seq, ragged = self._size(arrays, "seq"), self._contract.ragged
        if ragged == "left":  # of one call, the graph takes padding wherever it is
            return
        past = mask.shape[1] - seq
        new = mask[:, past:]
        is_even = ragged in ("none", "steps", "single")
        if (is_even and not mask.all()) or (
            ragged == "packed_steps" and past and not (new.all() and (seq == 1 or len(mask) == 1))
        ):
            raise ValueError(
                f"input {spec.name!r} has padding that this file cannot take in such a call "
                f"({past} past positions, {seq} new ones); "
                + (
                    "its rows must be equally long"
                    if is_even
                    else "with a past, give one new position to every row, or one row alone"
                )
                + "; a stream does so by itself: model.stream(batch=...)"
            )
        rising = new[:, 1:] > new[:, :-1]
        if rising.any():
            row, column = np.unravel_index(int(np.argmax(rising)), rising.shape)
            where = (row, column + 1 + mask.shape[1] - seq)
            raise ValueError(
                f"input {spec.name!r} has a token after padding at "
                f"{_place(where, spec, unbatched)}; in each call a row's tokens come first and its "
                "padding last (pad on the right)"
            )

    def _size(self, arrays: Mapping[str, Array], axis: str) -> int:
        """The size of an axis, 1 where no input has it."""
        found = (
            array.shape[self._specs[name].axes.index(axis)]
            for name, array in arrays.items()
            if axis in self._specs[name].axes
        )
        return int(next(found, 1))

    def _check_lengths(self, sizes: Mapping[str, int]) -> None:
        past, seq, total = (sizes.get(axis) for axis in ("past_seq", "seq", "total_seq"))
        if past is not None and seq is not None and total is not None and past + seq != total:
            raise ValueError(
                f"total_seq is {total}, but past_seq ({past}) + seq ({seq}) is {past + seq}; "
                "they must agree"
            )
        limit, least = self._contract.max_seq_len, self._contract.min_seq_len
        length = total if total is not None else (past or 0) + (seq or 0)
        if limit is not None and length > limit:
            how = f" (past_seq {past} + seq {seq})" if past else ""
            raise ValueError(
                f"the sequence length is {length}{how}, but this model accepts at most {limit}; "
                "shorten the input, or export a module that takes longer ones"
            )
        ragged = self._contract.ragged
        if (seq or 1) > 1 and (ragged == "single" or (ragged == "steps" and past)):
            when = "in each call" if ragged == "single" else "in a call with a past"
            raise ValueError(
                f"this file reads one position {when} (optimum wrote it so before 1.14), got "
                f"{seq}; a stream does so by itself: model.stream()"
            )
        if seq is not None and seq < least:
            raise ValueError(
                f"the sequence length is {seq}, but this model accepts no fewer than {least}: its "
                "source has a mask of fixed size; pad the input, or make the source slice its mask"
            )

    def _wrong_rank(self, spec: TensorSpec, shape: tuple[int, ...]) -> str:
        also, remedy = "", ""
        if self._contract.unbatched and "batch" in spec.axes:
            also = ", with or without the batch axis"
        elif len(shape) == len(spec.axes) - 1 and spec.axes[0] == "batch":
            remedy = "; add the batch axis: x[None]"
        return (
            f"input {spec.name!r} has rank {len(shape)}, shape {shape}; expected rank "
            f"{len(spec.axes)}: {spec.describe()}{also}{remedy}"
        )

    def _wrong_size(self, spec: TensorSpec, shape: tuple[int, ...], unbatched: bool) -> str:
        shape = _as_given(shape, spec, unbatched)
        axes = _as_given(spec.axes, spec, unbatched)
        position = next(
            index
            for index, axis in enumerate(axes)
            if isinstance(axis, int) and shape[index] != axis
        )
        return (
            f"input {spec.name!r} has shape {shape}: axis {position} must be {axes[position]}, got "
            f"{shape[position]}; expected {spec.describe()}"
        )

    def _disagreement(self, name: str, axis: str, size: int, arrays: Mapping[str, Array]) -> str:
        other, theirs = next(
            (spec.name, arrays[spec.name].shape[spec.axes.index(axis)])
            for spec in self._contract.inputs
            if axis in spec.axes
        )
        return (
            f"input {name!r} has {axis} {size}, but input {other!r} has {axis} {theirs}; "
            "they must agree"
        )


def are_ids(array: Array, vocab: int) -> bool:
    """Whether all integers, of which there is at least one, lie in [0, vocab)."""
    if array.size == 1:  # a step of one row, which has little time
        return bool(0 <= array.item() < vocab)
    # Negative ids are huge when read as unsigned, so one pass finds both ends.
    return int(array.view(f"u{array.itemsize}").max()) < vocab


def _check_ids(spec: TensorSpec, ids: Array, unbatched: bool) -> None:
    vocab = spec.vocab_size or 0
    if are_ids(ids, vocab):
        return
    where = np.unravel_index(int(np.argmax((ids < 0) | (ids >= vocab))), ids.shape)
    raise ValueError(
        f"input {spec.name!r} holds the id {ids[where]} at {_place(where, spec, unbatched)}, "
        f"expected ids in [0, {vocab}); was it made with another tokenizer?"
    )


def _check_range(spec: TensorSpec, array: Array, unbatched: bool) -> None:
    assert spec.value_range is not None
    low, high = spec.value_range
    valid = (array >= low) & (array < high)
    if valid.all():
        return
    where = np.unravel_index(int(np.argmin(valid)), array.shape)
    raise ValueError(
        f"input {spec.name!r} holds {array[where]} at {_place(where, spec, unbatched)}, expected "
        f"values in [{low:g}, {high:g}), the range that its module was exported with"
    )


def _check_finite(spec: TensorSpec, array: Array, unbatched: bool) -> None:
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if spec.kind == "causal_bias":  # it hides by -inf
        finite |= np.isneginf(array)
    if finite.all():
        return
    where = np.unravel_index(int(np.argmin(finite)), array.shape)
    raise ValueError(
        f"input {spec.name!r} holds {array[where]} at {_place(where, spec, unbatched)}, expected "
        f"finite values ({array.size - np.count_nonzero(finite)} are not); masked positions must "
        "be finite too, because 0 x NaN is NaN"
    )


def _place(where: tuple[Any, ...], spec: TensorSpec, unbatched: bool) -> str:
    return str([int(part) for part in _as_given(where, spec, unbatched)])


def _as_given(parts: tuple[Any, ...], spec: TensorSpec, unbatched: bool) -> tuple[Any, ...]:
    """One part per axis, as the caller counts the axes: without a batch axis that was added."""
    if not unbatched or "batch" not in spec.axes:
        return parts
    axis = spec.axes.index("batch")
    return parts[:axis] + parts[axis + 1 :]
