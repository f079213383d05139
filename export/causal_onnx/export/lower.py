"""Lowering: write each canonical attention core in operators that a runtime has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.canonical import DOMAIN, is_canonical
from causal_onnx.export.graph import constant

__all__ = ["lower"]

OLDEST_ATTENTION_OPSET = 23
"""From here on ONNX has an `Attention` operator."""


def lower(model: ir.Model) -> int:
    """Replace every canonical core in place; returns how many there were.

    From opset 23 on with the standard `Attention` operator, below with MatMul and Softmax. Both take
    key/value heads unrepeated.
    """
    opset = model.opset_imports[""]
    count = 0
    for node in list(model.graph):
        if not is_canonical(node):
            continue
        write = _Writer(model.graph, node)
        results = (
            _attention(write, node) if opset >= OLDEST_ATTENTION_OPSET else _primitives(write, node)
        )
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
            if old.is_graph_output():
                outputs = model.graph.outputs
                name = old.name
                outputs[list(outputs).index(old)] = new
                old.name, new.name = f"{name}_replaced", name
            old.replace_all_uses_with(new)
        model.graph.remove(node, safe=True)
        count += 1
    model.opset_imports.pop(DOMAIN, None)
    return count


def _attention(write: _Writer, node: ir.Node) -> Sequence[ir.Value]:
    """The standard operator: https://onnx.ai/onnx/operators/onnx__Attention.html."""
    q, k, v, bias, past_k, past_v = _inputs(node)
    window = node.attributes["window"].as_int()
    if window:
        allowed = _window(write, q, k, past_k, window)
        if bias is None:
            bias = allowed
        else:
            bias = write("Where", allowed, bias, write.number(-np.inf, bias))
    attributes: dict[str, Any] = {
        "scale": node.attributes["scale"].as_float(),
        "is_causal": node.attributes["is_causal"].as_int(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    inputs = [q, k, v, bias, past_k, past_v] if past_k is not None else [q, k, v, bias]
    if inputs[-1] is None:
        inputs.pop()
    return write.node("Attention", inputs, attributes, outputs=len(node.outputs)).outputs


def _primitives(write: _Writer, node: ir.Node) -> Sequence[ir.Value]:
    """softmax(scale q k^T + bias) v, each key/value head multiplied with its group of queries."""
    q, k, v, bias, past_k, past_v = _inputs(node)
    if past_k is not None and past_v is not None:
        k = write("Concat", past_k, k, axis=2)
        v = write("Concat", past_v, v, axis=2)
    heads, groups = node.meta["num_heads"], node.meta["num_kv_heads"]
    width, value_width = node.meta["head_dim"], node.meta["value_dim"]
    grouped = heads != groups
    scale = write.number(node.attributes["scale"].as_float(), q)
    left, right, values = write("Mul", q, scale), k, v
    if grouped:
        # (batch, groups, heads per group * seq, d): the queries of a group share its keys.
        left = write("Reshape", left, write.ints(0, groups, -1, width))
    scores = write("MatMul", left, write("Transpose", right, perm=[0, 1, 3, 2]))
    if grouped:
        scores = write("Reshape", scores, write.shape(q, 2, [0, heads], [-1]))
    cap = node.attributes["softcap"].as_float()
    if cap:
        number = write.number(cap, q)
        scores = write("Mul", write("Tanh", write("Div", scores, number)), number)
    allowed = _allowed(write, node, q, k)
    if bias is not None:
        scores = write("Add", scores, bias)
    low = write.number(-np.inf, q)
    if allowed is not None:
        scores = write("Where", allowed, scores, low)
    weights = write("Softmax", scores, axis=-1)
    if bias is not None:
        # Where nothing may be attended to the softmax is 0 / 0; the output is 0 by definition.
        zero = write.number(0.0, q)
        weights = write("Where", write("IsNaN", weights), zero, weights)
    if grouped:
        total = write("Shape", k, start=2, end=3)
        shape = write("Concat", write.ints(0, groups, -1), total, axis=0)
        weights = write("Reshape", weights, shape)
    result = write("MatMul", weights, values)
    if grouped:
        result = write("Reshape", result, write.shape(q, 2, [0, heads], [value_width]))
    return [result, k, v][: len(node.outputs)]


def _allowed(write: _Writer, node: ir.Node, q: ir.Value, k: ir.Value) -> ir.Value | None:
    """(seq, total_seq) bool: where the causal rule and the window let a query look."""
    if not node.attributes["is_causal"].as_int():
        return None
    rows, columns = _positions(write, q, k)
    allowed = write("LessOrEqual", columns, rows)
    window = node.attributes["window"].as_int()
    if window:
        least = write("Sub", rows, write.ints(window - 1))
        allowed = write("And", allowed, write("GreaterOrEqual", columns, least))
    return allowed


def _window(
    write: _Writer, q: ir.Value, k: ir.Value, past_k: ir.Value | None, window: int
) -> ir.Value:
    rows, columns = _positions(write, q, k, past_k)
    least = write("Sub", rows, write.ints(window - 1))
    return write("GreaterOrEqual", columns, least)


def _positions(
    write: _Writer, q: ir.Value, k: ir.Value, past_k: ir.Value | None = None
) -> tuple[ir.Value, ir.Value]:
    """Positions of the queries (seq, 1) and of the keys (1, total_seq)."""
    seq = write("Shape", q, start=2, end=3)
    total = write("Shape", k, start=2, end=3)
    if past_k is not None:
        total = write("Add", total, write("Shape", past_k, start=2, end=3))
    zero, one = write.scalar(0), write.scalar(1)
    axis = write.ints(0)
    past = write("Sub", total, seq)
    rows = write("Range", write("Squeeze", past, axis), write("Squeeze", total, axis), one)
    columns = write("Range", zero, write("Squeeze", total, axis), one)
    return write("Unsqueeze", rows, write.ints(1)), write("Unsqueeze", columns, axis)


def _inputs(
    node: ir.Node,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None, ir.Value | None, ir.Value | None]:
    q, k, v, *rest = node.inputs
    assert q is not None
    assert k is not None
    assert v is not None
    bias, past_k, past_v = (*rest, None, None, None)[:3]
    return q, k, v, bias, past_k, past_v


class _Writer:
    """Writes nodes before the core that they replace."""

    def __init__(self, graph: ir.Graph, before: ir.Node):
        self.graph, self._before = graph, before

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=outputs)
        node.metadata_props.update(self._before.metadata_props)
        self.graph.insert_before(self._before, node)
        return node

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.node(op_type, inputs, attributes).outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self.graph, np.array(numbers, np.int64))

    def scalar(self, number: int) -> ir.Value:
        return constant(self.graph, np.array(number, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar in the dtype of `like`."""
        dtype = (like.dtype or ir.DataType.FLOAT).numpy()
        return constant(self.graph, np.array(number, dtype))

    def shape(
        self, value: ir.Value, axis: int, before: Sequence[int], after: Sequence[int]
    ) -> ir.Value:
        """int64 shape: `before`, the size of `value` along `axis`, `after`."""
        size = self("Shape", value, start=axis, end=axis + 1)
        return self("Concat", self.ints(*before), size, self.ints(*after), axis=0)
