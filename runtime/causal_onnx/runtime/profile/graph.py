"""The nodes of a file, with the submodule each comes from and the constants it reads."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.protobuf import WindowedFile, WireError
from causal_onnx.runtime.contract import MODULE_KEY
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.scan.decode import Decoder, Message, Numbers
from causal_onnx.runtime.scan.tensors import BITS

__all__ = ["GraphNode", "Scope", "Stored", "read_graph"]

FLOAT16, BFLOAT16 = 10, 16
"""TensorProto.DataType."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A constant, as the file stores it."""

    size_bytes: int
    shape: tuple[int, ...] | None = None
    """None: it is computed from other constants, whose bytes these are."""
    is_half: bool = False
    """16-bit floating point, which the CPU may hold as float32."""


@dataclass(kw_only=True, slots=True)
class GraphNode:
    """One node."""

    name: str
    op_type: str
    module: str
    """The submodule it comes from, e.g. "blocks.0.attention.q_proj"; empty where none is told."""
    inputs: tuple[str, ...]
    """An input that is left out is empty."""
    integers: Mapping[str, int]
    """Attributes."""
    texts: Mapping[str, str]
    constants: Mapping[int, Stored] = field(default_factory=dict)
    """Place among the inputs -> constant."""
    branches: tuple[Scope, ...] = ()
    """The graphs in its attributes."""


class Scope:
    """The nodes of one graph by name, and the constants that they see."""

    def __init__(self, parent: Scope | None) -> None:
        self._parent = parent
        self._nodes: dict[str, list[GraphNode]] = {}
        self._constants: dict[str, Stored | None] = {}
        """None: a value of this graph that is no constant, and hides one of that name outside."""

    def find(self, name: str, op_type: str) -> GraphNode | None:
        """The node that onnxruntime calls so; of several the one of that operator.

        Where onnxruntime fuses nodes, it appends the name of the fusion: `node/QuickGeluFusion/`.
        """
        while name:
            found = self._nodes.get(name, [])
            if found:
                return next((node for node in found if node.op_type == op_type), found[0])
            name = name.rstrip("/").rpartition("/")[0]
        return None

    def constant(self, name: str) -> Stored | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope._constants:
                return scope._constants[name]
            scope = scope._parent
        return None

    def hide(self, name: str) -> None:
        self._constants[name] = None

    def keep(self, name: str, value: Stored) -> None:
        self._constants.setdefault(name, value)

    def add(self, node: GraphNode, outputs: tuple[str, ...]) -> None:
        node.constants = {
            place: stored
            for place, name in enumerate(node.inputs)
            if name and (stored := self.constant(name)) is not None
        }
        self._nodes.setdefault(node.name, []).append(node)
        named = [name for name in node.inputs if name]
        is_constant = bool(named) and len(node.constants) == len(named) and not node.branches
        total = sum(stored.size_bytes for stored in node.constants.values())
        for name in outputs:
            if is_constant:
                self._constants[name] = Stored(
                    size_bytes=total, is_half=any(x.is_half for x in node.constants.values())
                )
            else:
                self.hide(name)

    def __iter__(self) -> Iterator[GraphNode]:
        """All nodes, those of branches behind their node."""
        for nodes in self._nodes.values():
            for node in nodes:
                yield node
                for branch in node.branches:
                    yield from branch


def read_graph(artifact: Artifact) -> Scope:
    """Read the graph of a file, without its weights.

    Raises:
        ArtifactError: The file is damaged.
    """
    location = artifact.location
    opened: BinaryIO = (
        io.BytesIO(location) if isinstance(location, bytes) else location.open("rb", buffering=0)
    )
    with opened as file:
        try:
            source = WindowedFile(file)
            model = Decoder(source).message("model", 0, source.size)
            return _graph(model["graph"], source, None, "")
        except (WireError, UnicodeDecodeError, KeyError) as error:
            raise ArtifactError(f"the graph of {artifact.name} cannot be read: {error}") from error


def _graph(graph: Message, source: WindowedFile, parent: Scope | None, module: str) -> Scope:
    scope = Scope(parent)
    # A constant that is an input too is only the value where none is given.
    for value in graph.get("input", []):
        scope.hide(value.get("name", ""))
    for tensor in graph.get("initializer", []):
        scope.keep(tensor.get("name", ""), _stored(tensor))
    for index, message in enumerate(graph.get("node", [])):
        # What onnxruntime calls a node without a name.
        name = message.get("name") or f"{message.get('op_type', '')}_{index}"
        _add(message, name, scope, source, module)
    return scope


def _add(message: Message, name: str, scope: Scope, source: WindowedFile, outside: str) -> None:
    outputs = tuple(message.get("output", []))
    attributes = {item["name"]: item for item in message.get("attribute", [])}
    if message.get("op_type") == "Constant":
        for output in outputs:
            scope.keep(output, _literal(attributes))
        return
    module = outside
    for entry in message.get("metadata_props", []):
        if entry.get("key") == MODULE_KEY and "value" in entry:
            module = source.read(*entry["value"]).decode()
    node = GraphNode(
        name=name,
        op_type=message.get("op_type", ""),
        module=module,
        inputs=tuple(message.get("input", [])),
        integers={key: item["i"] for key, item in attributes.items() if "i" in item},
        texts={
            key: source.read(*item["s"]).decode() for key, item in attributes.items() if "s" in item
        },
        branches=tuple(
            _graph(item["g"], source, scope, module) for item in attributes.values() if "g" in item
        ),
    )
    scope.add(node, outputs)


def _stored(tensor: Message) -> Stored:
    shape = tuple(int(size) for size in tensor.get("dims", Numbers()).first)
    kind = tensor.get("data_type", 0)
    return Stored(
        size_bytes=(math.prod(shape) * BITS.get(kind, 0) + 7) // 8,
        shape=shape,
        is_half=kind in (FLOAT16, BFLOAT16),
    )


def _literal(attributes: Mapping[str, Message]) -> Stored:
    """What a Constant node holds: a tensor, or numbers of its attributes."""
    for item in attributes.values():
        if "t" in item:
            return _stored(item["t"])
        for key, size in (("ints", 8), ("floats", 4)):
            if key in item:
                return Stored(size_bytes=size * item[key].count, shape=(item[key].count,))
    return Stored(size_bytes=8 if "value_int" in attributes else 4, shape=())
