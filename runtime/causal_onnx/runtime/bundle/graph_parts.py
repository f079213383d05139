"""Read from an ONNX file the names of its graph's inputs and outputs, and of its data files.

Steps over weights and nodes with seeks, as `onnx_header` does with the whole graph.
Source: onnx.proto, messages ModelProto, GraphProto, ValueInfoProto, TensorProto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from causal_onnx.runtime.errors import ArtifactError

__all__ = ["GraphParts", "read_graph_parts"]

_GRAPH = 7
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_VALUE_NAME = 1
_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5

MAX_NAME_BYTES = 1 << 16
"""Of a name of a tensor or a file; real ones are below 1 kB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphParts:
    """What a graph is connected to."""

    inputs: tuple[str, ...]
    """In the graph's order."""
    outputs: tuple[str, ...]
    data_files: tuple[str, ...]
    """Where weights lie outside of the file, as it names them, relative to its folder; sorted."""


def read_graph_parts(path: Path) -> GraphParts:
    """Read the parts of the graph in `path`.

    Raises:
        ArtifactError: It is no ONNX file.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    data_files: set[str] = set()
    with path.open("rb") as source:
        try:
            for start, end in _messages(source, 0, path.stat().st_size, _GRAPH):
                for number, first, last in _fields(source, start, end):
                    if number in (_INPUT, _OUTPUT):
                        names = inputs if number == _INPUT else outputs
                        names.append(_text(source, first, last, _VALUE_NAME))
                    elif number == _INITIALIZER:
                        data_files |= _locations(source, first, last)
        except (ValueError, EOFError) as error:
            raise ArtifactError(
                f"{path} is not an ONNX model, or it is damaged: {error}"
            ) from error
    return GraphParts(
        inputs=tuple(inputs), outputs=tuple(outputs), data_files=tuple(sorted(data_files))
    )


def _locations(source: BinaryIO, start: int, end: int) -> set[str]:
    """The `location` among the external data entries of one TensorProto."""
    found = set()
    for first, last in _messages(source, start, end, _EXTERNAL_DATA):
        if _text(source, first, last, _ENTRY_KEY) == "location":
            found.add(_text(source, first, last, _ENTRY_VALUE))
    return found


def _text(source: BinaryIO, start: int, end: int, field: int) -> str:
    for first, last in _messages(source, start, end, field):
        if last - first > MAX_NAME_BYTES:
            raise ValueError(f"a name of {last - first} bytes")
        source.seek(first)
        return source.read(last - first).decode()
    return ""


def _messages(source: BinaryIO, start: int, end: int, field: int) -> Iterator[tuple[int, int]]:
    for number, first, last in _fields(source, start, end):
        if number == field:
            yield first, last


def _fields(source: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first byte, byte behind) of the fields of the message in between."""
    position = start
    while position < end:
        source.seek(position)
        tag, position = _varint(source, position)
        wire_type = tag & 7
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
        if wire_type == _VARINT:
            _, position = _varint(source, position)
        elif wire_type == _LENGTH_DELIMITED:
            length, position = _varint(source, position)
        elif not length:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > end:
            raise ValueError(f"a field ends after its message, at byte {position}")
        yield tag >> 3, position, position + length
        position += length


def _varint(source: BinaryIO, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = source.read(1)
        if not byte:
            raise EOFError("it ends in the middle of a field")
        position += 1
        result |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return result, position
    raise ValueError(f"an integer is longer than 10 bytes at byte {position}")
