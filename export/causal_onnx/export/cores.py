"""Find attention by what it computes: softmax over scores of queries with keys, times values.

From each Softmax back to the product of queries and keys - through scale, mask, softcap, casts and
reshapes, in whatever order a module has them - and forward to the product with the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from causal_onnx.export.layout import Layouts

__all__ = ["Bias", "Core", "Operand", "find_cores"]

MASKED = -1e3
"""A score at or below this counts as masked: exp of it is 0 beside any ordinary score."""

_SAME = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Dropout"}
"""Operators on the way that change neither a score nor which query and key it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor of queries, keys or values, and what its axes are."""

    value: ir.Value
    lead: tuple[int, ...]
    """Axes of batch and heads, outermost first."""
    positions: int
    features: int


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Something added to the scores, or a choice of which scores count."""

    value: ir.Value
    factor: float = 1.0
    """It is added `factor` times. Unused for a choice."""
    allowed_where: bool | None = None
    """For a boolean choice: the truth that means "may attend". None: `value` is added."""
    low: float = -math.inf
    """For a boolean choice: the score of what may not be attended."""


@dataclass(kw_only=True)
class Core:
    """One attention: softmax(scale q k^T, softcapped, + biases) v."""

    node: ir.Node
    """The Softmax, or the fused `Attention`."""
    q: Operand
    k: Operand
    v: Operand
    output: ir.Value
    output_lead: tuple[int, ...]
    output_positions: int
    output_features: int
    scale: float = 1.0
    softcap: float = 0.0
    """0: none."""
    biases: list[Bias] = field(default_factory=list)
    is_causal: bool = False
    """The node itself masks later positions, besides the biases."""


class _NoMatchError(Exception):
    """Not an attention that can be rewritten; the message says what is in the way."""


def find_cores(layouts: Layouts) -> tuple[list[Core], dict[ir.Node, str]]:
    """All attention cores written out in primitives.

    Returns:
        The cores in graph order, and for each Softmax that is none the reason.
    """
    cores: list[Core] = []
    others: dict[ir.Node, str] = {}
    for node in layouts.model.graph:
        if node.op_type not in ("Softmax", "Attention") or not layouts.is_tainted(node.inputs[0]):
            continue
        try:
            fused = node.op_type == "Attention"
            cores.append(_fused(layouts, node) if fused else _written_out(layouts, node))
        except _NoMatchError as reason:
            others[node] = str(reason)
    return cores, others


def _fused(layouts: Layouts, node: ir.Node) -> Core:
    """The standard `Attention` operator with 4-D inputs, as the exporter writes SDPA."""
    inputs = [*node.inputs, *([None] * 6)]
    if any(value is not None for value in inputs[4:]) or len(node.outputs) > 1:
        raise _NoMatchError("the attention has a past of its own")
    q, k, v, mask = inputs[:4]
    assert q is not None
    assert k is not None
    assert v is not None
    if any(len(layouts.axes(value)) != 4 for value in (q, k, v)):
        raise _NoMatchError("the attention takes packed heads")
    width = layouts.axes(q)[3].count
    biases = []
    if mask is not None:
        is_choice = mask.dtype == ir.DataType.BOOL or _is_bool(layouts, mask)
        biases.append(Bias(value=mask, allowed_where=True if is_choice else None))
    attributes = node.attributes
    return Core(
        node=node,
        q=Operand(value=q, lead=(0, 1), positions=2, features=3),
        k=Operand(value=k, lead=(0, 1), positions=2, features=3),
        v=Operand(value=v, lead=(0, 1), positions=2, features=3),
        output=node.outputs[0],
        output_lead=(0, 1),
        output_positions=2,
        output_features=3,
        scale=attributes["scale"].as_float() if "scale" in attributes else width**-0.5,
        softcap=attributes["softcap"].as_float() if "softcap" in attributes else 0.0,
        biases=biases,
        is_causal="is_causal" in attributes and attributes["is_causal"].as_int() == 1,
    )


def _is_bool(layouts: Layouts, value: ir.Value) -> bool:
    known = layouts.known(value)
    if known is not None:
        return known.dtype == "bool"
    producer = value.producer()
    return producer is not None and producer.op_type in _BOOLEAN


_BOOLEAN = {"And", "Or", "Not", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}


def _written_out(layouts: Layouts, softmax: ir.Node) -> Core:
    scores = softmax.inputs[0]
    assert scores is not None
    rank = len(layouts.axes(scores))
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    if axis % rank != rank - 1:
        raise _NoMatchError("the softmax is not over the last axis")
    backward = _Backward(layouts)
    product = backward.walk(scores)
    q, k = _query_and_key(layouts, product)
    output, v, where = _forward(layouts, softmax.outputs[0])
    return Core(
        node=softmax,
        q=q,
        k=k,
        v=v,
        output=output,
        output_lead=where[0],
        output_positions=where[1],
        output_features=where[2],
        scale=backward.scale * backward.cap_scale,
        softcap=backward.softcap,
        biases=backward.biases,
    )


class _Backward:
    """Walks from the softmax back to the product of queries and keys."""

    def __init__(self, layouts: Layouts):
        self._layouts = layouts
        self.scale = 1.0
        """Product of the factors between here and the last stop (the softmax, or the tanh)."""
        self.cap_scale = 1.0
        self.softcap = 0.0
        self.biases: list[Bias] = []

    def walk(self, value: ir.Value) -> ir.Node:
        """The node that multiplies queries with keys."""
        while True:
            node = value.producer()
            if node is None:
                raise _NoMatchError("the scores are an input of the graph")
            if node.op_type in ("MatMul", "Einsum", "Gemm"):
                if node.op_type == "Gemm":
                    self._gemm(node)
                return node
            following = self._step(node)
            if len(following.uses()) > 1 and not self._only_shape_uses(following, node):
                raise _NoMatchError(
                    f"scores before {node.op_type} {node.name!r} are used elsewhere"
                )
            value = following

    def _step(self, node: ir.Node) -> ir.Value:
        step = getattr(self, f"_{node.op_type.lower()}", None)
        if node.op_type in _SAME:
            source = node.inputs[0]
            assert source is not None
            return source
        if step is None:
            raise _NoMatchError(f"{node.op_type} {node.name!r} between the scores and the softmax")
        result: ir.Value = step(node)
        return result

    def _only_shape_uses(self, value: ir.Value, path: ir.Node) -> bool:
        return all(
            use.node is path or use.node.op_type in ("Shape", "Size") for use in value.uses()
        )

    def _gemm(self, node: ir.Node) -> None:
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            raise _NoMatchError(f"Gemm {node.name!r} adds a bias to the scores")
        self.scale *= node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0

    def _mul(self, node: ir.Node) -> ir.Value:
        for index in (0, 1):
            factor = self._layouts.scalar(node.inputs[index])
            if factor is not None:
                self.scale *= factor
                return _input(node, 1 - index)
        raise _NoMatchError(f"Mul {node.name!r} by something that is no number")

    def _div(self, node: ir.Node) -> ir.Value:
        divisor = self._layouts.scalar(node.inputs[1])
        if divisor is None or divisor == 0.0:
            raise _NoMatchError(f"Div {node.name!r} by something that is no number")
        self.scale /= divisor
        return _input(node, 0)

    def _add(self, node: ir.Node) -> ir.Value:
        index = self._score_side(node)
        self.biases.append(Bias(value=_input(node, 1 - index), factor=self.scale))
        return _input(node, index)

    def _sub(self, node: ir.Node) -> ir.Value:
        if self._score_side(node) != 0:
            raise _NoMatchError(f"Sub {node.name!r} takes the scores from something")
        self.biases.append(Bias(value=_input(node, 1), factor=-self.scale))
        return _input(node, 0)

    def _where(self, node: ir.Node) -> ir.Value:
        for index, truth in ((1, True), (2, False)):
            low = self._layouts.known(node.inputs[3 - index])
            if low is not None and bool((low * self.scale <= MASKED).all()):
                lowest = float(low.max()) * self.scale
                self.biases.append(Bias(value=_input(node, 0), allowed_where=truth, low=lowest))
                return _input(node, index)
        raise _NoMatchError(f"Where {node.name!r} puts no very negative number")

    def _max(self, node: ir.Node) -> ir.Value:
        for index in (0, 1):
            floor = self._layouts.scalar(node.inputs[index])
            if floor is not None and floor <= MASKED:
                return _input(node, 1 - index)  # keeps -inf away; no ordinary score is that low
        raise _NoMatchError(f"Max {node.name!r} of scores and something else")

    def _tanh(self, node: ir.Node) -> ir.Value:
        if self.softcap:
            raise _NoMatchError("two softcaps")
        # cap * tanh(s / cap): what was multiplied after the tanh is the cap.
        self.softcap, self.scale = self.scale, 1.0
        self.cap_scale = self.softcap
        return _input(node, 0)

    def _score_side(self, node: ir.Node) -> int:
        sides = [i for i in (0, 1) if self._layouts.is_tainted(node.inputs[i])]
        if len(sides) == 1:
            return self._checked(sides[0])
        for index in sides:
            if _leads_to_product(self._layouts, _input(node, index)):
                return self._checked(index)
        raise _NoMatchError(f"{node.op_type} {node.name!r}: neither side is a product of q and k")

    def _checked(self, index: int) -> int:
        if self.softcap:
            raise _NoMatchError("something is added inside the softcap")
        return index


def _leads_to_product(layouts: Layouts, value: ir.Value) -> bool:
    """Whether a chain of cheap operators leads back to a product with two data-dependent sides."""
    for _ in range(12):
        node = value.producer()
        if node is None:
            return False
        if node.op_type in ("MatMul", "Einsum", "Gemm"):
            return all(layouts.is_tainted(x) for x in node.inputs[:2])
        tainted = [x for x in node.inputs if x is not None and layouts.is_tainted(x)]
        if len(tainted) != 1:
            return False
        value = tainted[0]
    return False


def _query_and_key(layouts: Layouts, node: ir.Node) -> tuple[Operand, Operand]:
    if not all(layouts.is_tainted(x) for x in node.inputs[:2]):
        raise _NoMatchError(f"{node.op_type} {node.name!r} multiplies by a constant")
    left, right, out = _labels(layouts, node)
    shared = set(left) & set(right) - set(out)
    if len(shared) != 1 or len(out) < 2:
        raise _NoMatchError(f"{node.op_type} {node.name!r} is no product over one axis")
    feature = shared.pop()
    query, key = out[-2], out[-1]
    sides = {0: left, 1: right}
    q_side = next((i for i, labels in sides.items() if query in labels and key not in labels), None)
    if q_side is None or key not in sides[1 - q_side]:
        raise _NoMatchError(f"{node.op_type} {node.name!r} does not pair queries with keys")
    lead = out[:-2]
    return (
        _operand(
            layouts,
            _input(node, q_side),
            sides[q_side],
            lead=lead,
            positions=query,
            features=feature,
        ),
        _operand(
            layouts,
            _input(node, 1 - q_side),
            sides[1 - q_side],
            lead=lead,
            positions=key,
            features=feature,
        ),
    )


def _forward(
    layouts: Layouts, weights: ir.Value
) -> tuple[ir.Value, Operand, tuple[tuple[int, ...], int, int]]:
    """Follow the weights to their product with the values."""
    while True:
        users = [use for use in weights.uses() if use.node.op_type not in ("Shape", "Size")]
        if weights.is_graph_output() or len(users) != 1:
            raise _NoMatchError(
                "the attention weights are used elsewhere (returned, or read twice)"
            )
        node = users[0].node
        if node.op_type in ("MatMul", "Einsum"):
            break
        if node.op_type not in _SAME or users[0].idx != 0:
            raise _NoMatchError(f"{node.op_type} {node.name!r} between the softmax and the values")
        weights = node.outputs[0]
    side = users[0].idx
    left, right, out = _labels(layouts, node)
    mine, other = (left, right) if side == 0 else (right, left)
    if not layouts.is_tainted(_input(node, 1 - side)):
        raise _NoMatchError(f"{node.op_type} {node.name!r} multiplies the weights by a constant")
    key, query = mine[-1], mine[-2]
    features = [label for label in other if label in out and label not in mine]
    if key in out or query not in out or len(features) != 1 or key not in other:
        raise _NoMatchError(f"{node.op_type} {node.name!r} is no product of weights and values")
    lead = [label for label in mine[:-2] if label in out]
    v = _operand(
        layouts, _input(node, 1 - side), other, lead=lead, positions=key, features=features[0]
    )
    where = (tuple(out.index(x) for x in lead), out.index(query), out.index(features[0]))
    return node.outputs[0], v, where


def _labels(layouts: Layouts, node: ir.Node) -> tuple[list[str], list[str], list[str]]:
    """The axes of both operands and of the product, as in an einsum equation."""
    ranks = [len(layouts.axes(_input(node, i))) for i in (0, 1)]
    if node.op_type == "Einsum":
        equation = node.attributes["equation"].as_string().replace(" ", "")
        if "..." in equation or "->" not in equation or len(node.inputs) != 2:
            raise _NoMatchError(f"Einsum {node.name!r}: {equation}")
        inputs, product = equation.split("->")
        first, second = inputs.split(",")
        return list(first), list(second), list(product)
    if node.op_type == "Gemm":
        left, right = ["q", "d"], ["d", "k"]
        if node.attributes.get("transA") and node.attributes["transA"].as_int():
            left = left[::-1]
        if node.attributes.get("transB") and node.attributes["transB"].as_int():
            right = right[::-1]
        return left, right, ["q", "k"]
    if min(ranks) < 2:
        raise _NoMatchError(f"MatMul {node.name!r} of a vector")
    lead = [f"lead{i}" for i in range(max(ranks) - 2)]
    left = [*lead[len(lead) - ranks[0] + 2 :], "q", "d"]
    right = [*lead[len(lead) - ranks[1] + 2 :], "d", "k"]
    return left, right, [*lead, "q", "k"]


def _operand(
    layouts: Layouts,
    value: ir.Value,
    labels: Sequence[str],
    *,
    lead: Sequence[str],
    positions: str,
    features: str,
) -> Operand:
    missing = [label for label in lead if label not in labels]
    extra = [x for x in labels if x not in lead and x not in (positions, features)]
    if missing and len(labels) > 2:
        raise _NoMatchError(f"{value.name} is shared over some of the batch and head axes")
    if extra:
        raise _NoMatchError(f"{value.name} has an axis that the product does not have")
    return Operand(
        value=value,
        lead=tuple(labels.index(label) for label in lead if label in labels),
        positions=labels.index(positions),
        features=labels.index(features),
    )


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
