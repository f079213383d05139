"""Write and read TensorProto messages, the files of ONNX's test data, without the onnx package.

Source: onnx.proto, message TensorProto, and https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.artifact.protobuf import (
    LENGTH_DELIMITED,
    VARINT,
    WindowedFile,
    WireError,
    fields,
    varint_bytes,
)
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.session import bfloat16

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["decode", "encode"]

# TensorProto.DataType.
_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}
_NAMES = {number: name for name, number in _TYPES.items()}

_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9


def encode(name: str, array: Array, dtype: str) -> bytes:
    """One tensor as a TensorProto with raw data.

    Args:
        name: Of the tensor.
        array: Its values; float32 for "bfloat16".
        dtype: A dtype of the contract.

    Raises:
        ValueError: ONNX or this encoder has no such type.
    """
    if dtype not in _TYPES:
        raise ValueError(f"dtype must be one of {', '.join(_TYPES)}, got {dtype!r}")
    if dtype == "bfloat16":
        # A scalar's bits come with an axis.
        bits = bfloat16.to_bits(np.asarray(array, np.float32))
        values: Array = bits.astype("<u2").reshape(np.shape(array))
    else:
        values = np.asarray(array).astype(np.dtype(dtype).newbyteorder("<"))
    return b"".join(
        [
            *(_tag(_DIMS, VARINT) + varint_bytes(size) for size in values.shape),
            _tag(_DATA_TYPE, VARINT) + varint_bytes(_TYPES[dtype]),
            _bytes(_NAME, name.encode()),
            _bytes(_RAW_DATA, values.tobytes()),
        ]
    )


def decode(data: bytes) -> tuple[str, Array]:
    """The name and the values of a TensorProto with raw data; bfloat16 comes as float32.

    Raises:
        ArtifactError: It is none, or holds its values otherwise.
    """
    name, number, dims, raw = "", 0, [], None
    source = WindowedFile(io.BytesIO(data))
    try:
        for field, wire_type, value, length, _ in fields(source, 0, source.size):
            if (field, wire_type) == (_DIMS, VARINT):
                dims.append(value)
            elif (field, wire_type) == (_DATA_TYPE, VARINT):
                number = value
            elif (field, wire_type) == (_NAME, LENGTH_DELIMITED):
                name = source.read(value, length).decode()
            elif (field, wire_type) == (_RAW_DATA, LENGTH_DELIMITED):
                raw = source.read(value, length)
        if raw is None or number not in _NAMES:
            raise ValueError(f"no raw data of a known type (type {number})")
        return name, _values(raw, _NAMES[number], dims)
    except (WireError, ValueError) as error:
        raise ArtifactError(f"not a tensor of ONNX, or damaged: {error}") from error


def _values(raw: bytes, dtype: str, dims: list[int]) -> Array:
    stored = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
    # Counted in Python's integers: numpy's would overflow on dims that someone made up.
    if math.prod(dims) * stored.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for shape {tuple(dims)} of {dtype}")
    array = np.frombuffer(raw, stored).reshape(dims)
    if dtype == "bfloat16":
        return bfloat16.from_bits(array)
    return array.astype(stored.newbyteorder("="))


def _tag(field: int, wire_type: int) -> bytes:
    return varint_bytes(field << 3 | wire_type)


def _bytes(field: int, payload: bytes) -> bytes:
    return _tag(field, LENGTH_DELIMITED) + varint_bytes(len(payload)) + payload
