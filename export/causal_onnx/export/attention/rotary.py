"""Recognise rotary positions before a core, by what they do to queries and keys.

Between the projection and the core, the features of each head are turned by an angle that only the
position decides. However that is written (halves, pairs, complex numbers, tables or computed), it
is a linear map per position; so it is applied to the unit vectors, and the matrices tell which
features it pairs. Cosines and sines are read off the map itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.attention.canonical_core import (
    CanonicalCore,
    Heads,
    Projected,
    Rotary,
    feature_pairs,
)
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.facts import Axis, Layouts
from causal_onnx.export.graph.position_region import PositionRegion
from causal_onnx.export.outcome import SessionError, ask_onnxruntime

__all__ = ["find_projections"]

Array = npt.NDArray[Any]

LONGEST_TABLE = 1 << 17
"""Positions that a table may have: for a head of 128 features 64 MB, stored once for all layers."""
USUAL_TABLE = 1 << 13
"""Positions of a table that cannot be complete: for a head of 128 features 4 MB."""
LARGEST_PROBE_BYTES = 1 << 29
LARGEST_CHAIN = 24
"""Nodes between the projection and the core, with room."""
TOLERANCE = 1e-6
PROBE_SEQ = 5


def find_projections(
    layouts: Layouts, cores: Sequence[CanonicalCore], max_seq_len: int | None
) -> list[CanonicalCore]:
    """The cores, each with what its operands were before positions came in.

    The graph stays as it is; `lower` takes this where the target turns queries and keys itself.

    Args:
        layouts: Of the graph with the cores cut out.
        cores: The cores, whose inputs are values of that graph.
        max_seq_len: The longest sequence. None, or more than a table may have: the tables are not
            complete, and what lies beyond must be turned as the graph does it.
    """
    finder, found = _Finder(layouts, max_seq_len), []
    for core in cores:
        q, k, v = core.operands
        before_q, before_k = finder.turn(q), finder.turn(k)
        rotary = projected = None
        if before_q is not None and before_k is not None and before_q[1].equals(before_k[1]):
            (q, rotary), (k, _) = before_q, before_k
        if all(_is_split(layouts.axes(value)) for value in (q, k, v)):
            projected = Projected(
                q=_heads(layouts, q), k=_heads(layouts, k), v=_heads(layouts, v), rotary=rotary
            )
        found.append(replace(core, projected=projected))
    return found


class _Finder:
    """Looks for turns; those of equal layers are evaluated once."""

    def __init__(self, layouts: Layouts, max_seq_len: int | None):
        self._layouts = layouts
        self._max_seq_len = max_seq_len
        self._order = {node: index for index, node in enumerate(layouts.model.graph)}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._found: dict[int, Rotary | None] = {}

    def turn(self, value: ir.Value) -> tuple[ir.Value, Rotary] | None:
        """What `value`, (batch, num_heads, seq, head_dim), was before it was turned, and how."""
        for source, nodes in self._chains(value):
            if not _is_split(self._layouts.axes(source)):
                continue
            key = self._key_of_chain(value, source)
            if key not in self._found:
                chain = _Chain(self._layouts, source, nodes, value)
                self._found[key] = _read_table(chain, self._max_seq_len)
            rotary = self._found[key]
            if rotary is not None:
                return source, rotary
        return None

    def _chains(self, value: ir.Value) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
        """(source, nodes in order): all that leads from one data-dependent value to `value`."""
        nodes: list[ir.Node] = []
        sources = {value}
        while len(nodes) <= LARGEST_CHAIN:
            last = max(sources, key=lambda v: self._index(v.producer()))
            node = last.producer()
            if node is None or node.domain or node.op_type not in _MOVES_AND_SCALES:
                return
            nodes.append(node)
            sources -= set(node.outputs)
            sources |= {v for v in node.inputs if v is not None and self._layouts.is_tainted(v)}
            if len(sources) == 1:
                yield next(iter(sources)), nodes[::-1]

    def _index(self, node: ir.Node | None) -> int:
        return -1 if node is None else self._order[node]

    def _key_of_chain(self, value: ir.Value, source: ir.Value) -> int:
        """A number that is the same for chains that compute the same."""
        keys = {source: self._number("source", self._layouts.axes(source), source.dtype)}
        return self._key(value, keys)

    def _key(self, value: ir.Value | None, keys: dict[ir.Value, int]) -> int:
        if value is None:
            return -1
        if value in keys:
            return keys[value]
        node = value.producer()
        if node is None:
            keys[value] = self._number("leaf", id(value))
        elif node.op_type in ("Shape", "Size") and self._layouts.is_tainted(node.inputs[0]):
            assert node.inputs[0] is not None
            axes = self._layouts.axes(node.inputs[0])
            keys[value] = self._number(node.op_type, axes, str(node.attributes))
        else:
            inputs = tuple(self._key(v, keys) for v in node.inputs)
            where = node.outputs.index(value)
            attributes = str(sorted((a.name, str(a.value)) for a in node.attributes.values()))
            keys[value] = self._number(node.domain, node.op_type, inputs, where, attributes)
        return keys[value]

    def _number(self, *what: Any) -> int:
        return self._numbers.setdefault(what, len(self._numbers))


_MOVES_AND_SCALES = {"Add", "Cast", "Concat", "Div", "Expand", "Flatten", "Gather", "Identity"}
_MOVES_AND_SCALES |= {"Mul", "Neg", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose"}
_MOVES_AND_SCALES |= {"Unsqueeze", "Where"}


def _is_split(axes: Sequence[Axis]) -> bool:
    """Whether these are the axes of queries or keys by head, in either order."""
    return (
        len(axes) == 4
        and axes[0] == Axis(1, 1, 0)
        and axes[3].is_fixed
        and sorted((axes[1].is_seq, axes[2].is_seq)) == [False, True]
        and (axes[1].is_fixed or axes[2].is_fixed)
    )


def _heads(layouts: Layouts, source: ir.Value) -> Heads:
    axes = layouts.axes(source)
    heads_first = axes[2].is_seq
    split: ir.Value | None = source
    if heads_first:
        moved = source.producer()
        split = None
        if moved is not None and moved.op_type == "Transpose":
            swapped = list(moved.attributes["perm"].as_ints()) == [0, 2, 1, 3]
            split = moved.inputs[0] if swapped else None
    node = None if split is None else split.producer()
    packed = None if node is None or node.op_type != "Reshape" else node.inputs[0]
    width = axes[1 if heads_first else 2].count * axes[3].count
    if packed is not None and layouts.axes(packed) != (Axis(1, 1, 0), Axis(1, 0, 1), Axis(width)):
        packed = None
    return Heads(value=source, heads_first=heads_first, packed=packed)


class _Chain:
    """The nodes from one value to another, with what they read besides, as a function."""

    def __init__(
        self, layouts: Layouts, source: ir.Value, nodes: Sequence[ir.Node], result: ir.Value
    ):
        self._layouts, self._nodes, self._result = layouts, nodes, result
        self.source = source
        axes = layouts.axes(source)
        self._heads_first = axes[2].is_seq
        self.heads = axes[1 if self._heads_first else 2].count
        self.width = axes[3].count
        self.dtype = (source.dtype or ir.DataType.FLOAT).numpy()

    def __call__(self, x: Array) -> Array:
        """Apply to (batch, seq, width), the same for every head; of all heads the same result.

        Raises:
            NotSupportedError: It cannot be evaluated, or the heads are treated differently.
        """
        batch, seq, _ = x.shape
        axis = 1 if self._heads_first else 2
        given = np.repeat(np.expand_dims(x.astype(self.dtype), axis), self.heads, axis)
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(self._layouts.model.opset_imports))
        known: dict[ir.Value, ir.Value] = {}
        entry = ir.Value(
            name="x",
            shape=ir.Shape(given.shape),
            type=ir.TensorType(ir.DataType.from_numpy(self.dtype)),
        )
        graph.inputs.append(entry)
        known[self.source] = entry
        for node in self._nodes:
            inputs = [self._operand(graph, known, v, batch, seq) for v in node.inputs]
            attributes = {a.name: a.value for a in node.attributes.values()}
            twin = ir.node(node.op_type, inputs, attributes, num_outputs=len(node.outputs))
            graph.append(twin)
            known.update(zip(node.outputs, twin.outputs, strict=True))
        last = known[self._result]
        last.name = last.name or "turned"
        graph.outputs.append(last)
        result = _run(graph, given)
        if result.shape != (batch, self.heads, seq, self.width) or (result != result[:, :1]).any():
            raise NotSupportedError("heads are treated differently")
        return result[:, 0].astype(np.float32)

    def _operand(
        self,
        graph: ir.Graph,
        known: dict[ir.Value, ir.Value],
        value: ir.Value | None,
        batch: int,
        seq: int,
    ) -> ir.Value | None:
        if value is None or value in known:
            return None if value is None else known[value]
        array = constant_value(value)
        if array is None:
            array = PositionRegion(self._layouts, value).evaluate(batch, seq)
        name = f"c{len(graph.initializers)}"
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        known[value] = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(known[value])
        return known[value]


def _run(graph: ir.Graph, x: Array) -> Array:
    serialized = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    try:
        session = ask_onnxruntime(plain_session, serialized)
        result: Array = ask_onnxruntime(session.run, None, {"x": x})[0]
    except SessionError as error:
        raise NotSupportedError(f"cannot be evaluated: {error}") from error
    return result


def _read_table(chain: _Chain, max_seq_len: int | None) -> Rotary | None:
    """Cosines and sines of all positions, if the chain is a rotary map."""
    fitting = LARGEST_PROBE_BYTES // (8 * chain.heads * chain.width)
    complete = max_seq_len is not None and max_seq_len <= min(LONGEST_TABLE, fitting)
    length = max_seq_len if complete and max_seq_len is not None else min(USUAL_TABLE, fitting)
    try:
        # (seq, width out, width in), the matrix of each position.
        unit = np.repeat(np.eye(chain.width, dtype=np.float32)[:, None], PROBE_SEQ, axis=1)
        matrices = chain(unit).transpose(1, 2, 0)
        for half, interleaved in _candidates(matrices):
            first, second = feature_pairs(half, interleaved)
            ones = np.zeros((2, length, chain.width), np.float32)
            ones[0, :, first], ones[1, :, second] = 1, 1
            turned = chain(ones)
            cos, sin = turned[0][:, first], turned[0][:, second]
            if not np.array_equal(cos, turned[1][:, second]):
                continue
            if not np.array_equal(sin, -turned[1][:, first]):
                continue
            table = Rotary(
                cos=cos.astype(chain.dtype),
                sin=sin.astype(chain.dtype),
                complete=complete,
                interleaved=interleaved,
            )
            if _agrees(chain, table):
                return table
    except NotSupportedError:
        return None
    return None


def _candidates(matrices: Array) -> Iterator[tuple[int, bool]]:
    """(pairs, interleaved) by which features the matrices mix."""
    width = matrices.shape[1]
    mixed = (matrices != np.eye(width, dtype=np.float32)).any(axis=(0, 2))
    if not mixed.any() or not (matrices[0] != matrices[-1]).any():
        return  # nothing is turned, or not by the position
    used = int(np.flatnonzero(mixed)[-1]) + 1
    rotary_dim = used + used % 2
    for half in dict.fromkeys((rotary_dim // 2, width // 2)):
        for interleaved in (False, True):
            first, second = (np.arange(width)[part] for part in feature_pairs(half, interleaved))
            allowed = np.eye(width, dtype=np.bool_)
            allowed[first, second] = allowed[second, first] = True
            if not matrices[:, ~allowed].any():
                yield half, interleaved


def _agrees(chain: _Chain, table: Rotary) -> bool:
    """On numbers that are no unit vectors, at another length than the table was read at."""
    x = np.random.default_rng(0).standard_normal((3, PROBE_SEQ + 2, chain.width))
    x = x.astype(chain.dtype).astype(np.float32)
    tolerance = TOLERANCE if chain.dtype == np.float32 else 4e-3
    seq = min(x.shape[1], len(table.cos))
    return bool(np.abs(chain(x[:, :seq]) - table.turn(x[:, :seq])).max() <= tolerance * 4)
