"""ONNX files written field by field, right and wrong ones, without the package onnx."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from causal_onnx.runtime.contract import CONTRACT_KEY, Contract, TensorSpec
from tests.runtime.artifacts import field, metadata

FLOAT, INT64, BOOL = 1, 7, 9
DEFAULT, CONTRIB = field(2, 20), field(1, "com.microsoft") + field(2, 1)


def contract() -> Contract:
    spec = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
    y = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 4))
    return Contract(inputs=(spec,), outputs=(y,))


def node(
    op_type: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *attributes: bytes,
    domain: str = "",
) -> bytes:
    return (
        b"".join(field(1, name) for name in inputs)
        + b"".join(field(2, name) for name in outputs)
        + field(4, op_type)
        + b"".join(field(5, attribute) for attribute in attributes)
        + (field(7, domain) if domain else b"")
    )


def ints(name: str, *values: int) -> bytes:
    """An attribute; negative numbers as protobuf writes them."""
    numbers = b"".join(field(8, value % (1 << 64)) for value in values)
    return field(1, name) + numbers + field(20, 7)


def integer(name: str, value: int) -> bytes:
    return field(1, name) + field(3, value % (1 << 64)) + field(20, 2)


def subgraph(name: str, content: bytes) -> bytes:
    return field(1, name) + field(6, content) + field(20, 5)


def tensor(name: str, *values: int, shape: Sequence[int] | None = None) -> bytes:
    """int64, raw."""
    dims = (len(values),) if shape is None else shape
    data = struct.pack(f"<{len(values)}q", *values)
    head = b"".join(field(1, size) for size in dims) + field(2, INT64)
    return head + field(8, name) + field(9, data)


def external(
    name: str = "w", *, location: str = "w.data", size: int = 4, **entries: object
) -> bytes:
    """A float32 vector in another file."""
    stated = {"location": location, **{key: str(value) for key, value in entries.items()}}
    pairs = b"".join(field(13, field(1, key) + field(2, text)) for key, text in stated.items())
    return field(1, size) + field(2, FLOAT) + field(8, name) + pairs + field(14, 1)


def value(name: str, *axes: str | int, dtype: int = FLOAT) -> bytes:
    dims = b"".join(
        field(1, field(1, axis) if isinstance(axis, int) else field(2, axis)) for axis in axes
    )
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, dims)))


def graph(
    nodes: Sequence[bytes],
    *,
    inputs: Sequence[bytes] = (),
    outputs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    extra: bytes = b"",
) -> bytes:
    return (
        b"".join(field(1, item) for item in nodes)
        + field(2, "g")
        + b"".join(field(5, item) for item in tensors)
        + b"".join(field(11, item) for item in inputs)
        + b"".join(field(12, item) for item in outputs)
        + extra
    )


def model(
    *nodes: bytes, tensors: Sequence[bytes] = (), extra: bytes = b"", in_graph: bytes = b""
) -> bytes:
    """A file that computes y = x, with more nodes and tensors, and more fields at its end."""
    main = graph(
        [node("Identity", ["x"], ["y"]), *nodes],
        inputs=[value("x", "batch", "seq", 4)],
        outputs=[value("y", "batch", "seq", 4)],
        tensors=tensors,
        extra=in_graph,
    )
    return (
        field(1, 10)
        + field(7, main)
        + field(8, DEFAULT)
        + field(8, CONTRIB)
        + metadata(CONTRACT_KEY, contract().to_json())
        + extra
    )
