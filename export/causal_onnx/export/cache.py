"""Derive a KV cache from a graph that knows of none.

Each attention core gets past keys and values in and present ones out. Everything else must treat
each position by itself; what only positions decide (rotary tables, position embeddings, biases) is
computed for past and new positions together, and its last `seq` entries are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import NONE, Elements, view
from causal_onnx.export.analysis.interpret import Constants, Run, input_elements, run
from causal_onnx.export.analysis.signature import InputAxes, Signature, Sizes
from causal_onnx.export.canonical import CanonicalCore, bias_of
from causal_onnx.export.errors import ExportError
from causal_onnx.export.graph import constant
from causal_onnx.export.layout import Layouts
from causal_onnx.export.region import PositionRegion, same_prefix, seq_axes
from causal_onnx.runtime.contract import TensorSpec

__all__ = ["DerivedCache", "derive_cache"]

# Inputs of an operator that say which shape or which part, not what is computed with.
_SHAPE_OPERANDS: Mapping[str, Sequence[int]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Slice": (1, 2, 3, 4),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Split": (1,),
    "Pad": (1, 3),
    "ReduceSum": (1,),
    "ReduceMean": (1,),
    "ReduceMax": (1,),
    "TopK": (1,),
}


@dataclass(frozen=True, kw_only=True)
class DerivedCache:
    """The tensors that a derived cache adds to the graph."""

    past: tuple[TensorSpec, ...]
    present: tuple[TensorSpec, ...]


def derive_cache(
    model: ir.Model,
    cores: Sequence[CanonicalCore],
    others: Mapping[ir.Node, str],
    *,
    max_seq_len: int | None,
) -> DerivedCache:
    """Give every core of a canonical graph a past, in place.

    Args:
        model: With all attention in canonical form.
        cores: Its cores.
        others: Attention that could not be rewritten, with the reason.
        max_seq_len: The longest sequence, past included.

    Returns:
        The new inputs and outputs.

    Raises:
        ExportError: Something besides the cores mixes positions, or a function of positions is not
            the same for a prefix; names the node. The model is then unusable.
    """
    _refuse_odd_cores(cores, others)
    graph = model.graph
    cut = _cut_at_cores(graph, cores)
    layouts = Layouts(model, max_seq_len)
    _refuse_mixing(layouts, cores, others)
    edges = list(_position_edges(layouts, cores))
    first = next(iter(graph))
    seq, total, pasts = _lengths(graph, first, layouts.signature, cores)
    for edge in edges:
        _shift(graph, layouts, edge, seq, total)
    _rejoin(graph, cores, cut, pasts)
    return _tensors(cores, pasts)


def _refuse_odd_cores(cores: Sequence[CanonicalCore], others: Mapping[ir.Node, str]) -> None:
    if not cores:
        reason = next(iter(others.values()), "there is no softmax over scores")
        raise ExportError(f"no cache can be derived: no attention was recognised ({reason})")
    for core in cores:
        if core.has_data_mask:
            raise ExportError(
                f"no cache can be derived: the mask of {_named(core.node)} depends on the data of "
                "an input (padding); export without that input"
            )
        if not core.footprint.is_causal:
            raise ExportError(
                f"no cache can be derived: the attention {_named(core.node)} is not plainly causal "
                f"(footprint: {core.footprint.kind})"
            )


def _cut_at_cores(graph: ir.Graph, cores: Sequence[CanonicalCore]) -> list[ir.Value]:
    """Put a new graph input in the place of each core's output: the analysis then sees no cores."""
    cut = []
    for index, core in enumerate(cores):
        batch = "batch" if core.has_batch else 1
        shape = ir.Shape([batch, core.num_heads, "seq", core.value_dim])
        stand_in = ir.Value(
            name=f"core_{index}", shape=shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        core.node.outputs[0].replace_all_uses_with(stand_in)
        graph.inputs.append(stand_in)
        cut.append(stand_in)
        graph.remove(core.node, safe=False)
    return cut


def _refuse_mixing(
    layouts: Layouts, cores: Sequence[CanonicalCore], others: Mapping[ir.Node, str]
) -> None:
    """Every element must depend on one position alone: the last it depends on is the first."""
    sizes = layouts.sizes[0]
    first_positions = _reversed_run(layouts, sizes)
    for node in layouts.model.graph:
        for output in node.outputs:
            last = layouts.base.values.get(output)
            low = first_positions.values.get(output)
            if not isinstance(last, Elements) or not isinstance(low, Elements):
                continue
            ends = view(last.reach, last.shape)
            starts = sizes.seq - 1 - view(low.reach, low.shape)
            depends = ends != NONE
            if bool((ends[depends] != starts[depends]).any()):
                hint = _unrecognised(layouts, node, others)
                raise ExportError(
                    f"no cache can be derived: {node.op_type} {_named(node)} mixes positions "
                    f"outside the attention that was recognised{hint}"
                )
    for core in cores:
        for value in core.node.inputs[:3]:
            _refuse_shift(layouts, value, core.node)
    for value in layouts.model.graph.outputs:
        _refuse_shift(layouts, value, value.producer())


def _unrecognised(layouts: Layouts, mixing: ir.Node, others: Mapping[ir.Node, str]) -> str:
    """What kept the softmax that follows `mixing` from being taken for attention."""
    after = False
    for node in layouts.model.graph:
        after |= node is mixing
        if after and node in others:
            return (
                f" (it may belong to {node.op_type} {_named(node)}: {others[node]}). Write "
                "attention as softmax(q k^T * scale + mask) v, or with scaled_dot_product_attention"
            )
    return ""


def _refuse_shift(layouts: Layouts, value: ir.Value | None, node: ir.Node | None) -> None:
    assert value is not None
    elements = layouts.base.values.get(value)
    axes = [i for i, axis in enumerate(layouts.axes(value)) if axis.is_seq]
    if not isinstance(elements, Elements) or len(axes) != 1:
        raise ExportError(
            f"no cache can be derived: {value.name} does not have one axis of positions"
        )
    shape = [1] * len(elements.shape)
    shape[axes[0]] = elements.shape[axes[0]]
    own = np.arange(elements.shape[axes[0]]).reshape(shape)
    reach = view(elements.reach, elements.shape)
    if bool(((reach != own) & (reach != NONE)).any()):
        raise ExportError(
            f"no cache can be derived: {value.name} of {_named(node)} is shifted along the sequence"
        )


def _reversed_run(layouts: Layouts, sizes: Sizes) -> Run:
    """The analysis with positions counted from the end: it finds the first, not the last."""
    inputs = {}
    for spec in layouts.signature.inputs:
        elements = input_elements(spec, sizes)
        reach = np.where(elements.reach == NONE, NONE, sizes.seq - 1 - elements.reach)
        inputs[spec.name] = Elements(elements.shape, reach.astype(np.int32))
    return run(layouts.model, layouts.signature, sizes, Constants(), inputs=inputs)


@dataclass(frozen=True)
class _Edge:
    """A position-only value that enters a data-dependent node, or the bias of a core."""

    value: ir.Value
    node: ir.Node
    index: int
    is_bias: bool


def _position_edges(layouts: Layouts, cores: Sequence[CanonicalCore]) -> Iterator[_Edge]:
    for node in layouts.model.graph:
        if node.op_type in ("Shape", "Size"):
            continue
        if not any(layouts.is_tainted(output) for output in node.outputs):
            continue
        operands = _SHAPE_OPERANDS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and index not in operands and layouts.is_position_only(value):
                yield _Edge(value, node, index, is_bias=False)
    for core in cores:
        bias = bias_of(core.node)
        if bias is not None and layouts.is_position_only(bias):
            yield _Edge(bias, core.node, 3, is_bias=True)


def _lengths(
    graph: ir.Graph, first: ir.Node, signature: Signature, cores: Sequence[CanonicalCore]
) -> tuple[ir.Value, ir.Value, list[tuple[ir.Value, ir.Value]]]:
    """(new positions, past and new positions, past keys and values per core)."""
    spec: InputAxes = next(
        s for s in signature.inputs if "seq" in s.axes and not s.name.startswith("core_")
    )
    tokens = next(value for value in graph.inputs if value.name == spec.name)
    axis = spec.axes.index("seq")
    pasts = []
    for index, core in enumerate(cores):
        pair = []
        batch = "batch" if core.has_batch else 1
        for kind, width in (("key", core.head_dim), ("value", core.value_dim)):
            past = ir.Value(
                name=f"past_key_values.{index}.{kind}",
                shape=ir.Shape([batch, core.num_kv_heads, "past_seq", width]),
                type=core.node.inputs[1].type,  # type: ignore[union-attr]
            )
            pair.append(past)
        pasts.append((pair[0], pair[1]))
    seq = ir.node("Shape", [tokens], attributes={"start": axis, "end": axis + 1})
    past_len = ir.node("Shape", [pasts[0][0]], attributes={"start": 2, "end": 3})
    total = ir.node("Add", [past_len.outputs[0], seq.outputs[0]])
    graph.insert_before(first, [seq, past_len, total])
    total.outputs[0].name = "total_seq_len"
    return seq.outputs[0], total.outputs[0], pasts


def _shift(
    graph: ir.Graph,
    layouts: Layouts,
    edge: _Edge,
    seq: ir.Value,
    total: ir.Value,
) -> None:
    """Compute the edge's value for all positions and give the node the part of the new ones."""
    value = edge.value
    axes = seq_axes(layouts, value)
    region = PositionRegion(layouts, value)
    short, long = (z.seq for z in layouts.sizes[:2])
    rank = len(layouts.axes(value))
    rows = [axis for axis in axes if not (edge.is_bias and axis == rank - 1)]
    if any(not layouts.axes(value)[axis].is_seq for axis in axes) or len(rows) > 1:
        raise ExportError(
            f"no cache can be derived: {value.name}, which {edge.node.op_type} {_named(edge.node)} "
            "reads, has positions merged with another axis"
        )
    if not same_prefix(region.evaluate(2, short), region.evaluate(2, long), axes):
        raise ExportError(
            f"no cache can be derived: {value.name}, which {edge.node.op_type} {_named(edge.node)} "
            "reads, changes with the total length, so earlier outputs would change as a sequence "
            "grows (positions counted from the end, or a division by the length)"
        )
    if not axes:
        return
    before = _anchor(graph, edge)
    whole = region.write_for_total(graph, before, seq, total)
    if rows:
        start = ir.node("Sub", [total, seq])
        axis = constant(graph, np.array(rows, np.int64))
        part = ir.node("Slice", [whole, start.outputs[0], total, axis])
        graph.insert_before(before, [start, part])
        whole = part.outputs[0]
    whole.type = value.type
    edge.node.replace_input_with(edge.index, whole)


def _anchor(graph: ir.Graph, edge: _Edge) -> ir.Node:
    """The node before which the shifted value is written: the reader, or where its core stood."""
    if not edge.is_bias:
        return edge.node
    producer = edge.value.producer()
    following = iter(graph)
    for node in following:
        if node is producer:
            return next(following)
    raise AssertionError("a bias is made by the last node of the graph")


def _rejoin(
    graph: ir.Graph,
    cores: Sequence[CanonicalCore],
    cut: Sequence[ir.Value],
    pasts: Sequence[tuple[ir.Value, ir.Value]],
) -> None:
    """Put the cores back, now with a past and a present."""
    for index, (core, stand_in, (past_k, past_v)) in enumerate(zip(cores, cut, pasts, strict=True)):
        graph.inputs.remove(stand_in)
        graph.inputs.extend([past_k, past_v])
        old = core.node
        joined = ir.node(
            old.op_type,
            [*old.inputs[:3], bias_of(old), past_k, past_v],
            domain=old.domain,
            attributes={a.name: a.value for a in old.attributes.values()},
            num_outputs=3,
            metadata_props=dict(old.metadata_props),
        )
        joined.meta.update(old.meta)
        joined.outputs[0].type = old.outputs[0].type
        first_user = _first_user(graph, stand_in)
        graph.insert_before(first_user, joined)
        stand_in.replace_all_uses_with(joined.outputs[0])
        for output, kind, past in zip(
            joined.outputs[1:], ("key", "value"), (past_k, past_v), strict=True
        ):
            assert past.shape is not None
            output.name = f"present.{index}.{kind}"
            output.type = past.type
            output.shape = ir.Shape([past.shape[0], past.shape[1], "total_seq", past.shape[3]])
            graph.outputs.append(output)


def _first_user(graph: ir.Graph, value: ir.Value) -> ir.Node:
    users = {use.node for use in value.uses()}
    return next(node for node in graph if node in users)


def _tensors(
    cores: Sequence[CanonicalCore],
    pasts: Sequence[tuple[ir.Value, ir.Value]],
) -> DerivedCache:
    past, present = [], []
    for index, core in enumerate(cores):
        for kind, value, width in zip(
            ("key", "value"), pasts[index], (core.head_dim, core.value_dim), strict=True
        ):
            dtype = (value.dtype or ir.DataType.FLOAT).numpy().name
            heads, batch = core.num_kv_heads, "batch" if core.has_batch else 1
            past.append(
                TensorSpec(
                    name=f"past_key_values.{index}.{kind}",
                    dtype=dtype,
                    axes=(batch, heads, "past_seq", width),
                )
            )
            present.append(
                TensorSpec(
                    name=f"present.{index}.{kind}",
                    dtype=dtype,
                    axes=(batch, heads, "total_seq", width),
                )
            )
    return DerivedCache(past=tuple(past), present=tuple(present))


def _named(node: ir.Node | None) -> str:
    if node is None:
        return "an input"
    place = node.metadata_props.get("causal_onnx.module", "")
    return f"{node.name!r}" + (f" in {place}" if place else "")
