"""The position-only region: masks, rotary tables, position ids - what only shapes decide.

It can be evaluated at any length without the rest of the graph, and written again for another
length (the total of past and new positions) when a cache is derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.bfloat16 import make_twin
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.outcome import SessionError, ask_onnxruntime

__all__ = ["PositionRegion", "same_prefix", "seq_axes", "shape_at", "shape_for_total"]

Array = npt.NDArray[Any]


class PositionRegion:
    """The nodes that lead to one position-only value, down to the shapes they start from."""

    def __init__(self, layouts: Layouts, value: ir.Value):
        self.layouts = layouts
        self.value = value
        self.nodes: list[ir.Node] = []
        self.shapes: list[ir.Node] = []
        """`Shape` and `Size` nodes of tainted values: where the region begins."""
        self._collect()

    def _collect(self) -> None:
        order: list[ir.Node] = []
        seen: set[ir.Node] = set()
        stack: list[tuple[ir.Node | None, bool]] = [(self.value.producer(), False)]
        while stack:
            node, done = stack.pop()
            if node is None or (node in seen and not done):
                continue
            if done:
                order.append(node)
                continue
            seen.add(node)
            stack.append((node, True))
            if node.op_type in ("Shape", "Size") and self.layouts.is_tainted(node.inputs[0]):
                continue
            if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
                raise NotSupportedError(
                    f"{node.op_type} {node.name!r} makes a mask or positions with control flow"
                )
            for source in node.inputs:
                if source is not None and not source.is_initializer():
                    if self.layouts.is_tainted(source):
                        raise NotSupportedError(
                            f"{node.op_type} {node.name!r} reads data of {source.name}"
                        )
                    stack.append((source.producer(), False))
        for node in order:
            is_leaf = node.op_type in ("Shape", "Size") and self.layouts.is_tainted(node.inputs[0])
            (self.shapes if is_leaf else self.nodes).append(node)

    def integers(self) -> set[int]:
        """The integer constants that the region computes with: windows, chunks, limits."""
        found: set[int] = set()
        for node in self.nodes:
            for source in node.inputs:
                known = self.layouts.constant(source)
                if known is not None and known.size <= 4 and known.value.dtype.kind in "iuf":
                    found |= {int(x) for x in known.value.reshape(-1) if abs(float(x)) < 1e9}
        return found

    def evaluate(self, batch: int, seq: int) -> Array:
        """The value at `batch` and `seq`, computed by onnxruntime on the region alone."""
        if self.value.const_value is not None:
            return self.value.const_value.numpy()
        known: dict[ir.Value, ir.Value] = {}
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(self.layouts.model.opset_imports))
        for node in self.shapes:
            array = shape_at(self.layouts, node, batch, seq)
            known[node.outputs[0]] = constant(graph, array, f"shape_{len(known)}")
        last = self._copy_into(graph, known)
        graph.outputs.append(last)
        last.name = last.name or "position_only"
        model = make_twin(ir.Model(graph, ir_version=10))  # bfloat16, if any, as float32
        serialized = ir.to_proto(model).SerializeToString()
        try:
            session = ask_onnxruntime(plain_session, serialized)
            result: Array = ask_onnxruntime(session.run, None, {})[0]
        except SessionError as error:
            raise NotSupportedError(
                f"{self.value.name}, which only positions decide, cannot be evaluated: {error}"
            ) from error
        return result

    def write_for_total(
        self, graph: ir.Graph, before: ir.Node, seq: ir.Value, total: ir.Value
    ) -> ir.Value:
        """Write the region again with `total` positions instead of `seq`; returns the new value.

        Args:
            graph: The graph under construction, which holds the region.
            before: Where the copies go.
            seq: int64 (1,), the number of new positions.
            total: int64 (1,), past and new positions together.
        """
        known: dict[ir.Value, ir.Value] = {}
        for node in self.shapes:
            known[node.outputs[0]] = shape_for_total(
                self.layouts, graph, before, node, seq=seq, total=total
            )
        return self._copy_into(graph, known, before)

    def _copy_into(
        self, graph: ir.Graph, known: dict[ir.Value, ir.Value], before: ir.Node | None = None
    ) -> ir.Value:
        own = before is not None
        for node in self.nodes:
            inputs: list[ir.Value | None] = []
            for source in node.inputs:
                if source is None:
                    inputs.append(None)
                elif source in known:
                    inputs.append(known[source])
                elif own:
                    inputs.append(source)  # an initializer, or a constant of the same graph
                else:
                    assert source.const_value is not None
                    array = source.const_value.numpy()
                    known[source] = constant(graph, array, f"c{len(graph.initializers)}")
                    inputs.append(known[source])
            twin = ir.node(
                node.op_type,
                inputs,
                domain=node.domain,
                attributes={a.name: a.value for a in node.attributes.values()},
                num_outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                new.type = old.type
                known[old] = new
            if before is not None:
                graph.insert_before(before, twin)
            else:
                graph.append(twin)
        return known[self.value]


def shape_at(layouts: Layouts, node: ir.Node, batch: int, seq: int) -> Array:
    """What `node`, a `Shape` or a `Size`, gives at `batch` and `seq`."""
    source = node.inputs[0]
    assert source is not None
    sizes = [axis.size(batch, seq) for axis in layouts.axes(source)]
    if node.op_type == "Size":
        return np.array(int(np.prod(sizes)), np.int64)
    return np.array(sizes[_span(node)], np.int64)


def shape_for_total(
    layouts: Layouts,
    graph: ir.Graph,
    before: ir.Node,
    node: ir.Node,
    *,
    seq: ir.Value,
    total: ir.Value,
) -> ir.Value:
    """Write what `node`, a `Shape` or a `Size`, gives with `total` positions instead of `seq`.

    Args:
        layouts: Of the graph.
        graph: The graph under construction.
        before: Where the new nodes go.
        node: Of a value of that many positions.
        seq: int64 (1,), the number of new positions.
        total: int64 (1,).

    Raises:
        NotSupportedError: The positions are merged with another axis.
    """
    source = node.inputs[0]
    assert source is not None
    axes = layouts.axes(source)
    axes = axes[_span(node)] if node.op_type == "Shape" else axes
    if not any(axis.seqs for axis in axes):
        return node.outputs[0]
    if node.op_type == "Size" or any(axis.seqs > 1 for axis in axes):
        raise NotSupportedError(
            f"{node.op_type} {node.name!r} merges the positions with other axes"
        )
    if len(axes) == 1 and axes[0].is_seq:
        return total
    # (shape // seq) * total on the axes that count positions, shape on the others.
    grows = constant(graph, np.array([bool(a.seqs) for a in axes]))
    counts = ir.node("Div", [node.outputs[0], seq])
    scaled = ir.node("Mul", [counts.outputs[0], total])
    chosen = ir.node("Where", [grows, scaled.outputs[0], node.outputs[0]])
    graph.insert_before(before, [counts, scaled, chosen])
    return chosen.outputs[0]


def seq_axes(layouts: Layouts, value: ir.Value) -> list[int]:
    """The axes of `value` that count positions."""
    return [index for index, axis in enumerate(layouts.axes(value)) if axis.seqs]


def _span(node: ir.Node) -> slice:
    start = node.attributes.get("start")
    end = node.attributes.get("end")
    return slice(start.as_int() if start else 0, end.as_int() if end else None)


def same_prefix(short: Array, long: Array, axes: Sequence[int]) -> bool:
    """Whether `long` begins with `short` along `axes`."""
    part = long[tuple(slice(0, n) if a in axes else slice(None) for a, n in enumerate(short.shape))]
    return part.shape == short.shape and bool(np.allclose(part, short, rtol=1e-6, atol=1e-7))
