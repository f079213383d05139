"""Read what an ONNX file says about itself, without the onnx package and without its graph.

An ONNX file is one protobuf message, `ModelProto`. Its graph is one length-delimited field, so a
reader that knows the wire format steps over the weights with a seek: the header of a file of
several gigabytes costs a few reads.
Sources: https://protobuf.dev/programming-guides/encoding and onnx.proto, message ModelProto.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from causal_onnx.runtime.errors import ArtifactError

__all__ = ["OnnxHeader", "read_header"]

MAX_METADATA_BYTES = 64 << 20
"""All of `metadata_props` together. The golden vectors are the largest part: 60 layers of cached
keys and values, sampled to 16 KiB each, in four cases, are 10 MiB in base64."""

MAX_FIELDS = 1 << 16
"""Top-level fields of the file. A real one has a graph, a few operator sets and metadata; only
local functions come in numbers, and the largest exports have a few hundred."""

# Field numbers of ModelProto, OperatorSetIdProto and StringStringEntryProto.
_IR_VERSION, _PRODUCER_NAME, _PRODUCER_VERSION, _GRAPH = 1, 2, 3, 7
_OPSET_IMPORT, _METADATA_PROPS = 8, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5

# Files that are handed in by mistake, by their first bytes.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip file, such as torch.save writes: export the module first"),
    (b"\x80\x02", "a pickle: export the module first"),
    (b"\x89HDF\r\n", "an HDF5 file: convert it to ONNX first"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x93NUMPY", "a numpy array, not a model"),
    (b"<", "markup, perhaps an error page that was saved in place of the model: download it again"),
    (b"{", "JSON, not a model"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxHeader:
    """The parts of an ONNX file beside its graph."""

    ir_version: int
    opsets: Mapping[str, int]
    """Domain -> version; the default domain is ""."""
    metadata: Mapping[str, str]
    producer: str
    """Name and version of the program that wrote the file; empty where it does not say."""
    size_bytes: int


def read_header(source: BinaryIO, *, name: str) -> OnnxHeader:
    """Read the header of the ONNX file in `source`, which must be seekable.

    Args:
        source: The file, open for reading bytes. Its position is changed.
        name: How error messages call it.

    Raises:
        ArtifactError: Empty, cut off, damaged, not ONNX, or with more metadata than
            `MAX_METADATA_BYTES`.
    """
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    if size == 0:
        raise ArtifactError(f"{name} is empty. Export or download it again")
    _refuse_foreign(source.read(24), name=name)
    source.seek(0)
    try:
        header = _read_model(source, size)
    except _WireError as error:
        raise ArtifactError(
            f"{name} is not an ONNX model, or it is damaged: {error}. Export or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name} is damaged: its metadata is not UTF-8 ({error})") from error
    return header


class _WireError(Exception):
    """The bytes do not follow the wire format, or not ModelProto's fields."""


def _read_model(source: BinaryIO, size: int) -> OnnxHeader:
    ir_version, graphs, metadata_bytes = 0, 0, 0
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    producer = ["", ""]
    for number, wire_type, value, length in _fields(source, size):
        expected = _VARINT if number == _IR_VERSION else _LENGTH_DELIMITED
        if number in _KNOWN and wire_type != expected:
            raise _WireError(f"field {number} has wire type {wire_type}, not {expected}")
        if number == _IR_VERSION:
            ir_version = value
        elif number == _GRAPH:
            graphs += 1
        elif number in (_PRODUCER_NAME, _PRODUCER_VERSION):
            text = _read_exact(source, _limited(length, MAX_METADATA_BYTES)).decode()
            producer[number - _PRODUCER_NAME] = text
        elif number == _OPSET_IMPORT:
            domain, version = _read_opset(_read_exact(source, _limited(length, 1 << 16)))
            if domain in opsets:
                raise _WireError(f"the operator set {domain!r} is imported twice")
            opsets[domain] = version
        elif number == _METADATA_PROPS:
            metadata_bytes += length
            _limited(metadata_bytes, MAX_METADATA_BYTES)
            key, text = _read_entry(_read_exact(source, length))
            # Readers differ in which of two entries they take: neither is safe.
            if key in metadata:
                raise _WireError(f"the metadata key {key!r} appears twice")
            metadata[key] = text
    if ir_version < 1:
        raise _WireError("it has no IR version")
    # Protobuf would merge several graphs into one; no writer makes such a file.
    if graphs != 1:
        raise _WireError(f"it has {graphs} graphs instead of one")
    return OnnxHeader(
        ir_version=ir_version,
        opsets=opsets,
        metadata=metadata,
        producer=" ".join(part for part in producer if part),
        size_bytes=size,
    )


_KNOWN = frozenset(
    (_IR_VERSION, _PRODUCER_NAME, _PRODUCER_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA_PROPS)
)


def _fields(source: BinaryIO, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, varint value or 0, length of the payload) to the end.

    While a length-delimited field is out, `source` stands at its payload; whatever of that the
    caller leaves unread is stepped over.
    """
    position = 0
    for _ in range(MAX_FIELDS):
        if position == size:
            return
        tag, position = _read_varint(source, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise _WireError(f"field number 0 at byte {position}")
        value, length = 0, 0
        if wire_type == _VARINT:
            value, position = _read_varint(source, position)
        elif wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(source, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise _WireError(f"wire type {wire_type} at byte {position}")
        if length > size - position:
            raise _WireError(
                f"field {number} ends {length - (size - position)} bytes after the end of the file"
            )
        yield number, wire_type, value, length
        position += length
        source.seek(position)
    raise _WireError(f"it has more than {MAX_FIELDS} top-level fields")


def _read_varint(source: BinaryIO, position: int) -> tuple[int, int]:
    """Read one variable-length integer; return it and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = source.read(1)
        if not byte:
            raise _WireError("it ends in the middle of a field")
        position += 1
        result |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return result, position
    raise _WireError(f"an integer is longer than 10 bytes at byte {position}")


def _read_exact(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise _WireError("it ends in the middle of a field")
    return data


def _limited(length: int, limit: int) -> int:
    if length > limit:
        raise _WireError(f"its metadata is larger than {limit} bytes")
    return length


def _read_opset(payload: bytes) -> tuple[str, int]:
    domain, version = "", 0
    source = io.BytesIO(payload)
    for number, wire_type, value, length in _fields(source, len(payload)):
        if number == _OPSET_DOMAIN and wire_type == _LENGTH_DELIMITED:
            domain = _read_exact(source, length).decode()
        elif number == _OPSET_VERSION and wire_type == _VARINT:
            version = value
    # "ai.onnx" is the long name of the default domain.
    return ("" if domain == "ai.onnx" else domain), version


def _read_entry(payload: bytes) -> tuple[str, str]:
    parts = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
    source = io.BytesIO(payload)
    for number, wire_type, _, length in _fields(source, len(payload)):
        if number in parts and wire_type == _LENGTH_DELIMITED:
            parts[number] = _read_exact(source, length).decode()
    return parts[_ENTRY_KEY], parts[_ENTRY_VALUE]


def _refuse_foreign(start: bytes, *, name: str) -> None:
    if start[4:8] in (b"ORTM", b"TFL3"):
        kind = "an ORT format" if start[4:8] == b"ORTM" else "a TensorFlow Lite"
        raise ArtifactError(
            f"{name} is {kind} model, which carries no contract: pass the .onnx file"
        )
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise ArtifactError(f"{name} is {what}")
