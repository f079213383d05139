"""Where a graph mixes positions outside attention, and what of the past is needed there.

Five answers, the third seen at its operator, the fourth at the factors of a product, the others
found by evaluating the part of the graph by itself; the best that is right is taken:

- *window*: the last inputs. A convolution, a shift of tokens, a pool: the result does not change
  when what lies farther back is cut off.
- *running*: the last result. A cumulative sum, product or maximum: the result goes on as it would
  have if the last result had been the first input.
- *carried*: what a recurrent layer, or a Scan along the sequence, carries from step to step.
- *sum*: a sum over the past with weights that are products of decays (`mixture.py`).
- *inputs*: all inputs. Any other causal function of the past, computed again with each call.

Attention weights that the module returns have two axes of positions, queries and keys. They are
such a function, too: each call gives the rows of its new positions over all keys so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import Array
from causal_onnx.export.cache.lengths import STAND_IN
from causal_onnx.export.cache.linear_attention import Heads, heads_of
from causal_onnx.export.cache.mixture import Mixture, find_mixture
from causal_onnx.export.cache.new_rows import NewRows
from causal_onnx.export.cache.refusals import named, refuse_odd_axes
from causal_onnx.export.cache.region import Draw, Region, find_region
from causal_onnx.export.cache.row_lookup import RaggedError
from causal_onnx.export.cache.spans import BATCH, Spans, own_axis, picks_positions, state_order
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import copy_output
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.subgraphs import outer_values

__all__ = [
    "CARRIED",
    "INPUTS",
    "RUNNING",
    "SUM",
    "WINDOW",
    "StateSite",
    "carried_states",
    "cut_at_states",
    "living",
]

WINDOW, RUNNING, CARRIED, SUM, INPUTS = "window", "running", "carried", "sum", "inputs"

_SEEDS = (0, 1)
_DRAWS = (Draw(), Draw(first=1), Draw(first=0), Draw(lengths=True))
"""Tried in turn. A query all of whose visible keys are hidden by the data averages over later ones
as well, and no stream can give that: it is let off. A first key that is not hidden is one that all
queries see, and so is that of a row that is not empty."""
_STARTS = 16
"""Places at which the past is cut off, one after the other: some functions go by even and odd."""
_TOLERANCES = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class StateSite:
    """A part of the graph that needs a state."""

    region: Region
    stand_in: ir.Value
    """A graph input in the place of its output, until it is written again."""
    kind: str
    kept: int | None
    """The most positions that the state holds; None: all."""
    rows: NewRows | None = None
    """Of a site that is computed again from all inputs: what of it is needed."""
    mixture: Mixture | None = None
    """Of a sum: its factors."""
    heads: Heads | None = None
    """Of a sum that onnxruntime's `LinearAttention` computes: how."""
    keys: int | None = None
    """Of weights that the module returns: the axis of keys, behind that of queries."""

    @property
    def node(self) -> ir.Node:
        """By which messages name it."""
        return self.region.node


def cut_at_states(
    model: ir.Model,
    roots: Sequence[ir.Node],
    others: Mapping[ir.Node, str],
    *,
    max_seq_len: int | None,
    ragged: bool,
    use_contrib: bool = False,
) -> tuple[list[StateSite], Spans]:
    """Put a graph input in the place of every value in which positions have mixed causally.

    Args:
        model: Of which attention is cut out; changed in place.
        roots: What was cut out; its inputs count as read.
        others: Attention that was not recognised, with the reason.
        max_seq_len: The longest sequence.
        ragged: As in `derive_cache`.
        use_contrib: As there.

    Returns:
        The sites, each after those that it reads; and the analysis of what is left.

    Raises:
        NotSupportedError: A site cannot be evaluated by itself, or earlier results change as the
            sequence grows; names the node.
    """
    sites: list[StateSite] = []
    while True:
        layouts = Layouts(model, max_seq_len)
        spans = Spans(layouts, max_seq_len=max_seq_len)
        if not sites:
            refuse_odd_axes(layouts, roots)
        found = _first_mixed(spans, living(model.graph, roots, sites))
        if not found:
            weights = next((x for x in model.graph.outputs if _pair_axes(layouts, x)), None)
            if weights is None:
                return sites, spans
            sites.append(_cut_weights(model.graph, spans, weights, len(sites), ragged=ragged))
            continue
        regions = [find_region(spans, output) for output in found]
        kinds = [
            _kind(region, spans, others, max_seq_len=max_seq_len, ragged=ragged)
            for region in regions
        ]
        for region, (kind, kept, mixture) in zip(regions, kinds, strict=True):
            stand_in = _cut(model.graph, layouts, region.output, len(sites))
            rows = _rows(region, ragged=ragged) if kind == INPUTS else None
            heads = _heads(region, mixture) if use_contrib else None
            sites.append(StateSite(region, stand_in, kind, kept, rows, mixture, heads))


def living(graph: ir.Graph, roots: Sequence[ir.Node], sites: Sequence[StateSite]) -> set[ir.Node]:
    """The nodes that lead to an output of the graph, to one of `roots`, or into a site."""
    found: set[ir.Node] = set()
    stack = [*graph.outputs, *(value for node in roots for value in node.inputs)]
    stack += [x for site in sites for x in (*site.region.sources, *site.region.free)]
    while stack:
        value = stack.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            stack.extend([*node.inputs, *outer_values(node)])
    return found


def _first_mixed(spans: Spans, alive: set[ir.Node]) -> list[ir.Value]:
    """Values with positions of their own that look back, none of which leads to another."""
    found: list[ir.Value] = []
    after: set[ir.Value] = set()
    for node in spans.layouts.model.graph:
        if node not in alive:
            continue
        if any(value in after for value in (*node.inputs, *outer_values(node))):
            after.update(node.outputs)
            continue
        picks = picks_positions(spans.layouts, node)
        for value in node.outputs:
            is_read = bool(value.uses()) or value.is_graph_output()
            if not is_read or not spans.layouts.is_tainted(value):
                continue
            reach = spans.reach_back(value)
            if reach is None or reach[1] > 0 or spans.is_free(value):
                continue
            if reach[0] > 0 or picks:
                found.append(value)
                after.update(node.outputs)
                break
    return found


def _cut(graph: ir.Graph, layouts: Layouts, value: ir.Value, index: int) -> ir.Value:
    labels = {(1, 0): "batch", (0, 1): "seq"}
    shape = [labels.get((axis.batches, axis.seqs), axis.count) for axis in layouts.axes(value)]
    stand_in = ir.Value(name=f"{STAND_IN}state_{index}", shape=ir.Shape(shape), type=value.type)
    if value.is_graph_output():
        copy_output(graph, value)
    value.replace_all_uses_with(stand_in)
    graph.inputs.append(stand_in)
    return stand_in


def _pair_axes(layouts: Layouts, value: ir.Value) -> tuple[int, int] | None:
    """The axes of queries and keys of a value that has both, beside the batch and fixed axes."""
    axes = layouts.axes(value)
    pairs = [index for index, axis in enumerate(axes) if axis.is_seq]
    batches = [axis for axis in axes if axis == BATCH]
    fixed = [axis for axis in axes if axis.is_fixed]
    is_plain = len(batches) == layouts.signature.has_batch
    if len(pairs) != 2 or not is_plain or len(batches) + len(fixed) + 2 != len(axes):
        return None
    return (pairs[0], pairs[1]) if layouts.is_tainted(value) else None


def _cut_weights(
    graph: ir.Graph, spans: Spans, value: ir.Value, index: int, *, ragged: bool
) -> StateSite:
    """Put a graph input in the place of an output that has a column for each key.

    Raises:
        NotSupportedError: An earlier row changes with the length, or weighs a later key.
    """
    layouts = spans.layouts
    pair = _pair_axes(layouts, value)
    assert pair is not None
    queries, keys = pair
    region = find_region(spans, value)
    trials = [_Trial(region, spans.sizes.seq, seed, _DRAWS[0], axis=queries) for seed in _SEEDS]
    if not all(trial.keeps_rows_apart() and trial.weighs_the_past(keys) for trial in trials):
        raise NotSupportedError(
            f"no cache can be derived: the output {value.name!r} of {region.node.op_type} "
            f"{named(region.node)} has two axes of positions, and is not 0 for every later key, or "
            "its earlier rows change with the total length. Return the attention weights behind "
            "the softmax, (.., queries, keys), or leave this output out"
        )
    rows = NewRows(region, axis=queries, ragged=ragged)
    labels = {(1, 0): "batch", (0, 1): "seq"}
    shape = [labels.get((axis.batches, axis.seqs), axis.count) for axis in layouts.axes(value)]
    shape[keys] = 1  # nobody reads it but the output, and its size is not that of the new positions
    stand_in = ir.Value(name=f"{STAND_IN}state_{index}", shape=ir.Shape(shape), type=value.type)
    copy_output(graph, value)
    copy = next(use.node for use in value.uses() if use.node.outputs[0].is_graph_output())
    copy.replace_input_with(0, stand_in)
    graph.inputs.append(stand_in)
    return StateSite(region, stand_in, INPUTS, None, rows, keys=keys)


def _kind(
    region: Region,
    spans: Spans,
    others: Mapping[ir.Node, str],
    *,
    max_seq_len: int | None,
    ragged: bool,
) -> tuple[str, int | None, Mixture | None]:
    """What the state of a region is, how many positions of it there are at most, its factors."""
    reach = spans.reach_back(region.output)
    assert reach is not None
    seq, back = spans.sizes.seq, reach[0]
    whole, is_stable = _trials(region, seq)
    if not all(trial.keeps_rows_apart() for trial in whole):
        raise NotSupportedError(
            f"no cache can be derived: {region.node.op_type} {named(region.node)} mixes the rows "
            "of a batch, or selects them by their contents"
        )
    if not is_stable:
        raise NotSupportedError(
            f"no cache can be derived: what {region.node.op_type} {named(region.node)} computes "
            "for earlier positions changes with the total length"
            + "".join(f" ({others[node]})" for node in region.nodes if node in others)
        )
    is_bounded = back < seq - 1 and _stays(region, back, max_seq_len)
    if is_bounded and all(trial.goes_on_from(back) for trial in whole):
        return WINDOW, back, None
    if ragged and _is_carried(region):
        return CARRIED, 1, None
    if all(trial.goes_on_from_result() for trial in whole):
        return RUNNING, 1, None
    if ragged and _is_scan(region, spans):
        return CARRIED, 1, None
    mixture = find_mixture(region, spans, max_seq_len=max_seq_len) if ragged else None
    return (INPUTS, None, None) if mixture is None else (SUM, 1, mixture)


def _trials(region: Region, seq: int) -> tuple[list[_Trial], bool]:
    """The region on random numbers, and whether earlier results stay as the length grows."""
    first = [_Trial(region, seq, seed, _DRAWS[0]) for seed in _SEEDS]
    if all(trial.is_prefix_stable() for trial in first):
        return first, True
    for draw in _DRAWS[1:]:
        try:
            trials = [_Trial(region, seq, seed, draw) for seed in _SEEDS]
            if all(trial.is_prefix_stable() for trial in trials):
                return trials, True
        except NotSupportedError:  # whole numbers that stand for rows of a table, and are too large
            continue
    return first, False


def _stays(region: Region, back: int, max_seq_len: int | None) -> bool:
    """Whether the region looks no farther back in a longer sequence."""
    longer = Spans(region.layouts, max_seq_len=max_seq_len, more=back + 4)
    reach = longer.reach_back(region.output)
    return reach is not None and reach[0] == back


def _rows(region: Region, *, ragged: bool) -> NewRows | None:
    try:
        return NewRows(region, ragged=ragged)
    except RaggedError:
        return None


def _heads(region: Region, mixture: Mixture | None) -> Heads | None:
    try:
        return None if mixture is None else heads_of(mixture, region.output, region.layouts)
    except NotSupportedError:
        return None


def _is_carried(region: Region) -> bool:
    """Whether the output is that of a recurrent layer, and nothing but its input has positions."""
    node = region.node
    first = None if node.domain or node.op_type not in ("RNN", "GRU", "LSTM") else node.inputs[0]
    plain = {"direction": "forward", "layout": 0}
    return (
        first is not None
        and node.outputs[0] is region.output
        and all(attr(node, name, usual) == usual for name, usual in plain.items())
        and (len(node.inputs) < 5 or node.inputs[4] is None)
        and len(region.sources) == 1
        and own_axis(region.layouts, first) == 0
    )


def carried_states(node: ir.Node) -> int:
    """How many states a Scan carries from step to step."""
    return len(node.inputs) - int(attr(node, "num_scan_inputs"))


def _is_scan(region: Region, spans: Spans) -> bool:
    """Whether the output is that of a Scan over positions, and a step sees nothing else of them."""
    node, layouts = region.node, region.layouts
    if node.op_type != "Scan" or node.domain:
        return False
    for name in ("scan_input_directions", "scan_output_directions"):
        if any(attr(node, name) or ()):
            return False
    count = carried_states(node)
    states, lines = node.inputs[:count], node.inputs[count:]
    axes = attr(node, "scan_input_axes") or [0] * len(lines)
    return (
        region.output in node.outputs[count:]
        and count > 0
        and all(_is_row_of_numbers(layouts, state) for state in node.outputs[:count])
        and all(
            line is not None and _is_moved(region, line) and own_axis(layouts, line) == axis
            for line, axis in zip(lines, axes, strict=True)
        )
        and not any(
            value is None
            or layouts.is_position_only(value)
            or (layouts.is_tainted(value) and not spans.is_free(value))
            for value in outer_values(node)
        )
        and not any(
            layouts.is_tainted(state) and not spans.is_free(state) for state in states if state
        )
    )


def _is_row_of_numbers(layouts: Layouts, value: ir.Value) -> bool:
    """Whether the value has an axis for the rows of the batch, if there are any, and fixed ones."""
    axes = layouts.axes(value)
    batches = [axis for axis in axes if axis == BATCH]
    rest = [axis for axis in axes if axis.is_fixed]
    return (
        len(batches) == layouts.signature.has_batch
        and len(axes) == len(batches) + len(rest)
        and bool(axes)
    )


def _is_moved(region: Region, value: ir.Value) -> bool:
    """Whether the value is one of the sources, its axes moved at most."""
    while value not in region.sources:
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", "Identity", "Cast") or node.domain:
            return False
        before = node.inputs[0]
        if before is None:
            return False
        value = before
    return True


class _Trial:
    """A region evaluated on random numbers, and then on parts of them."""

    def __init__(self, region: Region, seq: int, seed: int, draw: Draw, *, axis: int | None = None):
        """Evaluate it.

        Args:
            region: Whose output has positions along `axis`. None: it has one such axis.
            seq: The length.
            seed: Of the samples.
            draw: What they are.
            axis: See `region`.
        """
        self.region, self.seq = region, seq
        self.arrays = region.samples(seq, seed, draw)
        self.axes = [own_axis(region.layouts, value) for value in region.sources]
        axis = own_axis(region.layouts, region.output) if axis is None else axis
        assert axis is not None
        self.axis: int = axis
        self.whole = region.evaluate(seq, self.arrays)

    def keeps_rows_apart(self) -> bool:
        """Whether other data in one row of the batch leaves the others alone."""
        layouts = self.region.layouts
        if not layouts.signature.has_batch:
            return True
        other = []
        for value, array in zip(self.region.sources, self.arrays, strict=False):
            row = [slice(None)] * array.ndim
            row[layouts.axes(value).index(BATCH)] = slice(1, None)
            changed = array.copy()
            part = array[tuple(row)]
            changed[tuple(row)] = ~part if part.dtype.kind == "b" else 1 - part
            other.append(changed)
        again = self.region.evaluate(self.seq, [*other, *self.arrays[len(other) :]])
        axis = layouts.axes(self.region.output).index(BATCH)
        return _are_close(again.take([0], axis), self.whole.take([0], axis))

    def is_prefix_stable(self) -> bool:
        part = self.region.evaluate(self.seq - 1, self._between(0, self.seq - 1))
        return self._equal(part, 0, self.seq - 1)

    def weighs_the_past(self, keys: int) -> bool:
        """Whether each row is 0 at later keys, and stays as the length grows."""
        pairs = np.moveaxis(self.whole, (self.axis, keys), (-2, -1))
        part = self.region.evaluate(self.seq - 1, self._between(0, self.seq - 1))
        shorter = np.moveaxis(part, (self.axis, keys), (-2, -1))
        if pairs.dtype.kind != "f" or (np.triu(pairs, 1) != 0).any():
            return False
        return _are_close(shorter, pairs[..., :-1, :-1])

    def goes_on_from(self, back: int) -> bool:
        """Whether the last `back` inputs are all that is needed, wherever that is."""
        for start in range(max(1, self.seq - _STARTS), self.seq):
            first = max(start - back, 0)
            part = self.region.evaluate(self.seq - first, self._between(first, self.seq))
            rest = part.take(range(start - first, part.shape[self.axis]), self.axis)
            if not self._equal(rest, start, self.seq):
                return False
        return True

    def goes_on_from_result(self) -> bool:
        """Whether the last result, in the place of the first input, is all that is needed."""
        layouts, sources = self.region.layouts, self.region.sources
        if len(sources) != 1:
            return False
        given, made = ((x, state_order(layouts, x)) for x in (sources[0], self.region.output))
        if len({tuple(layouts.axes(x)[n] for n in order) for x, order in (given, made)}) > 1:
            return False
        (source, *free) = self.arrays
        if source.dtype != self.whole.dtype:
            return False
        turn = [made[1][n] for n in np.argsort(given[1])]  # from the result's axes to the source's
        for start in (1, self.seq // 2, self.seq - 1):
            last = self.whole.take(range(start - 1, start), self.axis).transpose(turn)
            rest = source.take(range(start, self.seq), self.axes[0])
            joined = np.concatenate([last, rest], self.axes[0])
            part = self.region.evaluate(joined.shape[self.axes[0] or 0], [joined, *free])
            if not self._equal(part, start - 1, self.seq):
                return False
        return True

    def _between(self, start: int, stop: int) -> list[Array]:
        """The inputs of these positions."""
        count = len(self.axes)
        parts = [
            x.take(range(start, stop), axis)
            for x, axis in zip(self.arrays[:count], self.axes, strict=True)
        ]
        return [*parts, *self.arrays[count:]]

    def _equal(self, part: Array, start: int, stop: int) -> bool:
        return _are_close(part, self.whole.take(range(start, stop), self.axis))


def _are_close(part: Array, wanted: Array) -> bool:
    if part.shape != wanted.shape or part.dtype.kind != "f":
        return part.shape == wanted.shape and bool((part == wanted).all())
    finite = wanted[np.isfinite(wanted)]
    scale = float(np.abs(finite).max(initial=1e-3))
    tolerance = _TOLERANCES.get(part.dtype.name, 1e-4) * scale
    return bool(np.allclose(part, wanted, rtol=0, atol=tolerance, equal_nan=True))
