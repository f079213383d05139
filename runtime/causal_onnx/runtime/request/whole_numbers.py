"""Whole numbers that a caller hands in: taken as they are, or refused by name.

`int` would cut 2.7 to 2 and take True for 1, and numpy takes a mask for the rows 1 and 0; either
gives numbers that nobody asked for. So nothing is converted but integers of numpy's to Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["MOST_ROWS", "is_whole", "whole_number", "whole_numbers"]

MOST_SHOWN = 60
"""Characters of a value that a message repeats."""
MOST_ROWS = 1 << 20
"""Of a batch."""
MOST_NUMBERS = 1 << 26
"""In one list; a view of a single number can claim to hold any amount."""


def is_whole(value: object) -> bool:
    """Whether a value is an integer, of Python's or numpy's, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole_number(
    name: str, value: object, *, least: int = 1, most: int | None = None, wanted: str | None = None
) -> int:
    """`value` as an `int`.

    Args:
        name: What the message calls it.
        value: What a caller gave.
        least: The smallest that is allowed.
        most: The largest; None: any.
        wanted: What the message says it must be; None: an integer in that range.

    Raises:
        ValueError: It is no integer, or out of range.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    why = ", which is no whole number"
    if is_whole(value):
        number: int = int(value)  # type: ignore[call-overload]
        if least <= number and (most is None or number <= most):
            return number
        why = f", which is above {most}" if number > least else ""
    wanted = wanted or f"an integer of at least {least}"
    raise ValueError(f"{name} must be {wanted}, got {shown(value)}{why}")


def whole_numbers(name: str, values: object, *, count: int | None = None) -> Array:
    """Several whole numbers as a new array of int64 with one axis.

    Args:
        name: What the message calls them.
        values: A sequence, or an array of one axis.
        count: How many there must be, one for each row; None: any number but none.

    Raises:
        ValueError: There are fewer or more, one is no integer, or int64 does not hold it.
    """
    is_array = hasattr(values, "__array__") and hasattr(values, "shape")
    if isinstance(values, str | bytes) or not (isinstance(values, Sequence) or is_array):
        raise ValueError(f"{name} must be a list of integers, got {shown(values)}")
    shape = tuple(values.shape) if is_array else (len(values),)  # type: ignore[attr-defined,arg-type]
    if count is None and (len(shape) != 1 or not 0 < shape[0] <= MOST_NUMBERS):
        raise ValueError(
            f"{name} must be a list of at least one number, at most {MOST_NUMBERS}, got "
            f"{shown(values)}"
        )
    if count is not None and shape != (count,):
        raise ValueError(
            f"{name} must hold one number for each of the {count} rows, got {shown(values)}"
        )
    array = np.asarray(values) if is_array else None
    if array is not None and array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64):
        return array.astype(np.int64)
    items = list(values) if array is None else array.tolist()  # type: ignore[call-overload]
    for item in items:
        if not is_whole(item):
            remedy = ""
            if isinstance(item, bool | np.bool_):
                remedy = "; a mask becomes the numbers of its rows by np.flatnonzero(mask)"
            raise ValueError(f"{name} must be integers, got {shown(item)} in them{remedy}")
        if not -(1 << 63) <= item < 1 << 63:
            raise ValueError(f"{name} must be below 2**63, got {shown(item)} in them")
    return np.array(items, np.int64)


def shown(value: object) -> str:
    """A value as a message repeats it: of arrays the shape, of long texts the beginning."""
    shape = getattr(value, "shape", None)
    if shape and len(shape) and (len(shape) > 1 or shape[0] > MOST_SHOWN):
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, list | tuple) and len(value) > MOST_SHOWN:
        return f"{len(value)} items"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
