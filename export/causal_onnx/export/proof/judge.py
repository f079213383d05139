"""Reading a run: is each output causal, and if not, where does it begin?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.elements import NONE, Abstract, Elements, view
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Sizes

__all__ = [
    "Leak",
    "OutputVerdict",
    "all_leaks",
    "is_causal_somehow",
    "judge_output",
    "offender",
    "reads",
]

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """One element that depends on a later position."""

    sizes: Sizes
    index: tuple[int, ...]
    position: int
    """The position that the element stands for."""
    reach: int
    """The later position that it depends on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputVerdict:
    """One output over all runs."""

    name: str
    axes: tuple[int, ...]
    """Its position axis; two for an output with one entry per pair of positions; () if none."""
    leak: Leak | None
    note: str = ""


def places(size: int, sizes: Sizes) -> Places:
    """The positions up to which the entries of a position axis may see: those they stand for.

    The axis ends at the last position: (seq), (total_seq), or a cache cropped to a window. Where
    blocks are causal, an entry may see up to the end of its block.
    """
    return _ends(np.arange(size) + (sizes.total_seq - size), sizes)


def _ends(place: Places, sizes: Sizes) -> Places:
    """The last position of the block that each position is in."""
    return place // sizes.block * sizes.block + (sizes.block - 1)


def _merged(size: int, sizes: Sizes) -> Iterator[Places]:
    """Readings of an axis that merges positions with others, (batch, seq) to batch * seq."""
    for length in {sizes.seq, sizes.total_seq}:
        if length and size % length == 0 and size != length:
            rest = size // length
            for inner in range(1, rest + 1):
                if rest % inner == 0:
                    step = np.arange(size) // inner % length
                    yield _ends(step + (sizes.total_seq - length), sizes)


def _violation(tensor: Elements, place: npt.NDArray[np.int64]) -> tuple[int, ...] | None:
    """The first element whose reach exceeds its place; None if there is none."""
    excess = tensor.reach.astype(np.int64) - place
    if excess.size == 0 or int(excess.max()) <= 0:
        return None
    return tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))


def _along(place: Places, axis: int, rank: int) -> Places:
    return place.reshape([-1 if i == axis else 1 for i in range(rank)])


def is_causal_somehow(value: Abstract, sizes: Sizes, *, flipped: bool = True) -> bool:
    """Whether some reading of the axes makes the tensor causal: its future is still repairable.

    A single position axis (also one merged with others), or a pair of them: element (t, j) may
    depend on positions up to max(t, j), as scores do before they are masked. With `flipped` an
    axis may also count backwards, as another flip can undo that.
    """
    if isinstance(value, list):
        return all(is_causal_somehow(item, sizes, flipped=flipped) for item in value)
    if not isinstance(value, Elements):
        return True
    top = int(value.reach.max(initial=NONE))
    if top <= sizes.past_seq:
        return True  # nothing after the first new position enters
    readings: list[tuple[int, Places]] = []
    rank = len(value.shape)
    for axis, size in enumerate(value.shape):
        if value.reach.shape[axis] == 1 and size > 1:
            continue
        if size in (sizes.seq, sizes.total_seq):
            ahead = places(size, sizes)
            orders = (ahead, ahead[::-1]) if flipped else (ahead,)
            readings.extend((axis, _along(place, axis, rank)) for place in orders)
        readings.extend((axis, _along(place, axis, rank)) for place in _merged(size, sizes))
        if sizes.seq < size < sizes.total_seq or size > sizes.total_seq:
            # A cropped past, or positions with something appended in front or behind.
            readings.append((axis, _along(places(size, sizes), axis, rank)))
            readings.append((axis, _along(_ends(np.arange(size), sizes), axis, rank)))
    if any(_violation(value, place) is None for _, place in readings):
        return True
    return any(
        _violation(value, np.maximum(first, second)) is None
        for (a, first), (b, second) in combinations(readings, 2)
        if a != b
    )


def judge_output(
    value: ir.Value, runs: Sequence[Run], declared: dict[int, str] | None = None
) -> OutputVerdict:
    """Find the position axis of an output that makes it causal in all runs, or its leak.

    Args:
        value: An output of the graph.
        runs: At several sizes.
        declared: Axes whose meaning is given, {axis: "seq"}; the others are found by their sizes.
    """
    name = value.name or ""
    tensors: list[tuple[Run, Elements]] = []
    for run in runs:
        found = run.values[value]
        if isinstance(found, list):
            return OutputVerdict(name=name, axes=(), leak=None, note="a sequence of tensors")
        if isinstance(found, Elements):
            tensors.append((run, found))
    if not tensors:
        return OutputVerdict(name=name, axes=(), leak=None, note="does not depend on any data")
    axes = _position_axes(tensors, declared)
    if not axes:
        return OutputVerdict(name=name, axes=(), leak=None, note="has no position axis")
    best: tuple[tuple[int, ...], Leak] | None = None
    pairs = list(combinations(axes, 2)) if len(axes) > 1 else []
    for chosen in [*((axis,) for axis in axes), *pairs]:
        leak = _first_leak(tensors, chosen)
        if leak is None:
            note = "entry (t, j) depends on positions up to max(t, j)" if len(chosen) > 1 else ""
            return OutputVerdict(name=name, axes=chosen, leak=None, note=note)
        if best is None:
            best = (chosen, leak)
    assert best is not None
    return OutputVerdict(name=name, axes=best[0], leak=best[1])


def _position_axes(
    tensors: Sequence[tuple[Run, Elements]], declared: dict[int, str] | None
) -> list[int]:
    """Axes whose size follows the length; with a single length, those that have its size."""
    if declared:
        return sorted(declared)
    rank = len(tensors[0][1].shape)
    lengths = {run.sizes.total_seq for run, _ in tensors}
    found = []
    for axis in range(rank):
        sizes = [(run.sizes, tensor.shape[axis]) for run, tensor in tensors]
        if len(lengths) > 1:
            if len({size for _, size in sizes}) > 1:
                found.append(axis)
        elif all(size in (s.seq, s.total_seq) for s, size in sizes):
            found.append(axis)
    if len(lengths) == 1 and len(found) > 1 and rank >= 3 and rank - 1 in found:
        found.remove(rank - 1)  # a width that happens to equal the length
    return found


def _first_leak(tensors: Sequence[tuple[Run, Elements]], axes: tuple[int, ...]) -> Leak | None:
    for run, tensor in tensors:
        leak = _leak_at(run.sizes, tensor, _places_of(run.sizes, tensor, axes))
        if leak is not None:
            return leak
    return None


def _places_of(sizes: Sizes, tensor: Elements, axes: tuple[int, ...]) -> Places:
    """The position that each element stands for, along its position axes."""
    rank = len(tensor.shape)
    place = np.full((1,) * rank, -1, np.int64)
    for axis in axes:
        size = tensor.shape[axis]
        options = [places(size, sizes)]
        if size not in (sizes.seq, sizes.total_seq):
            options.extend(_merged(size, sizes))
        fitting = [o for o in options if _violation(tensor, _along(o, axis, rank)) is None]
        chosen = (fitting or options)[0]
        place = np.maximum(place, _along(chosen, axis, rank))
    return place


def _leak_at(sizes: Sizes, tensor: Elements, place: Places) -> Leak | None:
    index = _violation(tensor, place)
    if index is None:
        return None
    full = view(place, np.broadcast_shapes(place.shape, tensor.reach.shape))
    return Leak(
        sizes=sizes,
        index=index,
        position=int(full[index]),
        reach=int(view(tensor.reach, full.shape)[index]),
    )


def all_leaks(
    value: ir.Value, runs: Sequence[Run], axes: tuple[int, ...]
) -> Iterator[tuple[Leak, Places]]:
    """What leaks at each of the sizes at which something does, and the place of each element."""
    for run in runs:
        found = run.values[value]
        if isinstance(found, Elements):
            place = _places_of(run.sizes, found, axes)
            leak = _leak_at(run.sizes, found, place)
            if leak is not None:
                yield leak, place


def selection(run: Run, output: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """For an output without a position axis: the tensor of which it takes the last position.

    Back through what works within a position to the operator that picks one.

    Returns:
        The tensor with all positions, and its position axis; None where the output combines
        positions in another way.
    """
    current = output
    for _ in range(MAX_BACK):
        node = current.producer()
        if node is None:
            return None
        data = [
            value
            for value in node.inputs
            if value is not None and isinstance(run.values.get(value), Elements)
        ]
        if node.op_type in PICKING and data and data[0] is node.inputs[0]:
            source = run.values[data[0]]
            assert isinstance(source, Elements)
            for axis, size in enumerate(source.shape):
                if size == run.sizes.seq and source.reach.shape[axis] == size:
                    verdict = judge_output(data[0], [run], {axis: "seq"})
                    if verdict.leak is None and _takes_last(run, node):
                        return data[0], (axis,)
        # Of several inputs, the one that reaches furthest carries the last position.
        if not data:
            return None
        current = max(data, key=lambda v: int(_reach_of(run, v)))
    return None


PICKING = frozenset({"Gather", "Slice", "Split", "GatherND", "Squeeze"})

MAX_BACK = 64


def _reach_of(run: Run, value: ir.Value) -> int:
    found = run.values[value]
    assert isinstance(found, Elements)
    return int(found.reach.max(initial=NONE))


def _takes_last(run: Run, node: ir.Node) -> bool:
    """Every element that is picked stands for the last position."""
    picked = run.values.get(node.outputs[0])
    if not isinstance(picked, Elements):
        return False
    source = run.values[node.inputs[0]] if node.inputs[0] is not None else None
    return (
        isinstance(source, Elements)
        and picked.size < source.size
        and bool((picked.reach == run.sizes.total_seq - 1).all())
    )


def reads(node: ir.Node) -> Iterable[ir.Value]:
    """The inputs of a node, and what its subgraphs read from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            inner = {out for n in body.all_nodes() for out in n.outputs} | set(body.inputs)
            for n in body.all_nodes():
                for value in n.inputs:
                    if value is not None and value not in inner:
                        yield value


def offender(run: Run, output: ir.Value, order: dict[ir.Node, int]) -> ir.Node | None:
    """The first node past which the order of positions cannot be restored, on a way to `output`.

    From the leaking output back through values that are not causal in any reading, as far as such
    values go; of several, the one that the graph computes first.
    """
    node = _back(run, output, order, flipped=True)
    if node is not None and all(
        is_causal_somehow(run.values[v], run.sizes) for v in node.outputs if v in run.values
    ):
        # Only the order is wrong: go on to where it was turned round.
        node = _back(run, output, order, flipped=False)
    return node if node is None or node.op_type != "If" else _inside(run, node)


def _inside(run: Run, branch: ir.Node) -> ir.Node:
    """The node within a branch of an If that mixes positions; the If, if none does alone."""
    for attribute in branch.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        for node in attribute.as_graph().all_nodes():
            values = [v for v in node.outputs if v in run.values]
            given = [v for v in node.inputs if v is not None and v in run.values]
            mixes = any(not is_causal_somehow(run.values[v], run.sizes) for v in values)
            if mixes and all(is_causal_somehow(run.values[v], run.sizes) for v in given):
                return node
    return branch


def _back(
    run: Run, output: ir.Value, order: dict[ir.Node, int], *, flipped: bool
) -> ir.Node | None:
    current = output
    while True:
        node = current.producer()
        if node is None:
            return None
        bad = [
            value
            for value in reads(node)
            if value in run.values
            and value.producer() is not None
            and not is_causal_somehow(run.values[value], run.sizes, flipped=flipped)
        ]
        if not bad:
            return node
        current = min(bad, key=lambda v: order.get(v.producer() or node, 0))
