"""Derive a cache from a graph that knows of none.

Each attention core gets past keys and values in and present ones out, and whatever else mixes
positions the state that it needs (`sites.py`). What only positions decide (rotary tables, position
embeddings, biases) is written again for past and new positions together, of which each row uses the
entries of its new ones (`row_lookup.py`).

The rows of a call may stand at different positions. `attention_mask` says which positions of each
row are tokens; a row's position is the number of its tokens so far, and slot p of its cache holds
position p (docs/state.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes import common

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.attention.rotary import find_projections
from causal_onnx.export.cache.lengths import Lengths, write_lengths
from causal_onnx.export.cache.once import Once, write_once
from causal_onnx.export.cache.refusals import (
    named,
    refuse_mixing,
    refuse_nothing_kept,
    refuse_odd_cores,
    refuse_shared_inputs,
)
from causal_onnx.export.cache.row_lookup import plan_rows, write_new_positions
from causal_onnx.export.cache.sites import INPUTS, cut_at_states, living
from causal_onnx.export.cache.states import State, states_of, write_states
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import copy_output
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.position_region import PositionRegion, same_prefix, seq_axes
from causal_onnx.runtime.contract import SLOT_AXES, TensorSpec

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
    """What a derived cache adds to the graph."""

    cores: tuple[CanonicalCore, ...]
    """The attention, now with a past and a present."""
    past: tuple[TensorSpec, ...]
    present: tuple[TensorSpec, ...]
    bounded: tuple[int | None, ...]
    """For each past: the most positions that it holds; None: all."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """The outputs that have a column for each key, and the axis of these."""
    again: tuple[str, ...] = ()
    """The nodes, by name, of which all inputs are kept and what they give computed again."""
    computed_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each past that is computed in the first call of a row: the inputs that decide it."""
    not_once: str | None = None
    """Why what inputs without positions decide is computed in every call, though it is costly."""
    mask: TensorSpec | None
    """Says which positions are tokens; None: the rows of a call all stand at one position."""
    row_past: ir.Value | None = None
    """int64 (batch,), with a mask: the tokens of each row in the cache."""
    row_total: ir.Value | None = None
    """int64 (batch,), those and the new ones."""


def derive_cache(
    model: ir.Model,
    cores: Sequence[CanonicalCore],
    others: Mapping[ir.Node, str],
    *,
    max_seq_len: int | None,
    ragged: bool = True,
    use_contrib: bool = False,
    steady: Collection[str] = (),
    unfit: str | None = None,
) -> DerivedCache:
    """Give every core of a canonical graph a past, in place.

    Args:
        model: With all attention in canonical form.
        cores: Its cores.
        others: Attention that could not be rewritten, with the reason; it keeps all its inputs.
        max_seq_len: The longest sequence, past included.
        ragged: Rows of one call may stand at different positions, and a window's cache keeps only
            what the window needs. Otherwise neither.
        use_contrib: Operators of onnxruntime's own may be written.
        steady: The inputs without positions of which a sequence has one value: what they decide
            alone is computed once for each row.
        unfit: Why that cannot be computed in a branch; None: it can.

    Returns:
        The cores as they are then, and the new inputs and outputs.

    Raises:
        RaggedError: It can only be derived with `ragged=False`. The model is then unusable, as it
            is after the others.
        NotSupportedError: Positions mix in a way that is not causal, or a function of positions is
            not the same for a prefix; names the node.
    """
    refuse_odd_cores(cores)
    graph = model.graph
    cut = _cut_at_cores(graph, cores)
    roots = [core.node for core in cores]
    sites, spans = cut_at_states(
        model, roots, others, max_seq_len=max_seq_len, ragged=ragged, use_contrib=use_contrib
    )
    layouts, alive = spans.layouts, living(graph, roots, sites)
    weights = {
        str(value.name): site.keys
        for value in graph.outputs
        for site in sites
        if site.keys is not None and value in {u.node.outputs[0] for u in site.stand_in.uses()}
    }
    refuse_mixing(spans, alive, cores, others)
    refuse_nothing_kept(cores, sites, others)
    if ragged:
        refuse_shared_inputs(layouts.signature)
    cores = find_projections(layouts, cores, max_seq_len)
    edges = list(_position_edges(layouts, cores, alive))
    states = states_of(sites, ragged=ragged)
    bounds = [_bound(core, max_seq_len) if ragged else None for core in cores]
    pasts = [_pasts(index, core, bounds[index]) for index, core in enumerate(cores)]
    first = [*(past for past, _ in pasts), *(state.past for own in states for state in own)][0]
    lengths = write_lengths(graph, layouts.signature, aligned=None if ragged else first)
    for edge in edges:
        _shift(graph, layouts, edge, lengths)
    cores = _rejoin(graph, cores, cut, pasts=pasts, bounds=bounds, lengths=lengths)
    if sites:
        write_states(graph, sites, states, lengths)
        # What was written again goes. Where the rows stand is for later steps to read, too.
        own = [value for value in (lengths.row_past, lengths.row_total) if value is not None]
        graph.outputs.extend(own)
        common.RemoveUnusedNodesPass()(model)
        del graph.outputs[len(graph.outputs) - len(own) :]
    derived = _with_states(_tensors(cores, pasts, bounds, lengths), states)
    once, not_once = write_once(graph, layouts, lengths, steady, unfit=unfit)
    derived = _with_once(derived, once)
    again = dict.fromkeys(s.node for s in sites if s.kind == INPUTS)
    return replace(
        derived,
        weights=weights,
        again=tuple(f"{node.op_type} {named(node)}" for node in again),
        not_once=not_once,
    )


def _bound(core: CanonicalCore, max_seq_len: int | None) -> int | None:
    """How many positions a window's cache needs to keep; None: all, or it makes no difference."""
    window = core.footprint.window
    if window is None or window < 2:
        return None
    if core.has_bias or core.bias is not None:
        return None  # the bias has a column for each position, not for each slot
    kept = window - 1
    return kept if max_seq_len is None or kept < max_seq_len else None


def _cut_at_cores(graph: ir.Graph, cores: Sequence[CanonicalCore]) -> list[ir.Value]:
    """Put a new graph input in the place of each core's output: the analysis then sees no cores."""
    cut = []
    for index, core in enumerate(cores):
        batch = "batch" if core.has_batch else 1
        shape = ir.Shape([batch, core.num_heads, "seq", core.value_dim])
        stand_in = ir.Value(
            name=f"core_{index}", shape=shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        if core.node.outputs[0].is_graph_output():
            copy_output(graph, core.node.outputs[0])
        core.node.outputs[0].replace_all_uses_with(stand_in)
        graph.inputs.append(stand_in)
        cut.append(stand_in)
        graph.remove(core.node, safe=False)
    return cut


@dataclass(frozen=True)
class _Edge:
    """A position-only value that enters a data-dependent node, or the bias of a core."""

    value: ir.Value
    node: ir.Node
    index: int
    is_bias: bool


def _position_edges(
    layouts: Layouts, cores: Sequence[CanonicalCore], alive: Set[ir.Node]
) -> Iterator[_Edge]:
    for node in layouts.model.graph:
        if node.op_type in ("Shape", "Size") or node not in alive:
            continue
        if not any(layouts.is_tainted(output) for output in node.outputs):
            continue
        operands = _SHAPE_OPERANDS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and index not in operands and layouts.is_position_only(value):
                yield _Edge(value, node, index, is_bias=False)
    for core in cores:
        if core.bias is not None and layouts.is_position_only(core.bias):
            yield _Edge(core.bias, core.node, 3, is_bias=True)


def _shift(graph: ir.Graph, layouts: Layouts, edge: _Edge, lengths: Lengths) -> None:
    """Compute the edge's value for all positions and give the node the part of the new ones."""
    value = edge.value
    axes = seq_axes(layouts, value)
    region = PositionRegion(layouts, value)
    whole, longer = layouts.at_two_lengths(value)
    if not edge.is_bias and whole.size and (longer == whole.flat[0]).all():
        return  # one number everywhere (`zeros_like`): as many as there are new positions will do
    rank = len(layouts.axes(value))
    rows = [axis for axis in axes if not (edge.is_bias and axis == rank - 1)]
    if any(not layouts.axes(value)[axis].is_seq for axis in axes) or len(rows) > 1:
        raise NotSupportedError(
            f"no cache can be derived: {value.name}, which {edge.node.op_type} {named(edge.node)} "
            "reads, has positions merged with another axis"
        )
    if not same_prefix(whole, longer, axes):
        raise NotSupportedError(
            f"no cache can be derived: {value.name}, which {edge.node.op_type} {named(edge.node)} "
            "reads, changes with the total length, so earlier outputs would change as a sequence "
            "grows (positions counted from the end, or a division by the length)"
        )
    if not axes:
        return
    before = _anchor(graph, edge)
    plan = None
    if rows and lengths.positions is not None:
        plan = plan_rows(layouts, value, rows[0], edge.node, whole)
    if rows:
        new = write_new_positions(graph, before, region, rows[0], plan=plan, lengths=lengths)
    else:  # the columns of a bias alone
        new = region.write_for_total(graph, before, lengths.seq, lengths.total)
    new.type = value.type
    edge.node.replace_input_with(edge.index, new)


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


def _pasts(index: int, core: CanonicalCore, bounded: int | None) -> tuple[ir.Value, ir.Value]:
    """The inputs of past keys and values of one core."""
    slots = "past_seq" if bounded is None else f"past_slots_{bounded}"

    def past(kind: str, width: int) -> ir.Value:
        return ir.Value(
            name=f"past_key_values.{index}.{kind}",
            shape=ir.Shape(["batch" if core.has_batch else 1, core.num_kv_heads, slots, width]),
            type=core.operands[1].type,
        )

    return past("key", core.head_dim), past("value", core.value_dim)


def _rejoin(
    graph: ir.Graph,
    cores: Sequence[CanonicalCore],
    cut: Sequence[ir.Value],
    *,
    pasts: Sequence[tuple[ir.Value, ir.Value]],
    bounds: Sequence[int | None],
    lengths: Lengths,
) -> list[CanonicalCore]:
    """Put the cores back, now with a past and a present."""
    found = []
    for index, (core, stand_in, (past_k, past_v), bounded) in enumerate(
        zip(cores, cut, pasts, bounds, strict=True)
    ):
        graph.inputs.remove(stand_in)
        graph.inputs.extend([past_k, past_v])
        old = core.node
        inputs = [*core.operands, core.bias, past_k, past_v]
        inputs += [lengths.row_past, lengths.row_total, core.sink]
        while inputs[-1] is None:
            inputs.pop()
        joined = ir.node(
            old.op_type,
            inputs,
            domain=old.domain,
            attributes={a.name: a.value for a in old.attributes.values()}
            | {"bounded": bounded or 0},
            num_outputs=3,
            metadata_props=dict(old.metadata_props),
        )
        for place in range(len(old.inputs)):
            old.replace_input_with(place, None)  # it is gone, and must keep nothing alive
        # Shared by all cores, so that what is computed from them is computed once.
        found.append(replace(core, node=joined, seq=lengths.seq, past_seq=lengths.past_seq))
        joined.outputs[0].type = old.outputs[0].type
        first_user = _first_user(graph, stand_in)
        graph.insert_before(first_user, joined)
        stand_in.replace_all_uses_with(joined.outputs[0])
        slots = "total_seq" if bounded is None else f"present_slots_{bounded}"
        for output, kind, past in zip(
            joined.outputs[1:], ("key", "value"), (past_k, past_v), strict=True
        ):
            assert past.shape is not None
            output.name = f"present.{index}.{kind}"
            output.type = past.type
            output.shape = ir.Shape([past.shape[0], past.shape[1], slots, past.shape[3]])
            graph.outputs.append(output)
    return found


def _first_user(graph: ir.Graph, value: ir.Value) -> ir.Node:
    users = {use.node for use in value.uses()}
    return next(node for node in graph if node in users)


def _tensors(
    cores: Sequence[CanonicalCore],
    pasts: Sequence[tuple[ir.Value, ir.Value]],
    bounds: Sequence[int | None],
    lengths: Lengths,
) -> DerivedCache:
    past, present, bounded = [], [], []
    for index, core in enumerate(cores):
        for kind, value, width in zip(
            ("key", "value"), pasts[index], (core.head_dim, core.value_dim), strict=True
        ):
            dtype = (value.dtype or ir.DataType.FLOAT).numpy().name
            heads, batch = core.num_kv_heads, "batch" if core.has_batch else 1
            before, after = ("past_seq", "total_seq")
            if bounds[index] is not None:
                before, after = SLOT_AXES
            past.append(
                TensorSpec(
                    name=f"past_key_values.{index}.{kind}",
                    dtype=dtype,
                    axes=(batch, heads, before, width),
                )
            )
            present.append(
                TensorSpec(
                    name=f"present.{index}.{kind}", dtype=dtype, axes=(batch, heads, after, width)
                )
            )
            bounded.append(bounds[index])
    mask = None
    if lengths.mask is not None and lengths.mask.shape is not None:
        first = lengths.mask.shape[0]
        rows: str | int = first if isinstance(first, int) else "batch"
        assert lengths.mask.name is not None
        mask = TensorSpec(name=lengths.mask.name, dtype="int64", axes=(rows, "total_seq"))
    return DerivedCache(
        cores=tuple(cores),
        past=tuple(past),
        present=tuple(present),
        bounded=tuple(bounded),
        mask=mask,
        row_past=lengths.row_past,
        row_total=lengths.row_total,
    )


def _with_states(derived: DerivedCache, states: Sequence[Sequence[State]]) -> DerivedCache:
    past, present, bounded = list(derived.past), list(derived.present), list(derived.bounded)
    for state in (state for own in states for state in own):
        before, after = ("past_seq", "total_seq") if state.bounded is None else SLOT_AXES
        dtype = (state.past.dtype or ir.DataType.FLOAT).numpy().name
        for specs, kind, slots in ((past, "past", before), (present, "present", after)):
            axes = (state.batch, 1, slots, state.width)
            specs.append(TensorSpec(name=f"{kind}_{state.name}", dtype=dtype, axes=axes))
        bounded.append(state.bounded)
    return replace(derived, past=tuple(past), present=tuple(present), bounded=tuple(bounded))


def _with_once(derived: DerivedCache, states: Sequence[Once]) -> DerivedCache:
    past, present, bounded = list(derived.past), list(derived.present), list(derived.bounded)
    for state in states:
        assert state.past.shape is not None
        batch = state.past.shape[0]
        dtype = (state.past.dtype or ir.DataType.FLOAT).numpy().name
        for specs, value, slots in zip(
            (past, present), (state.past, state.present), SLOT_AXES, strict=True
        ):
            axes = ("batch" if not isinstance(batch, int) else batch, 1, slots, *state.rest)
            specs.append(TensorSpec(name=str(value.name), dtype=dtype, axes=axes))
        bounded.append(1)
    return replace(
        derived,
        past=tuple(past),
        present=tuple(present),
        bounded=tuple(bounded),
        computed_from={str(state.past.name): state.computed_from for state in states},
    )
