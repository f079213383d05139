"""The part of a graph between values that belong to one position each: where positions mix.

It is written again for another length, the positions that a state holds in front of the new ones,
and evaluated by itself, to see what of the past it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import Array
from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.cache.refusals import named
from causal_onnx.export.cache.spans import BATCH, Spans, own_axis, picks_positions
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.bfloat16 import make_twin
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.position_region import shape_at, shape_for_total
from causal_onnx.export.graph.subgraphs import attributes_for, outer_values
from causal_onnx.export.outcome import SessionError, ask_onnxruntime

__all__ = ["Draw", "Region", "find_region"]

_MOVES = frozenset({"Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast"})
"""What may stand between a source and the first node that mixes, to be done after the state."""


@dataclass(frozen=True)
class Draw:
    """What the whole numbers and truths are among random samples, which are 0 or 1."""

    first: int | None = None
    """At the first position of each row; None: random, too."""
    lengths: bool = False
    """Those that belong to no position are from 1 to the number of positions."""


@dataclass(frozen=True)
class Region:
    """Nodes that make one value of others; each of all of them belongs to one position."""

    layouts: Layouts
    output: ir.Value
    sources: tuple[ir.Value, ...]
    """Each with an axis of positions of its own."""
    free: tuple[ir.Value, ...]
    """What else of the data enters: nothing that belongs to a position."""
    nodes: tuple[ir.Node, ...]
    """In order, with those that compute from lengths alone."""
    shapes: tuple[ir.Node, ...]
    """Among the latter, the first: `Shape` and `Size` of values that are no part of it."""
    by_positions: Mapping[tuple[ir.Node, int], ir.Value]
    """By node and place, what the nodes read that positions decide. A node whose result is also
    read outside gets the part of the new positions in its place."""

    @property
    def node(self) -> ir.Node:
        """The one that makes the output."""
        producer = self.output.producer()
        assert producer is not None
        return producer

    def operands(self, node: ir.Node) -> list[ir.Value | None]:
        """What one of the nodes reads, for all positions."""
        return [self.by_positions.get((node, n), value) for n, value in enumerate(node.inputs)]

    def write(
        self,
        graph: ir.Graph,
        before: ir.Node | None,
        known: Mapping[ir.Value, ir.Value],
    ) -> dict[ir.Value, ir.Value]:
        """Copy the nodes; returns for each value its copy.

        Args:
            graph: Where the copies go.
            before: The node before which they go; None: at the end.
            known: For the sources, and the outputs of `shapes`, what stands in their place.
        """
        found = dict(known)
        for node in self.nodes:
            twin = ir.node(
                node.op_type,
                [None if x is None else found.get(x, x) for x in self.operands(node)],
                domain=node.domain,
                attributes=attributes_for(node, found),
                num_outputs=len(node.outputs),
                metadata_props=dict(node.metadata_props),
                name=node.name,
            )
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                new.type = old.type
                found[old] = new
            if before is None:
                graph.append(twin)
            else:
                graph.insert_before(before, twin)
        return found

    def lengths(
        self, graph: ir.Graph, before: ir.Node, seq: ir.Value, total: ir.Value
    ) -> dict[ir.Value, ir.Value]:
        """Write `shapes` for `total` positions instead of `seq`, both int64 (1,)."""
        return {
            node.outputs[0]: shape_for_total(
                self.layouts, graph, before, node, seq=seq, total=total
            )
            for node in self.shapes
        }

    def evaluate(self, seq: int, arrays: Sequence[Array]) -> Array:
        """The output for `seq` positions of the sources, computed by onnxruntime.

        Raises:
            NotSupportedError: onnxruntime refuses.
        """
        opsets = dict(self.layouts.model.opset_imports)
        graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="region")
        known: dict[ir.Value, ir.Value] = {}
        feeds = {}
        for index, (value, array) in enumerate(
            zip((*self.sources, *self.free), arrays, strict=True)
        ):
            given = ir.Value(name=f"source_{index}", shape=ir.Shape(array.shape), type=value.type)
            graph.inputs.append(given)
            known[value], feeds[given.name] = given, array
        for node in self.shapes:
            batch = self.layouts.sizes[0].batch
            known[node.outputs[0]] = constant(graph, shape_at(self.layouts, node, batch, seq))
        for node in self.nodes:
            for value in _read(node):
                if value not in known and value.const_value is not None:
                    stored = value.const_value
                    known[value] = ir.Value(
                        name=f"weight_{len(graph.initializers)}",
                        shape=stored.shape if isinstance(stored.shape, ir.Shape) else None,
                        type=ir.TensorType(stored.dtype),
                        const_value=stored,
                    )
                    graph.register_initializer(known[value])
        result = self.write(graph, None, known)[self.output]
        result.name = "region_output"
        graph.outputs.append(result)
        serialized = ir.to_proto(make_twin(ir.Model(graph, ir_version=10))).SerializeToString()
        try:
            session = ask_onnxruntime(plain_session, serialized)
            (out,) = ask_onnxruntime(session.run, None, feeds)
        except SessionError as error:
            names = ", ".join(str(value.name) for value in (*self.sources, *self.free))
            raise NotSupportedError(
                f"no cache can be derived: what leads to {self.node.op_type} {named(self.node)} "
                f"cannot be computed from {seq} positions of {names} alone. Make what is combined "
                "with them (masks, tables, positions) for the length of the input, x.shape[1]"
            ) from error
        found: Array = out
        return found

    def samples(self, seq: int, seed: int, draw: Draw) -> list[Array]:
        """Arrays for the sources and what else enters, of `seq` positions."""
        generator = np.random.default_rng(seed)
        batch = self.layouts.sizes[0].batch
        found: list[Array] = []
        for value in (*self.sources, *self.free):
            shape = [axis.size(batch, seq) for axis in self.layouts.axes(value)]
            dtype = _dtype(value)
            axis = own_axis(self.layouts, value)
            are_lengths = draw.lengths and axis is None and dtype.kind == "i"
            array: Any = generator.integers(*((1, seq + 1) if are_lengths else (0, 2)), shape)
            if draw.first is not None and axis is not None:
                np.moveaxis(array, axis, 0)[0] = draw.first
            if dtype.kind == "f" and seed % 2:
                array = generator.uniform(0.1, 1.5, shape)  # of one sign: there are logarithms
            elif dtype.kind == "f":
                array = generator.normal(size=shape)
            found.append(np.asarray(array).astype(dtype))
        return found


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        raise NotSupportedError(f"no cache can be derived: the type of {value.name} is not known")
    if value.dtype == ir.DataType.BFLOAT16:
        return np.dtype(np.float32)
    return np.dtype(value.dtype.numpy())


def find_region(spans: Spans, output: ir.Value) -> Region:
    """What lies between `output` and the values before it that belong to one position each.

    Raises:
        NotSupportedError: There is something in it that cannot be written again; names the node.
    """
    layouts = spans.layouts
    sources: dict[ir.Value, None] = {}
    free: dict[ir.Value, None] = {}
    data: set[ir.Node] = set()
    stack = [output.producer()]
    while stack:
        node = stack.pop()
        if node is None or node in data:
            continue
        data.add(node)
        for value in _read(node):
            if not layouts.is_tainted(value):
                continue
            # What is compared with positions (a vector of lengths) is given with each call: what is
            # made of it for each position is made again.
            is_free = spans.is_free(value)
            if is_free and not any(axis.is_seq for axis in layouts.axes(value)):
                free[value] = None
            elif not is_free and _is_source(spans, value):
                sources[value] = None
            elif value.producer() is None:
                raise NotSupportedError(
                    f"no cache can be derived: {node.op_type} {named(node)} reads {value.name}, "
                    "whose entries are not those of the new positions"
                )
            else:
                stack.append(value.producer())
    _step_back(spans, sources, data)
    made = {out for node in data for out in node.outputs}
    whole, shapes = _with_lengths(layouts, data, made | set(sources))
    order = [node for node in layouts.model.graph if node in whole]
    return Region(
        layouts,
        output,
        tuple(sources),
        tuple(free),
        tuple(order),
        tuple(node for node in layouts.model.graph if node in shapes),
        {
            (node, index): value
            for node in order
            for index, value in enumerate(node.inputs)
            if value is not None and layouts.is_position_only(value)
        },
    )


def _is_source(spans: Spans, value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and picks_positions(spans.layouts, producer):
        return False
    return spans.reach_back(value) == (0, 0) and not spans.mixes(value)


def _step_back(spans: Spans, sources: dict[ir.Value, None], data: set[ir.Node]) -> None:
    """Where a source is another, moved, take that: it may lie as a state does."""
    for value in list(sources):
        current, moves = value, list[ir.Node]()
        while True:
            node = current.producer()
            axes = spans.layouts.axes(current)
            lies = own_axis(spans.layouts, current) == (1 if BATCH in axes[:1] else 0)
            if lies or node is None or node.op_type not in _MOVES or node.domain:
                break
            before = node.inputs[0]
            if before is None or not _is_source(spans, before):
                break
            current, moves = before, [*moves, node]
        if moves:
            del sources[value]
            data.update(moves)
            sources[current] = None


def _with_lengths(
    layouts: Layouts, data: set[ir.Node], own: set[ir.Value]
) -> tuple[set[ir.Node], set[ir.Node]]:
    """The nodes with those that compute from lengths for them; and where those begin outside."""
    whole, shapes = set(data), set()
    stack = [value for node in data for value in _read(node)]
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node in whole or layouts.is_tainted(value) or value in own:
            continue
        if node.op_type in ("Shape", "Size") and layouts.is_tainted(node.inputs[0]):
            if node.inputs[0] in own:
                whole.add(node)
            else:
                shapes.add(node)
            continue
        whole.add(node)
        stack.extend(_read(node))
    return whole, shapes


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, and the graphs inside of it."""
    return [*(value for value in node.inputs if value is not None), *outer_values(node)]
