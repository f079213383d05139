"""Write the parts of a graph that mix positions outside attention again, each with its state.

The state of a row goes in front of its new positions, and the part of the graph is written again
for all of them; the results of the new positions go on. That is right because of what was found of
the part (`sites.py`): where only the last inputs matter, those are in front; where the last result
is enough, it stands for the input that led to it.

A state is four axes, (batch, 1, slots, width), with one slot for each position, as keys and values
have them: empty at first, and in a row of few positions its first slots are in use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.cache.lengths import Lengths
from causal_onnx.export.cache.linear_attention import OPERATOR, Heads
from causal_onnx.export.cache.mixture import Factor, Labels, Mixture
from causal_onnx.export.cache.refusals import named
from causal_onnx.export.cache.region import Region
from causal_onnx.export.cache.row_lookup import write_rows
from causal_onnx.export.cache.sites import CARRIED, RUNNING, SUM, StateSite, carried_states
from causal_onnx.export.cache.spans import BATCH, state_order
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.subgraphs import name_inside
from causal_onnx.export.graph.writer import Writer
from causal_onnx.runtime.contract import CONTRIB

__all__ = [
    "LinearAttentionWriter",
    "SiteWriter",
    "State",
    "SumWriter",
    "states_of",
    "write_states",
]


@dataclass(frozen=True)
class State:
    """One tensor that goes from call to call."""

    name: str
    """After `past_` or `present_`."""
    past: ir.Value
    bounded: int | None
    batch: str | int
    width: int


@dataclass(frozen=True)
class _Axes:
    """How the axes of a value, in any order, lie in a state."""

    order: tuple[int, ...]
    """Its axes as (batch, seq, the others), without those that it does not have."""
    has_batch: bool
    rest: tuple[int, ...]

    @property
    def width(self) -> int:
        return int(np.prod(self.rest))

    def ordered(self, write: Writer, value: ir.Value) -> ir.Value:
        """The value, its axes in this order."""
        if self.order == tuple(sorted(self.order)):
            return value
        return write("Transpose", value, perm=self.order)

    def as_before(self, write: Writer, value: ir.Value) -> ir.Value:
        """What `ordered` gave, its axes as they were."""
        if self.order == tuple(sorted(self.order)):
            return value
        return write("Transpose", value, perm=[int(a) for a in np.argsort(self.order)])


@dataclass(frozen=True)
class _Layout(_Axes):
    """How a value of (batch, seq, ...) axes lies in a state of as many slots as positions."""

    @property
    def seq(self) -> int:
        """The axis of positions."""
        return self.order[self.has_batch]

    def flat(self, write: Writer, value: ir.Value) -> ir.Value:
        """(batch, seq, width), with a batch of 1 where the value has none."""
        value = self.ordered(write, value)
        if not self.has_batch:
            value = write("Unsqueeze", value, write.ints(0))
        if len(self.rest) == 1:
            return value
        return write("Reshape", value, write.ints(0, 0, self.width))

    def whole(self, write: Writer, flat: ir.Value) -> ir.Value:
        """The value again."""
        if len(self.rest) != 1:
            flat = write("Reshape", flat, write.ints(0, 0, *self.rest))
        if not self.has_batch:
            flat = write("Squeeze", flat, write.ints(0))
        return self.as_before(write, flat)


@dataclass(frozen=True)
class _Carried(_Axes):
    """How what a Scan carries, of (batch, ...) axes, lies in a state of one slot."""

    def flat(self, write: Writer, value: ir.Value) -> ir.Value:
        """(batch, 1, width), one slot of a state."""
        return write(
            "Reshape",
            self.ordered(write, value),
            write.ints(0 if self.has_batch else 1, 1, self.width),
        )

    def whole(self, write: Writer, flat: ir.Value) -> ir.Value:
        """The value again."""
        batch = (0,) if self.has_batch else ()
        return self.as_before(write, write("Reshape", flat, write.ints(*batch, *self.rest)))


def _carried(site: StateSite) -> list[_Carried]:
    """How each state of a Scan lies."""
    layouts, node = site.region.layouts, site.node
    found = []
    for state in node.outputs[: carried_states(node)]:
        axes = layouts.axes(state)
        batch = [index for index, axis in enumerate(axes) if axis == BATCH]
        rest = [index for index in range(len(axes)) if index not in batch]
        sizes = tuple(axes[index].count for index in rest)
        found.append(_Carried((*batch, *rest), bool(batch), sizes))
    return found


def _layout(site: StateSite, value: ir.Value) -> _Layout:
    layouts = site.region.layouts
    axes, order = layouts.axes(value), state_order(layouts, value)
    has_batch = axes[order[0]] == BATCH
    return _Layout(order, has_batch, tuple(axes[n].count for n in order[1 + has_batch :]))


def _kept(site: StateSite) -> list[tuple[str, _Layout | _Carried, ir.TypeProtocol | None]]:
    """What the state is: for each tensor its kind, how its values lie, and their type."""
    output = site.region.output
    if site.kept == 0:
        return []
    if site.kind == CARRIED and site.node.op_type == "Scan":
        pairs = zip(site.node.outputs, site.node.inputs, strict=False)  # the states come first
        types = [out.type or (None if given is None else given.type) for out, given in pairs]
        return [("hidden", *both) for both in zip(_carried(site), types, strict=False)]
    if site.mixture is not None:
        return [
            *(("window", _layout(site, x), x.type) for x in site.mixture.remembered),
            ("hidden", _sum_layout(site.mixture), output.type),
        ]
    if site.kind == CARRIED:
        names = ("hidden", "cell") if site.node.op_type == "LSTM" else ("hidden",)
        layout = _layout(site, output)  # the other axes are directions, one, and the width
        return [(name, layout, output.type) for name in names]
    values = [output] if site.kind == RUNNING else _stored(site)
    return [(site.kind, _layout(site, value), value.type) for value in values]


def _stored(site: StateSite) -> list[ir.Value]:
    """The sources whose positions are the state."""
    sources = site.region.sources
    return [x for x in sources if site.rows is None or x in site.rows.needed]


def states_of(sites: list[StateSite], *, ragged: bool) -> list[list[State]]:
    """The states of each site.

    Args:
        sites: In the order of the graph.
        ragged: As in `derive_cache`; otherwise nothing is bounded.

    Raises:
        NotSupportedError: The type of a value is not known.
    """
    found, count = [], 0
    for site in sites:
        own = []
        for kind, layout, type_ in _kept(site):
            if type_ is None:
                raise NotSupportedError(
                    f"no cache can be derived: the type of what {site.node.op_type} "
                    f"{named(site.node)} reads is not known"
                )
            bounded = site.kept if ragged else None
            slots = "past_seq" if bounded is None else f"past_slots_{bounded}"
            batch = "batch" if layout.has_batch else 1
            name = f"state.{count}.{kind}"
            past = ir.Value(
                name=f"past_{name}", shape=ir.Shape([batch, 1, slots, layout.width]), type=type_
            )
            own.append(State(name, past, bounded, batch, layout.width))
            count += 1
        found.append(own)
    return found


def write_states(
    graph: ir.Graph, sites: list[StateSite], states: list[list[State]], lengths: Lengths
) -> None:
    """Put the sites back, now with a past and a present."""
    again: dict[ir.Value, ir.Value] = {}
    for site, own in zip(sites, states, strict=True):
        graph.inputs.remove(site.stand_in)
        graph.inputs.extend(state.past for state in own)
        users = {use.node for use in site.stand_in.uses()}
        first = next(node for node in graph if node in users)
        write = Writer(graph, first, core=site.node)
        writer = SiteWriter
        if site.kind == CARRIED:
            writer = _ScanWriter if site.node.op_type == "Scan" else _LayerWriter
        if site.kind == SUM:
            writer = SumWriter if site.heads is None else LinearAttentionWriter
        result = writer(write, first, site, own, lengths=lengths, again=again).result()
        result.type = site.stand_in.type
        for node in [use.node for use in site.stand_in.uses()]:
            shape = node.outputs[0].shape
            if site.keys is not None and shape is not None:
                node.outputs[0].shape = ir.Shape(
                    ["total_seq" if axis == site.keys else size for axis, size in enumerate(shape)]
                )
        site.stand_in.replace_all_uses_with(result)
        again[site.stand_in] = result


class SiteWriter:
    """Writes one site again."""

    def __init__(
        self,
        write: Writer,
        before: ir.Node,
        site: StateSite,
        states: list[State],
        *,
        lengths: Lengths,
        again: dict[ir.Value, ir.Value],
    ):
        self.write, self.before, self.site, self.states = write, before, site, states
        self.lengths, self.again = lengths, again
        kept, past = site.kept, lengths.past_seq
        if kept is not None:
            past = write("Min", past, write.ints(kept))
        self.slots = past
        """(1,), how many slots of each state are put in front."""
        self.total = write("Add", past, lengths.seq)
        self.held = self.slots
        """(batch,), how many of them the row uses; or (1,), where all rows are equally long."""
        if lengths.row_past is not None:
            self.held = (
                lengths.row_past if kept is None else write("Min", lengths.row_past, self.slots)
            )

    def result(self) -> ir.Value:
        """Write it all; the value that takes the place of the output."""
        write, region = self.write, self.site.region
        states = iter(self.states)
        stored = [] if self.site.kept == 0 else _stored(self.site)
        known: dict[ir.Value, ir.Value] = {}
        new: dict[ir.Value, ir.Value] = {}
        joined = []
        for source in region.sources:
            now = self.again.get(source, source)
            new[now] = now
            layout = _layout(self.site, source)
            flat = layout.flat(write, now)
            if source in stored:
                flat = self.joined(next(states), flat)
            joined.append(flat)
            known[now] = layout.whole(write, flat)
            known[now].type = source.type
        known |= region.lengths(write.graph, self.before, self.lengths.seq, self.total)
        again = region.write(write.graph, self.before, known)
        if not self.states:
            return again[region.output]
        if self.site.rows is None:
            output = _layout(self.site, region.output)
            whole = output.flat(write, again[region.output])
            result = output.whole(write, self.new_ones(whole))
        else:
            result = self.site.rows.write(write.graph, self.before, again, new, self.selected)
        given = (
            [whole]
            if self.site.kind == RUNNING
            else [
                flat
                for source, flat in zip(region.sources, joined, strict=True)
                if source in stored
            ]
        )
        for state, flat in zip(self.states, given, strict=True):
            self.give(state, flat)
        return result

    def selected(self, value: ir.Value, whole: ir.Value, axis: int, reader: ir.Node) -> ir.Value:
        """The new positions of each row of a value of the region that has all."""
        write, rows, positions = self.write, self.site.rows, self.lengths.positions
        if positions is None:
            return write("Slice", whole, self.slots, self.total, write.ints(axis))
        assert rows is not None
        plan = rows.plans.get((value, reader))
        if plan is not None:
            return write_rows(write.graph, self.before, whole, plan, positions)
        axes = self.site.region.layouts.axes(value)
        if BATCH not in axes:
            return write("Gather", whole, write("Squeeze", positions, write.ints(0)), axis=axis)
        lead = (axes.index(BATCH), axis)
        order = (*lead, *(n for n in range(len(axes)) if n not in lead))
        found = write("Transpose", whole, perm=order)
        found = write("GatherND", found, self.index(self.places()))
        return write("Transpose", found, perm=[int(n) for n in np.argsort(order)])

    def joined(self, state: State, new: ir.Value) -> ir.Value:
        """(batch, slots + seq, width): each row's past, and its new positions right behind it."""
        write, lengths = self.write, self.lengths
        past = write("Squeeze", state.past, write.ints(1))
        if lengths.row_past is None:
            if self.site.kept is not None:
                start = write("Sub", lengths.past_seq, self.slots)
                past = write("Slice", past, start, lengths.past_seq, write.ints(1))
            return write("Concat", past, new, axis=1)
        both = write("Concat", past, new, axis=1)
        return write("ScatterND", both, self.index(self.places()), new)

    def places(self) -> ir.Value:
        """(batch, seq), where the new positions of each row lie among the joined ones."""
        write = self.write
        steps = write("Range", write.scalar(0), write("Squeeze", self.lengths.seq), write.scalar(1))
        return write("Add", write("Unsqueeze", self.held, write.ints(1)), steps)

    def index(self, slots: ir.Value) -> ir.Value:
        """(batch, count, 2): the entries [row, slot] for `slots`, (batch, count)."""
        write = self.write
        shape = write("Concat", write("Shape", slots), write.ints(1), axis=0)
        batch = write("Squeeze", write("Shape", slots, start=0, end=1))
        rows = write("Range", write.scalar(0), batch, write.scalar(1))
        rows = write("Expand", write("Unsqueeze", rows, write.ints(1, 2)), shape)
        return write("Concat", rows, write("Unsqueeze", slots, write.ints(2)), axis=2)

    def resumed(self, begin: ir.Value, past: ir.Value) -> ir.Value:
        """(batch, 1, width): what each row carries, or `begin` where it has read nothing."""
        write = self.write
        both = write("Concat", begin, past, axis=1)  # (batch, 1 + slots, width)
        return write("GatherND", both, self.index(write("Unsqueeze", self.held, write.ints(1))))

    def new_ones(self, whole: ir.Value) -> ir.Value:
        """Of the joined positions the new ones of each row."""
        write = self.write
        if self.lengths.row_past is None:
            return write("Slice", whole, self.slots, self.total, write.ints(1))
        return write("GatherND", whole, self.index(self.places()))

    def of_new_positions(self) -> dict[ir.Value, ir.Value]:
        """The values of the region, computed for the new positions alone."""
        region, seq = self.site.region, self.lengths.seq
        known = region.lengths(self.write.graph, self.before, seq, seq)
        known |= {now: now for now in (self.again.get(x, x) for x in region.sources)}
        return region.write(self.write.graph, self.before, known)

    def give_last(self, state: State, last: ir.Value) -> None:
        """Make (batch, 1, width) the state for the next call."""
        # As many slots as positions were read, one at most: onnxruntime would find a fixed 1.
        write = self.write
        count = write("Min", self.total, write.ints(1))
        held = write("Slice", last, write.ints(0), count, write.ints(1))
        self.name(state, write("Unsqueeze", held, write.ints(1)))

    def give(self, state: State, whole: ir.Value) -> None:
        """Make the state for the next call an output of the graph."""
        write, lengths, kept = self.write, self.lengths, state.bounded
        if lengths.row_past is None:
            new = whole
            if self.site.kept is not None:
                new = write("Slice", whole, self.slots, self.total, write.ints(1))
                new = write("Concat", write("Squeeze", state.past, write.ints(1)), new, axis=1)
            whole = new
        elif kept is not None:
            assert lengths.row_total is not None
            count = write("Min", self.total, write.ints(kept))
            start = write("Max", write("Sub", lengths.row_past, self.slots), write.ints(0))
            then = write("Max", write("Sub", lengths.row_total, count), write.ints(0))
            shift = write("Unsqueeze", write("Sub", then, start), write.ints(1))
            steps = write("Range", write.scalar(0), write("Squeeze", count), write.scalar(1))
            whole = write("GatherND", whole, self.index(write("Add", shift, steps)))
        self.name(state, write("Unsqueeze", whole, write.ints(1)))

    def name(self, state: State, present: ir.Value) -> None:
        """Make `present`, (batch, 1, slots, width), an output of the graph."""
        bounded = state.bounded
        slots = "total_seq" if bounded is None else f"present_slots_{bounded}"
        present.name, present.type = f"present_{state.name}", state.past.type
        present.shape = ir.Shape([state.batch, 1, slots, state.width])
        self.write.graph.outputs.append(present)


class _LayerWriter(SiteWriter):
    """Writes one recurrent layer again: it begins with what it carried out of the last call."""

    def result(self) -> ir.Value:
        """Write it all; the value that takes the place of the output."""
        region, lengths = self.site.region, self.lengths
        assert lengths.row_past is not None
        assert lengths.row_total is not None
        now = self.again.get(region.sources[0], region.sources[0])
        known = region.lengths(self.write.graph, self.before, lengths.seq, lengths.seq)
        copies = region.write(self.write.graph, self.before, {**known, now: now})
        result = copies[region.output]
        layer = result.producer()
        assert layer is not None
        self.write = write = Writer(self.write.graph, layer, core=self.site.node)
        new = write("Sub", lengths.row_total, lengths.row_past)
        # A row's padding comes last: the layer stops before it, and gives what it carries there.
        inputs = [*layer.inputs, *[None] * 7][:7]
        inputs[4] = counts = write("Cast", new, to=int(ir.DataType.INT32))
        counts.type = ir.TensorType(ir.DataType.INT32)
        starts = [self.start(state, inputs[place]) for place, state in enumerate(self.states, 5)]
        inputs[5 : 5 + len(starts)] = starts
        names = {a.name: a.value for a in layer.attributes.values()}
        twin = write.node(layer.op_type, inputs[: 5 + len(starts)], names, 1 + len(starts))
        self.write = write = Writer(self.write.graph, self.before, core=self.site.node)
        is_still = write("Unsqueeze", write("Equal", new, write.scalar(0)), write.ints(0, 2))
        for state, start, last in zip(self.states, starts, twin.outputs[1:], strict=True):
            last.type = start.type = state.past.type
            carried = write("Where", is_still, start, last)  # (1, batch, width)
            moved = write("Transpose", carried, perm=(1, 0, 2))
            self.name(state, write("Unsqueeze", moved, write.ints(1)))
        return twin.outputs[0]

    def start(self, state: State, first: ir.Value | None) -> ir.Value:
        """(1, batch, width): what each row carries, or `first` where it has read nothing."""
        write = self.write
        past = write("Squeeze", state.past, write.ints(1))
        if first is None:
            shape = write("Concat", write("Shape", self.held), write.ints(1, state.width), axis=0)
            begin = write("Expand", write.number(0.0, state.past), shape)
        else:
            begin = write("Transpose", first, perm=(1, 0, 2))
        return write("Transpose", self.resumed(begin, past), perm=(1, 0, 2))


class _ScanWriter(SiteWriter):
    """Writes a Scan along the sequence again: it begins with what it carried out of the last call.

    A row's padding comes last; there its states stay as they are.
    """

    def result(self) -> ir.Value:
        """Write it all; the value that takes the place of the output."""
        region, lengths, place = self.site.region, self.lengths, self.site.region.output.index()
        assert lengths.row_past is not None
        assert lengths.row_total is not None
        assert place is not None
        scan = self.of_new_positions()[region.output].producer()
        assert scan is not None
        layouts, write = _carried(self.site), self.write
        starts = []
        for state, layout, first in zip(self.states, layouts, scan.inputs, strict=False):
            assert first is not None
            past = write("Squeeze", state.past, write.ints(1))
            own = layout.whole(write, self.resumed(layout.flat(write, first), past))
            own.type = state.past.type
            starts.append(own)
        steps = write("Range", write.scalar(0), write("Squeeze", lengths.seq), write.scalar(1))
        new = write("Sub", lengths.row_total, lengths.row_past)
        is_token = write("Less", write("Unsqueeze", steps, write.ints(1)), new)  # (seq, batch)
        lines = [*scan.inputs[len(starts) :], is_token]
        axes = attr(scan, "scan_input_axes") or [0] * (len(lines) - 1)
        attributes = {
            "body": self.body(scan, layouts),
            "num_scan_inputs": len(lines),
            "scan_input_axes": [*axes, 0],
        }
        if attr(scan, "scan_output_axes"):
            attributes["scan_output_axes"] = attr(scan, "scan_output_axes")
        twin = write.node("Scan", [*starts, *lines], attributes, len(scan.outputs))
        for state, layout, last in zip(self.states, layouts, twin.outputs, strict=False):
            last.type = state.past.type
            self.give_last(state, layout.flat(write, last))
        return twin.outputs[place]

    def body(self, scan: ir.Node, layouts: list[_Carried]) -> ir.Graph:
        """The body, with one more input, bool (batch,): rows without a token keep their states."""
        graph: ir.Graph = attr(scan, "body").clone(allow_outer_scope_values=True)
        type_ = ir.TensorType(ir.DataType.BOOL)
        is_token = ir.Value(name="is_token", type=type_, shape=ir.Shape([None]))
        graph.inputs.append(is_token)
        write = Writer(graph, None, self.write.graph, self.site.node)
        for index, layout in enumerate(layouts):
            old, new = graph.inputs[index], graph.outputs[index]
            others = [axis for axis in range(len(layout.order)) if axis != layout.order[0]]
            has = write("Unsqueeze", is_token, write.ints(*others)) if others else is_token
            kept = write("Where", has, new, old)
            kept.type, kept.shape = new.type or old.type, new.shape or old.shape
            graph.outputs[index] = kept
        name_inside(graph, f"{self.site.node.outputs[0].name}_carried")
        return graph


class SumWriter(SiteWriter):
    """Writes a sum over the past again: over the new positions, and the sum of those before.

    The decays are computed for the new positions and the one in front of them, where the sum of
    those before stands. A row's padding comes last, behind the position whose sum is kept.
    """

    def result(self) -> ir.Value:
        """Write it all; the value that takes the place of the output."""
        write, region, mixture = self.write, self.site.region, self.mixture
        new = self.of_new_positions()
        rows, columns = (
            [self.factor(x, new) for x in given] for given in (mixture.rows, mixture.columns)
        )
        decays, labels = self.decays()
        state, carried = self.states[-1], _sum_layout(mixture)
        shape = write("Concat", write("Shape", self.held), write.ints(1, state.width), axis=0)
        begin = write("Expand", write.number(0.0, state.past), shape)
        past = self.resumed(begin, write("Squeeze", state.past, write.ints(1)))
        kept = tuple("b" * mixture.has_batch + mixture.kept)
        before = carried.whole(write, past), kept

        place = len(labels) - 2
        fade = write("Slice", decays, self.slots, self.total, write.ints(place))
        fade = write("Slice", fade, write.ints(0), write.ints(1), write.ints(place + 1))
        seen = self.product([*rows, (fade, (*labels[:-1], "")), before], mixture.output)

        to_end, labels = self.to_end(decays, labels)
        old = write("Slice", to_end, write.ints(0), write.ints(1), write.ints(place))
        old = self.product([(old, (*labels[:-1], "")), before], kept)
        added = write("Slice", to_end, self.slots, self.total, write.ints(place))
        added = self.product([(added, labels), *columns], kept)
        self.give_last(state, carried.flat(write, write("Add", old, added)))
        return write("Add", new[region.output], seen)

    @property
    def mixture(self) -> Mixture:
        """The factors of the sum."""
        assert self.site.mixture is not None
        return self.site.mixture

    def ends(self) -> ir.Value:
        """(batch,), where each row's last token lies: behind the one in front; -1: nowhere."""
        write, lengths = self.write, self.lengths
        assert lengths.row_past is not None
        assert lengths.row_total is not None
        new = write("Sub", lengths.row_total, lengths.row_past)
        return write("Sub", write("Add", new, self.slots), write.ints(1))

    def factor(self, factor: Factor, known: Mapping[ir.Value, ir.Value]) -> tuple[ir.Value, Labels]:
        """What is multiplied by, and its labels."""
        value = self.again.get(factor.value, factor.value)
        value = known.get(value, value)
        return (self.write("Reciprocal", value) if factor.is_inverse else value), factor.labels

    def product(self, factors: Sequence[tuple[ir.Value, Labels]], wanted: Labels) -> ir.Value:
        """The product of values with labels, summed over those that are not wanted."""
        write, (found, labels) = self.write, factors[0]
        for place, (value, own) in enumerate(factors[1:], 2):
            later = {*wanted, *(label for _, after in factors[place:] for label in after)}
            found, labels = self.pair((found, labels), (value, own), later)
        rest = [place for place, label in enumerate(labels) if label and label not in wanted]
        if rest:
            found = write("ReduceSum", found, write.ints(*rest), keepdims=0)
            labels = tuple(label for place, label in enumerate(labels) if place not in rest)
        # A place of one entry needs a name that no label has.
        return self.spread(found, labels, tuple(label or "1" for label in wanted))

    def pair(
        self, a: tuple[ir.Value, Labels], b: tuple[ir.Value, Labels], later: Set[str]
    ) -> tuple[ir.Value, Labels]:
        """The product of two, summed over an axis that both have if it is not needed later."""
        names = dict.fromkeys(label for label in (*a[1], *b[1]) if label)
        summed = [x for x in names if x in a[1] and x in b[1] and x not in later]
        if not summed:
            order = tuple(names)
            spread = (self.spread(value, labels, order) for value, labels in (a, b))
            return self.write("Mul", *spread), order
        between = summed[-1]
        row, column = (
            next((x for x in reversed(own) if x and x not in other), "1")
            for own, other in ((a[1], b[1]), (b[1], a[1]))
        )
        lead = tuple(x for x in names if x not in (between, row, column))
        left = self.spread(*a, (*lead, row, between))
        right = self.spread(*b, (*lead, between, column))
        ends = ("" if x == "1" else x for x in (row, column))
        return self.write("MatMul", left, right), (*lead, *ends)

    def squeezed(self, value: ir.Value, labels: Labels) -> ir.Value:
        """The value without the axes that have no label."""
        single = [place for place, label in enumerate(labels) if not label]
        return self.write("Squeeze", value, self.write.ints(*single)) if single else value

    def decays(self) -> tuple[ir.Value, Labels]:
        """(batch or 1, shared axes, to, from), of the one in front and the new positions."""
        write, lengths, mixture = self.write, self.lengths, self.mixture
        order = ("b", *mixture.shared, "i", "j")
        joined = self.joined_sources()
        total: ir.Value | None = None
        conditions = []
        for decay in mixture.decays:
            value = decay.value
            if decay.region is not None:
                known = decay.region.lengths(write.graph, self.before, lengths.seq, self.total)
                value = decay.region.write(write.graph, self.before, {**known, **joined})[value]
            value = self.spread(value, decay.labels, order)
            if decay.keeps is not None:
                conditions.append((value, decay.keeps))
            else:
                total = value if total is None else write("Mul", total, value)
        if mixture.is_lower:
            steps = write("Range", write.scalar(0), write("Squeeze", self.total), write.scalar(1))
            lower = write("GreaterOrEqual", write("Unsqueeze", steps, write.ints(1)), steps)
            conditions.append((self.spread(lower, ("i", "j"), order), True))
        if total is None:
            total = write.number(1.0, self.site.region.output)
        none = write.number(0.0, self.site.region.output)
        for condition, keeps in conditions:
            total = write("Where", condition, *((total, none) if keeps else (none, total)))
        has_batch = any("b" in decay.labels for decay in mixture.decays)
        return total, order if has_batch else ("", *order[1:])

    def joined_sources(self) -> dict[ir.Value, ir.Value]:
        """What the decays are computed from, at the position in front and the new ones."""
        write, found = self.write, dict[ir.Value, ir.Value]()
        states = dict(zip(self.mixture.remembered, self.states[:-1], strict=True))
        for source in self.mixture.sources:
            now, layout = self.again.get(source, source), _layout(self.site, source)
            flat = layout.flat(write, now)
            state = states.get(source)
            both = self.behind_one(flat, state)
            start, end = write("Sub", write.ints(1), self.slots), write.ints(1 << 40)
            both = write("Slice", both, start, end, write.ints(1))
            if state is not None:
                at = write("Unsqueeze", write("Max", self.ends(), write.ints(0)), write.ints(1))
                self.give_last(state, write("GatherND", both, self.index(at)))
            found[now] = layout.whole(write, both)
            found[now].type = source.type
        return found

    def behind_one(self, flat: ir.Value, state: State | None) -> ir.Value:
        """(batch, 1 + seq, width): the new positions of a source behind the one before them."""
        # Any number does where the past has no weight, or is empty.
        write = self.write
        front = write("Slice", flat, write.ints(0), write.ints(1), write.ints(1))
        if state is not None:
            front = self.resumed(front, write("Squeeze", state.past, write.ints(1)))
        return write("Concat", front, flat, axis=1)

    def spread(self, value: ir.Value, labels: Labels, order: Labels) -> ir.Value:
        """The value with one axis for each label of `order`, of one entry where it has none."""
        write, names = self.write, [label for label in labels if label]
        value = self.squeezed(value, labels)
        turn = [names.index(label) for label in order if label in names]
        if turn != sorted(turn):
            value = write("Transpose", value, perm=turn)
        missing = [place for place, label in enumerate(order) if label not in names]
        return write("Unsqueeze", value, write.ints(*missing)) if missing else value

    def to_end(self, decays: ir.Value, labels: Labels) -> tuple[ir.Value, Labels]:
        """(batch, shared axes, from): the decays to each row's last token, and their labels."""
        write, place = self.write, len(labels) - 2
        steps = write("Range", write.scalar(0), write("Squeeze", self.total), write.scalar(1))
        is_last = write("Equal", steps, write("Unsqueeze", self.ends(), write.ints(1)))
        others = [n for n in range(len(labels)) if n not in (0, place)]
        is_last = write("Unsqueeze", is_last, write.ints(*others))
        chosen = write("Where", is_last, decays, write.number(0.0, self.site.region.output))
        found = write("ReduceSum", chosen, write.ints(place), keepdims=0)
        return found, ("b" * self.mixture.has_batch, *labels[1:place], labels[-1])


class LinearAttentionWriter(SumWriter):
    """Writes a sum over the past as onnxruntime's `LinearAttention`, which goes step by step.

    A row's padding comes last; there keys are 0, and nothing fades.
    """

    def result(self) -> ir.Value:
        """Write it all; the value that takes the place of the output."""
        write, mixture, plan = self.write, self.mixture, self.plan
        new, state = self.of_new_positions(), self.states[-1]
        write.graph.opset_imports[CONTRIB] = 1
        none, is_token = write.number(0.0, state.past), self.is_token()
        keys = self.packed(plan.key_factors, new, "j", plan.heads, plan.keys)
        inputs = [
            self.packed(mixture.rows, new, "i", plan.heads + plan.groups, plan.keys),
            write("Where", is_token, keys, none),
            self.packed(plan.value_factors, new, "j", plan.heads, plan.values),
            self.carried_sum(),
        ]
        if plan.has_decay:
            inputs.append(write("Where", is_token, self.decay_of_steps(), none))
        attributes = {
            "q_num_heads": self.count(plan.heads + plan.groups),
            "kv_num_heads": self.count(plan.heads),
            "scale": 1.0,
            "update_rule": "gated" if plan.has_decay else "linear",
        }
        twin = write.node(OPERATOR, inputs, attributes, 2, domain=CONTRIB)
        made, carried = twin.outputs
        made.type = carried.type = state.past.type
        flat = write("Reshape", carried, write.ints(0, 1, state.width))
        self.give_last(state, flat)
        labels = ("b" * mixture.has_batch, "i", *plan.heads, *plan.groups, *plan.values)
        sizes = [mixture.sizes[x] for x in labels[2:]]
        made = write("Reshape", made, write.ints(0, 0, *sizes))
        return self.spread(made, labels, tuple(x or "1" for x in mixture.output))

    @property
    def plan(self) -> Heads:
        """Which axes of the sum are which of the operator's."""
        assert self.site.heads is not None
        return self.site.heads

    def count(self, labels: Labels) -> int:
        """How many entries axes have together."""
        return math.prod(self.mixture.sizes[x] for x in labels)

    def packed(
        self,
        factors: Sequence[Factor],
        known: Mapping[ir.Value, ir.Value],
        seq: str,
        heads: Labels,
        width: Labels,
    ) -> ir.Value:
        """(batch, seq, heads * width): the product of some factors, as the operator takes it."""
        wanted = ("b", seq, *heads, *width)
        given = [self.factor(x, known) for x in factors]
        if not given:
            given = [(self.write.number(1.0, self.site.region.output), ())]
        return self.whole(self.product(given, wanted), {x for _, own in given for x in own}, wanted)

    def whole(self, value: ir.Value, has: Set[str], labels: Labels) -> ir.Value:
        """(batch, seq, the rest in one): with as many entries along each axis as it has."""
        write, sizes = self.write, [self.mixture.sizes[x] for x in labels[2:]]
        if not set(labels) <= has:
            rows = write("Shape", self.held)
            shape = write("Concat", rows, self.lengths.seq, write.ints(*sizes), axis=0)
            value = write("Expand", value, shape)
        return write("Reshape", value, write.ints(0, 0, math.prod(sizes)))

    def carried_sum(self) -> ir.Value:
        """(batch, heads, keys, values): the sum of what was read before."""
        write, state, plan = self.write, self.states[-1], self.plan
        shape = write("Concat", write("Shape", self.held), write.ints(1, state.width), axis=0)
        begin = write("Expand", write.number(0.0, state.past), shape)
        past = self.resumed(begin, write("Squeeze", state.past, write.ints(1)))
        sizes = (self.count(x) for x in (plan.heads, plan.keys, plan.values))
        return write("Reshape", past, write.ints(0, *sizes))

    def new_counts(self) -> ir.Value:
        """(batch,), the new tokens of each row."""
        lengths = self.lengths
        assert lengths.row_past is not None
        assert lengths.row_total is not None
        return self.write("Sub", lengths.row_total, lengths.row_past)

    def is_token(self) -> ir.Value:
        """(batch, seq, 1), which of the new positions are tokens.

        In a row that has none at all, every position counts as one: nothing reads its state, and
        its outputs are finite, as those of any sequence. With a state of nothing but zeros, what
        the module divides by could be 0.
        """
        write, seq, total = self.write, self.lengths.seq, self.lengths.row_total
        has_none = write("Equal", total, write.scalar(0))
        count = write("Where", has_none, seq, self.new_counts())
        steps = write("Range", write.scalar(0), write("Squeeze", seq), write.scalar(1))
        is_token = write("Less", steps, write("Unsqueeze", count, write.ints(1)))
        return write("Unsqueeze", is_token, write.ints(2))

    def decay_of_steps(self) -> ir.Value:
        """(batch, seq, heads or heads * keys): the logarithm of the decay into each position."""
        write, plan, labels = self.write, self.plan, self.plan.fading
        found, has = self.decay_by_data(labels)
        if plan.constant is not None:
            constant = write.array(plan.constant.reshape(plan.constant.shape[: len(labels)]))
            found = constant if found is None else write("Add", found, constant)
            has |= {x for x, n in zip(labels, plan.constant.shape, strict=False) if n > 1}
        assert found is not None
        return self.whole(found, has, ("b", "i", *labels))

    def decay_by_data(self, labels: Labels) -> tuple[ir.Value | None, set[str]]:
        """(batch, seq, an axis for each of `labels`): what data decide of the decays, and along
        which of the axes it has more than one entry."""
        write, plan = self.write, self.plan
        if not plan.decays:
            return None, set()
        pairs = self.pairs()
        total: ir.Value | None = None
        for decay in plan.decays:
            known = self.pair_shapes(decay.region) | pairs
            value = decay.region.write(write.graph, self.before, known)[decay.value]
            value = self.spread(value, decay.labels, ("b", *labels, "i", "j"))
            places = write.ints(len(labels) + 1, len(labels) + 2)
            value = write("Slice", value, write.ints(1, 0), write.ints(2, 1), places)
            value = value if decay.is_logarithm else write("Log", value)
            total = value if total is None else write("Add", total, value)
        has = {x for decay in plan.decays for x in decay.labels} & set(labels)
        sizes = (self.mixture.sizes[x] if x in has else 1 for x in labels)
        shape = [write("Shape", self.held), self.lengths.seq, *(write.ints(n) for n in sizes)]
        found = write("Reshape", total, write("Concat", *shape, axis=0))
        return found, {"b", "i"} | has

    def pair_shapes(self, region: Region) -> dict[ir.Value, ir.Value]:
        """What the shapes that a decay is computed with are for pairs of neighbours."""
        write, found = self.write, dict[ir.Value, ir.Value]()
        for node in region.shapes:
            source = node.inputs[0]
            assert source is not None
            axes = region.layouts.axes(source)
            axes = axes[attr(node, "start", 0) : attr(node, "end", len(axes))]
            count = write("Mul", write("Shape", self.held), self.lengths.seq)
            sizes = [
                count if axis == BATCH else write.ints(2 if axis.is_seq else axis.count)
                for axis in axes
            ]
            found[node.outputs[0]] = write("Concat", *sizes, axis=0)
        return found

    def pairs(self) -> dict[ir.Value, ir.Value]:
        """What the decays are computed from, (batch * seq, 2, ...): each position, with the one
        before it."""
        write, found = self.write, dict[ir.Value, ir.Value]()
        states = dict(zip(self.mixture.remembered, self.states[:-1], strict=True))
        for source in self.mixture.sources:
            now, layout = self.again.get(source, source), _layout(self.site, source)
            flat, state = layout.flat(write, now), states.get(source)
            both = self.behind_one(flat, state)
            if state is not None:
                last = write("Unsqueeze", self.new_counts(), write.ints(1))
                self.give_last(state, write("GatherND", both, self.index(last)))
            earlier = write("Slice", both, write.ints(0), write.ints(-1), write.ints(1))
            two = (write("Unsqueeze", x, write.ints(2)) for x in (earlier, flat))
            pairs = write("Concat", *two, axis=2)
            flat = write("Reshape", pairs, write.ints(-1, 2, layout.width))
            found[now] = layout.whole(write, flat)
            found[now].type = source.type
        return found


def _sum_layout(mixture: Mixture) -> _Carried:
    """How the sum up to a position lies in a state."""
    sizes = tuple(mixture.sizes[label] for label in mixture.kept)
    rank = len(sizes) + mixture.has_batch
    return _Carried(tuple(range(rank)), mixture.has_batch, sizes)
