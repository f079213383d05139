"""From a softmax over keys to the attention around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError, attr, known_ints
from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Abstract, Elements, Known, view
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.moves import MOVES
from causal_onnx.export.attention.axis_map import Index, Layout, flat_index, layout_of
from causal_onnx.export.attention.core import AttentionCore, MaskTerm
from causal_onnx.export.attention.operands import (
    Terms,
    outcome,
    plainest,
    product,
    scalar_of,
    tensor_of,
)

__all__ = ["SoftmaxCore"]

SCORE_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Clip", "Concat"}
)
LARGEST_GUARD = 1e-12
"""What is added to a sum of weights against a division by 0 is at most this. More would be felt:
the mask may leave little of a row's weight."""

WEIGHT_OPS = frozenset({"Cast", "Identity", "Dropout", "Where", "Mul"})


class SoftmaxCore:
    """Follows one softmax both ways."""

    def __init__(self, analysis: Analysis, probe: Run, rows: Run | None, node: ir.Node) -> None:
        self.analysis = analysis
        self.run = probe
        self.rows = rows
        self.core = AttentionCore(node=node, kind="softmax")
        self.steps: list[tuple[str, float, MaskTerm | None]] = []
        self.capped = False
        self.padded = False
        self.sink_factor = 1.0
        """What the scores, and a sink beside them, are multiplied by after the sink is joined."""
        self.batch = self.heads = self.queries = self.keys = 1
        self.columns: Index = np.zeros(0, np.int64)
        """The keys among the columns of the softmax; the others are sinks."""

    def build(self) -> AttentionCore | None:
        """The core; None where the softmax is not over keys."""
        scores = self.core.node.inputs[0]
        assert scores is not None
        labels = self.label(scores)
        if labels is None:
            return None
        try:
            self.back(scores, labels)
            self.interpret_steps()
            self.forward(self.core.node.outputs[0], labels)
        except UnsupportedError as error:
            self.core = replace(self.core, problem=str(error))
        return self.core

    def label(self, scores: ir.Value) -> Index | None:
        """For each score its place in (batch, head, query, key), flat."""
        tensor = tensor_of(self.run, scores)
        if not isinstance(tensor, Elements):
            return None
        rank = len(tensor.shape)
        key_axis = attr(self.core.node, "axis", -1) % rank
        query_axis = self.query_axis(scores, tensor.shape, key_axis)
        if query_axis is None:
            return None
        self.core = replace(self.core, score_axes=(query_axis, key_axis))
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
        if not isinstance(tensor_of(self.run, value), Elements):
            return False
        node = value.producer()
        if node is None or depth == 0:
            return False
        if node.op_type in ("MatMul", "Gemm", "Einsum", "FusedMatMul"):
            tainted = [v for v in node.inputs if isinstance(tensor_of(self.run, v), Elements)]
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
            terms = product(node, self.run)
            if terms is not None:
                self.query_and_key(node, terms, labels)
                return
            value, labels = self.step_back(node, labels)

    def step_back(self, node: ir.Node, labels: Index) -> tuple[ir.Value, Index]:
        """The scores before this node."""
        op = node.op_type
        inputs = [tensor_of(self.run, value) for value in node.inputs]
        if op in MOVES or op in ("Cast", "Identity"):
            source = node.inputs[0]
            assert source is not None
            if op in ("Cast", "Identity"):
                return source, labels
            if op == "Pad":
                self.pad_sink(node, inputs)
            return source, self.unmoved(node, inputs, labels)
        if op == "Concat":
            return self.drop_sink(node, labels)
        main = self.main_input(node)
        source = node.inputs[main]
        assert source is not None
        others = [i for i in range(len(inputs)) if i != main]
        self.record(node, main, others, inputs, self.layout(labels))
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
            found = tensor_of(self.run, value)
            assert isinstance(found, Elements | Known)
            end = start + found.shape[axis]
            if self.is_scores(value):
                others = [v for v in node.inputs if v is not value]
                if len(others) != 1:
                    raise UnsupportedError("the scores are joined from several parts")
                index = (slice(None),) * axis + (slice(start, end),)
                kept = labels[index]
                self.check_sink(node)
                scores = self.scores_of_sink(others[0], kept, axis)
                self.core = replace(self.core, sink=others[0], sink_scores=scores)
                return value, kept
            start = end
        raise UnsupportedError("the scores are joined from several parts")

    def pad_sink(self, node: ir.Node, inputs: Sequence[Abstract]) -> None:
        """Columns of one number beside the scores."""
        self.check_sink(node)
        fill = inputs[2] if len(inputs) > 2 else None
        score = 0.0 if fill is None else scalar_of(fill)
        if score is None or attr(node, "mode", "constant") != "constant":
            raise UnsupportedError("the scores are padded with other than a number")
        scores = (score * self.sink_factor,) * self.heads
        self.core = replace(self.core, sink=node.outputs[0], sink_scores=scores)
        self.padded = True

    def check_sink(self, node: ir.Node) -> None:
        if self.core.sink is not None:
            raise UnsupportedError("two sinks are joined to the scores")
        for kind, factor, _ in self.steps:
            if kind != "scale":
                raise UnsupportedError(f"{node.op_type} joins a sink to the scores before a mask")
            self.sink_factor *= factor

    def scores_of_sink(
        self, sink: ir.Value | None, kept: Index, axis: int
    ) -> tuple[float, ...] | None:
        """The one score that weighs as much as each head's sinks; None where there is none."""
        found = tensor_of(self.run, sink)
        table = self.places(kept)
        if not isinstance(found, Known) or (table[..., self.own_columns(table)] < 0).any():
            return None
        at = list(np.unravel_index(table[..., self.own_columns(table)[0]], kept.shape))
        at[axis] = np.zeros_like(at[axis])
        places = tuple(part[..., None] for part in at)
        width = np.arange(found.shape[axis])
        places = (*places[:axis], places[axis] + width, *places[axis + 1 :])
        scores = found.value.astype(np.float64)[places] * self.sink_factor
        joined = np.logaddexp.reduce(scores, axis=-1)  # (batch, head, query)
        if not (joined == joined[:1, :, :1]).all():
            return None
        return tuple(float(score) for score in joined[0, :, 0])

    def places(self, labels: Index) -> Index:
        """(batch, head, query, column) -> where that score stands in the tensor of `labels`, or
        -1."""
        where = np.full(self.batch * self.heads * self.queries * self.keys, -1, np.int64)
        flat = labels.reshape(-1)
        real = flat >= 0
        where[flat[real]] = np.flatnonzero(real)
        return where.reshape(self.batch, self.heads, self.queries, self.keys)

    def own_columns(self, table: Index) -> Index:
        """The columns that are there."""
        return np.flatnonzero(table[0, 0, 0] >= 0)

    def layout(self, labels: Index) -> Layout | None:
        """How a tensor holds scores: s is the query, d the column."""
        table = self.places(labels)
        table = table[..., self.own_columns(table)]
        return None if (table < 0).any() else layout_of(table, labels.shape)

    def record(
        self,
        node: ir.Node,
        main: int,
        others: Sequence[int],
        inputs: Sequence[Abstract],
        scores: Layout | None,
    ) -> None:
        """Write down what an element-wise node does to the scores."""
        op = node.op_type
        scalars = [scalar_of(inputs[i]) for i in others]
        if op in ("Mul", "Div") and len(others) == 1:
            factor = scalars[0]
            if factor is not None and not (op == "Div" and (main == 1 or factor == 0)):
                self.steps.append(("scale", factor if op == "Mul" else 1 / factor, None))
                return
            if op == "Mul":
                self.term("multiply", node, others[0], inputs, scores)
                return
        if op in ("Add", "Sub") and len(others) == 1 and not (op == "Sub" and main == 1):
            if self.shifts_rows(inputs[main], inputs[others[0]]):
                return
            sign = 1.0 if op == "Add" else -1.0
            if scalars[0] == 0:
                return
            self.term("add", node, others[0], inputs, scores, factor=sign)
            return
        if op == "Where":
            self.where(node, main, inputs, scores)
            return
        if op == "Tanh":
            self.capped = True
            self.steps.append(("tanh", 1.0, None))
            return
        if op in ("Max", "Clip") and all(s is None or s <= VERY_NEGATIVE for s in scalars):
            return
        raise UnsupportedError(f"{op} is applied to the scores")

    def shifts_rows(self, scores: Abstract, other: Abstract) -> bool:
        """Whether a summand is the same for all keys, which a softmax does not see."""
        # (Beside a sink that is joined afterwards it counts.)
        if self.capped or self.core.sink is not None or not isinstance(scores, Elements):
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
        scores: Layout | None,
        *,
        factor: float = 1.0,
    ) -> None:
        value = node.inputs[index]
        assert value is not None
        known = isinstance(inputs[index], Known)
        term = MaskTerm(kind=kind, value=value, known=known, factor=factor, scores=scores)
        self.steps.append((kind, factor, term))

    def where(
        self, node: ir.Node, main: int, inputs: Sequence[Abstract], scores: Layout | None
    ) -> None:
        condition = node.inputs[0]
        assert condition is not None
        if main == 0:
            raise UnsupportedError("the scores decide a Where")
        fill = scalar_of(inputs[3 - main])
        if fill is None:
            raise UnsupportedError("Where puts a tensor in the place of masked scores")
        known = isinstance(inputs[0], Known)
        term = MaskTerm(
            kind="where",
            value=condition,
            known=known,
            keep=main == 1,
            fill=fill,
            scores=scores,
        )
        self.steps.append(("where", 1.0, term))

    def interpret_steps(self) -> None:
        """Scale, softcap and terms, from the steps in the order they are applied."""
        scale, after = 1.0, 1.0
        terms: list[MaskTerm] = []
        capped = False
        for kind, factor, term in reversed(self.steps):
            if kind == "scale":
                if capped:
                    after *= factor
                else:
                    scale *= factor
                terms = [_scaled(term, factor) for term in terms]
            elif kind == "tanh":
                if capped or terms:
                    raise UnsupportedError("tanh is applied to masked scores")
                capped = True
            else:
                assert term is not None
                terms.append(term)
        if capped:
            self.core = replace(self.core, softcap=after)
            scale *= after
        self.core = replace(self.core, scale=scale, terms=tuple(terms))

    def query_and_key(self, node: ir.Node, terms: Terms, labels: Index) -> None:
        """Read q and k off the product."""
        table = self.places(labels)
        self.columns = self.own_columns(table)
        table = table[..., self.columns]
        if table.size == 0 or (table < 0).any():
            raise UnsupportedError("the product holds other elements than the scores")
        missing = self.keys - len(self.columns)
        if missing and self.core.sink is None:
            raise UnsupportedError("some of the scores do not come from the product")
        if missing:
            first = bool(self.columns[0] > 0)
            self.core = replace(self.core, sink_columns=missing, sink_first=first)
            if first and self.columns[-1] < self.keys - 1:
                raise UnsupportedError("sinks are joined to the scores on both sides")
        if missing and self.padded and self.core.sink_scores is not None:
            weight = float(np.log(missing))
            scores = tuple(score + weight for score in self.core.sink_scores)
            self.core = replace(self.core, sink_scores=scores)
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
        q = plainest(self.run, q_value, q_index)
        k = plainest(self.run, k_value, k_index)
        self.steps.append(("scale", terms.factor * q.factor * k.factor, None))
        self.core = replace(
            self.core,
            q=q,
            k=k,
            num_heads=self.heads,
            num_kv_heads=self.heads if k.layout.picks else k.layout.heads,
            head_dim=int(q_index.shape[3]),
        )

    def moves_with_keys(self, at_key: tuple[Index, ...], terms: Terms) -> bool:
        return any(
            letter in terms.a and (np.diff(at_key[axis], axis=2) != 0).any()
            for axis, letter in enumerate(terms.out)
        )

    def operand_index(
        self, letters: str, value: ir.Value, terms: Terms, at: tuple[Index, ...]
    ) -> Index:
        """(batch, head, position, feature) -> flat index into a factor of a product."""
        tensor = tensor_of(self.run, value)
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
            terms = product(node, self.run)
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
            self.core = replace(self.core, weights_used=True)
        ways = [n for n in rest if product(n, self.run) is not None] or [
            n for n in rest if n.op_type in WEIGHT_OPS or n.op_type in MOVES or n in guarded
        ]
        if not ways:
            names = ", ".join(n.op_type for n in rest) or "nothing"
            raise UnsupportedError(f"the weights go into {names}")
        return ways[0]

    def step_forward(self, node: ir.Node, value: ir.Value, labels: Index) -> tuple[ir.Value, Index]:
        op = node.op_type
        inputs = [tensor_of(self.run, v) for v in node.inputs]
        out = node.outputs[0]
        if op in ("Cast", "Identity", "Dropout"):
            return out, labels
        if op == "Where" and node.inputs[2] is value and scalar_of(inputs[1]) == 0:
            if isinstance(inputs[0], Known) and inputs[0].value.any():
                raise UnsupportedError("weights are set to 0 after the softmax, by position")
            return out, labels
        if op in MOVES and node.inputs[0] is value:
            source = inputs[0]
            assert isinstance(source, Elements)
            return out, MOVES[op](node, source.shape, inputs)(labels, -1)
        if op == "Mul":
            other = 1 if node.inputs[0] is value else 0
            if isinstance(inputs[other], Known) and scalar_of(inputs[other]) is None:
                mask = node.inputs[other]
                assert mask is not None
                scores = self.layout(labels)
                term = MaskTerm(kind="after", value=mask, known=True, scores=scores)
                out = self.renormalised(out, scores)
                self.core = replace(self.core, terms=(*self.core.terms, term))
                return out, labels
        raise UnsupportedError(f"{op} is applied to the weights")

    def renormalised(self, value: ir.Value, scores: Layout | None) -> ir.Value:
        """After masked weights: their division by their own sum, which makes them a softmax."""
        key = None if scores is None else scores.axis_of("d")
        uses = [use.node for use in value.uses()]
        sums = [n for n in uses if n.op_type == "ReduceSum" and self.reduces(n, key)]
        for node in uses:
            if node.op_type == "Div" and node.inputs[0] is value and sums:
                below = node.inputs[1]
                while below is not None and below.producer() is not None:
                    maker = below.producer()
                    assert maker is not None
                    if maker in sums:
                        return node.outputs[0]
                    below = maker.inputs[0] if self.is_guard(maker) else None
        raise UnsupportedError("the weights are masked after the softmax and not renormalised")

    def reduces(self, node: ir.Node, axis: int | None) -> bool:
        """Whether a sum runs along this axis and no other."""
        whole = tensor_of(self.run, node.inputs[0])
        inputs = [tensor_of(self.run, v) for v in node.inputs]
        axes = known_ints(inputs, 1, "axes") or attr(node, "axes")
        if axis is None or axes is None or not isinstance(whole, Elements):
            return False
        return [a % len(whole.shape) for a in axes] == [axis]

    def is_guard(self, node: ir.Node) -> bool:
        """Whether a node only keeps a sum away from 0, by less than rounding shows."""
        others = [scalar_of(tensor_of(self.run, v)) for v in node.inputs[1:] if v is not None]
        if node.op_type == "Clip":
            others = others[:1]
        return node.op_type in ("Add", "Clip", "Max") and all(
            n is not None and abs(n) <= LARGEST_GUARD for n in others
        )

    def values(self, node: ir.Node, terms: Terms, weights: ir.Value, labels: Index) -> None:
        """Read v and the output off the product with the weights."""
        first = node.inputs[0] is weights
        p_letters, v_letters = (terms.a, terms.b) if first else (terms.b, terms.a)
        v_value = node.inputs[1 if first else 0]
        out = node.outputs[0]
        assert v_value is not None
        v_tensor, o_tensor = tensor_of(self.run, v_value), tensor_of(self.run, out)
        if not isinstance(v_tensor, Elements) or not isinstance(o_tensor, Elements):
            raise UnsupportedError("the values do not depend on data")
        table = self.places(labels)
        columns = self.own_columns(table)
        table = table[..., columns]
        if (table < 0).any() or not np.array_equal(columns, self.columns):
            raise UnsupportedError("the weights of other columns than the keys' meet the values")
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
        self.core = replace(
            self.core,
            v=plainest(self.run, v_value, at, scaled=False),
            v_dim=width,
            output=outcome(self.run, out, index(terms.out, o_tensor.shape, at_query)),
        )
        if terms.factor != 1.0:
            raise UnsupportedError("the weighted sum is scaled")


def _scaled(term: MaskTerm, factor: float) -> MaskTerm:
    """The term as it acts on scores that are multiplied by `factor` afterwards."""
    if term.kind == "add":
        return replace(term, factor=term.factor * factor)
    if term.kind == "where" and term.fill is not None:
        return replace(term, fill=term.fill * factor)
    return term
