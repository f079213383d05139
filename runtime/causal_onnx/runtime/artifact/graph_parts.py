"""Read from an ONNX file the names of its graph's inputs and outputs, and of its data files.

Steps over weights and nodes with seeks, as `header` does with the whole graph.
Source: onnx.proto, messages ModelProto, GraphProto, ValueInfoProto, TensorProto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from causal_onnx.runtime.artifact.protobuf import (
    LENGTH_DELIMITED,
    WindowedFile,
    WireError,
    fields,
    messages,
)
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["GraphParts", "read_graph_parts"]

_GRAPH = 7
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_VALUE_NAME = 1
_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

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


def read_graph_parts(file: BinaryIO, *, name: str) -> GraphParts:
    """Read the parts of the graph in `file`, which messages call `name`.

    Raises:
        ArtifactError: It is no ONNX file.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    data_files: set[str] = set()
    try:
        source = WindowedFile(file)
        for start, end in messages(source, 0, source.size, _GRAPH):
            for number, wire_type, first, length, _ in fields(source, start, end):
                if wire_type != LENGTH_DELIMITED:
                    continue
                if number in (_INPUT, _OUTPUT):
                    names = inputs if number == _INPUT else outputs
                    names.append(_text(source, first, first + length, _VALUE_NAME))
                elif number == _INITIALIZER:
                    data_files |= _locations(source, first, first + length)
    except (WireError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{name} is not an ONNX model, or it is damaged: {error}") from error
    return GraphParts(
        inputs=tuple(inputs), outputs=tuple(outputs), data_files=tuple(sorted(data_files))
    )


def _locations(source: WindowedFile, start: int, end: int) -> set[str]:
    """The `location` among the external data entries of one TensorProto."""
    found = set()
    for first, last in messages(source, start, end, _EXTERNAL_DATA):
        if _text(source, first, last, _ENTRY_KEY) == "location":
            found.add(_text(source, first, last, _ENTRY_VALUE))
    return found


def _text(source: WindowedFile, start: int, end: int, field: int) -> str:
    for first, last in messages(source, start, end, field):
        if last - first > MAX_NAME_BYTES:
            raise WireError(f"a name of {last - first} bytes")
        return source.read(first, last - first).decode()
    return ""
