"""Lowering: write each canonical attention core in operators that a runtime has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from causal_onnx.export.canonical import DOMAIN, is_canonical
from causal_onnx.export.graph import constant

__all__ = ["lower"]

CONTRIB = "com.microsoft"
LONGEST_SHORT = 640
"""Up to here `Attention` is faster on the CPU, beyond `GroupQueryAttention` (12 heads of 64, one
thread, time of the second over the first: 512 1.15, 1024 0.69, 2048 0.53, 4096 0.47)."""

OLDEST_ATTENTION_OPSET = 23
"""From here on ONNX has an `Attention` operator."""


def lower(model: ir.Model, target: str, max_seq_len: int | None = None) -> int:
    """Replace every canonical core in place; returns how many there were.

    "portable": from opset 23 on the standard `Attention` operator, below MatMul and Softmax. "ort":
    from opset 23 on, plain causal attention switches to onnxruntime's flash kernel where the
    sequence is long. Key/value heads are not repeated in any form.
    """
    opset = model.opset_imports[""]
    count = 0
    for node in list(model.graph):
        if not is_canonical(node):
            continue
        write = _Writer(model.graph, node)
        results: Sequence[ir.Value]
        if opset < OLDEST_ATTENTION_OPSET:
            results = _primitives(write, node)
        elif target == "ort" and _is_plain(node):
            switching = _fits_flash(node) and (max_seq_len or LONGEST_SHORT + 1) > LONGEST_SHORT
            if switching:
                model.opset_imports[CONTRIB] = 1
            results = [_packed(write, node, switching=switching)]
        else:
            results = _attention(write, node)
        for old, new in zip(node.outputs, results, strict=True):
            if new is old:
                continue
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


def _is_plain(node: ir.Node) -> bool:
    """Whether this core is causal attention without bias and past."""
    bias, past_k = _inputs(node)[3:5]
    return node.attributes["is_causal"].as_int() == 1 and bias is None and past_k is None


def _fits_flash(node: ir.Node) -> bool:
    """Whether `GroupQueryAttention` computes this plain core."""
    return (
        node.meta["head_dim"] == node.meta["value_dim"]
        and node.meta["head_dim"] % 8 == 0  # it refuses others
        and node.inputs[0] is not None
        and node.inputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    )


def _packed(write: _Writer, node: ir.Node, *, switching: bool) -> ir.Value:
    """Attention on (batch, seq, heads * width), without transpositions, where the module has that.

    `Attention` up to LONGEST_SHORT positions and, if `switching`, `GroupQueryAttention` beyond.
    """
    q, k, v, *_ = _inputs(node)
    packed_output: ir.Value | None = node.meta.get("packed_output")
    packed = packed_output is not None and "packed_inputs" in node.meta
    values: list[ir.Value] = node.meta["packed_inputs"] if packed else [q, k, v]
    if not switching:
        chosen = _short(write, node, values, packed)
    else:
        chosen = _switch(write, node, values, packed)
    chosen.type = q.type
    if not packed:
        return chosen
    # The reader of the transposed and merged output takes this one; what led there falls away.
    assert packed_output is not None
    if not packed_output.is_graph_output():
        packed_output.replace_all_uses_with(chosen)
    return write("Transpose", write("Reshape", chosen, _split(write, node)), perm=[0, 2, 1, 3])


def _switch(write: _Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    """Choose the operator by the length, when the graph runs.

    The contrib operator's flash path needs no seq x seq scores; it is taken only where past and
    present are given, so an empty past is.
    """
    axis = 1 if packed else 2
    seq = write("Shape", values[0], start=axis, end=axis + 1)
    is_long = write("Greater", write("Squeeze", seq), write.scalar(LONGEST_SHORT))
    branches = []
    for name, build in (("long", _flash), ("short", _short)):
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(write.graph.opset_imports), name=name)
        inner = _Writer(graph, None, write.graph, node)
        result = build(inner, node, values, packed)
        result.type = values[0].type
        graph.outputs.append(result)
        _name_inner(graph, f"{node.outputs[0].name}_{name}")
        branches.append(graph)
    return write.node(
        "If", [is_long], {"then_branch": branches[0], "else_branch": branches[1]}
    ).outputs[0]


def _name_inner(branch: ir.Graph, stem: str) -> None:
    """Name what a branch computes unlike anything else.

    onnxruntime refuses a name of a branch that the graph around it uses anywhere, later included.
    """
    values = [value for item in branch for value in item.outputs]
    for index, value in enumerate(values):
        value.name = f"{stem}_{index}"


def _short(write: _Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    if not packed:
        return _attention(write, node)[0]
    bias = None
    window = node.attributes["window"].as_int()
    if window:
        bias = _window(write, values[0], values[1], None, window, axis=1)
    attributes = {
        **_attention_attributes(node),
        "q_num_heads": node.meta["num_heads"],
        "kv_num_heads": node.meta["num_kv_heads"],
    }
    inputs = [*values, bias] if bias is not None else list(values)
    return write.node("Attention", inputs, attributes).outputs[0]


def _flash(write: _Writer, node: ir.Node, values: Sequence[ir.Value], packed: bool) -> ir.Value:
    """The contrib operator, with an empty past.

    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    heads, groups = node.meta["num_heads"], node.meta["num_kv_heads"]
    width = node.meta["head_dim"]
    merged = list(values)
    if not packed:
        for index, count in enumerate((heads, groups, groups)):
            moved = write("Transpose", values[index], perm=[0, 2, 1, 3])
            merged[index] = write("Reshape", moved, write.ints(0, 0, count * width))
    batch = write("Shape", merged[0], start=0, end=1)
    seq = write("Shape", merged[0], start=1, end=2)
    last = write("Cast", write("Sub", seq, write.ints(1)), to=ir.DataType.INT32.value)
    lasts = write("Expand", last, batch)
    total = write("Squeeze", write("Cast", seq, to=ir.DataType.INT32.value))
    shape = write("Concat", batch, write.ints(groups, 0, width), axis=0)
    dtype = (node.inputs[0].dtype or ir.DataType.FLOAT).numpy()  # type: ignore[union-attr]
    empty = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype)))
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": node.attributes["scale"].as_float(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    if node.attributes["window"].as_int():
        attributes["local_window_size"] = node.attributes["window"].as_int()
    result = write.node(
        "GroupQueryAttention",
        [*merged, empty, empty, lasts, total],
        attributes,
        outputs=3,
        domain=CONTRIB,
    ).outputs[0]
    if packed:
        return result
    return write("Transpose", write("Reshape", result, _split(write, node)), perm=[0, 2, 1, 3])


def _split(write: _Writer, node: ir.Node) -> ir.Value:
    return write.ints(0, 0, node.meta["num_heads"], node.meta["value_dim"])


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
    inputs = [q, k, v, bias, past_k, past_v] if past_k is not None else [q, k, v, bias]
    if inputs[-1] is None:
        inputs.pop()
    attributes = _attention_attributes(node)
    return write.node("Attention", inputs, attributes, outputs=len(node.outputs)).outputs


def _attention_attributes(node: ir.Node) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "scale": node.attributes["scale"].as_float(),
        "is_causal": node.attributes["is_causal"].as_int(),
    }
    if node.attributes["softcap"].as_float():
        attributes["softcap"] = node.attributes["softcap"].as_float()
    return attributes


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
    write: _Writer,
    q: ir.Value,
    k: ir.Value,
    past_k: ir.Value | None,
    window: int,
    *,
    axis: int = 2,
) -> ir.Value:
    rows, columns = _positions(write, q, k, past_k, axis)
    least = write("Sub", rows, write.ints(window - 1))
    return write("GreaterOrEqual", columns, least)


def _positions(
    write: _Writer, q: ir.Value, k: ir.Value, past_k: ir.Value | None = None, axis: int = 2
) -> tuple[ir.Value, ir.Value]:
    """Positions of the queries (seq, 1) and of the keys (1, total_seq)."""
    seq = write("Shape", q, start=axis, end=axis + 1)
    total = write("Shape", k, start=axis, end=axis + 1)
    if past_k is not None:
        total = write("Add", total, write("Shape", past_k, start=2, end=3))
    zero, one = write.scalar(0), write.scalar(1)
    past, end = write("Squeeze", write("Sub", total, seq)), write("Squeeze", total)
    rows = write("Range", past, end, one)
    columns = write("Range", zero, end, one)
    return write("Unsqueeze", rows, write.ints(1)), write("Unsqueeze", columns, write.ints(0))


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
    """Writes nodes before the core that they replace, or at the end of a branch."""

    def __init__(
        self,
        graph: ir.Graph,
        before: ir.Node | None,
        outer: ir.Graph | None = None,
        core: ir.Node | None = None,
    ):
        """Write into `graph`; constants go to `outer`, which a branch reads as its own."""
        self.graph, self._before = graph, before
        self._outer = outer or graph
        origin = core if core is not None else before
        self._notes = {} if origin is None else dict(origin.metadata_props)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        node.metadata_props.update(self._notes)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return node

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.node(op_type, inputs, attributes).outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self._outer, np.array(numbers, np.int64))

    def scalar(self, number: int) -> ir.Value:
        return constant(self._outer, np.array(number, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar in the dtype of `like`."""
        dtype = (like.dtype or ir.DataType.FLOAT).numpy()
        return constant(self._outer, np.array(number, dtype))

    def shape(
        self, value: ir.Value, axis: int, before: Sequence[int], after: Sequence[int]
    ) -> ir.Value:
        """int64 shape: `before`, the size of `value` along `axis`, `after`."""
        size = self("Shape", value, start=axis, end=axis + 1)
        return self("Concat", self.ints(*before), size, self.ints(*after), axis=0)
