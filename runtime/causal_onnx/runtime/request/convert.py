"""Turn what a caller passes into the array that the contract asks for, or say why not.

Converted without being asked is only what keeps the values: arrays in Fortran order, with strides,
unaligned or of the other byte order are copied; integers are widened (int32 ids for an int64
input); Python numbers and lists, which have no width of their own, get the contract's dtype. All
else needs `cast=True`, and even then a value that the new dtype cannot hold is an error.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["cast_array", "read_array", "to_array"]

# numpy has no bfloat16; its values travel as float32, which holds them all.
_DTYPES = {"bfloat16": np.dtype(np.float32)}

_FAMILIES = {"b": 0, "i": 1, "u": 1, "f": 2}
"""Kinds of dtype that a graph can have, each family able to hold the one before."""
MOST_AXES = 64
"""Of an array of numpy's."""
MOST_IN_LISTS = 1 << 26
"""Numbers; arrays may have more."""


def to_array(spec: TensorSpec, value: Any, *, cast: bool = False) -> Array:
    """Give `value` as a native, aligned, C-contiguous array of the dtype of `spec`.

    Args:
        spec: The input it is for. bfloat16 is given as float32.
        value: An array, a Python number or nested list, or anything with `__array__`: a PyTorch
            tensor in host memory comes through without this package knowing PyTorch.
        cast: Allow other dtypes of the same or a wider family (bool, integer, floating point).

    Returns:
        The array itself where nothing has to change, else a copy.

    Raises:
        ValueError: Not an array, or its dtype or a value does not fit.
    """
    return cast_array(spec, read_array(spec, value, cast=cast))


def read_array(spec: TensorSpec, value: Any, *, cast: bool = False) -> Array:
    """The first half of `to_array`: an array of a dtype that the input takes; arrays as they lie.

    Nothing is copied but Python's lists, and those only if this machine can hold them, so that a
    shape can be checked before memory is taken for it.

    Raises:
        ValueError: Not an array, or its dtype does not fit.
    """
    array = value if type(value) is np.ndarray else _read(spec, value)
    target = _DTYPES.get(spec.dtype) or np.dtype(spec.dtype)
    if array.dtype == target:
        if spec.dtype == "bfloat16" and not cast:
            raise _refusal(spec, array, target)
        return array
    is_python = isinstance(value, bool | int | float | list | tuple)
    _check_dtype(spec, array, target, cast=cast, is_python=is_python)
    return array


def cast_array(spec: TensorSpec, array: Array) -> Array:
    """The second half of `to_array`, of what `read_array` gave.

    Raises:
        ValueError: A value does not fit, or this machine cannot hold the copy.
    """
    target = _DTYPES.get(spec.dtype) or np.dtype(spec.dtype)
    if array.dtype == target and array.flags.c_contiguous and array.flags.aligned:
        return array
    _refuse_what_no_memory_holds(spec, array.shape, target.itemsize)
    try:
        if array.dtype != target:
            array = _convert(spec, array, target)
        return np.require(array, requirements=("C", "A"))
    except MemoryError as error:
        size = math.prod(array.shape) * target.itemsize
        raise ValueError(
            f"input {spec.name!r} has shape {array.shape}: a copy of {size} bytes does not fit "
            "into memory; pass less at once"
        ) from error


def _read(spec: TensorSpec, value: Any) -> Array:
    """What numpy makes of a value that is not a plain array."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"input {spec.name!r} is a masked array, whose mask would be lost; expected "
            f"{spec.describe()}; pass x.filled(0) and the mask as an input of its own"
        )
    if isinstance(value, list | tuple):
        _refuse_what_no_memory_holds(spec, _stated_shape(value), 8, most=MOST_IN_LISTS)
    try:
        return np.asarray(value)
    # Foreign `__array__` methods raise what they like; torch's raises the latter two.
    except (ValueError, OverflowError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"input {spec.name!r} is a {type(value).__name__} that numpy cannot read ({error}); "
            f"expected {spec.describe()}; pass an array, e.g. tensor.detach().cpu().numpy()"
        ) from error


def _stated_shape(value: Any) -> tuple[int, ...]:
    """What the first element of each list states; numpy refuses lists whose others differ."""
    shape: list[int] = []
    while isinstance(value, list | tuple) and value and len(shape) < MOST_AXES:
        shape.append(len(value))
        value = value[0]
    return (*shape, *(value.shape if isinstance(value, np.ndarray) else ()))


def _refuse_what_no_memory_holds(
    spec: TensorSpec, shape: tuple[int, ...], itemsize: int, *, most: int | None = None
) -> None:
    """A view may state any shape without memory for it, and so may a list that repeats another."""
    count, memory = math.prod(shape), _memory()
    size = count * itemsize
    if (memory is not None and size > memory) or (most is not None and count > most):
        has = "" if memory is None else f", and this machine has {memory}"
        raise ValueError(
            f"input {spec.name!r} has shape {shape}: an array of it takes {size} bytes{has}; "
            f"expected {spec.describe()}; pass less at once, and as an array"
        )


@functools.cache
def _memory() -> int | None:
    """Bytes of memory of this machine, where it says so."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _check_dtype(
    spec: TensorSpec, array: Array, target: np.dtype[Any], *, cast: bool, is_python: bool
) -> None:
    source = array.dtype
    # ml_dtypes' bfloat16 is recognised by its name, and not imported.
    if source.name == "bfloat16" and (spec.dtype == "bfloat16" or cast):
        source = np.dtype(np.float32)
    if source.kind not in _FAMILIES:
        raise ValueError(
            f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; pass numbers in a "
            "regular shape"
        )
    if source == target or _keeps_values(spec, source, target):
        return
    if not cast and not (is_python and source.kind + target.kind in ("ii", "iu", "if", "ff")):
        raise _refusal(spec, array, target)
    if _FAMILIES[source.kind] > _FAMILIES[target.kind]:
        raise ValueError(
            f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; that cast would lose "
            f"what the values mean, so make it yourself: x.astype({target.name!r})"
        )


def _keeps_values(spec: TensorSpec, source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether only the byte order differs, or integers are widened."""
    if source.newbyteorder("=") == target and spec.dtype != "bfloat16":
        return True
    kinds = source.kind + target.kind
    return "f" not in kinds and "b" not in kinds and bool(np.can_cast(source, target))


def _convert(spec: TensorSpec, array: Array, target: np.dtype[Any]) -> Array:
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype == target or _keeps_values(spec, array.dtype, target):
        return array.astype(target, copy=False)
    return _checked_cast(spec, array, target)


def _checked_cast(spec: TensorSpec, array: Array, target: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if target.kind == "f":
        # Rounding is what the caller asked for; becoming infinite is not.
        changed = np.isfinite(array) & ~np.isfinite(result)
    else:
        changed = (result != array) | ((result < 0) != (array < 0))
    if changed.any():
        raise ValueError(
            f"input {spec.name!r} holds {array[changed][0]}, which {spec.dtype} cannot hold"
        )
    return result


def _refusal(spec: TensorSpec, array: Array, target: np.dtype[Any]) -> ValueError:
    own = "" if spec.dtype == "bfloat16" else f"pass x.astype({target.name!r}), or "
    return ValueError(
        f"input {spec.name!r} has dtype {array.dtype}, expected {spec.dtype}; {own}"
        "load the model with cast=True"
    )
