"""Read from an ONNX file what its graph takes and gives, as it declares that.

Source: onnx.proto, messages GraphProto, NodeProto, ValueInfoProto, TypeProto, TensorShapeProto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from causal_onnx.runtime.artifact.protobuf import (
    LENGTH_DELIMITED,
    VARINT,
    WindowedFile,
    WireError,
    fields,
    messages,
    signed,
)
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["Declared", "GraphSignature", "read_signature"]

# Field numbers.
_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_GRAPH = 1, 3, 6
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TENSOR_TYPE, _ELEMENT, _SHAPE, _DIM = 1, 1, 2, 1
_DIM_VALUE, _DIM_PARAM = 1, 2

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
"""TensorProto.DataType -> our name, of those that a contract may have."""

GROUPED, ROLLING, BRANCHING = "GroupQueryAttention", "sliding_window_cache", "If"
_PAST_KEY, _PAST_VALUE, _PRESENT_KEY, _PRESENT_VALUE = 3, 4, 1, 2

MAX_TEXT = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """An input or output as the graph declares it."""

    name: str
    dtype: str | None
    """None: one that no contract has."""
    dims: tuple[int | str | None, ...] | None
    """Sizes, names of sizes, or None where the graph says neither; None: of unknown rank."""

    def describe(self) -> str:
        """On one line, e.g. `x: float32 (batch, ?, 64)`."""
        dims = (
            "?" if self.dims is None else ", ".join("?" if d is None else str(d) for d in self.dims)
        )
        return f"{self.name}: {self.dtype or 'another type'} ({dims})"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSignature:
    """What a graph takes and gives."""

    inputs: tuple[Declared, ...]
    """Without those that have a default."""
    outputs: tuple[Declared, ...]
    grouped: Mapping[str, str]
    """Past -> present, where a GroupQueryAttention makes the one of the other."""
    rolling: frozenset[str] = frozenset()
    """The pasts among those that keep a window, in an order of their own."""
    branches: Mapping[str, tuple[Declared, ...]] = field(default_factory=dict)
    """Output -> as each branch declares it, where an If of the graph gives it."""


def read_signature(file: BinaryIO, *, name: str) -> GraphSignature:
    """Read the signature of the graph in `file`, which messages call `name`.

    Raises:
        ArtifactError: It is no ONNX file.
    """
    inputs: list[Declared] = []
    outputs: list[Declared] = []
    defaults: set[str] = set()
    grouped: dict[str, str] = {}
    rolling: set[str] = set()
    branches: dict[str, tuple[Declared, ...]] = {}
    try:
        source = WindowedFile(file)
        for start, end in messages(source, 0, source.size, _GRAPH):
            for number, wire_type, first, length, _ in fields(source, start, end):
                if wire_type != LENGTH_DELIMITED:
                    continue
                span = first, first + length
                if number == _INPUT:
                    inputs.append(_declared(source, *span))
                elif number == _OUTPUT:
                    outputs.append(_declared(source, *span))
                elif number == _INITIALIZER:
                    defaults |= set(_texts(source, *span, _TENSOR_NAME))
                elif number == _NODE:
                    kind = next(_texts(source, *span, _NODE_OP_TYPE), "")
                    if kind == GROUPED:
                        _note_grouped(source, span, grouped, rolling)
                    elif kind == BRANCHING:
                        branches |= _branches(source, span)
    except (WireError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{name} is not an ONNX model, or it is damaged: {error}") from error
    return GraphSignature(
        inputs=tuple(item for item in inputs if item.name not in defaults),
        outputs=tuple(outputs),
        grouped=grouped,
        rolling=frozenset(rolling),
        branches=branches,
    )


def _note_grouped(
    source: WindowedFile, span: tuple[int, int], grouped: dict[str, str], rolling: set[str]
) -> None:
    """Add the pasts of a GroupQueryAttention with their presents, and those that keep a window."""
    takes = list(_texts(source, *span, _NODE_INPUT))
    gives = list(_texts(source, *span, _NODE_OUTPUT))
    for past, present in ((_PAST_KEY, _PRESENT_KEY), (_PAST_VALUE, _PRESENT_VALUE)):
        if past < len(takes) and present < len(gives):
            grouped[takes[past]] = gives[present]
    if _is_set(source, *span, ROLLING):
        rolling |= set(takes[_PAST_KEY : _PAST_VALUE + 1])


def _branches(source: WindowedFile, span: tuple[int, int]) -> dict[str, tuple[Declared, ...]]:
    """The outputs of an If, each with what its branches declare of it."""
    found = [
        [_declared(source, *place) for place in messages(source, *graph, _OUTPUT)]
        for attribute in messages(source, *span, _NODE_ATTRIBUTE)
        for graph in messages(source, *attribute, _ATTRIBUTE_GRAPH)
    ]
    names = _texts(source, *span, _NODE_OUTPUT)
    return dict(zip(names, zip(*found, strict=False), strict=False))


def _is_set(source: WindowedFile, start: int, end: int, name: str) -> bool:
    """Whether a node has an attribute of this name that is a number other than 0."""
    for first, last in messages(source, start, end, _NODE_ATTRIBUTE):
        if name in _texts(source, first, last, _ATTRIBUTE_NAME):
            return any(
                number == _ATTRIBUTE_INT and wire_type == VARINT and value
                for number, wire_type, value, _, _ in fields(source, first, last)
            )
    return False


def _declared(source: WindowedFile, start: int, end: int) -> Declared:
    """One ValueInfoProto."""
    name = next(_texts(source, start, end, _VALUE_NAME), "")
    dtype: str | None = None
    dims: list[int | str | None] | None = None
    for type_span in messages(source, start, end, _VALUE_TYPE):
        for first, last in messages(source, *type_span, _TENSOR_TYPE):
            for number, wire_type, value, length, _ in fields(source, first, last):
                if number == _ELEMENT and wire_type == VARINT:
                    dtype = DTYPES.get(value)
                elif number == _SHAPE and wire_type == LENGTH_DELIMITED:
                    spans = messages(source, value, value + length, _DIM)
                    dims = [_dim(source, *span) for span in spans]
    return Declared(name=name, dtype=dtype, dims=None if dims is None else tuple(dims))


def _dim(source: WindowedFile, start: int, end: int) -> int | str | None:
    for number, wire_type, value, length, _ in fields(source, start, end):
        if number == _DIM_VALUE and wire_type == VARINT:
            return signed(value)
        if number == _DIM_PARAM and wire_type == LENGTH_DELIMITED and length:
            return _text(source, value, length)
    return None


def _texts(source: WindowedFile, start: int, end: int, field: int) -> Iterator[str]:
    for first, last in messages(source, start, end, field):
        yield _text(source, first, last - first)


def _text(source: WindowedFile, start: int, length: int) -> str:
    if length > MAX_TEXT:
        raise WireError(f"a name of {length} bytes")
    return source.read(start, length).decode()
