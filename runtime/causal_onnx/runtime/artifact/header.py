"""Read what an ONNX file says about itself, without the onnx package and without its graph.

An ONNX file is one protobuf message, `ModelProto`. Its graph is one length-delimited field, which
is stepped over: the header of a file of several gigabytes costs a few reads.
Source: onnx.proto, message ModelProto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from causal_onnx.runtime.artifact.protobuf import (
    LENGTH_DELIMITED,
    VARINT,
    WindowedFile,
    WireError,
    fields,
    signed,
)
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
    file = WindowedFile(source)
    if file.size == 0:
        raise ArtifactError(f"{name} is empty. Export or download it again")
    _refuse_foreign(file.read(0, min(24, file.size)), name=name)
    try:
        header = _read_model(file)
    except WireError as error:
        raise ArtifactError(
            f"{name} is not an ONNX model, or it is damaged: {error}. Export or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name} is damaged: its metadata is not UTF-8 ({error})") from error
    return header


def _read_model(source: WindowedFile) -> OnnxHeader:
    ir_version, graphs, metadata_bytes = 0, 0, 0
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    producer = ["", ""]
    for count, (number, wire_type, value, length, _) in enumerate(fields(source, 0, source.size)):
        if count == MAX_FIELDS:
            raise WireError(f"it has more than {MAX_FIELDS} top-level fields")
        expected = VARINT if number == _IR_VERSION else LENGTH_DELIMITED
        if number in _KNOWN and wire_type != expected:
            raise WireError(f"field {number} has wire type {wire_type}, not {expected}")
        if number == _IR_VERSION:
            ir_version = signed(value)
        elif number == _GRAPH:
            graphs += 1
        elif number in (_PRODUCER_NAME, _PRODUCER_VERSION):
            text = source.read(value, _limited(length, MAX_METADATA_BYTES)).decode()
            producer[number - _PRODUCER_NAME] = text
        elif number == _OPSET_IMPORT:
            domain, version = _read_opset(source, value, _limited(length, 1 << 16))
            if domain in opsets:
                raise WireError(f"the operator set {domain!r} is imported twice")
            opsets[domain] = version
        elif number == _METADATA_PROPS:
            metadata_bytes += length
            _limited(metadata_bytes, MAX_METADATA_BYTES)
            key, text = _read_entry(source, value, length)
            # Readers differ in which of two entries they take: neither is safe.
            if key in metadata:
                raise WireError(f"the metadata key {key!r} appears twice")
            metadata[key] = text
    if ir_version < 1:
        raise WireError("it has no IR version")
    # Protobuf would merge several graphs into one; no writer makes such a file.
    if graphs != 1:
        raise WireError(f"it has {graphs} graphs instead of one")
    return OnnxHeader(
        ir_version=ir_version,
        opsets=opsets,
        metadata=metadata,
        producer=" ".join(part for part in producer if part),
        size_bytes=source.size,
    )


_KNOWN = frozenset(
    (_IR_VERSION, _PRODUCER_NAME, _PRODUCER_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA_PROPS)
)


def _limited(length: int, limit: int) -> int:
    if length > limit:
        raise WireError(f"its metadata is larger than {limit} bytes")
    return length


def _read_opset(source: WindowedFile, start: int, size: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire_type, value, length, _ in fields(source, start, start + size):
        if number == _OPSET_DOMAIN and wire_type == LENGTH_DELIMITED:
            domain = source.read(value, length).decode()
        elif number == _OPSET_VERSION and wire_type == VARINT:
            version = signed(value)
    # "ai.onnx" is the long name of the default domain.
    return ("" if domain == "ai.onnx" else domain), version


def _read_entry(source: WindowedFile, start: int, size: int) -> tuple[str, str]:
    parts = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
    for number, wire_type, value, length, _ in fields(source, start, start + size):
        if number in parts and wire_type == LENGTH_DELIMITED:
            parts[number] = source.read(value, length).decode()
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
