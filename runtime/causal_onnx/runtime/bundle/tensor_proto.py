"""Write and read TensorProto messages, the files of ONNX's test data, without the onnx package.

Source: onnx.proto, message TensorProto, and https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime import bfloat16
from causal_onnx.runtime.errors import ArtifactError

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
_VARINT, _LENGTH_DELIMITED = 0, 2


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
            *(_tag(_DIMS, _VARINT) + _varint(size) for size in values.shape),
            _tag(_DATA_TYPE, _VARINT) + _varint(_TYPES[dtype]),
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
    position = 0
    try:
        while position < len(data):
            tag, position = _read_varint(data, position)
            field, wire_type = tag >> 3, tag & 7
            value, position = _read_varint(data, position)
            if wire_type == _VARINT:
                if field == _DIMS:
                    dims.append(value)
                elif field == _DATA_TYPE:
                    number = value
            elif wire_type == _LENGTH_DELIMITED:
                payload = data[position : position + value]
                if len(payload) != value:
                    raise ValueError("it ends in the middle of a field")
                position += value
                if field == _NAME:
                    name = payload.decode()
                elif field == _RAW_DATA:
                    raw = payload
            else:
                raise ValueError(f"wire type {wire_type}")
        if raw is None or number not in _NAMES:
            raise ValueError(f"no raw data of a known type (type {number})")
        return name, _values(raw, _NAMES[number], dims)
    except ValueError as error:
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
    return _varint(field << 3 | wire_type)


def _bytes(field: int, payload: bytes) -> bytes:
    return _tag(field, _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends in the middle of a field")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("an integer is longer than 10 bytes")
