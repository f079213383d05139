"""Graphs inside of nodes: two branches of an If, the body of a Loop or a Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from causal_onnx.export.graph.writer import Writer

__all__ = ["attributes_for", "choose", "name_inside", "outer_values", "repeat"]


def choose(
    write: Writer,
    node: ir.Node,
    condition: ir.Value,
    then: Callable[[Writer], ir.Value],
    other: Callable[[Writer], ir.Value],
) -> ir.Value:
    """What `then` writes where the condition holds when the graph runs, else what `other` does."""
    branches = []
    for name, build in (("then", then), ("else", other)):
        graph = _subgraph(write, name)
        result = build(write.inside(graph, node))
        result.type = node.outputs[0].type
        graph.outputs.append(result)
        name_inside(graph, f"{node.outputs[0].name}_{name}")
        branches.append(graph)
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    return write.node("If", [condition], attributes).outputs[0]


def repeat(
    write: Writer, node: ir.Node, count: ir.Value, build: Callable[[Writer, ir.Value], ir.Value]
) -> ir.Value:
    """The results of `build` for step 0, 1, ..., count - 1 (a scalar), stacked along a new axis 0.

    `build` gets the number of the step, int64 of shape (1,).
    """
    graph = _subgraph(write, "body")
    step = ir.Value(name="step", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    graph.inputs.extend([step, going])
    inner = write.inside(graph, node)
    result = build(inner, inner("Unsqueeze", step, inner.ints(0)))
    result.type = node.outputs[0].type
    graph.outputs.extend([inner("Identity", going), result])
    name_inside(graph, f"{node.outputs[0].name}_block")
    return write.node("Loop", [count, write.true()], {"body": graph}).outputs[0]


def _subgraph(write: Writer, name: str) -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports=dict(write.graph.opset_imports), name=name)


def name_inside(graph: ir.Graph, stem: str) -> None:
    """Name what a subgraph computes unlike anything else.

    onnxruntime refuses a name of a subgraph that the graph around it uses anywhere, later included.
    """
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for index, value in enumerate(values):
        value.name = f"{stem}_{index}"


def outer_values(node: ir.Node) -> list[ir.Value]:
    """What the graphs inside of `node` read of the graphs around them, each once."""
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    found: dict[ir.Value, None] = {}
    own: set[ir.Value] = set()
    for body in bodies:
        for graph in (body, *body.subgraphs()):
            own.update(graph.inputs, graph.initializers.values())
        for inside in body.all_nodes():
            own.update(inside.outputs)
            found.update((value, None) for value in inside.inputs if value is not None)
        found.update((value, None) for value in body.outputs)
    return [value for value in found if value not in own]


def attributes_for(node: ir.Node, known: Mapping[ir.Value, ir.Value]) -> dict[str, Any]:
    """The attributes for a copy of `node`, with graphs of its own that read what `known` says."""
    found: dict[str, Any] = {}
    for attribute in node.attributes.values():
        found[attribute.name] = attribute.value
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        body = attribute.as_graph().clone(allow_outer_scope_values=True)
        for inside in body.all_nodes():
            for index, value in enumerate(inside.inputs):
                if value is not None and value in known:
                    inside.replace_input_with(index, known[value])
        for index, value in enumerate(body.outputs):
            if value in known:
                body.outputs[index] = known[value]
        found[attribute.name] = body
    return found
