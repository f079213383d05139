"""The proof for every length: the graph followed once, with sizes as symbols."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from causal_onnx.export.analysis.analyse import OTHER_SIZE, Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError, attr
from causal_onnx.export.analysis.branches import missed_branches
from causal_onnx.export.analysis.elements import Known
from causal_onnx.export.analysis.evaluate import evaluate
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import CAUSAL_ROLES, InputAxes, slots_bound
from causal_onnx.export.proof.judge import reads
from causal_onnx.export.proof.symbolic import arranging, attending, computing
from causal_onnx.export.proof.symbolic.adopt import Evidence, adopt
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    AtLeastZero,
    Constant,
    Expression,
    Select,
    linear,
)
from causal_onnx.export.proof.symbolic.implication import at
from causal_onnx.export.proof.symbolic.poly import ZERO, Poly, symbol
from causal_onnx.export.proof.symbolic.registry import RULES, Given, SymbolicContext, whole
from causal_onnx.export.proof.symbolic.tensor import OpenError, Space, Symbolic, Term

__all__ = ["Prover", "SymbolicProof", "prove_symbolically"]

_RULE_FILES = (arranging, attending, computing)
"""Imported for the rules that they register."""


@dataclass
class SymbolicProof:
    """What was shown for every length."""

    holds: bool
    reason: str = ""
    """Why not, where it does not hold."""
    node: ir.Node | None = None
    """Where the proof stopped."""
    measured: dict[ir.Node, str] = field(default_factory=dict)
    """Nodes whose effect was read off the runs, with the reason."""
    limits: tuple[str, ...] = ()
    """Inequalities between sizes that the proof rests on: the graph takes no others."""
    longest: tuple[int, ...] = ()
    """The numbers in them: lengths at which tables end."""


MAX_ASKED = 64
"""How many nodes past one that reaches everywhere are compared with the runs."""


class Prover:
    """Follows the graph, one symbolic tensor per value."""

    def __init__(self, analysis: Analysis) -> None:
        signature = analysis.signature
        self.analysis = analysis
        total = symbol("seq") + (symbol("past_seq") if signature.has_past else ZERO)
        least = {"batch": 1, "seq": 1, **dict.fromkeys(signature.symbols, 1)}
        self.space = Space(least, total)
        if signature.max_seq_len is not None:
            self.space.limits[signature.max_seq_len - total] = "the longest sequence"
        self.values: dict[ir.Value, Symbolic] = {}
        self.measured: dict[ir.Node, str] = {}
        self.asked = 0
        self.sequences: dict[ir.Value, list[Symbolic]] = {}
        self.missed = {node for node, _ in missed_branches(analysis)}
        self.unseen: set[ir.Value] = set()
        """What comes from branches that no run entered: the runs are no evidence for it."""
        context_opsets = dict(analysis.model.opset_imports)
        self.context = SymbolicContext(
            self.space, context_opsets, self.subgraph, self.lookup, self.dtype
        )
        self.evidence = Evidence(_evidence(analysis), _symbols(analysis))

    def follow(self) -> tuple[ir.Node, str] | None:
        """Go through the graph; the node at which it stopped, and why, if it did."""
        specs = {spec.name: spec for spec in self.analysis.signature.inputs}
        for value in self.analysis.model.graph.inputs:
            if (value.name or "") in specs:
                self.values[value] = self.input(specs[value.name or ""])
        for node in self.analysis.model.graph:
            try:
                self.node(node)
            except OpenError as error:
                return node, str(error)
        return None

    def size(self, axis: str | int) -> Poly:
        if isinstance(axis, int):
            return Poly.of(axis)
        if axis == "total_seq":
            return self.space.total
        bound = slots_bound(axis)
        if bound is not None:
            return self.space.least_of(symbol("past_seq"), Poly.of(bound))
        found = dict(self.analysis.runs[0].sizes.other).get(axis, OTHER_SIZE)
        # An open axis that only one size fits is that size.
        return symbol(axis) if found == OTHER_SIZE else Poly.of(found)

    def input(self, spec: InputAxes) -> Symbolic:
        """An input: data of which entry i of the position axis is at position first + i."""
        axes = tuple(self.space.axis(self.size(axis)) for axis in spec.axes)
        if any(spec.name == plain.name for plain in self.analysis.plain):
            return self.plain(spec, axes)
        position = spec.position_axis
        if position is None:
            return Symbolic(axes)
        bound = slots_bound(spec.axes[position])
        if bound is not None:
            first = symbol("past_seq") - self.size(spec.axes[position])
            place = symbol(axes[position][0]) if axes[position] else ZERO
            return Symbolic(axes, (Term(place + first),))
        first = symbol("past_seq") if "seq" in spec.axes and self.has_past else ZERO
        place = symbol(axes[position][0]) if axes[position] else ZERO
        return Symbolic(axes, (Term(place + first),))

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The declared type, or that of the evaluated value."""
        if value.dtype is not None:
            return value.dtype
        for run in self.analysis.runs:
            found = run.values.get(value)
            if isinstance(found, Known):
                return ir.DataType.from_numpy(found.value.dtype)
        return None

    @property
    def has_past(self) -> bool:
        return self.analysis.signature.has_past

    def plain(self, spec: InputAxes, axes: tuple[tuple[str, ...], ...]) -> Symbolic:
        """A mask, positions or lengths of sequences without padding."""
        value: Expression = UNKNOWN
        held: tuple[Poly, ...] | None = None
        first = symbol("past_seq") if self.has_past else ZERO
        if spec.role == "positions" and axes and axes[-1]:
            value = linear(symbol(axes[-1][0]) + first)
        elif spec.role == "mask" and len(axes) == 2:
            value = Constant(1.0)
        elif spec.role in CAUSAL_ROLES:
            value = self.causal(spec, axes)
        elif spec.role == "lengths":
            less = 1 if "seqlens_k" in spec.name and "total" not in spec.name else 0
            value = linear(self.space.total - less)
            if not axes or axes == ((),):
                held = (self.space.total - less,)
        return Symbolic(axes, value=value, ints=held, known=True)

    def causal(self, spec: InputAxes, axes: tuple[tuple[str, ...], ...]) -> Expression:
        """A mask that hides every later key, whatever else it holds."""
        query, key = (
            (symbol(axes[i][0]) if axes[i] else ZERO) + self.space.total - self.size(spec.axes[i])
            for i in spec.pair_axes
        )
        is_later = AtLeastZero(key - query - 1)
        hidden = {"causal_mask": 0.0, "causal_hide_mask": 1.0, "causal_bias": -math.inf}
        return Select(is_later, Constant(hidden[spec.role]), UNKNOWN)

    def lookup(self, value: ir.Value | None) -> Given:
        if value is None:
            return None
        found = self.values.get(value)
        if found is not None:
            return found
        known = self.analysis.constants.of(value)
        if known is None:
            raise OpenError(f"{value.name} is not known")
        found = computing.constant(self.space, known)
        self.values[value] = found
        return found

    def subgraph(self, graph: ir.Graph, inputs: Sequence[Symbolic] = ()) -> list[Symbolic]:
        before = set(self.values)
        self.values.update(zip(graph.inputs, inputs, strict=bool(inputs)))
        self.graph(graph)
        found = [self.lookup(value) for value in graph.outputs]
        if inputs:  # what is found inside holds for these inputs, and not for every step
            self.values = {v: known for v, known in self.values.items() if v in before}
        return [value for value in found if value is not None]

    def graph(self, graph: ir.Graph) -> None:
        for node in graph:
            self.node(node)

    def node(self, node: ir.Node) -> None:
        at(node)
        if node in self.missed or any(value in self.unseen for value in reads(node)):
            self.unseen.update(node.outputs)
        constants = self.analysis.constants.values
        if node.op_type == "Constant" and node.outputs[0] not in constants:
            # It stands in a branch that no run entered.
            array = evaluate(node, [], self.context.opsets)[0]
            constants[node.outputs[0]] = Known(array, constant=True)
        known = [constants.get(out) for out in node.outputs]
        if known and all(isinstance(k, Known) for k in known):
            for out, constant in zip(node.outputs, known, strict=True):
                assert constant is not None
                self.values[out] = computing.constant(self.space, constant)
            return
        try:
            if "Sequence" in node.op_type and self.sequence(node):
                return
            outputs: Sequence[Symbolic] = self.transfer(node)
        except OpenError as error:
            self.adopt(node, str(error))
            return
        for out, result in zip(node.outputs, outputs, strict=False):
            self.values[out] = result
        self.check_spread(node)

    def sequence(self, node: ir.Node) -> bool:
        """Operators on sequences of tensors; False for one that gives a tensor."""
        out, first = node.outputs[0], node.inputs[0] if node.inputs else None
        if node.op_type == "SequenceConstruct":
            parts = [self.lookup(value) for value in node.inputs]
            self.sequences[out] = [part for part in parts if part is not None]
            return True
        if node.op_type == "SplitToSequence":
            self.sequences[out] = self.pieces(node)
            return True
        if first is None or first not in self.sequences:
            return False
        items = self.sequences[first]
        if node.op_type == "SequenceAt":
            place = self.lookup(node.inputs[1])
            if place is None or place.ints is None:
                raise OpenError("which tensor it takes is not known")
            self.values[out] = items[whole(place.ints[0])]
            return True
        if node.op_type == "ConcatFromSequence" and not attr(node, "new_axis", 0):
            axis = attr(node, "axis") % items[0].rank
            self.values[out] = arranging.concatenate(self.space, items, axis)
            return True
        if node.op_type == "SequenceMap" and len(node.inputs) == 1:
            body: ir.Graph = attr(node, "body")
            results = []
            for item in items:
                self.values[body.inputs[0]] = item
                results.append(self.subgraph(body)[0])
            self.sequences[out] = results
            return True
        raise OpenError("this operator on sequences has no symbolic rule")

    def pieces(self, node: ir.Node) -> list[Symbolic]:
        """SplitToSequence into pieces of fixed sizes."""
        whole_tensor = self.lookup(node.inputs[0])
        given = self.lookup(node.inputs[1]) if len(node.inputs) > 1 else None
        if whole_tensor is None or given is None or given.ints is None or given.rank == 0:
            raise OpenError("how many pieces it makes depends on the sizes")
        axis = attr(node, "axis", 0) % whole_tensor.rank
        found, start = [], ZERO
        for size in given.ints:
            end = start + size
            found.append(arranging.cut(self.context, node, whole_tensor, axis, start, end=end))
            start = end
        return found

    def transfer(self, node: ir.Node) -> Sequence[Symbolic]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = RULES.get((domain, node.op_type))
        inputs = [self.lookup(value) for value in node.inputs]
        return self.by_body(node, inputs) if rule is None else rule(self.context, node, inputs)

    def by_body(self, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
        """Follow what the node is made of; what was measured of its parts was of the node."""
        opsets, measured = self.context.opsets, dict(self.measured)
        shapes = [None if value is None else value.axes for value in inputs]
        try:
            body = self.analysis.constants.body(node, shapes, opsets)
        except UnsupportedError as error:
            raise OpenError(str(error)) from error
        if body is None:
            raise OpenError("this operator has no symbolic rule")
        given = [value for value in inputs if value is not None]
        self.values.update(zip(body.graph.inputs, given, strict=True))
        if any(out in self.unseen for out in node.outputs):
            self.unseen.update(body.graph.inputs)
        self.context.opsets = body.opsets
        try:
            outputs = self.subgraph(body.graph)
            reasons = [why for part, why in self.measured.items() if part not in measured]
        finally:
            self.context.opsets, self.measured = opsets, measured
        if reasons:
            self.measured[node] = reasons[0]
        return outputs[: len(node.outputs)]

    def check_spread(self, node: ir.Node) -> None:
        """A rule that had to give up on a mask: the runs may show that it is tighter."""
        everything = self.space.everything()
        for out in node.outputs:
            found = self.values.get(out)
            if found is None or everything not in found.terms or out in self.unseen:
                continue
            inputs = [self.lookup(value) for value in node.inputs]
            if any(part is not None and everything in part.terms for part in inputs):
                # The runs may have seen a mask take effect late; not worth asking at every node.
                self.asked += 1
                if self.asked > MAX_ASKED:
                    continue
            try:
                better = adopt(self.space, self.evidence, out)
            except OpenError:
                continue
            if everything not in better.terms:
                self.measured[node] = "which positions it combines follows no symbolic rule"
                self.values[out] = better

    def adopt(self, node: ir.Node, reason: str) -> None:
        for out in node.outputs:
            if out in self.unseen:
                raise OpenError(f"{reason}, and no length followed enters a branch before it")
            self.values[out] = adopt(self.space, self.evidence, out)
        self.measured[node] = reason

    def judge(self, value: ir.Value, axes: Sequence[int]) -> bool:
        """Whether the reach of an output is within its position, for all sizes."""
        at(value.producer())
        found = self.lookup(value)
        assert found is not None
        places = []
        for axis in axes:
            try:
                found, index = self.space.single(found, axis)
            except OpenError:
                return self.judge_merged(found, axis)
            places.append(index + self.space.total - self.space.size(found.axes[axis]))
        return all(
            any(
                self.space.bounds.implied(place - term.reach, (*term.where, *self.space.limits))
                for place in places
            )
            for term in found.terms
        )

    def judge_merged(self, found: Symbolic, axis: int) -> bool:
        """An output axis that merges batch and positions."""
        for name in found.axes[axis]:
            size = self.space.bounds.sizes[name]
            place = symbol(name) + self.space.total - size
            if all(
                self.space.bounds.implied(place - term.reach, (*term.where, *self.space.limits))
                for term in found.terms
            ):
                return True
        return False


def _symbols(analysis: Analysis) -> list[str]:
    found = ["batch"] if analysis.signature.has_batch else []
    found.append("seq")
    if analysis.signature.has_past:
        found.append("past_seq")
    return found


def _evidence(analysis: Analysis) -> list[Run]:
    """The runs, and one with another batch size."""
    runs = list(analysis.runs)
    probe = analysis.probe_sizes()
    if probe is not None and analysis.signature.has_batch:
        other = analysis.by_position(probe)
        if other is not None:
            runs.append(other)
    return runs


def prove_symbolically(
    analysis: Analysis, outputs: Mapping[ir.Value, tuple[int, ...]]
) -> SymbolicProof:
    """Show for every length what the runs showed at some.

    Args:
        analysis: With the runs.
        outputs: Value to judge -> its position axes, as the runs found them.
    """
    prover = Prover(analysis)
    stopped = prover.follow()
    if stopped is not None:
        node, why = stopped
        return SymbolicProof(False, why, node, prover.measured)
    assumed = [poly for poly, reason in prover.space.limits.items() if reason]
    limits = tuple(dict.fromkeys(_readable(poly) for poly in assumed))
    longest = tuple(sorted({poly.terms.get((), 0) for poly in assumed}))
    for value, axes in outputs.items():
        if not prover.judge(value, axes):
            spread = _first_spread(prover, value)
            reason = "it was not shown for every length that no later position enters"
            return SymbolicProof(False, reason, spread, prover.measured, limits, longest)
    return SymbolicProof(True, "", None, prover.measured, limits, longest)


def _readable(poly: Poly) -> str:
    """Poly >= 0 as an upper bound, e.g. seq <= 64."""
    fixed = Poly.of(poly.terms.get((), 0))
    return f"{fixed - poly!r} <= {fixed!r}"


def _first_spread(prover: Prover, value: ir.Value) -> ir.Node | None:
    """The earliest node, upstream of an output, whose result reaches everywhere."""
    everything = prover.space.everything()
    current = value
    while True:
        node = current.producer()
        if node is None:
            return None
        wide = [
            v
            for v in node.inputs
            if v is not None
            and v.producer() is not None
            and v in prover.values
            and everything in prover.values[v].terms
        ]
        if not wide:
            return node
        current = wide[0]
