"""Compute once for each row what depends on inputs without positions alone: encoders, memories.

Such a value is the same in every call of a stream. So what the rest of the graph reads of it goes
from call to call as a state of one slot, like that of a recurrent layer, and the nodes that lead to
it stand in the branch of an `If` that is taken in calls in which a row begins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import Elements, Known
from causal_onnx.export.cache.lengths import Lengths
from causal_onnx.export.cache.spans import BATCH
from causal_onnx.export.graph.edit import copy_output
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.subgraphs import name_inside, outer_values
from causal_onnx.export.graph.writer import Writer

__all__ = ["Once", "write_once"]

_LIGHT = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum",
        "Div", "Dropout", "Equal", "Expand", "Flatten", "Gather", "GatherND", "Greater",
        "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
        "Not", "Or", "Pad", "Range", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape",
        "Shape", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose",
        "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
"""What is made by these alone is computed in every call: that costs no more than a state would."""

_GRAPH = ir.AttributeType.GRAPH
_Size = str | int


@dataclass(frozen=True)
class Once:
    """One tensor that is computed in the first call of a row, and kept."""

    past: ir.Value
    present: ir.Value
    rest: tuple[_Size, ...]
    """The axes of its one slot: fixed sizes and free axes."""
    computed_from: tuple[str, ...]
    """The inputs that decide it. Nothing else reads these."""


def write_once(
    graph: ir.Graph,
    layouts: Layouts,
    lengths: Lengths,
    steady: Collection[str],
    *,
    unfit: str | None = None,
) -> tuple[list[Once], str | None]:
    """Give what depends on inputs without positions a state, in place.

    Args:
        graph: With the past of everything else.
        layouts: Of the graph as it was before that.
        lengths: Where the rows stand.
        steady: Names of inputs without positions, of which a sequence has one value.
        unfit: Why nodes of this graph cannot stand in a branch; None: they can.

    Returns:
        The states, in the order of their names; and why there are none, where something is costly.
    """
    if not steady:
        return [], None
    frontier = _Frontier(graph, layouts, steady)
    reason = frontier.search()
    if reason is not None or not frontier.values:
        return [], reason
    if unfit is not None:
        return [], unfit
    return _Move(graph, frontier, lengths).write(), None


class _Frontier:
    """What the rest of the graph reads of the nodes that depend on steady inputs alone."""

    def __init__(self, graph: ir.Graph, layouts: Layouts, steady: Collection[str]) -> None:
        self.graph, self.layouts = graph, layouts
        self.given = [value for value in graph.inputs if value.name in steady]
        self.values: list[ir.Value] = []
        """What becomes a state: all that is read of `inputs`."""
        self.inputs: list[ir.Value] = []
        self.nodes: dict[ir.Node, None] = {}
        """The nodes that depend on no position and no length, in order, but for those that stay."""
        self._cones: dict[ir.Value, frozenset[ir.Value]] = {}
        """What these give -> the steady inputs that decide it."""
        self._costly: set[ir.Value] = set()
        self._stay: set[ir.Node] = set()

    def search(self) -> str | None:
        """Find the values; why there are none although something is costly, or None."""
        while True:
            self._classify()
            read = dict.fromkeys(self._read_outside())
            inputs = {x for value in read if value in self._costly for x in self._cones[value]}
            while True:
                chosen = [value for value in read if self._cones[value] & inputs]
                more = {x for value in chosen for x in self._cones[value]} - inputs
                if not more:
                    break
                inputs |= more
            odd = [value for value in chosen if self.axes_of(value) is None]
            makers = [node for value in odd if (node := value.producer()) is not None]
            if len(makers) < len(odd):
                given = next(value for value in odd if value.producer() is None)
                return f"the input {given.name!r} has no axis for the rows of the batch"
            if not odd:
                self.values = chosen
                self.inputs = [value for value in self.given if value in inputs]
                return None
            self._stay.update(makers)  # what they read is the state, then

    def _classify(self) -> None:
        self.nodes, self._costly = {}, set()
        self._cones = {value: frozenset([value]) for value in self.given}
        for node in self.graph:
            if node in self._stay:
                continue
            read = _read_by(node)
            cone: frozenset[ir.Value] = frozenset()
            if node.op_type != "Shape" or self.sizes_of(node) is None:
                if not all(value in self._cones or value.is_initializer() for value in read):
                    continue
                cone = cone.union(*(self._cones.get(value, cone) for value in read))
            is_light = not node.domain and node.op_type in _LIGHT
            if cone and (not is_light or any(value in self._costly for value in read)):
                self._costly.update(node.outputs)
            self.nodes[node] = None
            self._cones.update(dict.fromkeys(node.outputs, cone))

    def _read_outside(self) -> Iterator[ir.Value]:
        """What nodes that stay, and outputs, read of the steady inputs."""
        for node in self.graph:
            if node not in self.nodes:
                yield from (value for value in _read_by(node) if self._cones.get(value))
        yield from (value for value in self.graph.outputs if self._cones.get(value))

    def axes_of(self, value: ir.Value) -> list[_Size] | None:
        """The axes of a value that can be a state: the rows, if there are any, and others."""
        if value.dtype is None or not isinstance(self.layouts.base.values.get(value), Elements):
            return None
        axes = [self._axis_of(value, axis) for axis in range(len(self.layouts.axes(value)))]
        if axes.count("batch") != self.layouts.signature.has_batch:
            return None
        return _all_known(axes)

    def sizes_of(self, shape: ir.Node) -> list[_Size] | None:
        """What a `Shape` gives, if no length decides it."""
        value = shape.inputs[0]
        assert value is not None
        if not isinstance(self.layouts.base.values.get(value), Known | Elements):
            return None
        rank = len(self.layouts.axes(value))
        chosen = range(rank)[attr(shape, "start", 0) : attr(shape, "end", rank)]
        return _all_known([self._axis_of(value, axis) for axis in chosen])

    def _axis_of(self, value: ir.Value, axis: int) -> _Size | None:
        """The size of an axis: fixed, "batch" or a free axis; None: something else."""
        found = self.layouts.axes(value)[axis]
        if found == BATCH:
            return "batch"
        if found.is_fixed:
            return found.count
        return self.layouts.free_axis(value, axis)


def _read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads, and the graphs inside of it."""
    return [*(value for value in node.inputs if value is not None), *outer_values(node)]


def _all_known(axes: list[_Size | None]) -> list[_Size] | None:
    known = [axis for axis in axes if axis is not None]
    return known if len(known) == len(axes) else None


class _Move:
    """Writes the branches."""

    def __init__(self, graph: ir.Graph, frontier: _Frontier, lengths: Lengths) -> None:
        self.graph, self.frontier = graph, frontier
        self.row_past, self.past_seq = lengths.row_past, lengths.past_seq
        self.has_batch = frontier.layouts.signature.has_batch
        for value in frontier.values:
            if value.is_graph_output():
                copy_output(graph, value)
        self._replace_shapes()
        inside = self._leading_to(frontier.values)
        shared = self._leading_to(self._also_read())
        self.inside = [node for node in frontier.nodes if node in inside and node not in shared]
        """The nodes of the branch, in order."""

    def write(self) -> list[Once]:
        """Move the nodes, and let what they give be kept."""
        graph, values = self.graph, self.frontier.values
        states = [self._state(number, value) for number, value in enumerate(values)]
        graph.inputs.extend(state.past for state in states)
        write = Writer(graph, None)
        if self.row_past is None:
            first = write("Squeeze", self.past_seq)
        else:
            first = write("ReduceMin", self.row_past, keepdims=0)
        begins = write("Equal", first, write.scalar(0))
        new, old = (
            ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports), name=name)
            for name in ("begins", "continues")
        )
        graph.remove(self.inside, safe=False)
        new.extend(self.inside)
        slot = None if self.row_past is None else self._slot(Writer(new, None, graph))
        for value, state in zip(values, states, strict=True):
            begun = self._begun(Writer(new, None, graph), value, state, slot)
            kept = Writer(old, None, graph)("Identity", state.past)
            for body, result in ((new, begun), (old, kept)):
                result.type = value.type
                body.outputs.append(result)
        name_inside(new, "memory_begins")
        name_inside(old, "memory_continues")
        branches = {"then_branch": new, "else_branch": old}
        choice = write.node("If", [begins], branches, outputs=len(values))
        for value, state, present in zip(values, states, choice.outputs, strict=True):
            present.name, present.type, present.shape = (
                state.present.name,
                state.present.type,
                state.present.shape,
            )
            self._replace(value, self._as_before(write, value, present), choice)
        graph.outputs.extend(choice.outputs)
        graph.sort()
        return states

    def _state(self, number: int, value: ir.Value) -> Once:
        axes = self.frontier.axes_of(value)
        assert axes is not None
        rest = tuple(axis for axis in axes if axis != "batch")
        past, present = (
            ir.Value(
                name=f"{when}_memory.{number}",
                shape=ir.Shape(["batch" if self.has_batch else 1, 1, f"{when}_slots_1", *rest]),
                type=value.type,
            )
            for when in ("past", "present")
        )
        return Once(past, present, rest, tuple(str(x.name) for x in self.frontier.inputs))

    def _order(self, value: ir.Value) -> list[int]:
        """The axes of a value, the rows first."""
        axes = self.frontier.axes_of(value)
        assert axes is not None
        return sorted(range(len(axes)), key=lambda axis: axes[axis] != "batch")

    def _slot(self, write: Writer) -> ir.Value:
        """(batch, 1, 2): for each row 0 if it begins, else 1."""
        rows = write("Range", write.scalar(0), write("Size", self.row_past), write.scalar(1))
        slot = write("Min", self.row_past, write.ints(1))
        pair = (write("Unsqueeze", part, write.ints(1, 2)) for part in (rows, slot))
        return write("Concat", *pair, axis=2)

    def _begun(
        self, write: Writer, value: ir.Value, state: Once, slot: ir.Value | None
    ) -> ir.Value:
        """(batch, 1, 1, ...): of rows that begin the value, of the others what they hold.

        Without a slot, all rows begin.
        """
        order = self._order(value)
        if order != sorted(order):
            value = write("Transpose", value, perm=order)
        lead = write.ints(1) if self.has_batch else write.ints(0, 1)
        if slot is None:
            return write("Unsqueeze", write("Unsqueeze", value, lead), write.ints(1))
        both = write(
            "Concat",
            write("Unsqueeze", value, lead),
            write("Squeeze", state.past, write.ints(1)),
            axis=1,
        )
        return write("Unsqueeze", write("GatherND", both, slot), write.ints(1))

    def _as_before(self, write: Writer, value: ir.Value, present: ir.Value) -> ir.Value:
        lead = write.ints(1, 2) if self.has_batch else write.ints(0, 1, 2)
        again, order = write("Squeeze", present, lead), self._order(value)
        if order != sorted(order):
            again = write("Transpose", again, perm=[int(n) for n in np.argsort(order)])
        again.type, again.shape = value.type, value.shape
        return again

    def _replace(self, value: ir.Value, again: ir.Value, choice: ir.Node) -> None:
        """Let all that stays read the value that is kept."""
        within = set(attr(choice, "then_branch").all_nodes())
        for use in list(value.uses()):
            if use.node not in within:
                use.node.replace_input_with(use.idx, again)
        for node in self.graph:
            bodies = (a.as_graph() for a in node.attributes.values() if a.type == _GRAPH)
            for body in bodies if node is not choice else ():
                for graph in (body, *body.subgraphs()):
                    for index, given in enumerate(graph.outputs):
                        if given is value:
                            graph.outputs[index] = again

    def _leading_to(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        found: set[ir.Node] = set()
        stack = list(values)
        while stack:
            node = stack.pop().producer()
            if node is not None and node in self.frontier.nodes and node not in found:
                found.add(node)
                stack.extend(value for value in _read_by(node))
        return found

    def _also_read(self) -> Iterator[ir.Value]:
        """What else the nodes that stay, and outputs, read of the nodes that need not."""
        states = set(self.frontier.values)
        for node in self.graph:
            if node not in self.frontier.nodes:
                yield from (value for value in _read_by(node) if value not in states)
        yield from self.graph.outputs

    def _replace_shapes(self) -> None:
        """Read sizes off the inputs: what they are read of may stand in a branch, or after it."""
        roots = {
            axis: (value, place)
            for spec in self.frontier.layouts.signature.inputs
            for value in self.graph.inputs
            if value.name == spec.name
            for place, axis in enumerate(spec.axes)
            if isinstance(axis, str)
        }
        for node in [n for n in self.frontier.nodes if n.op_type == "Shape"]:
            sizes = self.frontier.sizes_of(node)
            if sizes is None or node.inputs[0] in self.graph.inputs:
                continue
            write = Writer(self.graph, node)
            parts = []
            for size in sizes:
                if isinstance(size, int):
                    parts.append(write.ints(size))
                else:
                    value, place = roots[size]
                    parts.append(write("Shape", value, start=place, end=place + 1))
            whole = parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)
            node.outputs[0].replace_all_uses_with(whole, replace_graph_outputs=True)
            del self.frontier.nodes[node]
            self.graph.remove(node, safe=True)
