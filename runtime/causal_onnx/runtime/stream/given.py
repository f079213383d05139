"""Inputs that are given once, when a stream is started, and are part of all of its calls.

Those without positions stay as they are: a memory, a label, a source text. Those along the
positions are for the first ones of each row, such as the embeddings of an image, and are zero
behind them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.request.convert import cast_array, read_array

if TYPE_CHECKING:
    from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["Given", "GivenInputs"]

Array = npt.NDArray[Any]
Given: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike | None]
"""An array; along the positions also a list with an array or None for each row."""

NOT_ZERO = ("positions", "keep_mask")
"""Kinds of input in which zero says something of a position: where it stands, or that it is none.
"""


class GivenInputs:
    """Copies of the inputs that a stream was started with."""

    def __init__(
        self, contract: Contract, inputs: Mapping[str, Any], batch: int, *, cast: bool = False
    ) -> None:
        """Check what is given.

        Args:
            contract: Of the calls, without the cache.
            inputs: By name; of one row, which all share, or of as many as the batch. One along the
                positions has those that it is for; a list of arrays without the axis of rows, or
                None for none, has a number of positions for each row.
            batch: Rows of the stream.
            cast: Whether inputs of another dtype are converted, as for `load`.

        Raises:
            ValueError: One is no input of the model or does not fit it, has two axes of positions,
                may not be zero, or has another number of rows.
        """
        specs = {spec.name: spec for spec in contract.inputs}
        self._batch = batch
        self._staying: dict[str, tuple[int | None, Array]] = {}
        """By name: the axis of rows, and the array."""
        self._first: dict[str, _First] = {}
        for name, given in inputs.items():
            if name not in specs:
                raise ValueError(f"unknown input {name!r}; the inputs are {', '.join(specs)}")
            spec = specs[name]
            if "seq" in spec.axes or "total_seq" in spec.axes:
                self._first[name] = _First.of(spec, given, batch, cast=cast)
                continue
            value, axis = _copied(spec, given, cast=cast), spec.axis_of("batch")
            if axis is not None and _repeats(name, value.shape[axis], batch):
                value = np.repeat(value, batch, axis)
            self._staying[name] = axis, value
        left = [spec for spec in contract.inputs if spec.name not in inputs]
        if self._first and not any("seq" in spec.axes for spec in left):
            raise ValueError(
                f"input {next(iter(self._first))!r} is for the first positions of the stream, and "
                "nothing is left that says how many positions a call has; give one input with "
                "positions in every call"
            )

    @property
    def names(self) -> frozenset[str]:
        """Of all that is given."""
        return frozenset((*self._staying, *self._first))

    @property
    def covered(self) -> Array:
        """(batch,), for how many positions each row is given something, the most of all inputs."""
        found = np.zeros(self._batch, np.int64)
        for first in self._first.values():
            np.maximum(found, first.counts, out=found)
        return found

    def feeds(self, lengths: Array, seq: int) -> dict[str, Array]:
        """What is part of a call of `seq` new positions, with all rows of the batch.

        Args:
            lengths: (batch,), the positions that each row has read before.
            seq: How many are new.

        Raises:
            ValueError: An input that all rows share is not the same for all of them, as they stand
                at different positions.
        """
        found = {name: value for name, (_, value) in self._staying.items()}
        return found | {name: first.at(lengths, seq) for name, first in self._first.items()}

    def rows(self, chosen: Array) -> GivenInputs:
        """What is given for the chosen rows; memory is shared."""
        found = copy.copy(self)
        found._batch = len(chosen)
        found._staying = {
            name: (axis, value if axis is None else value.take(chosen, axis))
            for name, (axis, value) in self._staying.items()
        }
        found._first = {name: first.select(chosen) for name, first in self._first.items()}
        return found


class _First:
    """One input for the first positions of each row."""

    def __init__(self, spec: TensorSpec, rows: Sequence[Array]) -> None:
        """Hold what is given.

        Args:
            spec: The input.
            rows: For each row its positions, without the axis of rows; of an input without such an
                axis, the same for each.
        """
        self._spec, self._rows = spec, rows
        axes = [axis for axis in spec.axes if axis != "batch"]
        self._before = (slice(None),) * axes.index("seq")
        """All of the axes before that of the positions."""
        self.counts = np.array([row.shape[len(self._before)] for row in rows], np.int64)
        """(batch,), for how many positions each row is given something."""

    @classmethod
    def of(cls, spec: TensorSpec, given: Any, batch: int, *, cast: bool) -> _First:
        """Check what is given; see `GivenInputs`."""
        if spec.axes.count("seq") != 1 or "total_seq" in spec.axes:
            raise ValueError(
                f"input {spec.name!r} cannot be given when a stream is started: its size depends "
                f"on the positions of each call ({spec.describe()})"
            )
        low, high = spec.value_range or (0, 1)
        if spec.kind in NOT_ZERO or not low <= 0 < high:
            raise ValueError(
                f"input {spec.name!r} cannot be given for the first positions alone: behind them "
                f"it would be zero, which is no value for them ({spec.describe()}); give it to "
                "every call of a stream: model.stream()"
            )
        axis = spec.axis_of("batch")
        if axis is not None and _are_rows(given):
            rows = _rows(spec, given, cast=cast)
        else:
            value = _copied(spec, given, cast=cast)
            rows = [value] if axis is None else list(np.moveaxis(value, axis, 0))
        is_one = axis is None or _repeats(spec.name, len(rows), batch)
        return cls(spec, rows * batch if is_one else rows)

    def at(self, lengths: Array, seq: int) -> Array:
        """The input of a call; see `GivenInputs.feeds`."""
        before, batch = self._before, self._spec.axis_of("batch")
        starts = np.minimum(lengths, self.counts)
        if batch is None and len(set(starts.tolist())) > 1:
            raise ValueError(
                f"input {self._spec.name!r} is one for all rows, and they stand at different "
                f"positions of it ({', '.join(map(str, starts.tolist()))}); read prompts of one "
                "length together, or one by one"
            )
        shape = list(self._rows[0].shape)
        shape[len(before)] = seq
        found = np.zeros((len(self._rows) if batch is not None else 1, *shape), self._rows[0].dtype)
        for place, row, start in zip(found, self._rows, starts.tolist(), strict=False):
            part = row[(*before, slice(start, start + seq))]
            place[(*before, slice(0, part.shape[len(before)]))] = part
        return found[0] if batch is None else np.moveaxis(found, 0, batch)

    def select(self, chosen: Array) -> _First:
        """Of the chosen rows."""
        return _First(self._spec, [self._rows[row] for row in chosen.tolist()])


def _copied(spec: TensorSpec, given: Any, *, cast: bool) -> Array:
    """A copy of what is given, of which values are checked in the calls.

    Raises:
        ValueError: Dtype or axes do not fit.
    """
    array = read_array(spec, given, cast=cast)
    _check_axes(spec, array.shape)
    # A call converts bfloat16, which numpy lacks, and takes nothing else for it.
    return np.array(array if spec.dtype == "bfloat16" else cast_array(spec, array))


def _are_rows(given: Any) -> bool:
    """Whether this is a list with something for each row, and not an array as Python's lists."""
    return isinstance(given, list | tuple) and any(
        item is None or hasattr(item, "__array__") for item in given
    )


def _rows(spec: TensorSpec, given: Sequence[Any], *, cast: bool) -> list[Array]:
    """What a list holds for each row."""
    axes = tuple(axis for axis in spec.axes if axis != "batch")
    found = [
        None
        if item is None
        else _copied(replace(spec, name=f"{spec.name}[{place}]", axes=axes), item, cast=cast)
        for place, item in enumerate(given)
    ]
    arrays, at = [row for row in found if row is not None], axes.index("seq")
    if len({(*row.shape[:at], *row.shape[at + 1 :]) for row in arrays}) > 1:
        raise ValueError(
            f"the rows of input {spec.name!r} have the shapes "
            f"{', '.join(str(row.shape) for row in arrays)}; they may differ in their positions "
            "only"
        )
    if arrays:
        nothing = arrays[0].take(np.arange(0), at)
    else:
        sizes = {axis: 0 if axis == "seq" else 1 for axis in axes if isinstance(axis, str)}
        nothing = np.zeros(replace(spec, axes=axes).shape(sizes), spec.host_dtype)
    return [nothing if row is None else row for row in found]


def _check_axes(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Raise `ValueError` where axes are missing, or one of a fixed size has another."""
    if len(shape) != len(spec.axes):
        raise ValueError(
            f"input {spec.name!r} has rank {len(shape)}, shape {tuple(shape)}; expected rank "
            f"{len(spec.axes)}: {spec.describe()}"
        )
    for place, (axis, size) in enumerate(zip(spec.axes, shape, strict=True)):
        if isinstance(axis, int) and axis != size:
            raise ValueError(
                f"input {spec.name!r} has shape {tuple(shape)}: axis {place} must be {axis}, got "
                f"{size}; expected {spec.describe()}"
            )


def _repeats(name: str, rows: int, batch: int) -> bool:
    """Whether one row stands for all of the batch.

    Raises:
        ValueError: There are neither one nor as many as the batch.
    """
    if rows not in (1, batch):
        raise ValueError(f"input {name!r} has {rows} rows, expected {batch}, or one that all share")
    return rows != batch
