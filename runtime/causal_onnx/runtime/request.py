"""Check a request against the contract, before onnxruntime sees it.

Some requests end the process inside onnxruntime (an empty batch in Einsum: SIGFPE), some give
numbers that mean nothing (big-endian bytes are taken as they lie), and its own messages do not
know the contract. So nothing reaches it that the contract does not allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["Request", "RequestChecker"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    feeds: dict[str, Array]
    """Input name -> native, aligned, C-contiguous array of the contract's dtype, batch axis
    included. bfloat16 is float32 or the dtype of the caller."""
    unbatched: bool
    """The caller gave no batch axis and expects none."""


class RequestChecker:
    """The checks that follow from one contract.

    What is converted without being asked, because the values stay what they are: arrays in Fortran
    order, with strides, unaligned or of the other byte order are copied; integers are widened
    (int32 ids for an int64 input); Python numbers and lists, which have no width of their own, get
    the contract's dtype. Everything else needs `cast`.
    """

    def __init__(self, contract: Contract, *, cast: bool = False, check_finite: bool = False):
        self._contract = contract
        self._specs = {spec.name: spec for spec in contract.inputs}
        self._cast = cast
        self._check_finite = check_finite
        self._dtypes = {
            spec.name: np.dtype(np.float32 if spec.dtype == "bfloat16" else spec.dtype)
            for spec in contract.inputs
        }
        self._batch_axes = {spec.name: spec.axis_of("batch") for spec in contract.inputs}

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
        arrays = {name: self._convert(self._specs[name], value) for name, value in given.items()}
        unbatched = self._is_unbatched(arrays)
        if unbatched:
            for name, axis in self._batch_axes.items():
                if axis is not None:
                    arrays[name] = np.expand_dims(arrays[name], axis)
        self._check_sizes(arrays, unbatched)
        for name, array in arrays.items():
            spec = self._specs[name]
            if spec.vocab_size is not None:
                _check_ids(spec, array)
            if self._check_finite and array.dtype.kind == "f":
                _check_finite(spec, array)
        return Request(arrays, unbatched)

    def _bind(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        names = list(self._specs)
        if len(inputs) > len(names):
            raise ValueError(
                f"got {len(inputs)} positional inputs, expected at most {len(names)}: "
                f"{', '.join(names)}"
            )
        given = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in self._specs:
                raise ValueError(f"unknown input {name!r}; the inputs are {', '.join(names)}")
            if name in given:
                raise ValueError(f"input {name!r} was given twice, by position and by name")
            given[name] = value
        missing = [name for name in names if name not in given]
        if missing:
            raise ValueError(
                f"got {len(given)} of {len(names)} inputs; missing: "
                f"{', '.join(self._specs[name].describe() for name in missing)}"
            )
        # In the contract's order, whatever the caller's.
        return {name: given[name] for name in names}

    def _convert(self, spec: TensorSpec, value: Any) -> Array:
        target = self._dtypes[spec.name]
        if isinstance(value, np.ndarray):
            if isinstance(value, np.ma.MaskedArray):
                raise ValueError(
                    f"input {spec.name!r} is a masked array, whose mask would be lost; pass "
                    "x.filled(value) and give masks as an input of their own"
                )
            array = value
        else:
            array = _as_array(spec, value)
        if array.dtype != target:
            weak = isinstance(value, bool | int | float | list | tuple)
            array = self._cast_to(spec, array, target, weak=weak)
        # Nothing is copied where the array is as it should be already.
        return np.require(array, requirements=("C", "A"))

    def _cast_to(
        self, spec: TensorSpec, array: Array, target: np.dtype[Any], *, weak: bool
    ) -> Array:
        """Convert to `target` in native byte order, if that is allowed here."""
        source = array.dtype
        if source.newbyteorder("=") == target:
            return array.astype(target)
        # The bfloat16 of the package ml_dtypes; no import is needed to recognise it by name.
        if spec.dtype == "bfloat16" and source.name == "bfloat16":
            return array.astype(np.float32)
        kinds = source.kind + target.kind
        widens = kinds in ("ii", "uu", "ui") and np.can_cast(source, target, "safe")
        if widens:
            return array.astype(target)
        if not (self._cast or (weak and kinds in ("ii", "ff", "if"))):
            raise ValueError(
                f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; pass "
                f"x.astype({target.name!r}), or load the model with cast=True"
            )
        if not np.can_cast(source, target, "same_kind") and kinds != "iu":
            raise ValueError(
                f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; casting would "
                f"lose what the values mean, so convert it yourself: x.astype({target.name!r})"
            )
        with np.errstate(over="ignore"):
            cast = array.astype(target)
        # Beyond float rounding a cast must not change a value: 70000 is infinite in float16.
        changed = np.isfinite(array) & ~np.isfinite(cast) if target.kind == "f" else cast != array
        if changed.any():
            raise ValueError(
                f"input {spec.name!r} holds {array[changed].flat[0]}, which {spec.dtype} cannot "
                f"hold (cast from {source})"
            )
        return cast

    def _is_unbatched(self, arrays: Mapping[str, Array]) -> bool:
        if not self._contract.unbatched:
            return False
        lacks = {
            name: array.ndim == len(self._specs[name].axes) - 1
            for name, array in arrays.items()
            if self._batch_axes[name] is not None
        }
        if any(lacks.values()) and not all(lacks.values()):
            without = [name for name, lack in lacks.items() if lack]
            having = [name for name, lack in lacks.items() if not lack]
            raise ValueError(
                f"some inputs lack the batch axis ({', '.join(without)}) and others have it "
                f"({', '.join(having)}); give it to all or to none"
            )
        return any(lacks.values())

    def _check_sizes(self, arrays: Mapping[str, Array], unbatched: bool) -> None:
        sizes: dict[str, tuple[int, str]] = {}  # axis name -> (size, the input that set it)
        for name, array in arrays.items():
            spec = self._specs[name]
            if array.ndim != len(spec.axes):
                raise ValueError(self._wrong_rank(spec, array))
            for position, (axis, size) in enumerate(zip(spec.axes, array.shape, strict=True)):
                if isinstance(axis, int):
                    if size != axis:
                        raise ValueError(
                            f"input {name!r} has shape {_shape(array, spec, unbatched)}, expected "
                            f"{spec.describe()}: axis {position - unbatched} must be {axis}, "
                            f"got {size}"
                        )
                    continue
                if size == 0 and axis != "past_seq":
                    raise ValueError(
                        f"input {name!r} has shape {_shape(array, spec, unbatched)}: the axis "
                        f"{axis!r} is empty; it must be at least 1"
                    )
                known = sizes.setdefault(axis, (size, name))
                if known[0] != size:
                    raise ValueError(
                        f"input {name!r} has {axis} {size}, but input {known[1]!r} has {axis} "
                        f"{known[0]}; they must agree"
                    )
        self._check_lengths({axis: size for axis, (size, _) in sizes.items()})

    def _check_lengths(self, sizes: Mapping[str, int]) -> None:
        past, seq, total = (sizes.get(axis) for axis in ("past_seq", "seq", "total_seq"))
        if None not in (past, seq, total) and (past or 0) + (seq or 0) != total:
            raise ValueError(
                f"total_seq is {total}, but past_seq ({past}) + seq ({seq}) is "
                f"{(past or 0) + (seq or 0)}; they must agree"
            )
        limit = self._contract.max_seq_len
        length = total if total is not None else (past or 0) + (seq or 0)
        if limit is not None and length > limit:
            what = f"{length} (past_seq {past} + seq {seq})" if past else f"{length}"
            raise ValueError(
                f"the sequence length is {what}, but this model accepts at most {limit}; shorten "
                "the input, or export with a larger max_seq_len if the module has one"
            )

        if seq is not None and seq < self._contract.min_seq_len:
            raise ValueError(
                f"the sequence length is {seq}, but this model accepts no fewer than "
                f"{self._contract.min_seq_len}: its source has a mask of fixed size"
            )

    def _wrong_rank(self, spec: TensorSpec, array: Array) -> str:
        also = ""
        if self._contract.unbatched and "batch" in spec.axes:
            also = ", with or without the batch axis"
        remedy = ""
        if array.ndim == len(spec.axes) - 1 and spec.axes[0] == "batch":
            remedy = "; add the batch axis: x[None]"
        return (
            f"input {spec.name!r} has rank {array.ndim}, shape {array.shape}, expected rank "
            f"{len(spec.axes)}: {spec.describe()}{also}{remedy}"
        )


def _as_array(spec: TensorSpec, value: Any) -> Array:
    """What numpy makes of a value that is not an array.

    Anything with `__array__` is taken at its word: a PyTorch tensor in host memory comes through
    without this package knowing PyTorch.
    """
    try:
        array = np.asarray(value)
    # Foreign `__array__` methods raise what they like; torch raises both of the latter.
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"input {spec.name!r} is a {type(value).__name__} that numpy cannot read ({error}); "
            "pass a numpy array, e.g. tensor.detach().cpu().numpy()"
        ) from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"input {spec.name!r} is a {type(value).__name__} of dtype {array.dtype}; pass a numpy "
            f"array of dtype {spec.dtype}"
        )
    return array


def _check_ids(spec: TensorSpec, ids: Array) -> None:
    vocab = spec.vocab_size or 0
    # Negative ids are huge when read as unsigned, so one pass finds both ends.
    unsigned = ids.view(ids.dtype.str.replace("i", "u")) if ids.dtype.kind == "i" else ids
    if int(unsigned.max()) < vocab:
        return
    where = np.unravel_index(int(np.argmax(unsigned >= vocab)), ids.shape)
    raise ValueError(
        f"input {spec.name!r} holds the id {ids[where]} at {_index(where)}, expected ids in "
        f"[0, {vocab}); was it made with another tokenizer?"
    )


def _check_finite(spec: TensorSpec, array: Array) -> None:
    finite = np.isfinite(array)
    if finite.all():
        return
    where = np.unravel_index(int(np.argmin(finite)), array.shape)
    raise ValueError(
        f"input {spec.name!r} holds {array[where]} at {_index(where)} "
        f"({array.size - np.count_nonzero(finite)} values are not finite); masked positions must "
        "be finite too, since 0 x NaN is NaN"
    )


def _index(where: tuple[Any, ...]) -> str:
    return "[" + ", ".join(str(int(part)) for part in where) + "]"


def _shape(array: Array, spec: TensorSpec, unbatched: bool) -> tuple[int, ...]:
    """The shape as the caller gave it."""
    axis = spec.axis_of("batch")
    if not unbatched or axis is None:
        return array.shape
    return array.shape[:axis] + array.shape[axis + 1 :]
