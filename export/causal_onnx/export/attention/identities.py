"""Bring attention that is written in other words to softmax(scores) values, node by node.

Each rule is an identity of real numbers; what follows a rewritten node computes the same. Cores are
then recognised in one form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import Elements, Known
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.attention.operands import scalar_of, tensor_of
from causal_onnx.export.graph.edit import constant

__all__ = ["respell"]

LARGEST_GUARD = 1e-6
"""Added to a sum of 1 or more against a division by 0, at most this changes nothing that counts."""

SAME_ROWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity"})
LINEAR = frozenset({"Add", "Sub", "Mul", "Neg", "Gather", "Slice", *SAME_ROWS})
"""What may stand between softmax weights and their product with the values."""


def respell(model: ir.Model, found: Run) -> int:
    """Rewrite every other spelling in place; returns how many there were.

    Args:
        model: Without local functions.
        found: An analysis of it, for shapes and for numbers that positions decide.
    """
    rules: Sequence[Callable[[_Speller, ir.Node], ir.Value | None]] = (
        _exp_of_log_softmax,
        _exp_of_difference,
        _exps_over_their_sum,
        _product_of_many,
        _sum_of_products,
        _product_of_a_sum,
        _part_of_weights,
        _product_of_shared_weights,
    )
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.domain not in ("", "ai.onnx"):
            continue
        for rule in rules:
            speller = _Speller(model.graph, node, found)
            result = rule(speller, node)
            if result is not None:
                speller.replace(node.outputs[0], result)
                count += 1
                break
    return count


class _Speller:
    """Writes nodes before one node, and tells what the analysis found."""

    def __init__(self, graph: ir.Graph, before: ir.Node, found: Run):
        self._graph, self._before, self._found = graph, before, found

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes)  # type: ignore[arg-type]
        node.metadata_props.update(self._before.metadata_props)
        self._graph.insert_before(self._before, node)
        if inputs[0] is not None:
            node.outputs[0].type = inputs[0].type
        shape = self._shape_of(node, inputs)
        if shape is not None:
            self._found.values[node.outputs[0]] = Elements(
                shape, np.zeros((1,) * len(shape), np.int32)
            )
        return node.outputs[0]

    def _shape_of(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> tuple[int, ...] | None:
        """The shape of a new node's output, where a later rule may ask for it."""
        if node.op_type in ("Softmax", "Log") and inputs[0] is not None:
            return self.shape(inputs[0])
        return None

    def ints(self, *numbers: int) -> ir.Value:
        return constant(self._graph, np.array(numbers, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        dtype = (like.dtype or ir.DataType.FLOAT).numpy()
        return constant(self._graph, np.array(number, dtype))

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """At the sizes of the analysis; None where a rewritten node hides it."""
        tensor = tensor_of(self._found, value)
        return tensor.shape if isinstance(tensor, Elements | Known) else None

    def scalar(self, value: ir.Value | None) -> float | None:
        return scalar_of(tensor_of(self._found, value))

    def is_data(self, value: ir.Value | None) -> bool:
        return isinstance(tensor_of(self._found, value), Elements)

    def reduces_last(self, node: ir.Node) -> bool:
        """Whether a reduction runs over the last axis and no other, and keeps it."""
        shape = self.shape(node.inputs[0])
        axes = node.attributes.get("axes")
        numbers = None if axes is None else list(axes.as_ints())
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            tensor = tensor_of(self._found, node.inputs[1])
            numbers = tensor.value.tolist() if isinstance(tensor, Known) else None
        keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        return (
            shape is not None
            and keeps
            and numbers is not None
            and [n % len(shape) for n in numbers] == [len(shape) - 1]
        )

    def same(self, new: ir.Value, old: ir.Value) -> None:
        """Say that `new` holds what `old` does."""
        new.type = old.type
        self._found.values[new] = self._found.values[old]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        self.same(new, old)
        if old.is_graph_output():
            index = list(self._graph.outputs).index(old)
            new.name, old.name = old.name, f"{old.name}_replaced"
            new.shape = old.shape
            self._graph.outputs[index] = new
        old.replace_all_uses_with(new)


def _maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if it is of one of these kinds."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types else None


def _exp_of_log_softmax(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """exp(log_softmax(z)) = softmax(z)."""
    inner = _maker(node.inputs[0], "LogSoftmax") if node.op_type == "Exp" else None
    if inner is None:
        return None
    axis = inner.attributes["axis"].as_int() if "axis" in inner.attributes else -1
    return spell("Softmax", inner.inputs[0], axis=axis)


def _exp_of_difference(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """exp(z - logsumexp(z)) = softmax(z)."""
    inner = _maker(node.inputs[0], "Sub") if node.op_type == "Exp" else None
    total = None if inner is None else _maker(inner.inputs[1], "ReduceLogSumExp")
    if inner is None or total is None or total.inputs[0] is not inner.inputs[0]:
        return None
    if not spell.reduces_last(total):
        return None
    return spell("Softmax", inner.inputs[0], axis=-1)


@dataclass(frozen=True, slots=True)
class _Exps:
    """exp(z - shift) times a matrix."""

    value: ir.Value
    scores: ir.Value
    """z."""
    shift: ir.Value | None
    """Subtracted from each row; None: nothing is."""
    factor: ir.Value | None


def _exps_over_their_sum(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """exp(z) m / sum(exp(z) m) = softmax(z + log m), before or after the product with the values.

    What else is in the denominator is a sink: c = exp(log c), and exp(-shift) is exp(0 - shift).
    """
    if node.op_type != "Div":
        return None
    over = node.inputs[0]
    found = _exps(spell, over)
    product = None
    if found is None:
        product = _maker(over, "MatMul")
        found = None if product is None else _exps(spell, product.inputs[0])
    sinks = None if found is None else _sinks_below(spell, node.inputs[1], found)
    if found is None or sinks is None:
        return None
    scores = found.scores
    if found.factor is not None:
        scores = spell("Add", scores, spell("Log", found.factor))
    if not sinks:
        weights = spell("Softmax", scores, axis=-1)
    else:
        shape = spell.shape(found.value)
        assert shape is not None
        pads = spell.ints(*[0] * (2 * len(shape) - 1), 1)
        score = math.log(sum(math.exp(sink) for sink in sinks))
        padded = spell("Pad", scores, pads, spell.number(score, scores))
        weights = spell("Softmax", padded, axis=-1)
        weights = spell("Slice", weights, spell.ints(0), spell.ints(-1), spell.ints(-1))
    return weights if product is None else spell("MatMul", weights, product.inputs[1])


def _exps(spell: _Speller, value: ir.Value | None) -> _Exps | None:
    if value is None or not spell.is_data(value):
        return None
    factor = None
    node = value.producer()
    if node is not None and node.op_type == "Mul":
        sides = [(0, 1), (1, 0)]
        for main, other in sides:
            if _maker(node.inputs[main], "Exp") is not None and not spell.is_data(
                node.inputs[other]
            ):
                factor, node = node.inputs[other], _maker(node.inputs[main], "Exp")
                break
    if node is None or node.op_type != "Exp" or node.inputs[0] is None:
        return None
    inner = _maker(node.inputs[0], "Sub")
    whole = spell.shape(node.inputs[0])
    if inner is not None and inner.inputs[0] is not None and whole is not None:
        part = spell.shape(inner.inputs[1])
        if part is not None and len(part) == len(whole) and part[-1] == 1:
            return _Exps(value, inner.inputs[0], inner.inputs[1], factor)
    return _Exps(value, node.inputs[0], None, factor)


def _sinks_below(spell: _Speller, value: ir.Value | None, found: _Exps) -> list[float] | None:
    """The scores of what is in the denominator besides the sum; None where it is no such sum."""
    sums, sinks = 0, []
    for summand, is_floor in _summands(value):
        node = None if summand is None else summand.producer()
        number = spell.scalar(summand)
        if node is not None and node.op_type == "ReduceSum" and node.inputs[0] is found.value:
            if not spell.reduces_last(node):
                return None
            sums += 1
        elif number is not None and 0 <= number <= LARGEST_GUARD and _exceeds_one(found):
            continue
        elif number is not None and number > 0 and found.shift is None and not is_floor:
            sinks.append(math.log(number))
        elif (score := _score_of(spell, node, found)) is not None:
            sinks.append(score)
        else:
            return None
    return sinks if sums == 1 else None


def _exceeds_one(found: _Exps) -> bool:
    """Whether the sum of the exps is at least 1, beside which a guard against 0 is nothing."""
    top = _maker(found.shift, "ReduceMax")
    return top is not None and top.inputs[0] is found.scores and found.factor is None


def _summands(value: ir.Value | None) -> Iterator[tuple[ir.Value | None, bool]]:
    """What is added up to `value`; True for a floor, that it does not fall below."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        for part in node.inputs:
            yield from _summands(part)
    elif node is not None and node.op_type in ("Expand", "Identity"):
        yield from _summands(node.inputs[0])
    elif node is not None and node.op_type in ("Clip", "Max") and len(node.inputs) == 2:
        yield from _summands(node.inputs[0])
        yield node.inputs[1], True
    else:
        yield value, False


def _score_of(spell: _Speller, node: ir.Node | None, found: _Exps) -> float | None:
    """The score that `exp(score - shift)` in the denominator stands for."""
    inner = None if node is None or node.op_type != "Exp" else node.inputs[0]
    maker = _maker(inner, "Neg", "Sub")
    if maker is None or found.shift is None:
        return None
    if maker.op_type == "Neg":
        return 0.0 if maker.inputs[0] is found.shift else None
    return spell.scalar(maker.inputs[0]) if maker.inputs[1] is found.shift else None


def _sum_of_products(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """One product over all features: a b + c d = [a c] [b d] (latent attention)."""
    if node.op_type != "Add":
        return None
    first, second = (_maker(value, "MatMul", "Einsum") for value in node.inputs[:2])
    if first is None or second is None or first.op_type != second.op_type:
        return None
    values = [*first.inputs[:2], *second.inputs[:2]]
    if not all(spell.is_data(value) for value in values):
        return None
    a, b, c, d = (spell.shape(value) for value in values)
    if a is None or b is None or c is None or d is None or len(values) != 4:
        return None
    if first.op_type == "MatMul":
        if a[:-1] != c[:-1] or (*b[:-2], b[-1]) != (*d[:-2], d[-1]) or min(len(a), len(b)) < 2:
            return None
        left = spell("Concat", values[0], values[2], axis=-1)
        right = spell("Concat", values[1], values[3], axis=-2)
        return spell("MatMul", left, right)
    terms = [_einsum_terms(product) for product in (first, second)]
    if terms[0] is None or terms[1] is None:
        return None
    (a_letters, b_letters, out), (c_letters, d_letters, other_out) = terms[0], terms[1]
    summed = (set(a_letters) & set(b_letters)) - set(out)
    other = (set(c_letters) & set(d_letters)) - set(other_out)
    if len(summed) != 1 or len(other) != 1:
        return None
    mine, theirs = summed.pop(), other.pop()
    if mine in out or (c_letters, d_letters, other_out) != (
        a_letters.replace(mine, theirs),
        b_letters.replace(mine, theirs),
        out,
    ):
        return None
    left = spell("Concat", values[0], values[2], axis=a_letters.index(mine))
    right = spell("Concat", values[1], values[3], axis=b_letters.index(mine))
    return spell("Einsum", left, right, equation=first.attributes["equation"].as_string())


def _einsum_terms(node: ir.Node) -> tuple[str, str, str] | None:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "..." in equation or "->" not in equation or len(node.inputs) != 2:
        return None
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    return first, second, out


def _product_of_many(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """An einsum of weights, values and more: the first two by themselves."""
    if node.op_type != "Einsum" or len(node.inputs) < 3:
        return None
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "..." in equation or "->" not in equation or not _leads_to_softmax(node.inputs[0]):
        return None
    terms, out = equation.split("->")
    first, second, *others = terms.split(",")
    wanted = {*out, *"".join(others)}
    middle = "".join(letter for letter in dict.fromkeys(first + second) if letter in wanted)
    pair = spell("Einsum", *node.inputs[:2], equation=f"{first},{second}->{middle}")
    rest = f"{','.join((middle, *others))}->{out}"
    return spell("Einsum", pair, *node.inputs[2:], equation=rest)


def _product_of_a_sum(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """(p - c r) v = p v - c (r v), for weights p and r (differential attention)."""
    if node.op_type != "MatMul" or not _leads_to_softmax(node.inputs[0], mixed=True):
        return None
    values = node.inputs[1]
    assert values is not None

    def apart(weights: ir.Value | None) -> ir.Value | None:
        assert weights is not None
        maker = weights.producer()
        if maker is not None and maker.op_type in ("Add", "Sub"):
            parts = [apart(part) for part in maker.inputs]
            return None if None in parts else spell(maker.op_type, *parts)
        if maker is not None and maker.op_type == "Mul":
            for main, other in ((0, 1), (1, 0)):
                factor = spell.shape(maker.inputs[other])
                if factor is not None and (math.prod(factor) == 1 or factor[-1] == 1):
                    rest = apart(maker.inputs[main])
                    if rest is not None:
                        return spell("Mul", rest, maker.inputs[other])
            return None
        return spell("MatMul", weights, values) if _leads_to_softmax(weights) else None

    return apart(node.inputs[0])


def _leads_to_softmax(value: ir.Value | None, *, mixed: bool = False) -> bool:
    """Whether a value is softmax weights, rearranged; `mixed`: a sum of such, really."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if node.op_type == "Softmax":
        return not mixed
    if node.op_type in ("Add", "Sub") and mixed:
        return all(
            _leads_to_softmax(part) or _leads_to_softmax(part, mixed=True) for part in node.inputs
        )
    if node.op_type == "Mul":
        return any(_leads_to_softmax(part, mixed=mixed) for part in node.inputs)
    if node.op_type in LINEAR and node.op_type not in ("Add", "Sub"):
        return _leads_to_softmax(node.inputs[0], mixed=mixed)
    return False


def _part_of_weights(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """softmax(z)[part] = softmax(z[part]), where the parts are used apart."""
    if node.op_type not in ("Gather", "Slice"):
        return None
    chain = [node]
    value = node.inputs[0]
    shared = False
    while value is not None:
        shared |= len(value.uses()) > 1
        maker = value.producer()
        if maker is None or maker.op_type not in (*SAME_ROWS, "Softmax"):
            return None
        if maker.op_type == "Softmax":
            break
        chain.append(maker)
        value = maker.inputs[0]
    if value is None or not shared or not _keeps_rows(spell, chain, value):
        return None
    softmax = value.producer()
    assert softmax is not None
    part = softmax.inputs[0]
    for step in reversed(chain):
        attributes = {a.name: a.value for a in step.attributes.values()}
        part = spell(step.op_type, part, *step.inputs[1:], **attributes)
    return spell("Softmax", part, axis=-1)


def _product_of_shared_weights(spell: _Speller, node: ir.Node) -> ir.Value | None:
    """P v and p w with weights of their own: p is computed for each product."""
    if node.op_type not in ("MatMul", "Einsum"):
        return None
    softmax = _maker(node.inputs[0], "Softmax")
    weights = None if softmax is None else softmax.outputs[0]
    if softmax is None or weights is None or weights.is_graph_output():
        return None
    uses = [(use.node.op_type, use.idx) for use in weights.uses()]
    if len(uses) < 2 or any(use not in (("MatMul", 0), ("Einsum", 0)) for use in uses):
        return None
    own = spell(
        "Softmax", softmax.inputs[0], **{a.name: a.value for a in softmax.attributes.values()}
    )
    spell.same(own, weights)
    attributes = {a.name: a.value for a in node.attributes.values()}
    return spell(node.op_type, own, *node.inputs[1:], **attributes)


def _keeps_rows(spell: _Speller, chain: Sequence[ir.Node], weights: ir.Value) -> bool:
    """Whether the moves choose among the rows of the weights, and leave each as it is."""
    softmax = weights.producer()
    before = spell.shape(weights)
    if softmax is None or before is None:
        return False
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    after = [spell.shape(step.outputs[0]) for step in chain]
    if axis % len(before) != len(before) - 1:
        return False
    return all(shape is not None and shape and shape[-1] == before[-1] for shape in after)
