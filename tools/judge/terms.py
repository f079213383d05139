"""Expressions of the symbolic proof as SMT-LIB terms over the reals with two infinities.

What cannot happen is left out by a condition of its own: an index outside its table, a division of
whole numbers by 0, NaN (intermediate values are finite: docs/certificate.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from causal_onnx.export.analysis.elements import VERY_NEGATIVE

__all__ = [
    "OPERATORS",
    "Fresh",
    "Number",
    "UntranslatableError",
    "conjunction",
    "disjunction",
    "equal",
    "integer",
    "literal",
    "negation",
    "unless",
]

TRUE, FALSE = "true", "false"


class UntranslatableError(Exception):
    """Something for which there is no translation; the message names it."""


@dataclass(frozen=True, slots=True)
class Number:
    """A term, whether it stands for an infinity instead, and where it means anything."""

    term: str
    whole: bool = False
    """It is a term of whole numbers."""
    above: str = FALSE
    """It is infinite."""
    below: str = FALSE
    """It is minus infinity."""
    data: str = FALSE
    """It is computed from data, which an ordinary mask outweighs."""
    defined: str = TRUE

    @property
    def real(self) -> str:
        if not self.whole:
            return self.term
        return f"{self.term}.0" if self.term.isdigit() else f"(to_real {self.term})"

    @property
    def finite(self) -> str:
        return negation(disjunction(self.above, self.below))

    @property
    def truth(self) -> str:
        """It is not 0."""
        return disjunction(self.above, self.below, negation(same(self.term, zero(self))))

    @property
    def masked(self) -> str:
        """It is very negative."""
        low = negation(disjunction(self.above, self.below))
        return disjunction(
            self.below, conjunction(low, f"(<= {self.real} {decimal(VERY_NEGATIVE)})")
        )


class Fresh:
    """Makes constants of which only what is asserted is known."""

    def __init__(self, *, loose: bool = False) -> None:
        """Start without any.

        Args:
            loose: Of products and quotients of floats, only tell when they are 0. What has no
                solution even so has none.
        """
        self.loose = loose
        self.lines: list[str] = []
        self.approximate: list[str] = []
        """What is known by some of its properties alone: a counter-example may be none."""
        self._count = 0

    def constant(self, sort: str, *facts: str) -> str:
        """A new constant; in the facts it is written as @."""
        self._count += 1
        name = f"c{self._count}"
        self.lines.append(f"(declare-const {name} {sort})")
        self.lines.extend(f"(assert {fact.replace('@', name)})" for fact in facts)
        return name

    def named(self, sort: str, term: str) -> str:
        """A short name for a term."""
        if len(term) < 24 or term in (TRUE, FALSE):
            return term
        self._count += 1
        name = f"c{self._count}"
        self.lines.append(f"(define-fun {name} () {sort} {term})")
        return name

    def short(self, number: Number) -> Number:
        """The number with names for its parts, so that using it twice does not write it twice."""
        return Number(
            self.named("Int" if number.whole else "Real", number.term),
            number.whole,
            self.named("Bool", number.above),
            self.named("Bool", number.below),
            self.named("Bool", number.data),
            self.named("Bool", number.defined),
        )


def conjunction(*parts: str) -> str:
    kept = list(dict.fromkeys(part for part in parts if part != TRUE))
    if FALSE in kept:
        return FALSE
    return TRUE if not kept else kept[0] if len(kept) == 1 else f"(and {' '.join(kept)})"


def disjunction(*parts: str) -> str:
    kept = list(dict.fromkeys(part for part in parts if part != FALSE))
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else f"(or {' '.join(kept)})"


def negation(part: str) -> str:
    return {TRUE: FALSE, FALSE: TRUE}.get(part) or f"(not {part})"


def choice(condition: str, then: str, other: str) -> str:
    if condition == TRUE or then == other:
        return then
    return other if condition == FALSE else f"(ite {condition} {then} {other})"


def truth_choice(condition: str, then: str, other: str) -> str:
    """`choice` between conditions."""
    if then in (TRUE, FALSE) or other in (TRUE, FALSE):
        return disjunction(conjunction(condition, then), conjunction(negation(condition), other))
    return choice(condition, then, other)


def integer(value: int) -> str:
    return str(value) if value >= 0 else f"(- {-value})"


def decimal(value: float) -> str:
    """The exact value of a finite float."""
    fraction = Fraction(value)
    text = f"{abs(fraction.numerator)}.0"
    if fraction.denominator != 1:
        text = f"(/ {text} {fraction.denominator}.0)"
    return text if fraction >= 0 else f"(- {text})"


def literal(value: float) -> Number:
    if math.isnan(value):
        return Number("0", whole=True, defined=FALSE)
    if math.isinf(value):
        return Number("0", whole=True, above=str(value > 0).lower(), below=str(value < 0).lower())
    if float(value).is_integer():
        return Number(integer(int(value)), whole=True)
    return Number(decimal(value))


def zero(number: Number) -> str:
    return "0" if number.whole else "0.0"


def same(a: str, b: str) -> str:
    return TRUE if a == b else f"(= {a} {b})"


def boolean(condition: str, parts: Sequence[Number]) -> Number:
    """1 or 0."""
    return Number(choice(condition, "1", "0"), whole=True, defined=_defined(parts))


def _defined(parts: Sequence[Number]) -> str:
    return conjunction(*(part.defined for part in parts))


def _any_data(parts: Sequence[Number]) -> str:
    return disjunction(*(part.data for part in parts))


def unless(condition: Number, then: Number, other: Number) -> Number:
    """`then` where the condition is not 0, else `other`."""
    test = condition.truth
    whole = then.whole and other.whole
    sides = (then.term, other.term) if whole else (then.real, other.real)
    return Number(
        choice(test, *sides),
        whole,
        truth_choice(test, then.above, other.above),
        truth_choice(test, then.below, other.below),
        truth_choice(test, then.data, other.data),
        conjunction(condition.defined, truth_choice(test, then.defined, other.defined)),
    )


def at_most(a: Number, b: Number) -> str:
    """Whether the first is no larger."""
    sides = (a.term, b.term) if a.whole and b.whole else (a.real, b.real)
    finite = conjunction(
        negation(a.above),
        negation(b.below),
        TRUE if a.term == b.term else f"(<= {sides[0]} {sides[1]})",
    )
    return disjunction(a.below, b.above, finite)


def equal(a: Number, b: Number) -> str:
    sides = (a.term, b.term) if a.whole and b.whole else (a.real, b.real)
    return disjunction(
        conjunction(a.above, b.above),
        conjunction(a.below, b.below),
        conjunction(a.finite, b.finite, same(*sides)),
    )


def _plus(a: Number, b: Number) -> Number:
    whole = a.whole and b.whole
    term = f"(+ {a.term} {b.term})" if whole else f"(+ {a.real} {b.real})"
    opposite = disjunction(conjunction(a.above, b.below), conjunction(a.below, b.above))
    return Number(
        term,
        whole,
        disjunction(a.above, b.above),
        disjunction(a.below, b.below),
        _any_data((a, b)),
        conjunction(_defined((a, b)), negation(opposite)),
    )


def _add(fresh: Fresh, parts: Sequence[Number]) -> Number:
    """The sum; a mask value stays as it is where data is added to it."""
    a, b = (fresh.short(part) for part in parts)
    found = _plus(a, b)
    for mask, other in ((a, b), (b, a)):
        stays = conjunction(mask.masked, other.data) if other.data != FALSE else FALSE
        if stays != FALSE:
            kept = replace(mask, defined=_defined((a, b)))
            found = unless(Number(choice(stays, "1", "0"), whole=True), kept, found)
    return found


def _minus(part: Number) -> Number:
    return replace(part, term=f"(- {part.term})", above=part.below, below=part.above)


def _subtract(fresh: Fresh, parts: Sequence[Number]) -> Number:
    return _add(fresh, (parts[0], _minus(parts[1])))


def _sign(part: Number, *, positive: bool) -> str:
    infinite = part.above if positive else part.below
    test = f"({'>' if positive else '<'} {part.term} {zero(part)})"
    return disjunction(infinite, conjunction(part.finite, test))


def _multiply(fresh: Fresh, parts: Sequence[Number]) -> Number:
    a, b = (fresh.short(part) for part in parts)
    same_sign = [
        conjunction(_sign(a, positive=sign), _sign(b, positive=sign)) for sign in (True, False)
    ]
    opposite = [
        conjunction(_sign(a, positive=sign), _sign(b, positive=not sign)) for sign in (True, False)
    ]
    infinite = disjunction(a.above, a.below, b.above, b.below)
    above, below = FALSE, FALSE
    if infinite != FALSE:
        above = conjunction(infinite, disjunction(*same_sign))
        below = conjunction(infinite, disjunction(*opposite))
    nan = [
        conjunction(disjunction(x.above, x.below), y.finite, same(y.term, zero(y)))
        for x, y in ((a, b), (b, a))
    ]
    defined = conjunction(_defined((a, b)), negation(disjunction(*nan)))
    whole = a.whole and b.whole
    sides = (a.term, b.term) if whole else (a.real, b.real)
    term = f"(* {sides[0]} {sides[1]})"
    if fresh.loose and not whole:
        rest = fresh.constant("Real")
        term = f"(ite (or (= {a.real} 0.0) (= {b.real} 0.0)) 0.0 {rest})"
    return Number(term, whole, above, below, _any_data((a, b)), defined)


def _divide(fresh: Fresh, parts: Sequence[Number]) -> Number:
    """The quotient of floats."""
    a, b = (fresh.short(part) for part in parts)
    by_zero = conjunction(b.finite, same(b.real, "0.0"))
    nan = disjunction(
        conjunction(by_zero, a.finite, same(a.real, "0.0")),
        conjunction(negation(a.finite), negation(b.finite)),
    )
    positive = disjunction(
        conjunction(_sign(a, positive=True), negation(_sign(b, positive=False))),
        conjunction(_sign(a, positive=False), _sign(b, positive=False)),
    )
    infinite = disjunction(by_zero, negation(a.finite))
    quotient = f"(/ {a.real} {b.real})"
    if fresh.loose:
        quotient = f"(ite (= {a.real} 0.0) 0.0 {fresh.constant('Real')})"
    quotient = choice(negation(b.finite), "0.0", quotient)
    return Number(
        quotient,
        False,
        conjunction(infinite, positive),
        conjunction(infinite, negation(positive)),
        _any_data((a, b)),
        conjunction(_defined((a, b)), negation(nan)),
    )


def _reciprocal(fresh: Fresh, parts: Sequence[Number]) -> Number:
    return _divide(fresh, (literal(1.0), *parts))


def _whole_term(part: Number) -> str:
    return part.term if part.whole else f"(to_int {part.term})"


def _rounded(a: str, b: str) -> str:
    """The quotient of whole numbers towards zero; `div` rounds down for positive divisors."""
    sizes = f"(div (abs {a}) (abs {b}))"
    return f"(ite (= (< {a} 0) (< {b} 0)) {sizes} (- {sizes}))"


def _whole_quotient(fresh: Fresh, parts: Sequence[Number]) -> Number:
    a, b = (_whole_term(fresh.short(part)) for part in parts)
    defined = conjunction(_defined(parts), f"(not (= {b} 0))")
    return Number(_rounded(a, b), True, data=_any_data(parts), defined=defined)


def _modulo(fresh: Fresh, parts: Sequence[Number]) -> Number:
    """The remainder with the divisor's sign; that of `mod` is never negative."""
    a, b = (_whole_term(fresh.short(part)) for part in parts)
    term = f"(ite (> {b} 0) (mod {a} {b}) (- (mod (- {a}) {b})))"
    defined = conjunction(_defined(parts), f"(not (= {b} 0))")
    return Number(term, True, data=_any_data(parts), defined=defined)


def _absolute(fresh: Fresh, parts: Sequence[Number]) -> Number:
    (a,) = (fresh.short(part) for part in parts)
    term = f"(ite (< {a.term} {zero(a)}) (- {a.term}) {a.term})"
    return replace(a, term=term, above=disjunction(a.above, a.below), below=FALSE)


def _identity(fresh: Fresh, parts: Sequence[Number]) -> Number:
    return parts[0]


def _truncate(fresh: Fresh, parts: Sequence[Number]) -> Number:
    (a,) = (fresh.short(part) for part in parts)
    if a.whole:
        return a
    term = f"(ite (< {a.term} 0.0) (- (to_int (- {a.term}))) (to_int {a.term}))"
    return replace(a, term=term, whole=True)


def _exp(fresh: Fresh, parts: Sequence[Number]) -> Number:
    (a,) = (fresh.short(part) for part in parts)
    x = a.real
    fresh.approximate.append("Exp")
    low = a.masked
    name = fresh.constant(
        "Real",
        "(>= @ 0.0)",
        f"(=> {low} (= @ 0.0))",
        f"(=> (= {x} 0.0) (= @ 1.0))",
        f"(=> (< {x} 0.0) (<= @ 1.0))",
        f"(=> (> {x} 0.0) (>= @ 1.0))",
    )
    return Number(name, False, above=a.above, data=a.data, defined=a.defined)


def _log(fresh: Fresh, parts: Sequence[Number]) -> Number:
    (a,) = (fresh.short(part) for part in parts)
    x = a.real
    fresh.approximate.append("Log")
    name = fresh.constant(
        "Real",
        f"(=> (= {x} 1.0) (= @ 0.0))",
        f"(=> (< {x} 1.0) (<= @ 0.0))",
        f"(=> (> {x} 1.0) (>= @ 0.0))",
    )
    negative = _sign(a, positive=False)
    below = conjunction(a.finite, same(x, "0.0"))
    return Number(name, False, a.above, below, a.data, conjunction(a.defined, negation(negative)))


def _sigmoid(fresh: Fresh, parts: Sequence[Number]) -> Number:
    (a,) = (fresh.short(part) for part in parts)
    fresh.approximate.append("Sigmoid")
    name = fresh.constant(
        "Real",
        "(>= @ 0.0)",
        "(<= @ 1.0)",
        f"(=> {a.masked} (= @ 0.0))",
        f"(=> {a.above} (= @ 1.0))",
    )
    return Number(name, False, data=a.data, defined=a.defined)


def vanish(fresh: Fresh, score: Number) -> Number:
    """A softmax weight: 0 where the score is very negative, else anything finite."""
    score = fresh.short(score)
    name = fresh.constant("Real", f"(=> {score.masked} (= @ 0.0))")
    return Number(name, False, data=TRUE, defined=score.defined)


def _extreme(fresh: Fresh, parts: Sequence[Number], *, least: bool) -> Number:
    found, *rest = (fresh.short(part) for part in parts)
    for part in rest:
        first = at_most(found, part) if least else at_most(part, found)
        test = Number(choice(first, "1", "0"), whole=True, defined=_defined((found, part)))
        found = fresh.short(unless(test, found, part))
    return found


def _least(fresh: Fresh, parts: Sequence[Number]) -> Number:
    return _extreme(fresh, parts, least=True)


def _most(fresh: Fresh, parts: Sequence[Number]) -> Number:
    return _extreme(fresh, parts, least=False)


def _bits(fresh: Fresh, parts: Sequence[Number]) -> Number:
    """The common bits of two whole numbers: exact for 0 and 1."""
    a, b = (_whole_term(fresh.short(part)) for part in parts)
    fresh.approximate.append("BitwiseAnd")
    name = fresh.constant(
        "Int",
        f"(=> (= {a} 0) (= @ 0))",
        f"(=> (= {b} 0) (= @ 0))",
        f"(=> (= {a} {b}) (= @ {a}))",
        f"(=> (and (>= {a} 0) (>= {b} 0)) (and (>= @ 0) (<= @ {a}) (<= @ {b})))",
    )
    return Number(name, True, data=_any_data(parts), defined=_defined(parts))


Operator = Callable[[Fresh, Sequence[Number]], Number]


def _test(condition: Callable[..., str]) -> Operator:
    def applied(fresh: Fresh, parts: Sequence[Number]) -> Number:
        return boolean(condition(*(fresh.short(part) for part in parts)), parts)

    return applied


OPERATORS: dict[str, Operator] = {
    "Abs": _absolute,
    "Add": _add,
    "And": _test(lambda a, b: conjunction(a.truth, b.truth)),
    "BitwiseAnd": _bits,
    "Cast": _identity,
    "CastBool": _test(lambda a: a.truth),
    "CastInt": _truncate,
    # Of whole numbers.
    "Ceil": _identity,
    "Div": _divide,
    "DivInt": _whole_quotient,
    "Equal": _test(equal),
    "Exp": _exp,
    "Floor": _identity,
    "Greater": _test(lambda a, b: negation(at_most(a, b))),
    "GreaterOrEqual": _test(lambda a, b: at_most(b, a)),
    "IsInf": _test(lambda a: disjunction(a.above, a.below)),
    "IsNaN": _test(lambda a: FALSE),
    "Less": _test(lambda a, b: negation(at_most(b, a))),
    "LessOrEqual": _test(at_most),
    "Log": _log,
    "Max": _most,
    "Min": _least,
    "Mod": _modulo,
    "Mul": _multiply,
    "Neg": lambda fresh, parts: _minus(parts[0]),
    "Not": _test(lambda a: negation(a.truth)),
    "Or": _test(lambda a, b: disjunction(a.truth, b.truth)),
    "Reciprocal": _reciprocal,
    "Relu": lambda fresh, parts: _most(fresh, (parts[0], literal(0.0))),
    "Round": _identity,
    "Sigmoid": _sigmoid,
    "Sub": _subtract,
    "Where": lambda fresh, parts: unless(fresh.short(parts[0]), parts[1], parts[2]),
    "Xor": _test(lambda a, b: negation(same(a.truth, b.truth))),
}
"""What each operator that the proof follows means."""
__all__ += ["vanish"]
