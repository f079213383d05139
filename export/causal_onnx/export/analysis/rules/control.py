"""If, Loop, Scan and sequences: subgraphs are run step by step, as the sizes are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import (
    UnsupportedError,
    attr,
    known_ints,
    known_value,
    normal_axis,
    required,
    required_value,
    tensor_at,
)
from causal_onnx.export.analysis.elements import (
    Abstract,
    Elements,
    Known,
    RefusedByOnnxError,
    Tensor,
    lift,
    normal,
    restructure,
)
from causal_onnx.export.analysis.moves import split_sizes
from causal_onnx.export.analysis.rules.moving import concatenate, take_slice
from causal_onnx.export.analysis.rules.registry import Context, rule

MAX_STEPS = 4096
"""Iterations of one loop that are followed."""


def join(condition: Elements, a: Abstract, b: Abstract) -> Abstract:
    """What may come out when the data decides between `a` and `b`.

    Raises:
        UnsupportedError: They differ in shape, or are sequences.
    """
    if isinstance(a, list) or isinstance(b, list) or a is None or b is None:
        raise UnsupportedError("the data decides between two sequences")
    if a.shape != b.shape:
        raise UnsupportedError(f"the data decides between shapes {a.shape} and {b.shape}")
    left, right = lift(a), lift(b)
    top = np.int32(condition.reach.max(initial=-1))
    reach = np.maximum(np.maximum(left.reach, right.reach), top)
    return Elements(a.shape, reach)


@rule("If")
def branch(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The branch that is taken, or both where data decides."""
    condition = required(inputs, 0)
    then, other = attr(node, "then_branch"), attr(node, "else_branch")
    if isinstance(condition, Known):
        taken = bool(condition.value.reshape(-1)[0])
        ctx.entered.setdefault(node, set()).add(taken)
        return ctx.run_graph(then if taken else other, [])
    ctx.entered[node] = {True, False}
    left, right = ctx.run_graph(then, []), ctx.run_graph(other, [])
    ctx.approximated(node, "the data decides which branch runs")
    return [join(condition, a, b) for a, b in zip(left, right, strict=True)]


@rule("Loop")
def loop(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The body once per iteration; how many must not depend on data."""
    trips = known_ints(inputs, 0, "number of iterations")
    going = known_value(inputs, 1, "condition")
    body: ir.Graph = attr(node, "body")
    carried = list(inputs[2:])
    scanned: list[list[Tensor]] = [[] for _ in range(len(node.outputs) - len(carried))]
    step = 0
    running = True if going is None else bool(going.reshape(-1)[0])
    while running and (trips is None or step < trips[0]):
        if step >= MAX_STEPS:
            raise UnsupportedError(f"it runs more than {MAX_STEPS} times")
        condition = Known(np.asarray(True))
        results = ctx.run_graph(body, [Known(np.asarray(step, np.int64)), condition, *carried])
        running = bool(_decided(results[0]).reshape(-1)[0])
        carried = results[1 : 1 + len(carried)]
        for line, item in zip(scanned, results[1 + len(carried) :], strict=True):
            line.append(_item(item))
        step += 1
    stacks = [_stack(line, 0, body, i, len(carried) + 1) for i, line in enumerate(scanned)]
    return [*carried, *stacks]


def _decided(condition: Abstract) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if not isinstance(condition, Known):
        raise UnsupportedError("the data decides when it stops")
    return condition.value


def _item(value: Abstract) -> Tensor:
    if value is None or isinstance(value, list):
        raise UnsupportedError("it collects sequences")
    return value


def _stack(line: list[Tensor], axis: int, body: ir.Graph, index: int, offset: int) -> Tensor:
    if not line:
        shape = body.outputs[offset + index].shape
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            raise UnsupportedError("it does not run at all, and its output has no known shape")
        return Known(np.zeros((0, *(int(str(dim)) for dim in shape)), np.float32))
    return concatenate([expand(item, axis) for item in line], axis)


def expand(tensor: Tensor, axis: int) -> Tensor:
    """A new axis of size 1."""
    axis = normal_axis(axis, len(tensor.shape) + 1)
    return normal(restructure(lift(tensor), lambda array, _: np.expand_dims(array, axis)))


def squeeze(tensor: Tensor, axis: int) -> Tensor:
    """Without an axis of size 1."""
    return normal(restructure(lift(tensor), lambda array, _: np.squeeze(array, axis)))


@rule("Scan")
def scan(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The body once per position of the scanned inputs, states carried along."""
    body: ir.Graph = attr(node, "body")
    count = attr(node, "num_scan_inputs")
    states, scanned = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    lines = [_item(value) for value in scanned]
    axes = list(attr(node, "scan_input_axes") or [0] * count)
    backwards = list(attr(node, "scan_input_directions") or [0] * count)
    axes = [normal_axis(a, len(t.shape)) for a, t in zip(axes, lines, strict=True)]
    steps = lines[0].shape[axes[0]]
    if steps > MAX_STEPS:
        raise UnsupportedError(f"it runs more than {MAX_STEPS} times")
    outputs: list[list[Tensor]] = [[] for _ in range(len(node.outputs) - len(states))]
    for step in range(steps):
        given = []
        for tensor, axis, reverse in zip(lines, axes, backwards, strict=True):
            at = steps - 1 - step if reverse else step
            given.append(squeeze(take_slice(tensor, axis, at, at + 1), axis))
        results = ctx.run_graph(body, [*states, *given])
        states = results[: len(states)]
        for line, item in zip(outputs, results[len(states) :], strict=True):
            line.append(_item(item))
    out_axes = list(attr(node, "scan_output_axes") or [0] * len(outputs))
    directions = list(attr(node, "scan_output_directions") or [0] * len(outputs))
    stacks = [
        _stack(line[::-1] if reverse else line, axis, body, i, len(states))
        for i, (line, axis, reverse) in enumerate(zip(outputs, out_axes, directions, strict=True))
    ]
    return [*states, *stacks]


@rule("SequenceEmpty")
def sequence_empty(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """No tensors."""
    return [[]]


@rule("SequenceConstruct")
def sequence_construct(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """The inputs as a sequence."""
    return [list(inputs)]


def _sequence(inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    found = inputs[0]
    if not isinstance(found, list):
        raise UnsupportedError("its first input is not a sequence")
    return found


@rule("SequenceInsert")
def sequence_insert(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """One more tensor."""
    items = list(_sequence(inputs))
    place = known_ints(inputs, 2, "place")
    end = len(items)
    items.insert(end if place is None else _place(place[0], end + 1), inputs[1])
    return [items]


@rule("SequenceErase")
def sequence_erase(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """One tensor less."""
    items = list(_sequence(inputs))
    place = known_ints(inputs, 1, "place")
    items.pop(_place(-1 if place is None else place[0], len(items)))
    return [items]


@rule("SequenceAt")
def sequence_at(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """One tensor of a sequence."""
    place = int(required_value(inputs, 1, "place").reshape(-1)[0])
    return [_sequence(inputs)[_place(place, len(_sequence(inputs)))]]


def _place(place: int, count: int) -> int:
    """A place in a sequence of `count` tensors.

    Raises:
        RefusedByOnnxError: It is outside.
    """
    if not -count <= place < count:
        raise RefusedByOnnxError(f"place {place} in a sequence of {count} tensors")
    return place


@rule("SequenceLength")
def sequence_length(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """How many tensors."""
    return [Known(np.asarray(len(_sequence(inputs)), np.int64))]


@rule("ConcatFromSequence")
def concat_from_sequence(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """The tensors of a sequence, joined or stacked."""
    items = [_item(item) for item in _sequence(inputs)]
    if not items:
        raise RefusedByOnnxError("the sequence that it joins is empty")
    axis = attr(node, "axis")
    if attr(node, "new_axis", 0):
        axis = normal_axis(axis, len(items[0].shape) + 1)
        items = [expand(item, axis) for item in items]
    return [concatenate(items, axis)]


@rule("SplitToSequence")
def split_to_sequence(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Slices along an axis."""
    tensor = required(inputs, 0)
    axis = normal_axis(attr(node, "axis", 0), len(tensor.shape))
    size = tensor.shape[axis]
    given = known_value(inputs, 1, "split sizes")
    if given is None:
        sizes = [1] * size
    elif given.ndim == 0:
        step = int(given)
        sizes = [min(step, size - i) for i in range(0, size, step)]
    else:
        sizes = split_sizes(node, size, inputs)
    pieces: list[Abstract] = []
    start = 0
    for count in sizes:
        piece = take_slice(tensor, axis, start, start + count)
        if given is None and not attr(node, "keepdims", 1):
            piece = squeeze(piece, axis)
        pieces.append(piece)
        start += count
    return [pieces]


@rule("SequenceMap")
def sequence_map(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A subgraph for each tensor of a sequence."""
    items = _sequence(inputs)
    body: ir.Graph = attr(node, "body")
    results: list[list[Abstract]] = [[] for _ in node.outputs]
    for i, item in enumerate(items):
        others = [other[i] if isinstance(other, list) else other for other in inputs[1:]]
        found = ctx.run_graph(body, [item, *others])
        for line, value in zip(results, found, strict=True):
            line.append(value)
    return results


@rule("Optional", "OptionalGetElement")
def optional(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The value inside, which is present."""
    return [inputs[0]]


@rule("OptionalHasElement")
def optional_has_element(
    ctx: Context, node: ir.Node, inputs: Sequence[Abstract]
) -> Sequence[Abstract]:
    """Whether there is a value, which does not depend on data."""
    return [Known(np.asarray(bool(inputs) and inputs[0] is not None))]


@rule(
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
def random(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Random numbers: independent of the data, but for Bernoulli's and Multinomial's."""
    ctx.random.add(node.name or node.op_type)
    first = tensor_at(inputs, 0)
    if first is None:
        shape = tuple(attr(node, "shape"))
        return [Elements(shape, np.full((1,) * len(shape), -1, np.int32))]
    if node.op_type == "Multinomial":
        reach = lift(first).reach.max(axis=1, keepdims=True)
        return [Elements((first.shape[0], attr(node, "sample_size", 1)), reach)]
    reach = lift(first).reach
    if node.op_type != "Bernoulli":
        reach = np.full_like(reach, -1)
    return [Elements(first.shape, reach)]
