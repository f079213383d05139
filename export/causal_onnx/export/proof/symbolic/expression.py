"""What a tensor's elements are, as a function of their indices, as far as masks need it.

An expression says for each element either nothing, or a value built from indices and constants.
`evaluate` then tells what it must be wherever some inequalities between indices hold, for example
"everywhere the key stands after the query".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Known
from causal_onnx.export.proof.symbolic.implication import Operation, conclude
from causal_onnx.export.proof.symbolic.poly import ZERO, Bounds, Poly

__all__ = [
    "UNKNOWN",
    "Apply",
    "AtLeastZero",
    "Constant",
    "Expression",
    "IsZero",
    "Linear",
    "Lookup",
    "Select",
    "Unknown",
    "Vanish",
    "apply",
    "evaluate",
    "mentions",
    "settled",
    "substitute",
    "surely",
]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Any finite value."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One number (booleans as 0 and 1)."""

    value: float


@dataclass(frozen=True, slots=True)
class Linear:
    """The value of a polynomial in indices and sizes."""

    poly: Poly


@dataclass(frozen=True, slots=True)
class AtLeastZero:
    """1 where the polynomial is >= 0, else 0."""

    poly: Poly


@dataclass(frozen=True, slots=True)
class IsZero:
    """1 where the polynomial is 0, else 0."""

    poly: Poly


@dataclass(frozen=True, slots=True)
class Lookup:
    """An element of a constant array, by an index polynomial per axis."""

    array: Known
    """Compared by identity."""
    index: tuple[Poly, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lookup) and self.array is other.array and self.index == other.index

    def __hash__(self) -> int:
        return hash((id(self.array), self.index))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One evaluation."""

    sizes: Mapping[str, int]
    """Values of the size variables."""
    array: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """A position-only tensor that is known by evaluation at several sizes alone."""

    samples: tuple[Sample, ...]
    index: tuple[Poly, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Measured)
            and self.samples is other.samples
            and self.index == other.index
        )

    def __hash__(self) -> int:
        return hash((id(self.samples), self.index))


@dataclass(frozen=True, slots=True)
class Select:
    """`then` where the condition is not 0, else `other`."""

    condition: Expression
    then: Expression
    other: Expression


@dataclass(frozen=True, slots=True)
class Apply:
    """An element-wise operator of ONNX."""

    op: str
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Vanish:
    """A softmax weight: 0 where the score is -inf or very negative, else any finite value."""

    score: Expression


Expression: TypeAlias = (
    Unknown | Constant | Linear | AtLeastZero | IsZero | Lookup | Measured | Select | Apply | Vanish
)

UNKNOWN = Unknown()

Interval: TypeAlias = tuple[float, float]

LARGEST = 1 << 25
"""Elements of the largest constant that is searched."""

MAX_DEPTH = 40
"""Deeper expressions say nothing that a mask would need."""


def substitute(expression: Expression, values: Mapping[str, Poly]) -> Expression:
    """Put other indices in the place of index variables."""
    match expression:
        case Linear(poly):
            return linear(poly.subs(values))
        case AtLeastZero(poly):
            return AtLeastZero(poly.subs(values))
        case IsZero(poly):
            return IsZero(poly.subs(values))
        case Lookup(array, index):
            return Lookup(array, tuple(poly.subs(values) for poly in index))
        case Measured(samples, index):
            return Measured(samples, tuple(poly.subs(values) for poly in index))
        case Select(condition, then, other):
            return Select(
                substitute(condition, values), substitute(then, values), substitute(other, values)
            )
        case Apply(op, parts):
            return Apply(op, tuple(substitute(part, values) for part in parts))
        case Vanish(score):
            return Vanish(substitute(score, values))
        case _:
            return expression


def mentions(expression: Expression, names: Iterable[str]) -> bool:
    """Whether an expression uses one of the index variables."""
    return substitute(expression, dict.fromkeys(names, ZERO)) != expression


def linear(poly: Poly) -> Expression:
    """A polynomial, or the constant it is."""
    value = poly.constant
    return Linear(poly) if value is None else Constant(float(value))


def depth(expression: Expression) -> int:
    match expression:
        case Select(condition, then, other):
            return 1 + max(depth(condition), depth(then), depth(other))
        case Apply(_, parts):
            return 1 + max((depth(part) for part in parts), default=0)
        case Vanish(score):
            return 1 + depth(score)
        case _:
            return 1


def as_poly(expression: Expression) -> Poly | None:
    """The polynomial whose value the expression is."""
    match expression:
        case Linear(poly):
            return poly
        case Constant(value) if math.isfinite(value) and value == int(value):
            return Poly.of(int(value))
        case _:
            return None


_COMPARISONS: dict[str, Callable[[Poly, Poly], Expression]] = {
    "GreaterOrEqual": lambda a, b: AtLeastZero(a - b),
    "LessOrEqual": lambda a, b: AtLeastZero(b - a),
    "Greater": lambda a, b: AtLeastZero(a - b - 1),
    "Less": lambda a, b: AtLeastZero(b - a - 1),
    "Equal": lambda a, b: IsZero(a - b),
}

_MAY_DECIDE = frozenset(
    {"And", "Or", "Mul", "Add", "Sub", "Div", "DivInt", "Min", "Max", "BitwiseAnd"}
)
"""Operators that may be known although one part is not."""

_FOLLOWED = frozenset(
    {
        "Abs", "Cast", "CastInt", "CastBool", "Exp", "Log", "Neg", "Not", "Relu", "Sigmoid",
        "IsNaN", "IsInf", "Reciprocal",
        "Add", "Sub", "Mul", "Div", "DivInt", "And", "Or", "Xor", "Min", "Max", "BitwiseAnd",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Mod",
    }
)  # fmt: skip


def apply(op: str, parts: Sequence[Expression]) -> Expression:
    """The expression of an element-wise operator; UNKNOWN where it would say nothing."""
    if op in ("Identity", "Dropout", "CastLike"):
        return parts[0]
    if op == "Where":
        return _select(parts[0], parts[1], parts[2])
    if op not in _FOLLOWED:
        return UNKNOWN
    polys = tuple(poly for part in parts if (poly := as_poly(part)) is not None)
    if len(polys) == len(parts):
        exact = _polynomial(op, polys)
        if exact is not None:
            conclude(Operation(op, polys), "==", exact)
            return exact
    unknown = [isinstance(part, Unknown) for part in parts]
    if all(unknown) or (any(unknown) and op not in _MAY_DECIDE):
        return UNKNOWN
    if any(unknown) and not any(
        _may_decide(op, part) for part, u in zip(parts, unknown, strict=True) if not u
    ):
        return UNKNOWN
    found = Apply(op, tuple(parts))
    return UNKNOWN if depth(found) > MAX_DEPTH else found


def _select(condition: Expression, then: Expression, other: Expression) -> Expression:
    if isinstance(condition, Constant):
        return then if condition.value else other
    if isinstance(then, Unknown) and isinstance(other, Unknown):
        return UNKNOWN
    if isinstance(condition, Unknown) and (isinstance(then, Unknown) or isinstance(other, Unknown)):
        return UNKNOWN
    found = Select(condition, then, other)
    return UNKNOWN if depth(found) > MAX_DEPTH else found


def _polynomial(op: str, polys: Sequence[Poly]) -> Expression | None:
    """Operators on whole numbers that stay exact."""
    if op in _COMPARISONS:
        return _settled(_COMPARISONS[op](polys[0], polys[1]))
    if op == "Add":
        return linear(polys[0] + polys[1])
    if op == "Sub":
        return linear(polys[0] - polys[1])
    if op == "Neg":
        return linear(-polys[0])
    if op == "Mul" and any(poly.constant is not None for poly in polys):
        return linear(polys[0] * polys[1])
    if op in ("Cast", "CastInt"):
        return linear(polys[0])
    return None


def _settled(expression: Expression) -> Expression:
    match expression:
        case AtLeastZero(poly) if poly.constant is not None:
            return Constant(float(poly.constant >= 0))
        case IsZero(poly) if poly.constant is not None:
            return Constant(float(poly.constant == 0))
        case _:
            return expression


def _may_decide(op: str, part: Expression) -> bool:
    """Whether a part can hold a value that settles the operator whatever the rest is."""
    if op in ("And", "Mul", "BitwiseAnd", "Div", "DivInt"):
        return _may_hold(part, lambda v: v == 0)
    if op == "Or":
        return _may_hold(part, lambda v: v != 0)
    return _may_hold(part, lambda v: abs(v) >= -VERY_NEGATIVE)


def _may_hold(part: Expression, test: Callable[[float], bool]) -> bool:
    """Whether some leaf passes the test (or could); a cheap filter that may say yes too often."""
    match part:
        case Constant(value):
            return test(value)
        case Lookup(array, _):
            return array.size <= LARGEST and _array_holds(array.value, test)
        case Measured(samples, _):
            return any(_array_holds(sample.array, test) for sample in samples)
        case AtLeastZero() | IsZero():
            return test(0.0) or test(1.0)
        case Select(_, then, other):
            return _may_hold(then, test) or _may_hold(other, test)
        case Apply() | Linear() | Vanish():
            return True
        case _:
            return False


def _array_holds(array: npt.NDArray[Any], test: Callable[[float], bool]) -> bool:
    """Whether the extremes or zero occur; enough for the tests used here."""
    if array.size == 0 or array.dtype.kind not in "biuf":
        return False
    values = array.reshape(-1)
    candidates = [float(values.min()), float(values.max())]
    if bool((values == 0).any()):
        candidates.append(0.0)
    return any(test(v) for v in candidates if not math.isnan(v))


def surely(
    expression: Expression,
    number: float,
    bounds: Bounds,
    given: Sequence[Poly],
    *,
    exactly: bool = True,
) -> bool:
    """Whether the value is this number, or at most it, wherever all of `given` are >= 0."""
    value = evaluate(expression, bounds, given)
    if value is None or value[1] > number or (exactly and value[0] != number):
        return False
    conclude(expression, "==" if exactly else "<=", number, given=given, bounds=bounds)
    return True


def settled(expression: Expression, bounds: Bounds, given: Sequence[Poly]) -> float | None:
    """The one number that the value is wherever all of `given` are >= 0, if there is one."""
    value = evaluate(expression, bounds, given)
    if value is None or not surely(expression, value[0], bounds, given):
        return None
    return value[0]


def evaluate(expression: Expression, bounds: Bounds, given: Sequence[Poly]) -> Interval | None:
    """Bounds of the value wherever all of `given` are >= 0; None where nothing is known."""
    match expression:
        case Constant(number):
            return (number, number)
        case Linear(poly):
            return _linear_bounds(poly, bounds, given)
        case AtLeastZero() | IsZero():
            return _claim_bounds(expression, bounds, given)
        case Lookup():
            return _lookup_bounds(expression, bounds, given)
        case Measured():
            return _measured_bounds(expression, bounds, given)
        case Select(condition, then, other):
            known = evaluate(condition, bounds, given)
            if known is not None and known[0] == known[1]:
                return evaluate(then if known[0] else other, bounds, given)
            return _hull(evaluate(then, bounds, given), evaluate(other, bounds, given))
        case Apply(op, parts):
            values = [evaluate(part, bounds, given) for part in parts]
            return _OPERATORS[op](values)
        case Vanish(score):
            value = evaluate(score, bounds, given)
            return (0.0, 0.0) if value is not None and value[1] <= VERY_NEGATIVE else None
        case _:
            return None


def _claim_bounds(claim: AtLeastZero | IsZero, bounds: Bounds, given: Sequence[Poly]) -> Interval:
    poly = claim.poly
    if isinstance(claim, AtLeastZero):
        holds = bounds.implied(poly, given)
        fails = not holds and bounds.implied(-poly - 1, given)
    else:
        holds = poly.constant == 0
        apart = (poly - 1, -poly - 1)
        fails = not holds and any(bounds.implied(side, given) for side in apart)
    return (1.0, 1.0) if holds else (0.0, 0.0) if fails else (0.0, 1.0)


def _hull(a: Interval | None, b: Interval | None) -> Interval | None:
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))


def _linear_bounds(poly: Poly, bounds: Bounds, given: Sequence[Poly]) -> Interval | None:
    low, high = -math.inf, math.inf
    for c in (1, 0, -1):
        if bounds.implied(poly - c, given):
            low = float(c)
            break
    for c in (-1, 0, 1):
        if bounds.implied(c - poly, given):
            high = float(c)
            break
    return (low, high)


def _lookup_bounds(lookup: Lookup, bounds: Bounds, given: Sequence[Poly]) -> Interval | None:
    """The extremes over the elements that can be meant."""
    if lookup.array.size == 0 or lookup.array.size > LARGEST:
        return None
    array = lookup.array.value
    if array.dtype.kind not in "biuf":
        return None
    fixed = tuple(
        slice(0, _most(poly, bounds, given, size) + 1)
        if poly.constant is None
        else slice(poly.constant, poly.constant + 1)
        for poly, size in zip(lookup.index, array.shape, strict=True)
    )
    free = [i for i, poly in enumerate(lookup.index) if poly.constant is None]
    part = array[fixed]
    if len(free) == 2:
        row, column = free
        distance = lookup.index[column] - lookup.index[row]
        rows, columns = part.shape[row], part.shape[column]
        gap = np.arange(columns)[None, :] - np.arange(rows)[:, None]
        least = _least_gap(distance, bounds, given, -rows)
        most = -_least_gap(-distance, bounds, given, -columns)
        keep = (gap >= least) & (gap <= most)
        shape = [1] * part.ndim
        shape[row], shape[column] = rows, columns
        order = keep if row < column else keep.T
        values = part[np.broadcast_to(order.reshape(shape), part.shape)]
    else:
        values = part.reshape(-1)
    return _extremes(values)


def _extremes(values: npt.NDArray[Any]) -> Interval | None:
    """The least and the largest; None where a value is not known (NaN)."""
    if values.size == 0 or np.isnan(values).any():
        return None
    return (float(values.min()), float(values.max()))


def _most(index: Poly, bounds: Bounds, given: Sequence[Poly], size: int) -> int:
    """An upper bound of an index into an axis of this size, from the limits among `given`."""
    for limit in sorted({poly.terms.get((), 0) for poly in given}):
        for most in (limit - 1, limit):
            if 0 <= most < size - 1 and bounds.implied(most - index, given):
                return most
    return size - 1


def _least_gap(distance: Poly, bounds: Bounds, given: Sequence[Poly], floor: int) -> int:
    """The largest of a few numbers that the distance is proved to reach at least."""
    for c in (2, 1, 0, -1):
        if bounds.implied(distance - c, given):
            return c
    return floor


def _measured_bounds(measured: Measured, bounds: Bounds, given: Sequence[Poly]) -> Interval | None:
    """The extremes over all samples, of the elements whose indices satisfy `given`."""
    low, high = math.inf, -math.inf
    names = sorted({n for poly in measured.index for n in poly.variables() if n in bounds.sizes})
    for sample in measured.samples:
        if sample.array.dtype.kind not in "biuf":
            return None
        try:
            ranges = [bounds.sizes[name].at(sample.sizes) for name in names]
        except KeyError:
            return None
        if math.prod(ranges) > 1 << 22:
            continue
        grid = np.meshgrid(*(np.arange(n) for n in ranges), indexing="ij", sparse=True)
        values: dict[str, Any] = {**sample.sizes, **dict(zip(names, grid, strict=True))}
        keep = np.ones(tuple(ranges), np.bool_)
        for poly in given:
            if poly.variables() <= set(values):
                keep = keep & (np.asarray(_at(poly, values)) >= 0)
        places = [np.asarray(_at(poly, values)) for poly in measured.index]
        for place, size in zip(places, sample.array.shape, strict=True):
            keep = keep & (place >= 0) & (place < size)
        if not keep.any():
            continue
        limits = [np.clip(p, 0, n - 1) for p, n in zip(places, sample.array.shape, strict=True)]
        found = _extremes(np.broadcast_to(sample.array[tuple(limits)], keep.shape)[keep])
        if found is None:
            return None
        low, high = min(low, found[0]), max(high, found[1])
    return None if low > high else (low, high)


def _at(poly: Poly, values: Mapping[str, Any]) -> Any:
    total: Any = 0
    for monomial, c in poly.terms.items():
        part: Any = c
        for name, power in monomial:
            part = part * values[name] ** power
        total = total + part
    return total


def _number(value: float) -> Interval:
    return (value, value)


def _add(values: Sequence[Interval | None]) -> Interval | None:
    a, b = values
    infinite = [x for x in (a, b) if x is not None and x[0] == x[1] and math.isinf(x[0])]
    if infinite:
        return infinite[0] if len(set(infinite)) == 1 else None
    if a is None or b is None:
        # Anything finite added to a mask value leaves it a mask value.
        known = a or b
        return known if known is not None and known[1] <= VERY_NEGATIVE else None
    return (a[0] + b[0], a[1] + b[1])


def _negate(value: Interval | None) -> Interval | None:
    return None if value is None else (-value[1], -value[0])


def _subtract(values: Sequence[Interval | None]) -> Interval | None:
    return _add([values[0], _negate(values[1])])


def _multiply(values: Sequence[Interval | None]) -> Interval | None:
    a, b = values
    for x in (a, b):
        if x == (0.0, 0.0):
            return x
    if a is None or b is None:
        return None
    products = [x * y if x and y else 0.0 for x in a for y in b]
    return (min(products), max(products))


def _divide(values: Sequence[Interval | None]) -> Interval | None:
    a, b = values
    if a == (0.0, 0.0):
        return a
    if a is None or b is None or b[0] <= 0:
        return None
    return _multiply([a, (1 / b[1], 1 / b[0])])


def _monotone(
    function: Callable[[float], float],
) -> Callable[[Sequence[Interval | None]], Interval | None]:
    def applied(values: Sequence[Interval | None]) -> Interval | None:
        value = values[0]
        return None if value is None else (function(value[0]), function(value[1]))

    return applied


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _log(x: float) -> float:
    return -math.inf if x <= 0 else math.log(x)


def _sigmoid(x: float) -> float:
    return 0.0 if x <= VERY_NEGATIVE else 1 / (1 + math.exp(-min(max(x, -700.0), 700.0)))


def _vanishing(
    function: Callable[[float], float],
) -> Callable[[Sequence[Interval | None]], Interval | None]:
    """Exp and the like: exactly 0 for very negative arguments."""
    plain = _monotone(function)

    def applied(values: Sequence[Interval | None]) -> Interval | None:
        value = values[0]
        if value is not None and value[1] <= VERY_NEGATIVE:
            return (0.0, 0.0)
        return plain(values)

    return applied


def _absolute(values: Sequence[Interval | None]) -> Interval | None:
    value = values[0]
    if value is None:
        return None
    low, high = value
    if low >= 0:
        return value
    if high <= 0:
        return (-high, -low)
    return (0.0, max(-low, high))


def _truth(value: Interval | None) -> bool | None:
    if value is None:
        return None
    if value == (0.0, 0.0):
        return False
    return True if value[0] > 0 or value[1] < 0 else None


def _boolean(value: bool | None) -> Interval:
    return (0.0, 1.0) if value is None else _number(float(value))


def _and(values: Sequence[Interval | None]) -> Interval | None:
    a, b = (_truth(v) for v in values)
    if a is False or b is False:
        return _boolean(False)
    return _boolean(True if a and b else None)


def _or(values: Sequence[Interval | None]) -> Interval | None:
    a, b = (_truth(v) for v in values)
    if a or b:
        return _boolean(True)
    return _boolean(False if a is False and b is False else None)


def _xor(values: Sequence[Interval | None]) -> Interval | None:
    a, b = (_truth(v) for v in values)
    return _boolean(None if a is None or b is None else a != b)


def _not(values: Sequence[Interval | None]) -> Interval | None:
    truth = _truth(values[0])
    return _boolean(None if truth is None else not truth)


def _minimum(values: Sequence[Interval | None]) -> Interval | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        low = min((v[1] for v in known), default=math.inf)
        return (-math.inf, low) if low <= VERY_NEGATIVE else None
    return (min(v[0] for v in known), min(v[1] for v in known))


def _maximum(values: Sequence[Interval | None]) -> Interval | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    return (max(v[0] for v in known), max(v[1] for v in known))


def _common_bits(values: Sequence[Interval | None]) -> Interval | None:
    """Of whole numbers: none are common with 0, and they are no more than either has."""
    a, b = values
    for x in (a, b):
        if x == (0.0, 0.0):
            return x
    if a is None or b is None or a[0] < 0 or b[0] < 0:
        return None
    if a[0] == a[1] < math.inf and b[0] == b[1] < math.inf:
        return _number(float(int(a[0]) & int(b[0])))
    return (0.0, min(a[1], b[1]))


def _compare(
    sure: Callable[[Interval, Interval], bool], never: Callable[[Interval, Interval], bool]
) -> Callable[[Sequence[Interval | None]], Interval | None]:
    def applied(values: Sequence[Interval | None]) -> Interval | None:
        a, b = values
        if a is None or b is None:
            return (0.0, 1.0)
        return _boolean(True if sure(a, b) else False if never(a, b) else None)

    return applied


def _truncate(values: Sequence[Interval | None]) -> Interval | None:
    value = values[0]
    if value is None:
        return None
    low, high = (x if math.isinf(x) else float(math.trunc(x)) for x in value)
    return (low, high)


def _reciprocal(values: Sequence[Interval | None]) -> Interval | None:
    return _divide([(1.0, 1.0), values[0]])


def _is_nan(values: Sequence[Interval | None]) -> Interval | None:
    value = values[0]
    return (0.0, 1.0) if value is None else _boolean(False)


def _is_inf(values: Sequence[Interval | None]) -> Interval | None:
    value = values[0]
    if value is None or ((math.isinf(value[0]) or math.isinf(value[1])) and value[0] != value[1]):
        return (0.0, 1.0)
    return _boolean(math.isinf(value[0]))


def _unknown(values: Sequence[Interval | None]) -> Interval | None:
    return None


_OPERATORS: dict[str, Callable[[Sequence[Interval | None]], Interval | None]] = {
    "Abs": _absolute,
    "Cast": lambda values: values[0],
    "CastInt": _truncate,
    "CastBool": lambda values: _boolean(_truth(values[0])),
    "Exp": _vanishing(_exp),
    "Log": _monotone(_log),
    "Neg": lambda values: _negate(values[0]),
    "Not": _not,
    "Relu": _monotone(lambda x: max(x, 0.0)),
    "Sigmoid": _vanishing(_sigmoid),
    "IsNaN": _is_nan,
    "IsInf": _is_inf,
    "Reciprocal": _reciprocal,
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "DivInt": lambda values: _truncate([_divide(values)]),
    "And": _and,
    "BitwiseAnd": _common_bits,
    "Or": _or,
    "Xor": _xor,
    "Min": _minimum,
    "Max": _maximum,
    "Mod": _unknown,
    "GreaterOrEqual": _compare(lambda a, b: a[0] >= b[1], lambda a, b: a[1] < b[0]),
    "Greater": _compare(lambda a, b: a[0] > b[1], lambda a, b: a[1] <= b[0]),
    "LessOrEqual": _compare(lambda a, b: a[1] <= b[0], lambda a, b: a[0] > b[1]),
    "Less": _compare(lambda a, b: a[1] < b[0], lambda a, b: a[0] >= b[1]),
    "Equal": _compare(
        lambda a, b: a[0] == a[1] == b[0] == b[1], lambda a, b: a[1] < b[0] or b[1] < a[0]
    ),
}
