"""Tensors as the protocol writes them: names of datatypes, JSON values, and little-endian bytes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.serve.errors import BadRequestError

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import TensorSpec

    Array = npt.NDArray[Any]

__all__ = [
    "datatype_of",
    "from_bytes",
    "from_values",
    "input_error",
    "read_shape",
    "size_bytes",
    "to_bytes",
    "to_values",
    "wire_shape",
]

NAMES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The contract's name of a dtype -> the protocol's."""

MOST_AXES = 64


def datatype_of(spec: TensorSpec) -> str:
    """The protocol's name of what a tensor holds."""
    return NAMES[spec.dtype]


def wire_shape(spec: TensorSpec) -> list[int]:
    """One number per axis, -1 where it has no fixed size."""
    return [axis if isinstance(axis, int) else -1 for axis in spec.axes]


def input_error(name: str, what: str) -> BadRequestError:
    """An error about an input."""
    return BadRequestError(f"input {name!r} {what}", param=name)


def read_shape(name: str, given: object) -> tuple[int, ...]:
    """The shape of an input.

    Raises:
        BadRequestError: It is no list of sizes.
    """
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) > MOST_AXES
        or not all(type(size) is int and 0 <= size < 1 << 31 for size in given)
    ):
        raise input_error(name, f"needs a shape: a list of sizes, got {str(given)[:60]}")
    return tuple(given)


def _wire_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """How values lie in bytes; of bfloat16 these are the bits."""
    dtype = np.dtype("uint16" if spec.dtype == "bfloat16" else spec.dtype)
    return dtype.newbyteorder("<")


def size_bytes(spec: TensorSpec, shape: Sequence[int]) -> int:
    """How many bytes a tensor of this shape has."""
    return math.prod(shape) * _wire_dtype(spec).itemsize


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """Read an input from little-endian bytes, row by row.

    Raises:
        BadRequestError: There are more or fewer than the shape says, or a truth value is neither
            0 nor 1.
    """
    expected = size_bytes(spec, shape)
    if len(raw) != expected:
        raise input_error(
            spec.name,
            f"has {len(raw)} bytes, but {datatype_of(spec)} of shape {list(shape)} has {expected}",
        )
    if spec.dtype == "bool":
        bits = np.frombuffer(raw, np.uint8)
        if bits.size and bits.max() > 1:
            raise input_error(spec.name, "holds a BOOL byte other than 0 and 1")
        return bits.view(np.bool_).reshape(shape)
    found = np.frombuffer(raw, _wire_dtype(spec))
    if spec.dtype == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    elif sys.byteorder == "big":
        found = found.astype(found.dtype.newbyteorder("="))
    return found.reshape(shape)


def to_bytes(spec: TensorSpec, array: Array) -> bytes:
    """An output as little-endian bytes, row by row."""
    if spec.dtype == "bfloat16":
        # The runtime widens what the graph computes, so that the lower half is empty.
        array = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(array, _wire_dtype(spec)).tobytes()


def from_values(spec: TensorSpec, shape: tuple[int, ...], values: Sequence[Any]) -> Array:
    """Read an input from values, flat or nested as the shape is.

    Raises:
        BadRequestError: A value is of another kind, does not fit the dtype, or there are more or
            fewer of them than the shape says.
    """
    flat = _flat(spec, shape, values)
    if len(flat) != math.prod(shape):
        raise input_error(
            spec.name, f"has {len(flat)} values, but its shape {list(shape)} has {math.prod(shape)}"
        )
    _check_kinds(spec, flat)
    dtype = np.dtype(spec.host_dtype)
    if dtype.kind != "f":
        if dtype.kind in "iu":
            least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
            if flat and not (least <= min(flat) and max(flat) <= most):
                raise input_error(
                    spec.name, f"is {datatype_of(spec)}: its data lies in [{least}, {most}]"
                )
        return np.array(flat, dtype).reshape(shape)
    with np.errstate(over="ignore"):
        found = np.array(flat, np.float64).astype(dtype)
    if not np.isfinite(found).all():
        raise input_error(spec.name, f"holds a number that is too large for {datatype_of(spec)}")
    return found.reshape(shape)


def _flat(spec: TensorSpec, shape: tuple[int, ...], values: Sequence[Any]) -> Sequence[Any]:
    """The values one after the other; where they are nested, as the shape says."""
    if not values or not isinstance(values[0], list):
        return values
    items: list[Any] = [values]
    for size in shape:
        if any(type(item) is not list or len(item) != size for item in items):
            raise input_error(
                spec.name, f"has data that is nested otherwise than its shape {list(shape)}"
            )
        items = [inner for item in items for inner in item]
    return items


def _check_kinds(spec: TensorSpec, flat: Sequence[Any]) -> None:
    kinds = set(map(type, flat))
    if spec.dtype == "bool":
        fits = kinds <= {bool} or (kinds <= {bool, int} and all(item in (0, 1) for item in flat))
        wanted = "true and false"
    elif np.dtype(spec.host_dtype).kind == "f":
        fits, wanted = kinds <= {int, float}, "numbers"
    else:
        fits, wanted = kinds <= {int}, "whole numbers"
    if not fits:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise input_error(spec.name, f"is {datatype_of(spec)}: its data is {wanted}, got {names}")


def to_values(spec: TensorSpec, array: Array) -> list[Any]:
    """An output as a flat list of values.

    Raises:
        BadRequestError: JSON has no such value.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequestError(
            f"output {spec.name!r} holds values that JSON does not have (NaN or infinite); ask "
            "for it as bytes: binary_data",
            param=spec.name,
        )
    found: list[Any] = array.reshape(-1).tolist()
    return found
