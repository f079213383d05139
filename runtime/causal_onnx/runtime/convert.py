"""Turn what a caller passes into the array that the contract asks for, or say why not.

Converted without being asked is only what keeps the values: arrays in Fortran order, with strides,
unaligned or of the other byte order are copied; integers are widened (int32 ids for an int64
input); Python numbers and lists, which have no width of their own, get the contract's dtype. All
else needs `cast=True`, and even then a value that the new dtype cannot hold is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["to_array"]

# numpy has no bfloat16; its values travel as float32, which holds them all.
_DTYPES = {"bfloat16": np.dtype(np.float32)}

_FAMILIES = {"b": 0, "i": 1, "u": 1, "f": 2}
"""Kinds of dtype that a graph can have, each family able to hold the one before."""


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
    array = value if type(value) is np.ndarray else _read(spec, value)
    target = _DTYPES.get(spec.dtype) or np.dtype(spec.dtype)
    if array.dtype != target:
        is_python = isinstance(value, bool | int | float | list | tuple)
        array = _convert(spec, array, target, cast=cast, is_python=is_python)
    elif spec.dtype == "bfloat16" and not cast:
        raise _refusal(spec, array, target)
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, requirements=("C", "A"))


def _read(spec: TensorSpec, value: Any) -> Array:
    """What numpy makes of a value that is not a plain array."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"input {spec.name!r} is a masked array, whose mask would be lost; expected "
            f"{spec.describe()}; pass x.filled(0) and the mask as an input of its own"
        )
    try:
        return np.asarray(value)
    # Foreign `__array__` methods raise what they like; torch's raises the latter two.
    except (ValueError, OverflowError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"input {spec.name!r} is a {type(value).__name__} that numpy cannot read ({error}); "
            f"expected {spec.describe()}; pass an array, e.g. tensor.detach().cpu().numpy()"
        ) from error


def _convert(
    spec: TensorSpec, array: Array, target: np.dtype[Any], *, cast: bool, is_python: bool
) -> Array:
    # ml_dtypes' bfloat16 is recognised by its name, and not imported.
    if array.dtype.name == "bfloat16" and (spec.dtype == "bfloat16" or cast):
        array = array.astype(np.float32)
    source = array.dtype
    if source == target:
        return array
    if source.kind not in _FAMILIES:
        raise ValueError(
            f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; pass numbers in a "
            "regular shape"
        )
    kinds = source.kind + target.kind
    byte_order_only = source.newbyteorder("=") == target and spec.dtype != "bfloat16"
    widens_integer = "f" not in kinds and "b" not in kinds and np.can_cast(source, target)
    if byte_order_only or widens_integer:
        return array.astype(target)
    if not cast and not (is_python and kinds in ("ii", "iu", "if", "ff")):
        raise _refusal(spec, array, target)
    if _FAMILIES[source.kind] > _FAMILIES[target.kind]:
        raise ValueError(
            f"input {spec.name!r} has dtype {source}, expected {spec.dtype}; that cast would lose "
            f"what the values mean, so make it yourself: x.astype({target.name!r})"
        )
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
