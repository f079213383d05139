"""Activations written out element by element become one node.

A chain of element-wise operators from one value to another is a function of one variable. It is
evaluated on a grid of points; if it agrees there with an activation that the target has, it is
replaced. How it was written does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.evaluate import evaluate
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.match import replace, scalar
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["fuse_activations"]

Array = npt.NDArray[Any]

ELEMENTWISE = {"Add", "Div", "Erf", "Exp", "Mul", "Neg", "Pow", "Reciprocal", "Sigmoid", "Sub"}
ELEMENTWISE |= {"Tanh"}
LARGEST = 12
"""Nodes of the longest spelling, with room."""

GRID = np.concatenate([np.linspace(-12, 12, 2401), [-80.0, -30.0, 30.0, 80.0]]).astype(np.float32)
TOLERANCE = 2e-6
"""Relative to 1 + |x|: rounding of float32 in another order of operations."""


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


KNOWN: Mapping[str, tuple[Callable[[Array], Array], str, str, Mapping[str, Any]]] = {
    # Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
    "silu": (_silu, CONTRIB, "QuickGelu", {"alpha": 1.0}),
    "gelu": (_gelu, "", "Gelu", {"approximate": "none"}),
    "gelu_tanh": (_gelu_tanh, "", "Gelu", {"approximate": "tanh"}),
}


def fuse_activations(model: ir.Model, layouts: Layouts) -> int:
    """Rewrite every chain that computes SiLU, GELU, or GELU by tanh, in float32."""
    count = 0
    wanted = {name: function(GRID.astype(np.float64)) for name, (function, *_) in KNOWN.items()}
    for last in list(model.graph):
        output = last.outputs[0]
        if last.op_type not in ("Mul", "Div") or last.domain:
            continue
        if not output.uses() and not output.is_graph_output():
            continue
        for x, nodes in _chains(last):
            got = _evaluate(x, nodes, model.opset_imports)
            name = next((name for name, expected in wanted.items() if _agree(got, expected)), None)
            if name is None:
                continue
            _, domain, op_type, attributes = KNOWN[name]
            node = ir.node(op_type, [x], dict(attributes), domain=domain)
            node.metadata_props.update(last.metadata_props)
            replace(layouts, last.outputs, node, last)
            count += 1
            break
    return count


def _agree(got: Array, expected: Array) -> bool:
    return bool(np.all(np.abs(got - expected) <= TOLERANCE * (1 + np.abs(GRID))))


def _chains(last: ir.Node) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """(x, nodes, `last` first): all between one value and the output of `last`, nearest x first.

    Nothing outside reads what is between.
    """
    nodes = [last]
    while len(nodes) <= LARGEST:
        inner = {node.outputs[0] for node in nodes}
        sources = {value for node in nodes for value in _operands(node)} - inner
        if len(sources) == 1 and len(nodes) > 1:
            x = next(iter(sources))
            if x.dtype == ir.DataType.FLOAT:
                yield x, nodes
        following = _following(nodes, sources)
        if following is None:
            return
        nodes = [*nodes, following]


def _following(nodes: list[ir.Node], sources: set[ir.Value]) -> ir.Node | None:
    """The producer of a source that nothing outside reads."""
    inside = set(nodes)
    for value in sorted(sources, key=lambda v: v.name or ""):
        node = value.producer()
        if node is None or node.op_type not in ELEMENTWISE or node.domain:
            continue
        if not value.is_graph_output() and all(use.node in inside for use in value.uses()):
            return node
    return None


def _operands(node: ir.Node) -> list[ir.Value]:
    """The inputs that are no numbers."""
    return [value for value in node.inputs if value is not None and scalar(value) is None]


def _evaluate(x: ir.Value, nodes: list[ir.Node], opsets: Mapping[str, int]) -> Array:
    """The output of the first node on the grid."""
    known: dict[ir.Value, Array] = {x: GRID}
    waiting = list(nodes)
    while waiting:
        for node in list(waiting):
            inputs = [_known(value, known) for value in node.inputs]
            if all(array is not None for array in inputs):
                with np.errstate(all="ignore"):
                    known[node.outputs[0]] = evaluate(node, inputs, opsets)[0]
                waiting.remove(node)
    return known[nodes[0].outputs[0]]


def _known(value: ir.Value | None, known: Mapping[ir.Value, Array]) -> Array | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    number = scalar(value)
    return None if number is None else np.asarray(number, np.float32)
