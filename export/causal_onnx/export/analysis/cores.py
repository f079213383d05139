"""Attention cores, recognised by what they compute: softmax(score(q k) + mask) v, or fused.

From each softmax over keys the graph is followed back, through whatever rearranges or scales the
scores, to the product that made them, and forward to the product with the values. Which element is
(batch, head, query, key) is read off the analysis, so any arrangement of axes will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError, attr
from causal_onnx.export.analysis.elements import (
    VERY_NEGATIVE,
    Abstract,
    Elements,
    Known,
    plain,
    restructure,
    view,
)
from causal_onnx.export.analysis.footprint import (
    Footprint,
    Seen,
    footprint_of,
    position_bias,
    seen_keys,
)
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.layout import Layout, flat_index, layout_of
from causal_onnx.export.analysis.moves import MOVES
from causal_onnx.export.analysis.rules.contraction import LETTERS, equation_terms
from causal_onnx.export.analysis.signature import Sizes

__all__ = ["AttentionCore", "MaskTerm", "Operand", "find_cores"]

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a core: q, k, v or the output."""

    value: ir.Value
    layout: Layout
    factor: float = 1.0
    """The core uses the tensor times this (already part of the core's scale)."""


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One thing done to the scores between the product and the softmax."""

    kind: str
    """where: kept where `value` is `keep`, else `fill`; add: `value` times `factor` is added;
    multiply: the scores are multiplied by it; after: the weights are, and renormalised."""
    value: ir.Value
    known: bool
    """It depends on positions alone, not on data."""
    keep: bool = True
    fill: float | None = None
    factor: float = 1.0


@dataclass
class AttentionCore:
    """One attention: out[t] = sum over j of softmax(scale q[t] k[j], masked)[j] v[j]."""

    node: ir.Node
    """The softmax, or the fused operator."""
    kind: str
    """"softmax" or "fused"."""
    q: Operand | None = None
    k: Operand | None = None
    v: Operand | None = None
    output: Operand | None = None
    scale: float | None = None
    softcap: float | None = None
    terms: list[MaskTerm] = field(default_factory=list)
    """In the order they are applied."""
    sink: ir.Value | None = None
    """Scores appended to each row and dropped after the softmax."""
    footprint: Footprint = field(default_factory=lambda: Footprint(kind="other", never_later=False))
    bias: str = ""
    """"", "ALiBi" or "position bias": what known terms add to the scores that are seen."""
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    v_dim: int | None = None
    nodes: list[ir.Node] = field(default_factory=list)
    """From the product of q and k to the output, moves of the operands included."""
    weights: ir.Value | None = None
    """The softmax's output."""
    weights_used: bool = False
    """The weights have another use than the product with v, or are an output."""
    score_axes: tuple[int, int] | None = None
    """The axes of the softmax's input over queries and keys."""
    problem: str = ""
    """What keeps the core from being written in another form; "" if nothing."""

    def describe(self) -> str:
        """Footprint and bias in words."""
        text = str(self.footprint)
        if self.bias:
            text += f" with {self.bias}"
        if self.softcap:
            text += f", softcap {self.softcap:g}"
        if self.sink is not None:
            text += ", sink"
        return text


FUSED = {
    ("", "Attention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "Attention"),
}

MAX_MASK = 1 << 25
"""Largest mask, in elements, that is evaluated to tell the footprint at a large length."""


def find_cores(analysis: Analysis) -> list[AttentionCore]:
    """All attention cores of a graph, in the order it computes them."""
    sizes = analysis.probe_sizes()
    probe = None if sizes is None else analysis.by_position(sizes)
    if probe is None or sizes is None:
        return []
    rows = analysis.by_batch(sizes)
    found = []
    for node in analysis.model.graph:
        domain = "" if node.domain == "ai.onnx" else node.domain
        core = None
        if (domain, node.op_type) in FUSED:
            core = _fused(analysis, probe, node)
        elif node.op_type == "Softmax" and not domain:
            core = _SoftmaxCore(analysis, probe, rows, node).build()
        if core is not None:
            _footprint(analysis, core)
            found.append(core)
    return found


def _tensor(run: Run, value: ir.Value | None) -> Abstract:
    if value is None:
        return None
    if value in run.values:
        return run.values[value]
    return None if value.const_value is None else _constant(value)


def _constant(value: ir.Value) -> Known:
    tensor = value.const_value
    assert tensor is not None
    shape = tuple(int(str(dim)) for dim in tensor.shape)
    return Known(constant=True, shape=shape, load=lambda: plain(tensor.numpy()))


def _scalar(found: Abstract) -> float | None:
    """The one number that a known tensor holds in every element; None if there is none."""
    if not isinstance(found, Known) or found.size == 0 or found.size > 1 << 16:
        return None
    values = found.value.reshape(-1)
    if values.dtype.kind not in "fiu":
        return None
    return float(values[0]) if (values == values[0]).all() else None


class _SoftmaxCore:
    """Follows one softmax both ways."""

    def __init__(self, analysis: Analysis, probe: Run, rows: Run | None, node: ir.Node) -> None:
        self.analysis = analysis
        self.run = probe
        self.rows = rows
        self.core = AttentionCore(node=node, kind="softmax", nodes=[node])
        self.steps: list[tuple[str, ir.Node, float, MaskTerm | None]] = []
        self.capped = False
        self.batch = self.heads = self.queries = self.keys = 1

    def build(self) -> AttentionCore | None:
        """The core; None where the softmax is not over keys."""
        scores = self.core.node.inputs[0]
        assert scores is not None
        labels = self.label(scores)
        if labels is None:
            return None
        self.core.weights = self.core.node.outputs[0]
        try:
            self.back(scores, labels)
            self.interpret_steps()
            self.forward(self.core.node.outputs[0], labels)
        except UnsupportedError as error:
            self.core.problem = str(error)
        return self.core

    def label(self, scores: ir.Value) -> Index | None:
        """For each score its place in (batch, head, query, key), flat."""
        tensor = _tensor(self.run, scores)
        if not isinstance(tensor, Elements):
            return None
        rank = len(tensor.shape)
        key_axis = attr(self.core.node, "axis", -1) % rank
        query_axis = self.query_axis(scores, tensor.shape, key_axis)
        if query_axis is None:
            return None
        self.core.score_axes = (query_axis, key_axis)
        lead = [i for i in range(rank) if i not in (key_axis, query_axis)]
        order = [*lead, query_axis, key_axis]
        shape = [tensor.shape[i] for i in order]
        self.queries, self.keys = shape[-2:]
        count = int(np.prod(shape[:-2], dtype=np.int64))
        row = self.batch_rows(scores, order, count)
        self.batch = int(row.max()) + 1
        if count % self.batch or any((row == b).sum() * self.batch != count for b in set(row)):
            return None
        self.heads = count // self.batch
        seen = [0] * self.batch
        place = np.zeros(count, np.int64)
        for i, b in enumerate(row):
            place[i] = int(b) * self.heads + seen[int(b)]
            seen[int(b)] += 1
        inner = np.arange(self.queries * self.keys)
        flat = place[:, None] * (self.queries * self.keys) + inner[None, :]
        return np.asarray(flat.reshape(shape).transpose(np.argsort(order)))

    def query_axis(self, scores: ir.Value, shape: tuple[int, ...], key_axis: int) -> int | None:
        """The axis over queries; None where the softmax is not over positions."""
        others = [
            (r, found)
            for r in self.analysis.runs
            if isinstance(found := r.values.get(scores), Elements)
            and r.sizes.total_seq != self.run.sizes.total_seq
        ]
        if all(found.shape[key_axis] == shape[key_axis] for _, found in others) and others:
            return None
        if not others and shape[key_axis] < self.run.sizes.total_seq:
            return None
        seq = self.run.sizes.seq
        candidates = [
            axis
            for axis in range(len(shape))
            if axis != key_axis
            and shape[axis] == seq
            and all(found.shape[axis] == r.sizes.seq for r, found in others)
        ]
        if not candidates:
            return None
        return max(candidates)

    def batch_rows(self, scores: ir.Value, order: Sequence[int], count: int) -> Index:
        """The batch row that each leading index of the scores belongs to."""
        found = None if self.rows is None else self.rows.values.get(scores)
        if not isinstance(found, Elements):
            return np.zeros(count, np.int64)
        reach = view(found.reach, found.shape).transpose(order)
        flat = reach.reshape(count, -1)
        return np.asarray(np.maximum(flat.max(axis=1), 0), np.int64)

    def is_scores(self, value: ir.Value | None) -> bool:
        """Whether the value holds a score per query and key (rather than a mask made of data)."""
        return value is not None and self.reaches_product(value, depth=12)

    def reaches_product(self, value: ir.Value, depth: int) -> bool:
        if not isinstance(_tensor(self.run, value), Elements):
            return False
        node = value.producer()
        if node is None or depth == 0:
            return False
        if node.op_type in ("MatMul", "Gemm", "Einsum", "FusedMatMul"):
            tainted = [v for v in node.inputs if isinstance(_tensor(self.run, v), Elements)]
            return len(tainted) >= 2
        if node.op_type in SCORE_OPS or node.op_type in MOVES:
            return any(v is not None and self.reaches_product(v, depth - 1) for v in node.inputs)
        return False

    def back(self, value: ir.Value, labels: Index) -> None:
        """From the softmax's input to the product of q and k."""
        while True:
            node = value.producer()
            if node is None:
                raise UnsupportedError("the scores are an input of the graph")
            self.core.nodes.append(node)
            terms = _product(node, self.run)
            if terms is not None:
                self.query_and_key(node, terms, labels)
                return
            value, labels = self.step_back(node, labels)

    def step_back(self, node: ir.Node, labels: Index) -> tuple[ir.Value, Index]:
        """The scores before this node."""
        op = node.op_type
        inputs = [_tensor(self.run, value) for value in node.inputs]
        if op in MOVES or op in ("Cast", "Identity"):
            source = node.inputs[0]
            assert source is not None
            if op in ("Cast", "Identity"):
                return source, labels
            return source, self.unmoved(node, inputs, labels)
        if op == "Concat":
            return self.drop_sink(node, labels)
        main = self.main_input(node)
        source = node.inputs[main]
        assert source is not None
        others = [i for i in range(len(inputs)) if i != main]
        self.record(node, main, others, inputs)
        found = inputs[main]
        assert isinstance(found, Elements)
        if found.shape != labels.shape:
            raise UnsupportedError(f"{op} broadcasts the scores")
        return source, labels

    def main_input(self, node: ir.Node) -> int:
        candidates = [i for i, v in enumerate(node.inputs) if self.is_scores(v)]
        if not candidates:
            raise UnsupportedError(f"the scores do not come from a product ({node.op_type})")
        return candidates[0]

    def unmoved(self, node: ir.Node, inputs: Sequence[Abstract], labels: Index) -> Index:
        source = inputs[0]
        assert isinstance(source, Elements)
        size = source.size
        move = MOVES[node.op_type](node, source.shape, inputs)
        places = move(np.arange(size).reshape(source.shape), -1)
        out = np.full(size, -1, np.int64)
        real = places >= 0
        out[places[real]] = labels[real]
        return out.reshape(source.shape)

    def drop_sink(self, node: ir.Node, labels: Index) -> tuple[ir.Value, Index]:
        axis = attr(node, "axis") % labels.ndim
        start = 0
        for value in node.inputs:
            assert value is not None
            found = _tensor(self.run, value)
            assert isinstance(found, Elements | Known)
            end = start + found.shape[axis]
            if self.is_scores(value):
                others = [v for v in node.inputs if v is not value]
                if len(others) != 1:
                    raise UnsupportedError("the scores are joined from several parts")
                self.core.sink = others[0]
                index = (slice(None),) * axis + (slice(start, end),)
                return value, labels[index]
            start = end
        raise UnsupportedError("the scores are joined from several parts")

    def record(
        self,
        node: ir.Node,
        main: int,
        others: Sequence[int],
        inputs: Sequence[Abstract],
    ) -> None:
        """Write down what an element-wise node does to the scores."""
        op = node.op_type
        scalars = [_scalar(inputs[i]) for i in others]
        if op in ("Mul", "Div") and len(others) == 1:
            factor = scalars[0]
            if factor is not None and not (op == "Div" and (main == 1 or factor == 0)):
                self.steps.append(("scale", node, factor if op == "Mul" else 1 / factor, None))
                return
            if op == "Mul":
                self.term("multiply", node, others[0], inputs)
                return
        if op in ("Add", "Sub") and len(others) == 1 and not (op == "Sub" and main == 1):
            if self.shifts_rows(inputs[main], inputs[others[0]]):
                return
            sign = 1.0 if op == "Add" else -1.0
            if scalars[0] == 0:
                return
            self.term("add", node, others[0], inputs, factor=sign)
            return
        if op == "Where":
            self.where(node, main, inputs)
            return
        if op == "Tanh":
            self.capped = True
            self.steps.append(("tanh", node, 1.0, None))
            return
        if op in ("Max", "Clip") and all(s is None or s <= VERY_NEGATIVE for s in scalars):
            return
        raise UnsupportedError(f"{op} is applied to the scores")

    def shifts_rows(self, scores: Abstract, other: Abstract) -> bool:
        """Whether a summand is the same for all keys, which a softmax does not see."""
        if self.capped or not isinstance(scores, Elements):
            return False
        assert isinstance(other, Elements | Known)
        assert self.core.score_axes is not None
        at = self.core.score_axes[1] - len(scores.shape)
        return len(other.shape) < -at or other.shape[at] == 1

    def term(
        self,
        kind: str,
        node: ir.Node,
        index: int,
        inputs: Sequence[Abstract],
        *,
        factor: float = 1.0,
    ) -> None:
        value = node.inputs[index]
        assert value is not None
        known = isinstance(inputs[index], Known)
        term = MaskTerm(kind=kind, value=value, known=known, factor=factor)
        self.steps.append((kind, node, factor, term))

    def where(self, node: ir.Node, main: int, inputs: Sequence[Abstract]) -> None:
        condition = node.inputs[0]
        assert condition is not None
        if main == 0:
            raise UnsupportedError("the scores decide a Where")
        fill = _scalar(inputs[3 - main])
        if fill is None:
            raise UnsupportedError("Where puts a tensor in the place of masked scores")
        known = isinstance(inputs[0], Known)
        term = MaskTerm(kind="where", value=condition, known=known, keep=main == 1, fill=fill)
        self.steps.append(("where", node, 1.0, term))

    def interpret_steps(self) -> None:
        """Scale, softcap and terms, from the steps in the order they are applied."""
        scale, after = 1.0, 1.0
        terms: list[MaskTerm] = []
        capped = False
        for kind, _, factor, term in reversed(self.steps):
            if kind == "scale":
                if capped:
                    after *= factor
                else:
                    scale *= factor
                terms = [
                    MaskTerm(t.kind, t.value, t.known, t.keep, t.fill, t.factor * factor)
                    if t.kind == "add"
                    else t
                    for t in terms
                ]
            elif kind == "tanh":
                if capped or terms:
                    raise UnsupportedError("tanh is applied to masked scores")
                capped = True
            else:
                assert term is not None
                terms.append(term)
        if capped:
            self.core.softcap = after
            self.core.scale = scale * after
        else:
            self.core.scale = scale
        self.core.terms = terms

    def query_and_key(self, node: ir.Node, terms: _Terms, labels: Index) -> None:
        """Read q and k off the product."""
        count = self.batch * self.heads * self.queries * self.keys
        where = np.full(count, -1, np.int64)
        flat = labels.reshape(-1)
        real = flat >= 0
        where[flat[real]] = np.flatnonzero(real)
        table = where.reshape(self.batch, self.heads, self.queries, self.keys)
        if (table[..., 0] < 0).any():
            raise UnsupportedError("the product holds other elements than the scores")
        keys = int((table[0, 0, 0] >= 0).sum())
        table = table[..., :keys]
        shape = labels.shape
        at_query = np.unravel_index(table[:, :, :, 0], shape)
        at_key = np.unravel_index(table[:, :, 0, :], shape)
        sides = []
        for letters, value in ((terms.a, node.inputs[0]), (terms.b, node.inputs[1])):
            assert value is not None
            sides.append((letters, value))
        moving = {
            letter
            for axis, letter in enumerate(terms.out)
            if (np.diff(at_query[axis], axis=2) != 0).any()
        }
        first_is_query = bool(moving & set(terms.a)) or (
            self.queries == 1 and not self.moves_with_keys(at_key, terms)
        )
        (q_letters, q_value), (k_letters, k_value) = sides if first_is_query else sides[::-1]
        q_index = self.operand_index(q_letters, q_value, terms, at_query)
        k_index = self.operand_index(k_letters, k_value, terms, at_key)
        self.core.q = _plainest(self.run, q_value, q_index, self.core.nodes)
        self.core.k = _plainest(self.run, k_value, k_index, self.core.nodes)
        factor = terms.factor * self.core.q.factor * self.core.k.factor
        self.steps.append(("scale", node, factor, None))
        self.core.num_heads = self.heads
        self.core.num_kv_heads = self.core.k.layout.heads
        self.core.head_dim = int(q_index.shape[3])

    def moves_with_keys(self, at_key: tuple[Index, ...], terms: _Terms) -> bool:
        return any(
            letter in terms.a and (np.diff(at_key[axis], axis=2) != 0).any()
            for axis, letter in enumerate(terms.out)
        )

    def operand_index(
        self, letters: str, value: ir.Value, terms: _Terms, at: tuple[Index, ...]
    ) -> Index:
        """(batch, head, position, feature) -> flat index into a factor of a product."""
        tensor = _tensor(self.run, value)
        if not isinstance(tensor, Elements | Known):
            raise UnsupportedError("a factor of the product is no tensor")
        shape = tensor.shape
        coordinates = dict(zip(terms.out, at, strict=True))
        summed = [x for x in letters if x not in terms.out]
        sizes = [shape[letters.index(x)] for x in summed]
        total = int(np.prod(sizes, dtype=np.int64))
        feature = np.unravel_index(np.arange(total), sizes) if summed else ()
        parts = []
        for axis, letter in enumerate(letters):
            if letter in summed:
                parts.append(feature[summed.index(letter)])
            elif shape[axis] == 1:
                parts.append(np.zeros(1, np.int64))
            else:
                parts.append(coordinates[letter][..., None])
        index = flat_index(shape, *parts)
        lead = np.broadcast_shapes(index.shape, (*at[0].shape, total))
        return np.broadcast_to(index, lead)

    def forward(self, value: ir.Value, labels: Index) -> None:
        """From the weights to the product with v, and on to the output."""
        while True:
            node = self.next_node(value)
            self.core.nodes.append(node)
            terms = _product(node, self.run)
            if terms is not None:
                self.values(node, terms, value, labels)
                return
            value, labels = self.step_forward(node, value, labels)

    def next_node(self, value: ir.Value) -> ir.Node:
        """The consumer that leads on to the values; the others are other uses of the weights."""
        uses = [use.node for use in value.uses()]
        checks = [n for n in uses if n.op_type == "IsNaN"]
        guarded = {use.node for n in checks for use in n.outputs[0].uses()}
        rest = [n for n in dict.fromkeys(uses) if n not in checks]
        if len(rest) > 1 or value.is_graph_output():
            self.core.weights_used = True
        ways = [n for n in rest if _product(n, self.run) is not None] or [
            n for n in rest if n.op_type in WEIGHT_OPS or n.op_type in MOVES or n in guarded
        ]
        if not ways:
            names = ", ".join(n.op_type for n in rest) or "nothing"
            raise UnsupportedError(f"the weights go into {names}")
        self.core.nodes.extend(checks)
        return ways[0]

    def step_forward(self, node: ir.Node, value: ir.Value, labels: Index) -> tuple[ir.Value, Index]:
        op = node.op_type
        inputs = [_tensor(self.run, v) for v in node.inputs]
        out = node.outputs[0]
        if op in ("Cast", "Identity", "Dropout"):
            return out, labels
        if op == "Where" and node.inputs[2] is value and _scalar(inputs[1]) == 0:
            return out, labels
        if op in MOVES and node.inputs[0] is value:
            source = inputs[0]
            assert isinstance(source, Elements)
            return out, MOVES[op](node, source.shape, inputs)(labels, -1)
        if op == "Mul":
            other = 1 if node.inputs[0] is value else 0
            if isinstance(inputs[other], Known) and _scalar(inputs[other]) is None:
                mask = node.inputs[other]
                assert mask is not None
                term = MaskTerm(kind="after", value=mask, known=True)
                out = self.renormalised(out)
                self.core.terms.append(term)
                return out, labels
        raise UnsupportedError(f"{op} is applied to the weights")

    def renormalised(self, value: ir.Value) -> ir.Value:
        """After masked weights: their division by their own sum, which makes them a softmax."""
        uses = [use.node for use in value.uses()]
        sums = [n for n in uses if n.op_type == "ReduceSum"]
        for node in uses:
            if node.op_type == "Div" and node.inputs[0] is value and sums:
                below = node.inputs[1]
                while below is not None and below.producer() is not None:
                    maker = below.producer()
                    assert maker is not None
                    if maker in sums:
                        self.core.nodes.extend([node, *sums])
                        return node.outputs[0]
                    below = maker.inputs[0] if maker.op_type in ("Add", "Clip", "Max") else None
        raise UnsupportedError("the weights are masked after the softmax and not renormalised")

    def values(self, node: ir.Node, terms: _Terms, weights: ir.Value, labels: Index) -> None:
        """Read v and the output off the product with the weights."""
        first = node.inputs[0] is weights
        p_letters, v_letters = (terms.a, terms.b) if first else (terms.b, terms.a)
        v_value = node.inputs[1 if first else 0]
        out = node.outputs[0]
        assert v_value is not None
        v_tensor, o_tensor = _tensor(self.run, v_value), _tensor(self.run, out)
        if not isinstance(v_tensor, Elements) or not isinstance(o_tensor, Elements):
            raise UnsupportedError("the values do not depend on data")
        count = self.batch * self.heads * self.queries * self.keys
        where = np.full(count, -1, np.int64)
        flat = labels.reshape(-1)
        real = flat >= 0
        where[flat[real]] = np.flatnonzero(real)
        table = where.reshape(self.batch, self.heads, self.queries, self.keys)
        keys = int((table[0, 0, 0] >= 0).sum())
        table = table[..., :keys]
        at_key = dict(
            zip(p_letters, np.unravel_index(table[:, :, 0, :], labels.shape), strict=True)
        )
        at_query = dict(
            zip(p_letters, np.unravel_index(table[:, :, :, 0], labels.shape), strict=True)
        )
        own = [x for x in v_letters if x not in p_letters]
        sizes = [v_tensor.shape[v_letters.index(x)] for x in own]
        width = int(np.prod(sizes, dtype=np.int64))
        feature = (
            dict(zip(own, np.unravel_index(np.arange(width), sizes), strict=True)) if own else {}
        )

        def index(letters: str, shape: Sequence[int], at: dict[str, Index]) -> Index:
            parts = []
            for axis, letter in enumerate(letters):
                if letter in feature:
                    parts.append(feature[letter])
                elif shape[axis] == 1:
                    parts.append(np.zeros(1, np.int64))
                else:
                    parts.append(at[letter][..., None])
            found = flat_index(shape, *parts)
            full = np.broadcast_shapes(found.shape, (*next(iter(at.values())).shape, width))
            return np.broadcast_to(found, full)

        at = index(v_letters, v_tensor.shape, at_key)
        self.core.v = _plainest(self.run, v_value, at, self.core.nodes)
        self.core.v_dim = width
        self.output(out, index(terms.out, o_tensor.shape, at_query))
        if terms.factor * self.core.v.factor != 1.0:
            self.core.problem = "the weighted sum is scaled"

    def output(self, value: ir.Value, index: Index) -> None:
        """The output as far forward as moves alone take it."""
        tensor = _tensor(self.run, value)
        assert isinstance(tensor, Elements)
        layout = layout_of(index, tensor.shape)
        if layout is None:
            raise UnsupportedError("the output is not laid out by position and head")
        best = Operand(value, layout)
        while True:
            uses = [use.node for use in value.uses()]
            if len(uses) != 1 or value.is_graph_output() or uses[0].op_type not in MOVES:
                break
            node = uses[0]
            inputs = [_tensor(self.run, v) for v in node.inputs]
            source = inputs[0]
            if not isinstance(source, Elements) or node.inputs[0] is not value:
                break
            if any(isinstance(x, Elements) for x in inputs[1:]):
                break
            places = MOVES[node.op_type](node, source.shape, inputs)(
                np.arange(source.size).reshape(source.shape), -1
            ).reshape(-1)
            if places.size != source.size or len(np.unique(places)) != places.size:
                break
            inverse = np.empty_like(places)
            inverse[places] = np.arange(places.size)
            value, index = node.outputs[0], inverse[index]
            moved = _tensor(self.run, value)
            assert isinstance(moved, Elements)
            layout = layout_of(index, moved.shape)
            if layout is None:
                break
            self.core.nodes.append(node)
            best = Operand(value, layout)
        self.core.output = best


SCORE_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Clip", "Concat"}
)
WEIGHT_OPS = frozenset({"Cast", "Identity", "Dropout", "Where", "Mul"})


@dataclass(frozen=True, slots=True)
class _Terms:
    """A product of two tensors in einsum letters, times a number."""

    a: str
    b: str
    out: str
    factor: float = 1.0


def _product(node: ir.Node, run: Run) -> _Terms | None:
    """The letters of a node that contracts two tensors made of data; None for any other."""
    if node.op_type not in ("MatMul", "Gemm", "Einsum", "FusedMatMul") or len(node.inputs) < 2:
        return None
    a, b = (_tensor(run, value) for value in node.inputs[:2])
    if not isinstance(a, Elements) or not isinstance(b, Elements):
        return None
    if node.op_type == "Einsum":
        if len(node.inputs) != 2:
            return None
        terms, out = equation_terms(attr(node, "equation"), [len(a.shape), len(b.shape)])
        if len(set(terms[0])) < len(terms[0]) or len(set(terms[1])) < len(terms[1]):
            return None
        return _Terms(terms[0], terms[1], out)
    if len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if node.op_type == "Gemm":
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return None
        left = "yx" if attr(node, "transA", 0) else "xy"
        right = "zy" if attr(node, "transB", 0) else "yz"
        return _Terms(left, right, "xz", attr(node, "alpha", 1.0))
    lead_a, lead_b = len(a.shape) - 2, len(b.shape) - 2
    lead = max(lead_a, lead_b)
    batch = LETTERS[:lead]
    left = "yx" if attr(node, "transA", 0) else "xy"
    right = "zy" if attr(node, "transB", 0) else "yz"
    return _Terms(
        batch[lead - lead_a :] + left,
        batch[lead - lead_b :] + right,
        batch + "xz",
        attr(node, "alpha", 1.0),
    )


def _plainest(run: Run, value: ir.Value, index: Index, nodes: list[ir.Node]) -> Operand:
    """The operand past the scalings and moves that prepared it, which are added to `nodes`.

    Args:
        run: At the sizes of `index`.
        value: A factor of a product, or an input of a fused operator.
        index: (batch, head, position, feature) -> flat index into it.
        nodes: The core's nodes.

    Raises:
        UnsupportedError: It is no rearrangement of (batch, head, position, feature).
    """
    best: Operand | None = None
    passed: list[ir.Node] = []
    factor = 1.0
    while True:
        tensor = _tensor(run, value)
        if not isinstance(tensor, Elements):
            break
        layout = layout_of(index, tensor.shape)
        if layout is not None and (best is None or layout.is_plainer(best.layout)):
            best = Operand(value, layout, factor)
            nodes.extend(passed)
            passed = []
        node = value.producer()
        step = None if node is None else _source_step(run, node, value, index)
        if node is None or step is None:
            break
        passed.append(node)
        value, index, more = step
        factor *= more
    if best is None:
        raise UnsupportedError("a factor of the product is not laid out by position and head")
    return best


def _source_step(
    run: Run, node: ir.Node, value: ir.Value, index: Index
) -> tuple[ir.Value, Index, float] | None:
    """The tensor before a move or a scaling, where it is used, and the scale; None at any other."""
    inputs = [_tensor(run, v) for v in node.inputs]
    source = node.inputs[0] if node.inputs else None
    if source is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Identity":
        return source, index, 1.0
    if node.op_type in MOVES:
        found = inputs[0]
        if not isinstance(found, Elements) or any(isinstance(x, Elements) for x in inputs[1:]):
            return None
        move = MOVES[node.op_type](node, found.shape, inputs)
        places = move(np.arange(found.size).reshape(found.shape), -1).reshape(-1)
        return source, places[index], 1.0
    if node.op_type in ("Mul", "Div"):
        for main, other in ((0, 1), (1, 0)):
            factor, target, found = _scalar(inputs[other]), node.inputs[main], inputs[main]
            if factor is None or factor == 0 or not isinstance(found, Elements):
                continue
            if target is None or (node.op_type == "Div" and main == 1):
                continue
            out = _tensor(run, value)
            if isinstance(out, Elements) and found.shape == out.shape:
                return target, index, factor if node.op_type == "Mul" else 1 / factor
    return None


def _fused(analysis: Analysis, probe: Run, node: ir.Node) -> AttentionCore:
    """An attention operator: its operands are its inputs."""
    core = AttentionCore(node=node, kind="fused", nodes=[node])
    contrib = node.domain == "com.microsoft"
    heads = attr(node, "num_heads" if contrib else "q_num_heads")
    kv_heads = attr(node, "kv_num_heads", heads)
    core.softcap = attr(node, "softcap", 0.0) or None
    packed = node.op_type == "Attention" and contrib
    values = [node.inputs[i] if i < len(node.inputs) else None for i in range(3)]
    if packed or any(value is None for value in values):
        core.problem = "its queries, keys and values are packed in one tensor"
        core.num_heads, core.num_kv_heads = heads, kv_heads
        return core
    operands = []
    for value, count in zip(values, (heads, kv_heads, kv_heads), strict=True):
        assert value is not None
        operand = _operand(value, _tensor(probe, value), count)
        if operand is None:
            core.problem = f"input {value.name} has an unexpected shape"
            return core
        operands.append(_plainer(probe, operand, core.nodes))
    core.q, core.k, core.v = operands
    core.output = _operand(node.outputs[0], _tensor(probe, node.outputs[0]), heads)
    core.num_heads = core.q.layout.heads
    core.num_kv_heads = core.k.layout.heads
    core.head_dim = _width(core.q, probe)
    core.v_dim = _width(core.v, probe)
    scale = attr(node, "scale", 0.0) or (1 / math.sqrt(core.head_dim or 1))
    core.scale = scale * core.q.factor * core.k.factor
    if core.v.factor != 1.0:
        core.problem = "the values are scaled"
    if not contrib and len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = node.inputs[3]
        known = isinstance(_tensor(probe, mask), Known)
        kind = "where" if mask.dtype == ir.DataType.BOOL else "add"
        core.terms.append(MaskTerm(kind=kind, value=mask, known=known, fill=-math.inf))
    return core


def _operand(value: ir.Value, tensor: Abstract, heads: int | None) -> Operand | None:
    if not isinstance(tensor, Elements | Known):
        return None
    if len(tensor.shape) == 4:
        return Operand(value, Layout((("b",), ("h",), ("s",), ("d",)), tensor.shape[1]))
    if len(tensor.shape) == 3 and heads:
        return Operand(value, Layout((("b",), ("s",), ("h", "d")), heads))
    return None


def _plainer(run: Run, operand: Operand, nodes: list[ir.Node]) -> Operand:
    """The operand of a fused operator before the moves (a transpose, repeated heads) into it."""
    tensor = _tensor(run, operand.value)
    if not isinstance(tensor, Elements):
        return operand
    index = np.arange(tensor.size).reshape(tensor.shape)
    if len(tensor.shape) == 3:
        batch, seq, width = tensor.shape
        heads = operand.layout.heads
        index = index.reshape(batch, seq, heads, width // heads).transpose(0, 2, 1, 3)
    try:
        return _plainest(run, operand.value, index, nodes)
    except UnsupportedError:
        return operand


def _width(operand: Operand, run: Run) -> int | None:
    tensor = _tensor(run, operand.value)
    if not isinstance(tensor, Elements | Known):
        return None
    sizes = [1, 1]
    for axis, letters in zip(tensor.shape, operand.layout.axes, strict=True):
        if "d" in letters:
            sizes[0] = axis
            sizes[1] = operand.layout.heads if "h" in letters else 1
    return sizes[0] // sizes[1]


def _footprint(analysis: Analysis, core: AttentionCore) -> None:
    """What the core sees at all sizes that were run, and at one past the numbers in its mask."""
    found = [seen for run in analysis.runs if (seen := _seen_in(core, run)) is not None]
    large = _large_sizes(analysis, core)
    for sizes in large:
        run = analysis.blank(sizes)
        seen = None if run is None else _seen_by_terms(core, run)
        if seen is not None:
            found.append(seen)
    core.footprint = footprint_of(found)
    _bias(analysis, core)


def _seen_in(core: AttentionCore, run: Run) -> Seen | None:
    """From the scores themselves."""
    if core.kind == "fused":
        scores = run.context.scores.get(core.node)
        if scores is None:
            return None
    else:
        tensor = _tensor(run, core.node.inputs[0])
        if not isinstance(tensor, Elements):
            return None
        scores = tensor
        assert core.score_axes is not None
        scores = _last_axes(scores, core.score_axes)
    keys = seen_keys(scores)
    if core.sink is not None:
        keys = keys[..., :-1]
    for term in core.terms:
        mask = _tensor(run, term.value)
        if term.kind == "after" and isinstance(mask, Known):
            keys = keys & _spread_term(core, mask.value != 0, scores.shape)
    return Seen(keys, keys.shape[-1] - keys.shape[-2])


def _last_axes(tensor: Elements, axes: tuple[int, int]) -> Elements:
    """The same scores with queries and keys as the last two axes."""
    rank = len(tensor.shape)
    if tuple(axes) == (rank - 2, rank - 1):
        return tensor
    order = [i for i in range(rank) if i not in axes] + list(axes)
    return restructure(tensor, lambda array, _: array.transpose(order))


def _spread_term(
    core: AttentionCore, mask: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """A term that broadcasts to the scores, as (lead, seq, total); `shape` has these two last.

    Raises:
        ValueError: It does not broadcast to the scores.
    """
    rank = len(shape)
    query, key = core.score_axes or (rank - 2, rank - 1)
    order = [i for i in range(rank) if i not in (query, key)] + [query, key]
    mask = mask.reshape((1,) * (rank - mask.ndim) + mask.shape).transpose(order)
    lead = mask.shape[:-2]
    full = np.broadcast_to(mask, (*lead, *shape[-2:])).reshape(-1, *shape[-2:])
    return full[:1] if (full == full[:1]).all() else full


def _seen_by_terms(core: AttentionCore, run: Run) -> Seen | None:
    """From the position-only terms, at a size where the scores themselves are not followed."""
    sizes = run.sizes
    rows, columns = sizes.seq, sizes.total_seq
    keys = np.ones((1, rows, columns), np.bool_)
    shape = (*(1,) * (_rank(run, core) - 2), rows, columns)
    if core.kind == "fused":
        if core.node.op_type != "Attention" or core.node.domain:
            return None
        if attr(core.node, "is_causal", 0):
            keys &= np.arange(columns)[None, :] <= np.arange(rows)[:, None] + sizes.past_seq
    for term in core.terms:
        mask = _tensor(run, term.value)
        if not isinstance(mask, Known):
            continue
        value = mask.value
        if term.kind == "where":
            if term.fill is None or term.fill > VERY_NEGATIVE:
                return None
            some = value.astype(np.bool_) == term.keep
        elif term.kind == "add":
            some = ~(value.astype(np.float64) * term.factor <= VERY_NEGATIVE)
        elif term.kind in ("multiply", "after"):
            some = value != 0
        else:
            return None
        try:
            keys = keys & _spread_term(core, np.asarray(some), shape)
        except ValueError:
            return None
    return Seen(keys, columns - rows)


def _large_sizes(analysis: Analysis, core: AttentionCore) -> list[Sizes]:
    """A length beyond each number that the mask is computed with: windows show only there."""
    if analysis.signature.fixed_seq is not None or not analysis.runs:
        return []
    base = max((r.sizes for r in analysis.runs), key=lambda s: s.seq)
    limit = analysis.signature.max_seq_len
    numbers = sorted(set(_numbers(core)))
    wanted = [n + 2 for n in numbers if n + 2 > base.seq and (n + 2) ** 2 <= MAX_MASK]
    if limit is not None:
        wanted = [min(n, limit) for n in wanted]
    sizes = []
    for n in sorted(set(wanted))[:4]:
        sizes.append(Sizes(batch=base.batch, seq=n, past_seq=0, other=base.other))
    return sizes


def _numbers(core: AttentionCore) -> Iterator[int]:
    """Whole numbers among the constants that the position-only terms are computed from."""
    todo = [term.value for term in core.terms if term.known]
    done: set[ir.Value] = set()
    while todo and len(done) < 400:
        value = todo.pop()
        if value in done:
            continue
        done.add(value)
        node = value.producer()
        tensor = value.const_value
        if node is not None and node.op_type == "Constant":
            held = node.attributes.get("value")
            tensor = None if held is None else held.as_tensor()
        if tensor is not None:
            if tensor.size == 1:
                number = float(np.asarray(tensor.numpy()).reshape(-1)[0])
                if math.isfinite(number) and abs(number) < 1 << 20 and number == int(number):
                    yield abs(int(number))
            continue
        if node is not None and node.op_type != "Shape":
            todo.extend(v for v in node.inputs if v is not None)


def _rank(run: Run, core: AttentionCore) -> int:
    scores = None if core.kind == "fused" else _tensor(run, core.node.inputs[0])
    return len(scores.shape) if isinstance(scores, Elements) else 4


def _bias(analysis: Analysis, core: AttentionCore) -> None:
    """Name what the known additive terms do to the scores that are seen."""
    run = max(analysis.runs, key=lambda r: r.sizes.seq)
    seen = _seen_in(core, run)
    if seen is None:
        return
    rows, columns = seen.keys.shape[-2:]
    total = np.zeros((1, rows, columns))
    for term in core.terms:
        mask = _tensor(run, term.value)
        if term.kind != "add" or not isinstance(mask, Known):
            continue
        value = mask.value.astype(np.float64) * term.factor
        try:
            total = total + _spread_term(
                core, value, (*(1,) * (_rank(run, core) - 2), rows, columns)
            )
        except ValueError:
            continue
    core.bias = position_bias(total, seen.keys[0], seen.past)
