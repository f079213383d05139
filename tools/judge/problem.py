"""An implication as text of SMT-LIB that can be satisfied only if the implication is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tools.judge.tables import Leaf, Split, Table, leaves, tabulate
from tools.judge.terms import (
    OPERATORS,
    Fresh,
    Number,
    UntranslatableError,
    conjunction,
    disjunction,
    equal,
    integer,
    literal,
    negation,
    unless,
    vanish,
)

from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Known
from causal_onnx.export.proof.symbolic.expression import (
    Apply,
    AtLeastZero,
    Constant,
    Expression,
    IsZero,
    Linear,
    Lookup,
    Measured,
    Select,
    Unknown,
    Vanish,
)
from causal_onnx.export.proof.symbolic.implication import Implication, Operation, Side
from causal_onnx.export.proof.symbolic.poly import Monomial, Poly, symbol

__all__ = ["Problem", "loosened", "problems"]

MOST_PARTS = 20_000
"""Parts of an expression beyond which it is not written out."""

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Text that names the same variables the same way wherever the implication comes from."""

    text: str
    polynomial: bool
    """Nothing but polynomials: where no reals satisfy it, no whole numbers do."""
    approximate: tuple[str, ...]
    """What is known by some of its properties alone: an answer may be no counter-example."""
    names: Mapping[str, str]
    """Variable in the text -> in the proof."""
    sizes: Sizes | None
    """The sizes of the run that it is about; None: all."""


def problems(implication: Implication) -> list[Problem]:
    """The implication, or where it rests on values read off the runs, one instance for each run.

    Raises:
        UntranslatableError: An operator or a kind of expression has no translation.
    """
    runs: list[Sizes | None] = list(_runs(implication.left))
    return [_Writer(implication, sizes).problem() for sizes in runs or [None]]


def loosened(implication: Implication, problem: Problem) -> Problem:
    """The same with less said of products, so that it is linear: no solution here, none there."""
    return _Writer(implication, problem.sizes, loose=True).problem()


def _runs(side: Side) -> Iterator[Sizes]:
    """The sizes at which tensors in it were read off; of several, those of the first."""
    match side:
        case Measured(samples, _):
            yield from (sample.sizes for sample in samples)
        case Select(condition, then, other):
            parts: tuple[Side, ...] = (condition, then, other)
            yield from next((found for part in parts if (found := list(_runs(part)))), ())
        case Apply(_, parts):
            yield from next((found for part in parts if (found := list(_runs(part)))), ())
        case Vanish(score):
            yield from _runs(score)
        case _:
            pass


class _Writer:
    """Writes one implication."""

    def __init__(
        self, implication: Implication, sizes: Sizes | None, *, loose: bool = False
    ) -> None:
        self.implication = implication
        self.sizes = sizes
        self.fresh = Fresh(loose=loose)
        self.names: dict[str, str] = {}
        self.known: dict[Expression, Number] = {}
        self.parts = 0

    def problem(self) -> Problem:
        wrong = self.wrong()
        facts = [f"(>= {self.poly(poly)} 0)" for poly in self.implication.given]
        facts += self.bounds()
        lines = [
            *(f"(declare-const {name} Int)" for name in self.names.values()),
            *(f"(assert {fact})" for fact in facts),
            *self.fresh.lines,
            f"(assert {wrong})",
        ]
        text = "\n".join(lines) + "\n"
        polynomial = not re.search(r"Real|Bool|\d\.\d|\((?:div|mod|abs|to_int|to_real) ", text)
        return Problem(
            text,
            polynomial,
            tuple(dict.fromkeys(self.fresh.approximate)),
            {name: original for original, name in self.names.items()},
            self.sizes,
        )

    def wrong(self) -> str:
        """That the conclusion does not hold."""
        left, relation, right = (
            self.implication.left,
            self.implication.relation,
            self.implication.right,
        )
        if isinstance(left, Operation) and left.op in _QUOTIENTS:
            return self.wrong_quotient(left, self.side(right))
        a, b = self.fresh.short(self.side(left)), self.side(right)
        meant = conjunction(a.defined, b.defined)
        if relation == "==":
            return conjunction(meant, negation(equal(a, b)))
        if relation == "<=":
            over = f"(> {a.real} {b.real})"
            return conjunction(meant, disjunction(a.above, conjunction(a.finite, over)))
        if not (a.whole and b.whole):
            raise UntranslatableError(f"{relation} between other than whole numbers")
        return conjunction(meant, f"(<= {a.term} (- {b.term} 1))")

    def wrong_quotient(self, division: Operation, quotient: Number) -> str:
        """That a quotient, rounded somehow, is another number, told by the remainder."""
        a, b = (self.side(part).term for part in division.parts)
        rest = self.fresh.named("Int", f"(- {a} (* {quotient.term} {b}))")
        right = _QUOTIENTS[division.op].replace("A", a).replace("B", b).replace("R", rest)
        return conjunction(f"(not (= {b} 0))", f"(not {right})")

    def side(self, side: Side) -> Number:
        match side:
            case Poly():
                return Number(self.poly(side), whole=True)
            case Operation(op, parts):
                return self.operate(op, [self.side(part) for part in parts])
            case int() | float():
                return literal(side)
            case _:
                return self.expression(side)

    def poly(self, poly: Poly) -> str:
        terms = sorted(poly.terms.items(), key=lambda item: _order(item[0]))
        parts = []
        for monomial, c in terms:
            factors = [self.name(name) for name, power in monomial for _ in range(power)]
            if c != 1 or not factors:
                factors.insert(0, integer(c))
            parts.append(factors[0] if len(factors) == 1 else f"(* {' '.join(factors)})")
        if not parts:
            return "0"
        return parts[0] if len(parts) == 1 else f"(+ {' '.join(parts)})"

    def name(self, original: str) -> str:
        """The variable's name in the text: by the order in which they are first met."""
        found = self.names.get(original)
        if found is None:
            plain = re.fullmatch(r"[A-Za-z_]\w*", original) and not original.startswith("least_")
            found = f"size_{original}" if plain else f"i{len(self.names)}"
            self.names[original] = found
        return found

    def bounds(self) -> list[str]:
        """What is known of the variables, of those in that, and so on."""
        known = self.implication.bounds
        if known is None:
            return []
        least_of = {poly: pair for pair, poly in known.least_of.items()}
        facts, done = [], 0
        while done < len(self.names):
            original, name = list(self.names.items())[done]
            done += 1
            size = known.sizes.get(original)
            if size is not None:
                facts += [f"(>= {name} 0)", f"(<= {name} (- {self.poly(size)} 1))"]
            else:
                facts.append(f"(>= {name} {integer(known.least.get(original, 0))})")
            pair = least_of.get(symbol(original))
            if pair is not None:
                one, other = (self.poly(poly) for poly in pair)
                facts += [f"(<= {name} {one})", f"(<= {name} {other})"]
                facts.append(f"(or (= {name} {one}) (= {name} {other}))")
            if self.sizes is not None and original in self.sizes:
                facts.append(f"(= {name} {self.sizes[original]})")
        return facts

    def operate(self, op: str, parts: Sequence[Number]) -> Number:
        rule = OPERATORS.get(op)
        if rule is None:
            raise UntranslatableError(f"operator {op}")
        return rule(self.fresh, parts)

    def expression(self, expression: Expression) -> Number:
        """The value; equal expressions without data are written once."""
        found = self.known.get(expression)
        if found is None:
            self.parts += 1
            if self.parts > MOST_PARTS:
                raise UntranslatableError(f"an expression of more than {MOST_PARTS} parts")
            found = self.fresh.short(self.written(expression))
            if found.data == "false":
                self.known[expression] = found
        return found

    def written(self, expression: Expression) -> Number:
        match expression:
            case Unknown():
                return Number(self.fresh.constant("Real"), data="true")
            case Constant(value):
                return literal(value)
            case Linear(poly):
                return Number(self.poly(poly), whole=True)
            case AtLeastZero(poly):
                return Number(f"(ite (>= {self.poly(poly)} 0) 1 0)", whole=True)
            case IsZero(poly):
                return Number(f"(ite (= {self.poly(poly)} 0) 1 0)", whole=True)
            case Lookup(array, index):
                return self.lookup(_table_of(array), array.value.shape, index)
            case Measured(samples, index):
                found = next((s.array for s in samples if s.sizes == self.sizes), None)
                if found is None:
                    raise UntranslatableError("values read off other runs than those beside them")
                return self.lookup(tabulate(found, masked=VERY_NEGATIVE), found.shape, index)
            case Select(condition, then, other):
                test = self.expression(condition)
                return unless(test, self.expression(then), self.expression(other))
            case Apply("Mul", (Unknown(), other)) | Apply("Mul", (other, Unknown())):
                return self.times_anything(self.expression(other))
            case Apply(op, parts):
                return self.operate(op, [self.expression(part) for part in parts])
            case Vanish(score):
                return vanish(self.fresh, self.expression(score))
            case _:
                raise UntranslatableError(f"{type(expression).__name__}")

    def times_anything(self, other: Number) -> Number:
        """The product with data: anything, where the other factor is not 0."""
        factor = self.fresh.short(other)
        rest = self.fresh.constant("Real")
        is_zero = f"(= {factor.real} 0.0)"
        defined = factor.defined
        if factor.finite == "true":
            return Number(f"(ite {is_zero} 0.0 {rest})", data="true", defined=defined)
        sign = self.fresh.constant("Bool")
        infinite = negation(factor.finite)
        above, below = conjunction(infinite, sign), conjunction(infinite, negation(sign))
        return Number(f"(ite {is_zero} 0.0 {rest})", False, above, below, "true", defined)

    def lookup(self, table: Table, shape: Sequence[int], index: Sequence[Poly]) -> Number:
        """An element of an array; nothing is said of indices outside it."""
        places = [self.poly(poly) for poly in index]
        inside = conjunction(
            *(
                conjunction(f"(>= {place} 0)", f"(<= {place} {size - 1})")
                for place, size, poly in zip(places, shape, index, strict=True)
                if poly.constant is None or not 0 <= poly.constant < size
            )
        )
        if any(leaf.low != leaf.high for leaf in leaves(table)):
            self.fresh.approximate.append("a table of many values")
        found = self.piece(table, places)
        return Number(
            found.term,
            found.whole,
            found.above,
            found.below,
            found.data,
            conjunction(found.defined, inside),
        )

    def piece(self, table: Table, places: Sequence[str]) -> Number:
        match table:
            case Leaf(low, high):
                if low is None or high is None:
                    return Number(self.fresh.constant("Real"), data="true")
                if low == high:
                    return literal(low)
                limits = [
                    f"(>= @ {literal(low).real})" if np.isfinite(low) else "true",
                    f"(<= @ {literal(high).real})" if np.isfinite(high) else "true",
                ]
                return Number(self.fresh.constant("Real", *limits))
            case Split(axis, minus, pieces):
                place = places[axis]
                if minus is not None:
                    place = self.fresh.named("Int", f"(- {place} {places[minus]})")
                found = self.piece(pieces[-1][1], places)
                for end, inner in reversed(pieces[:-1]):
                    test = f"(ite (< {place} {integer(end)}) 1 0)"
                    then = self.piece(inner, places)
                    found = self.fresh.short(unless(Number(test, whole=True), then, found))
                return found


_QUOTIENTS = {
    "Div": "(= R 0)",
    "DivInt": "(and (< (abs R) (abs B)) (or (= R 0) (= (< R 0) (< A 0))))",
    "FloorDiv": "(ite (> B 0) (and (>= R 0) (< R B)) (and (<= R 0) (> R B)))",
    "CeilDiv": "(ite (> B 0) (and (<= R 0) (> R (- B))) (and (>= R 0) (< R (- B))))",
}
"""What the remainder R of A by B is if the quotient is right."""

_tables: dict[int, tuple[Known, Table]] = {}
"""By identity, with the array, so that its id stays its own."""


def _table_of(array: Known) -> Table:
    found = _tables.get(id(array))
    if found is None:
        if array.value.dtype.kind not in "biuf":
            raise UntranslatableError(f"a table of {array.value.dtype}")
        values: npt.NDArray[Any] = array.value
        found = _tables[id(array)] = (array, tabulate(values, masked=VERY_NEGATIVE))
    return found[1]


def _order(monomial: Monomial) -> tuple[Any, ...]:
    """Constants first, then sizes, then indices in the order in which they were made."""
    names = [
        (1, int(name[1:]), "", power) if name.startswith("$") else (0, 0, name, power)
        for name, power in monomial
    ]
    return (len(names), names)
