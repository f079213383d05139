"""Operators that treat each element alone, with broadcasting.

An element depends on what the elements it is made from depend on. Where all of these are known, so
is the result; some known values decide alone (0 x anything, False and anything, -inf + anything).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.analysis.attributes import tensor_at
from causal_onnx.export.analysis.elements import (
    VERY_NEGATIVE,
    Abstract,
    Array,
    BoolArray,
    Elements,
    Known,
    Ratio,
    Tensor,
    broadcast_shape,
    compress,
    is_low,
    lift,
    normal,
    with_rank,
)
from causal_onnx.export.analysis.evaluate import ELEMENTWISE, evaluate_elementwise
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["apply", "combine"]

Function: TypeAlias = Callable[[Sequence[Array | None]], Array]

FALSE = np.zeros((), np.bool_)


def _known(part: Elements | None) -> BoolArray:
    return FALSE if part is None or part.known is None else part.known


def _value(part: Elements | None) -> Array:
    assert part is not None
    assert part.value is not None
    return part.value


def combine(op_type: str, inputs: Sequence[Tensor | None], function: Function | None) -> Tensor:
    """The result of an element-wise operator.

    Args:
        op_type: Its name, for the values that decide alone; any other text gives none.
        inputs: Operands, None where absent.
        function: The operator on arrays; None: the values of the result are not followed.
    """
    given = [part for part in inputs if part is not None]
    shape = broadcast_shape(*(part.shape for part in given))
    parts = [None if p is None else with_rank(lift(p), len(shape)) for p in inputs]
    present = [part for part in parts if part is not None]
    reach = present[0].reach
    for part in present[1:]:
        reach = np.maximum(reach, part.reach)
    out = Elements(shape, reach)
    if function is not None and all(part.known is not None for part in present):
        known = np.asarray(_known(present[0]))
        for part in present[1:]:
            known = known & _known(part)
        if known.any():
            out.known = known
            out.value = function([None if part is None else _value(part) for part in parts])
    special = _SPECIAL.get(op_type)
    if special is not None:
        special(out, parts)
    return normal(_tidy(out))


def _tidy(out: Elements) -> Elements:
    """Restore the invariants: rank of the shape, and no reach where known."""
    rank = len(out.shape)
    if out.known is not None:
        out.reach = np.where(out.known, np.int32(-1), out.reach).astype(np.int32, copy=False)
        if out.low is not None:
            out.low = out.low & ~out.known
        if out.maybe_low is not None:
            out.maybe_low = out.maybe_low & ~out.known
    for name in ("known", "value", "low", "maybe_low"):
        array = getattr(out, name)
        if array is not None and array.ndim < rank:
            setattr(out, name, array.reshape((1,) * (rank - array.ndim) + array.shape))
    out.reach = compress(out.reach)
    return out


def _decide(out: Elements, where: BoolArray, value: Array | float | bool) -> None:
    """Set the result to `value` at `where`, unless it is known already."""
    if not where.any():
        return
    if out.known is None:
        out.known = where
        out.value = np.asarray(value)
        if out.value.shape != ():
            out.value = np.where(where, out.value, np.zeros((), out.value.dtype))
        out.value = np.broadcast_to(out.value, where.shape)
        return
    new = where & ~out.known
    if new.any():
        assert out.value is not None
        out.value = np.where(new, value, out.value)
        out.known = out.known | where


def _bound(out: Elements, low: BoolArray, bound: Array) -> None:
    """Mark the result as very negative at `low`, with the upper bound `bound`."""
    if out.known is not None:
        low = low & ~out.known
    if not low.any():
        return
    assert out.low is None
    out.low = low
    out.value = bound if out.value is None else np.where(low, bound, out.value)


def _may_be_low(*parts: Elements | None) -> BoolArray | None:
    found: BoolArray | None = None
    for part in parts:
        if part is not None and part.maybe_low is not None:
            found = part.maybe_low if found is None else found | part.maybe_low
    return found


def _pair(parts: Sequence[Elements | None]) -> tuple[Elements, Elements]:
    a, b = parts[0], parts[1]
    assert a is not None
    assert b is not None
    return a, b


def _is(part: Elements, test: Callable[[Array], BoolArray]) -> BoolArray:
    """Where the part is known and its value passes the test."""
    if part.known is None:
        return FALSE
    return part.known & test(_value(part))


def _zero(value: Array) -> BoolArray:
    return np.asarray(value == 0)


def _add(out: Elements, parts: Sequence[Elements | None]) -> None:
    a, b = _pair(parts)
    for part in (a, b):
        if part.known is not None and _value(part).dtype.kind == "f":
            for infinity in (-np.inf, np.inf):
                _decide(out, _is(part, lambda v, i=infinity: v == i), infinity)  # type: ignore[misc]
    low_a, low_b = is_low(a, infinite=False), is_low(b, infinite=False)
    if low_a is not None or low_b is not None:
        zero = np.zeros((), np.float64)
        bound_a = zero if low_a is None else np.where(low_a, _value(a), 0.0)
        bound_b = zero if low_b is None else np.where(low_b, _value(b), 0.0)
        low = (FALSE if low_a is None else low_a) | (FALSE if low_b is None else low_b)
        _bound(out, low, np.maximum(bound_a + bound_b, np.finfo(np.float64).min))
    out.maybe_low = _may_be_low(a, b)


def _subtract(out: Elements, parts: Sequence[Elements | None]) -> None:
    a, b = _pair(parts)
    for part, sign in ((a, 1), (b, -1)):
        if part.known is not None and _value(part).dtype.kind == "f":
            for infinity in (-np.inf, np.inf):
                _decide(out, _is(part, lambda v, i=infinity: v == i), sign * infinity)  # type: ignore[misc]
    low, large = is_low(a, infinite=False), _is(b, lambda v: v >= -VERY_NEGATIVE)
    if low is not None or large.any():
        # A row's largest score is subtracted before exp; it is no more negative than the rest.
        low = FALSE if low is None else low & ~_high(b)
        zero = np.zeros((), np.float64)
        bound_a = np.where(low, _value(a), 0.0) if low.any() else zero
        bound_b = np.where(large, -_value(b).astype(np.float64), 0.0) if large.any() else zero
        _bound(out, low | large, np.maximum(bound_a + bound_b, np.finfo(np.float64).min))
    out.maybe_low = _may_be_low(a)


def _high(part: Elements) -> BoolArray:
    """Where the value is itself very negative, so that a difference with it says nothing."""
    low = is_low(part)
    return FALSE if low is None else low


def _multiply(out: Elements, parts: Sequence[Elements | None]) -> None:
    a, b = _pair(parts)
    for part in (a, b):
        _decide(out, _is(part, _zero), 0)
    for part, other in ((a, b), (b, a)):
        low = is_low(part, infinite=False)
        if low is None:
            continue
        if other.known is not None:
            factor = _value(other)
            scaled = _value(part) * factor
            sure = low & other.known & (factor > 0) & (scaled <= VERY_NEGATIVE)
            if out.low is None:
                _bound(out, sure, scaled)
        unsure = low & ~_known(other)
        if unsure.any():
            out.maybe_low = unsure if out.maybe_low is None else out.maybe_low | unsure
    carried = _may_be_low(a, b)
    if carried is not None:
        out.maybe_low = carried if out.maybe_low is None else out.maybe_low | carried


def _divide(out: Elements, parts: Sequence[Elements | None]) -> None:
    a, b = _pair(parts)
    _decide(out, _is(a, _zero), 0)
    low = is_low(a, infinite=False)
    if low is not None and b.known is not None:
        divisor = _value(b)
        with np.errstate(all="ignore"):
            scaled = _value(a) / divisor
        _bound(out, low & b.known & (divisor > 0) & (scaled <= VERY_NEGATIVE), scaled)
    out.maybe_low = _may_be_low(a)


def _and(out: Elements, parts: Sequence[Elements | None]) -> None:
    for part in _pair(parts):
        _decide(out, _is(part, np.logical_not), False)


def _or(out: Elements, parts: Sequence[Elements | None]) -> None:
    for part in _pair(parts):
        _decide(out, _is(part, lambda v: v.astype(np.bool_)), True)


def _bit_and(out: Elements, parts: Sequence[Elements | None]) -> None:
    for part in _pair(parts):
        _decide(out, _is(part, _zero), 0)


def _where(out: Elements, parts: Sequence[Elements | None]) -> None:
    condition, a, b = parts
    assert condition is not None
    assert a is not None
    assert b is not None
    decided, chosen = _known(condition), FALSE
    if condition.known is not None:
        chosen = condition.known & _value(condition).astype(np.bool_)
    # The branch that a known condition drops leaves no trace.
    taken = np.where(chosen, a.reach, b.reach)
    either = np.maximum(np.maximum(condition.reach, a.reach), b.reach)
    out.reach = np.where(decided, taken, either).astype(np.int32, copy=False)
    out.known, out.value = None, None
    known_a, known_b = _known(a), _known(b)
    known = decided & np.where(chosen, known_a, known_b)
    if a.value is not None and b.value is not None:
        same = np.asarray(a.value == b.value)
        if same.dtype == np.bool_:
            known = known | (known_a & known_b & same)
    low_a, low_b = is_low(a), is_low(b)
    picked = _pick(chosen, a.value, b.value)
    if known.any() and picked is not None:
        out.known, out.value = known, picked
    if low_a is not None or low_b is not None:
        low_a = FALSE if low_a is None else low_a
        low_b = FALSE if low_b is None else low_b
        sure = np.where(decided, np.where(chosen, low_a, low_b), low_a & low_b)
        if picked is not None:
            bound = np.where(decided, picked, VERY_NEGATIVE)
            _bound(out, np.asarray(sure), bound)
        unsure = ~decided & (low_a | low_b) & ~sure
        out.maybe_low = unsure if unsure.any() else None
    carried = _may_be_low(a, b)
    if carried is not None:
        out.maybe_low = carried if out.maybe_low is None else out.maybe_low | carried


def _pick(chosen: BoolArray, a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return a if b is None else b
    return np.where(chosen, a, b)


def _minimum(out: Elements, parts: Sequence[Elements | None]) -> None:
    _extreme(out, parts, -np.inf)


def _maximum(out: Elements, parts: Sequence[Elements | None]) -> None:
    _extreme(out, parts, np.inf)


def _extreme(out: Elements, parts: Sequence[Elements | None], absorbing: float) -> None:
    present = [part for part in parts if part is not None]
    for part in present:
        if part.known is not None and _value(part).dtype.kind == "f":
            _decide(out, _is(part, lambda v: v == absorbing), absorbing)
    lows = [is_low(part) for part in present]
    if len(present) == 2 and any(low is not None for low in lows):
        masks = [FALSE if low is None else low for low in lows]
        sure = masks[0] & masks[1] if absorbing > 0 else masks[0] | masks[1]
        _bound(out, np.asarray(sure), np.full((), VERY_NEGATIVE))
    out.maybe_low = _may_be_low(*present)


def _clip(out: Elements, parts: Sequence[Elements | None]) -> None:
    """Clipping to finfo.min keeps a mask; the bounds are known in all but odd graphs."""
    first = parts[0]
    assert first is not None
    floor = parts[1] if len(parts) > 1 else None
    low = is_low(first)
    if low is not None:
        if floor is not None:
            low = low & _is(floor, lambda v: v <= VERY_NEGATIVE)
        _bound(out, low, np.full((), VERY_NEGATIVE))
    out.maybe_low = _may_be_low(first)


def _carry(out: Elements, parts: Sequence[Elements | None]) -> None:
    first = parts[0]
    assert first is not None
    if first.low is not None:
        _bound(out, first.low, _value(first))
    out.maybe_low = first.maybe_low


_SPECIAL: dict[str, Callable[[Elements, Sequence[Elements | None]], None]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "And": _and,
    "BitwiseAnd": _bit_and,
    "Or": _or,
    "Where": _where,
    "Min": _minimum,
    "Max": _maximum,
    "Clip": _clip,
    "Identity": _carry,
    "Cast": _carry,
    "CastLike": _carry,
}

VANISHING = frozenset({"Exp", "Relu", "Sigmoid"})
"""Functions that are exactly 0 for very negative arguments (Exp and Sigmoid underflow)."""

LOW_NOTE = (
    "masked scores are finite (at most {bound:g}): their weight underflows to 0 while the other "
    "scores of the row stay well above that"
)


def low_note(bound: float) -> str:
    """The assumption behind a finite mask, with the mildest value that was relied upon."""
    return LOW_NOTE.format(bound=bound)


def bound_of(tensor: Elements, low: BoolArray) -> float:
    """The largest (mildest) of the finite mask values at `low`."""
    assert tensor.value is not None
    values = np.where(low, tensor.value, -np.inf)
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else -np.inf


@rule(*sorted(ELEMENTWISE - {"CastLike", "Identity"}), "Mean", "PRelu")
def elementwise(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The operators that numpy evaluates."""
    tensors = [tensor_at(inputs, i) for i in range(len(inputs))]
    return [apply(ctx, node, node.op_type, tensors)]


@rule("Identity")
def identity(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """A tensor or a sequence, unchanged."""
    return [inputs[0]]


@rule("CastLike")
def cast_like(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Only the type of the second input matters."""
    like = node.inputs[1]
    dtype = None if like is None else like.dtype
    first = tensor_at(inputs, 0)
    if dtype is None:
        return [combine("Identity", [first], lambda arrays: np.asarray(arrays[0]))]
    target = dtype.numpy()
    return [combine("Cast", [first], lambda arrays: np.asarray(arrays[0]).astype(target))]


@rule(
    "Celu",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Selu",
    "Shrink",
    "Softplus",
    "Softsign",
    "Swish",
    "ThresholdedRelu",
)
def activation(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Functions of one number that onnxruntime evaluates."""
    run = ctx.function(node)

    def on_floats(arrays: Sequence[Array | None]) -> Array:
        # The zeros that a mask leaves are recorded as whole numbers; the kernels take floats only.
        return run([None if a is None else a.astype(np.float32) for a in arrays])

    return [combine(node.op_type, [tensor_at(inputs, 0)], on_floats)]


def apply(ctx: Context, node: ir.Node, op_type: str, tensors: Sequence[Tensor | None]) -> Tensor:
    """Apply a numpy-evaluated operator, with what masks need beyond values.

    A function that vanishes for very negative arguments gives a known 0 there.
    """
    if op_type in ("Mean", "PRelu"):
        return combine(op_type, tensors, None)

    def function(arrays: Sequence[Array | None]) -> Array:
        return evaluate_elementwise(node, arrays)

    if op_type in RATIO_OPS:
        cancelled = _with_ratio(ctx, node, op_type, tensors)
        if cancelled is not None:
            return cancelled
    if op_type in VANISHING and isinstance(tensors[0], Elements):
        low = is_low(tensors[0], infinite=False)
        if low is not None:
            ctx.assume(node, AssumptionKind.FINITE_MASK, low_note(bound_of(tensors[0], low)))
            result = lift(combine(op_type, tensors, function))
            _decide(result, low, 0)
            if result.known is not None and result.value is not None:
                # A known finite mask value counts as vanishing too, whatever exp makes of it.
                result.value = np.where(low, 0, result.value)
            return normal(_tidy(result))
    return combine(op_type, tensors, function)


RATIO_OPS = frozenset({"Mul", "Div", "Add", "Max", "Clip", "Cast", "Where"})

ROUNDING_NOTE = (
    "weights are masked after the softmax and divided by their own sum: the softmax's sum over all "
    "keys cancels up to rounding"
)

TINY = 1e-6
"""A guard against division by zero that is small beside any sum of weights."""


def _with_ratio(
    ctx: Context, node: ir.Node, op_type: str, tensors: Sequence[Tensor | None]
) -> Tensor | None:
    """The result where a factor shared by rows is carried on or cancels; None in other cases."""
    holders = [t for t in tensors if isinstance(t, Elements) and t.ratio is not None]
    if not holders:
        return None
    first = holders[0]
    ratio = first.ratio
    assert ratio is not None

    def function(arrays: Sequence[Array | None]) -> Array:
        return evaluate_elementwise(node, arrays)

    if op_type == "Div" and len(holders) == 2:
        below = tensors[1]
        assert isinstance(below, Elements)
        assert below.ratio is not None
        if tensors[0] is first and below.ratio.source == ratio.source and _is_row(below, ratio):
            ctx.assume(node, AssumptionKind.ROUNDING, ROUNDING_NOTE)
            result = lift(combine("Div", tensors, function))
            result.reach = np.maximum(ratio.reach, below.ratio.reach)
            return normal(_tidy(result))
        return None
    if len(holders) > 1 or not _keeps_ratio(op_type, tensors, first):
        return None
    result = lift(combine(op_type, tensors, function))
    if result.shape == first.shape:
        result.ratio = ratio
        return result if result.known is None or not result.known.all() else normal(result)
    return None


def _is_row(below: Elements, ratio: Ratio) -> bool:
    return all(below.shape[axis] == 1 for axis in ratio.axes)


def _keeps_ratio(op_type: str, tensors: Sequence[Tensor | None], first: Elements) -> bool:
    """Whether the result is still a number of its own times the shared factor."""
    others = [t for t in tensors if t is not None and t is not first]
    if not all(isinstance(t, Known) for t in others):
        return False
    if op_type in ("Mul", "Cast"):
        return True
    if op_type == "Div":
        return tensors[0] is first
    if op_type == "Where":
        return tensors[0] is not first and any(
            isinstance(t, Known) and t.size == 1 and not t.value.any() for t in tensors[1:]
        )
    # A tiny number added to a sum of weights, or put below it.
    return all(
        isinstance(t, Known) and t.size == 1 and abs(float(t.value.reshape(()))) <= TINY
        for t in others
    )


def binary(op_type: str, a: Tensor, b: Tensor) -> Tensor:
    """`a` op `b` for a rule that is built from simpler operators."""
    functions: dict[str, Callable[[Array, Array], Array]] = {
        "Add": np.add,
        "Sub": np.subtract,
        "Mul": np.multiply,
        "And": np.logical_and,
    }
    function = functions[op_type]

    def call(arrays: Sequence[Array | None]) -> Array:
        with np.errstate(all="ignore"):
            left, right = arrays
            assert left is not None
            assert right is not None
            return np.asarray(function(left, right))

    return combine(op_type, [a, b], call)


def is_known(tensor: Tensor | None) -> bool:
    return tensor is None or isinstance(tensor, Known)
