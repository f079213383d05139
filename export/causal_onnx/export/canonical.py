"""Canonical form: each attention core becomes one `Attention` node of this project's own domain.

    Attention(q, k, v, bias?, past_key?, past_value?, row_past?, row_total?, sink?)
        -> (output, present_key?, present_value?)

q is (batch, num_heads, seq, head_dim), k and v (batch, num_kv_heads, seq, width) hold the new
positions, bias is added to the scores and broadcasts to (batch, num_heads, seq, total_seq).
Attributes: `scale`, `softcap` (0: none), `is_causal`, `window` (0: none; else itself and
window - 1 before), `bounded` (with a past; 0: none). `sink` is one more score per head, which takes
weight and contributes no value. A row that may attend to nothing gives 0. `lower` writes it for a
target.

With a past, row b has row_past[b] tokens in the cache and row_total[b] - row_past[b] new ones,
which come first in its part of q, k and v; the rest is padding, whose output is finite and means
nothing. Query i stands at position row_past[b] + i. Without row_past and row_total every row has as
many tokens as the past has slots, and no padding.

Slot p of a row's cache holds its position p; of the present, slots from row_total[b] on hold
anything finite. With `bounded`, c slots of a past hold the last c positions: slot s of row b is
position max(row_past[b] - c, 0) + s, and likewise in the present of min(bounded, total_seq) slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from causal_onnx.export.cores import Bias, Core, Operand, find_cores
from causal_onnx.export.footprint import Footprint, footprint_of
from causal_onnx.export.graph import constant
from causal_onnx.export.layout import Axis, Layouts

__all__ = ["DOMAIN", "CanonicalCore", "bias_of", "canonicalise", "is_canonical"]

DOMAIN = "causal_onnx"


@dataclass(frozen=True, kw_only=True)
class CanonicalCore:
    """One rewritten core."""

    node: ir.Node
    footprint: Footprint
    has_batch: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    has_data_mask: bool
    """Part of the mask depends on the data of an input (padding)."""


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias input of a canonical core."""
    return node.inputs[3] if len(node.inputs) > 3 else None


def is_canonical(node: ir.Node) -> bool:
    """Whether `node` is an attention core in canonical form."""
    return node.domain == DOMAIN and node.op_type == "Attention"


def canonicalise(
    model: ir.Model, max_seq_len: int | None = None
) -> tuple[list[CanonicalCore], dict[ir.Node, str]]:
    """Rewrite every core that can be, in place.

    Returns:
        The cores in graph order, and for each attention left as it is the reason.
    """
    layouts = Layouts(model, max_seq_len)
    found, others = find_cores(layouts)
    cores = []
    for core in found:
        reason = _unfit(layouts, core)
        if reason is not None:
            others[core.node] = reason
            continue
        cores.append(_rewrite(model.graph, layouts, core, max_seq_len))
    if cores:
        model.opset_imports[DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
    return cores, others


def _unfit(layouts: Layouts, core: Core) -> str | None:
    for operand in (core.q, core.k, core.v):
        axes = layouts.axes(operand.value)
        if not axes[operand.features].is_fixed:
            return f"{operand.value.name}: the width of a head is not fixed"
        if not axes[operand.positions].is_seq:
            return f"{operand.value.name}: the position axis is not the sequence"
        lead = [axes[a] for a in operand.lead]
        if len(lead) > 3 or any(a.seqs for a in lead):
            return f"{operand.value.name}: positions among the batch axes (block-wise attention)"
        if lead and not (lead[0].is_batch or all(a.is_fixed for a in lead)):
            return f"{operand.value.name}: the batch is not the outermost axis"
        if any(not a.is_fixed for a in lead[1:]):
            return f"{operand.value.name}: the batch is not the outermost axis"
    scores = core.node.inputs[0]
    assert scores is not None
    score_rank = len(layouts.axes(scores))
    for bias in core.biases:
        axes = layouts.axes(bias.value)
        if score_rank != 4 and len(axes) > 2 and any(a != Axis(1) for a in axes[:-2]):
            return f"the mask {bias.value.name} has batch or head axes of its own"
    return None


def _rewrite(
    graph: ir.Graph, layouts: Layouts, core: Core, max_seq_len: int | None
) -> CanonicalCore:
    # Before the last node of the core: the values may be computed after the softmax.
    last = core.output.producer()
    assert last is not None
    write = _Writer(graph, last)
    q = _four_axes(write, layouts, core.q)
    k = _four_axes(write, layouts, _compact(layouts, core.k))
    v = _four_axes(write, layouts, _compact(layouts, core.v))
    by_position = [bias for bias in core.biases if not _is_data(layouts, bias)]
    footprint = footprint_of(layouts, by_position, max_seq_len)
    if core.is_causal and footprint.kind == "full":  # no other mask
        footprint = replace(footprint, kind="causal", is_causal=True)
    plain = footprint.kind in ("full", "causal", "window") and not footprint.has_bias
    kept = [bias for bias in core.biases if not plain or _is_data(layouts, bias)]
    dtype = core.q.value.dtype or ir.DataType.FLOAT
    bias = _join_biases(write, kept, dtype)
    # A mask that stays is applied as it is; the rule is on top where it is known to hold.
    is_causal = core.is_causal or footprint.kind in ("causal", "window")
    node = write.node(
        "Attention",
        [q.value, k.value, v.value, bias],
        domain=DOMAIN,
        attributes={
            "scale": core.scale,
            "softcap": core.softcap,
            "is_causal": int(is_causal),
            "window": (footprint.window or 0) if is_causal else 0,
        },
    )
    node.outputs[0].type = ir.TensorType(dtype)
    node.metadata_props.update(core.node.metadata_props)
    node.meta.update(num_heads=q.heads, num_kv_heads=k.heads, head_dim=q.width, value_dim=v.width)
    _note_packed(node, layouts, core)
    result = _restore(write, layouts, node.outputs[0], core)
    if core.output.is_graph_output():
        index = list(graph.outputs).index(core.output)
        result.name, core.output.name = core.output.name, f"{core.output.name}_replaced"
        result.type, result.shape = core.output.type, core.output.shape
        graph.outputs[index] = result
    core.output.replace_all_uses_with(result)
    return CanonicalCore(
        node=node,
        footprint=footprint,
        has_batch=bool(core.q.lead) and layouts.axes(core.q.value)[core.q.lead[0]].is_batch,
        num_heads=q.heads,
        num_kv_heads=k.heads,
        head_dim=q.width,
        value_dim=v.width,
        has_data_mask=any(_is_data(layouts, bias) for bias in core.biases),
    )


def _note_packed(node: ir.Node, layouts: Layouts, core: Core) -> None:
    """Note where q, k, v exist as (batch, seq, heads * width), heads not yet split, and where the
    output is wanted so: operators that take that form spare the transpositions."""
    packed = [_packed(layouts, operand) for operand in (core.q, core.k, core.v)]
    if all(value is not None for value in packed):
        node.meta["packed_inputs"] = packed
    users = [use.node for use in core.output.uses()]
    if len(users) != 1 or users[0].op_type != "Transpose" or len(core.output_lead) != 2:
        return
    order = (core.output_lead[0], core.output_positions, core.output_lead[1], core.output_features)
    moved = users[0].outputs[0]
    merged = [use.node for use in moved.uses()]
    if tuple(users[0].attributes["perm"].as_ints()) != order or len(merged) != 1:
        return
    result = merged[0].outputs[0]
    axes = layouts.axes(result)
    width = node.meta["num_heads"] * node.meta["value_dim"]
    if (
        merged[0].op_type == "Reshape"
        and merged[0].inputs[0] is moved
        and axes == (Axis(1, 1, 0), Axis(1, 0, 1), Axis(width))
    ):
        node.meta["packed_output"] = result


def _packed(layouts: Layouts, operand: Operand) -> ir.Value | None:
    """`operand` before its heads were split, if that is all that was done to it."""
    operand = _compact(layouts, operand)
    node = operand.value.producer()
    if node is None or node.op_type != "Reshape" or len(operand.lead) != 2:
        return None
    order = (operand.lead[0], operand.positions, operand.lead[1], operand.features)
    source = node.inputs[0]
    if order != (0, 1, 2, 3) or source is None:
        return None
    before, after = layouts.axes(source), layouts.axes(operand.value)
    width = after[2].count * after[3].count
    if before != (Axis(1, 1, 0), Axis(1, 0, 1), Axis(width)):
        return None
    return source


def _is_data(layouts: Layouts, bias: Bias) -> bool:
    return layouts.is_tainted(bias.value)


@dataclass(frozen=True, slots=True)
class _Four:
    """A value of the axes (batch, heads, positions, features)."""

    value: ir.Value
    heads: int
    width: int


def _four_axes(write: _Writer, layouts: Layouts, operand: Operand) -> _Four:
    """`operand` as (batch, heads, positions, features)."""
    axes = layouts.axes(operand.value)
    lead = [axes[a] for a in operand.lead]
    width = axes[operand.features].count
    order = [*operand.lead, operand.positions, operand.features]
    value = write.transpose(operand.value, order)
    if not lead:
        return _Four(write("Unsqueeze", value, write.ints(0, 1)), 1, width)
    batch = lead[0].is_batch
    heads = int(np.prod([a.count for a in lead]))
    if len(lead) == 1 and batch and heads == 1:
        return _Four(write("Unsqueeze", value, write.ints(1)), 1, width)
    if len(lead) == 1 and batch:
        # (batch * heads, s, d): with an axis in front, 0 keeps s and d where they are.
        value = write("Unsqueeze", value, write.ints(0))
        return _Four(write("Reshape", value, write.ints(-1, heads, 0, 0)), heads, width)
    if len(lead) == 2 and batch and lead[0].count == 1:
        return _Four(value, heads, width)
    if not batch:  # a module without a batch axis
        value = write("Unsqueeze", value, write.ints(0)) if len(lead) == 1 else value
        if len(lead) == 1:
            return _Four(value, heads, width)
        return _Four(write("Reshape", value, write.ints(1, heads, -1, width)), heads, width)
    if lead[0].count == 1:
        return _Four(write("Reshape", value, write.ints(0, heads, -1, width)), heads, width)
    shape = write.shape_with(value, len(lead), [-1, heads], [width])
    return _Four(write("Reshape", value, shape), heads, width)


def _restore(write: _Writer, layouts: Layouts, value: ir.Value, core: Core) -> ir.Value:
    """The output of the node, (batch, heads, seq, width), in the axes that the module had."""
    axes = layouts.axes(core.output)
    lead = [axes[a] for a in core.output_lead]
    width = axes[core.output_features].count
    if not lead:
        value = write("Squeeze", value, write.ints(0, 1))
    elif len(lead) == 1 and lead[0].is_batch and lead[0].count == 1:
        value = write("Squeeze", value, write.ints(1))
    elif len(lead) == 1 and lead[0].is_batch:
        value = write("Reshape", value, write.shape_with(value, 2, [-1], [width]))
    elif len(lead) == 1:
        value = write("Squeeze", value, write.ints(0))
    elif len(lead) > 2 or not lead[0].is_batch or lead[0].count != 1:
        first = [-1] if lead[0].is_batch else [lead[0].count]
        counts = [a.count for a in lead[1:]]
        value = write("Reshape", value, write.shape_with(value, 2, [*first, *counts], [width]))
    order = [*core.output_lead, core.output_positions, core.output_features]
    inverse = [order.index(axis) for axis in range(len(order))]
    return write.transpose(value, inverse)


def _compact(layouts: Layouts, operand: Operand) -> Operand:
    """Keys or values before their heads were repeated and their axes moved about."""
    while True:
        earlier = _before_transpose(operand) or _before_repeat(layouts, operand)
        earlier = earlier or _before_fold(layouts, operand)
        if earlier is None:
            return operand
        operand = earlier


def _before_transpose(operand: Operand) -> Operand | None:
    node = operand.value.producer()
    if node is None or node.op_type != "Transpose":
        return None
    perm = [int(x) for x in node.attributes["perm"].as_ints()]
    source = node.inputs[0]
    assert source is not None
    return Operand(
        value=source,
        lead=tuple(perm[a] for a in operand.lead),
        positions=perm[operand.positions],
        features=perm[operand.features],
    )


def _before_fold(layouts: Layouts, operand: Operand) -> Operand | None:
    """Undo (batch, heads, s, d) -> (batch * heads, s, d)."""
    node = operand.value.producer()
    if node is None or node.op_type != "Reshape" or len(operand.lead) != 1:
        return None
    source = node.inputs[0]
    assert source is not None
    before, after = layouts.axes(source), layouts.axes(operand.value)
    if len(after) != 3 or len(before) != 4 or operand.lead[0] != 0:
        return None
    if before[2:] != after[1:] or not before[0].is_batch or before[0].count != 1:
        return None
    if not before[1].is_fixed or before[1].count != after[0].count:
        return None
    return Operand(
        value=source,
        lead=(0, 1),
        positions=operand.positions + 1,
        features=operand.features + 1,
    )


def _before_repeat(layouts: Layouts, operand: Operand) -> Operand | None:
    """Undo the repetition of each key/value head for its group of query heads."""
    node = operand.value.producer()
    if node is None or len(operand.lead) != 2:
        return None
    heads = operand.lead[1]
    if node.op_type == "Gather":
        return _before_gather(layouts, operand, node)
    if node.op_type != "Reshape":
        return None
    spread = node.inputs[0]
    grown = None if spread is None else spread.producer()
    if spread is None or grown is None or grown.op_type not in ("Expand", "Tile"):
        return None
    inserted = grown.inputs[0]
    added = None if inserted is None else inserted.producer()
    if inserted is None or added is None or added.op_type not in ("Unsqueeze", "Reshape"):
        return None
    base = added.inputs[0]
    assert base is not None
    before, wide, after = (layouts.axes(x) for x in (base, spread, operand.value))
    thin = layouts.axes(inserted)
    if len(before) != 4 or len(wide) != 5 or len(after) != 4 or len(thin) != 5:
        return None
    # (.., groups, 1, ..) -> (.., groups, n, ..) -> (.., groups * n, ..) on the axis of heads.
    if thin[heads + 1] != Axis(1) or [*thin[: heads + 1], *thin[heads + 2 :]] != list(before):
        return None
    if [*wide[: heads + 1], *wide[heads + 2 :]] != list(before) or not wide[heads + 1].is_fixed:
        return None
    if after[heads].count != before[heads].count * wide[heads + 1].count:
        return None
    return Operand(
        value=base, lead=operand.lead, positions=operand.positions, features=operand.features
    )


def _before_gather(layouts: Layouts, operand: Operand, node: ir.Node) -> Operand | None:
    heads = operand.lead[1]
    indices = layouts.constant(node.inputs[1])
    base = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if base is None or indices is None or axis % 4 != heads or indices.value.ndim != 1:
        return None
    groups = layouts.axes(base)[heads].count
    repeats = len(indices.value) // groups
    if not np.array_equal(indices.value, np.repeat(np.arange(groups), repeats)):
        return None
    return Operand(
        value=base, lead=operand.lead, positions=operand.positions, features=operand.features
    )


def _join_biases(write: _Writer, biases: Sequence[Bias], dtype: ir.DataType) -> ir.Value | None:
    """One value to add to the scores, or None."""
    total: ir.Value | None = None
    numpy_dtype = dtype.numpy()
    for bias in biases:
        if bias.allowed_where is not None:
            zero = constant(write.graph, np.zeros((), numpy_dtype))
            low = constant(write.graph, np.array(bias.low, numpy_dtype))
            sides = (zero, low) if bias.allowed_where else (low, zero)
            value = write("Where", bias.value, *sides)
        elif bias.factor != 1.0:
            factor = constant(write.graph, np.array(bias.factor, numpy_dtype))
            value = write("Mul", bias.value, factor)
        else:
            value = bias.value
        value.type = ir.TensorType(dtype)
        total = value if total is None else write("Add", total, value)
        total.type = ir.TensorType(dtype)
    return total


class _Writer:
    """Writes nodes before one node of the graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node):
        self.graph, self._before = graph, before

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: dict[str, int | float | list[int]] | None = None,
    ) -> ir.Node:
        node = ir.node(op_type, inputs, domain=domain, attributes=attributes or {})
        self.graph.insert_before(self._before, node)
        if inputs[0] is not None and op_type not in ("Shape",):
            node.outputs[0].type = inputs[0].type
        return node

    def __call__(self, op_type: str, *inputs: ir.Value | None) -> ir.Value:
        return self.node(op_type, inputs).outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self.graph, np.array(numbers, np.int64))

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        if list(order) == list(range(len(order))):
            return value
        return self.node("Transpose", [value], attributes={"perm": list(order)}).outputs[0]

    def shape_with(
        self, value: ir.Value, axis: int, before: Sequence[int], after: Sequence[int]
    ) -> ir.Value:
        """int64 shape: `before`, the size of `value` along `axis`, `after`."""
        size = self.node("Shape", [value], attributes={"start": axis, "end": axis + 1}).outputs[0]
        parts = [self.ints(*before), size, self.ints(*after)]
        return self.node("Concat", parts, attributes={"axis": 0}).outputs[0]
