"""Integer polynomials in sizes and indices, and proofs that one is never negative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from causal_onnx.export.proof.symbolic.implication import Operation, conclude

__all__ = ["ONE", "ZERO", "Bounds", "Poly", "symbol", "tightened"]

Monomial: TypeAlias = tuple[tuple[str, int], ...]
"""Variables with their powers, sorted."""


class Poly:
    """An immutable polynomial with integer coefficients.

    Variables are names: sizes ("batch", "seq", ...), index variables ("$3") and opaque whole
    numbers ("floor(...)").
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = {m: c for m, c in terms.items() if c}
        self._hash: int | None = None

    @staticmethod
    def of(value: int | Poly) -> Poly:
        return value if isinstance(value, Poly) else Poly({(): int(value)})

    @property
    def constant(self) -> int | None:
        """The number, if there are no variables."""
        if not self.terms:
            return 0
        if len(self.terms) == 1:
            return self.terms.get(())
        return None

    def variables(self) -> set[str]:
        return {name for monomial in self.terms for name, _ in monomial}

    def __add__(self, other: int | Poly) -> Poly:
        terms = dict(self.terms)
        for monomial, c in Poly.of(other).terms.items():
            terms[monomial] = terms.get(monomial, 0) + c
        return Poly(terms)

    __radd__ = __add__

    def __neg__(self) -> Poly:
        return Poly({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: int | Poly) -> Poly:
        return self + (-Poly.of(other))

    def __rsub__(self, other: int | Poly) -> Poly:
        return Poly.of(other) - self

    def __mul__(self, other: int | Poly) -> Poly:
        right = Poly.of(other)
        if self.terms == {(): 1}:
            return right
        if right.terms == {(): 1}:
            return self
        terms: dict[Monomial, int] = {}
        for a, x in self.terms.items():
            for b, y in right.terms.items():
                monomial = _product(a, b)
                terms[monomial] = terms.get(monomial, 0) + x * y
        return Poly(terms)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.constant == other
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __repr__(self) -> str:
        if not self.terms:
            return "0"
        parts = []
        for monomial, c in sorted(self.terms.items(), key=lambda item: item[0], reverse=True):
            names = "*".join(n if p == 1 else f"{n}^{p}" for n, p in monomial)
            parts.append(names if c == 1 and names else f"{c}*{names}" if names else str(c))
        return " + ".join(parts).replace("+ -", "- ")

    def subs(self, values: Mapping[str, Poly]) -> Poly:
        """Put polynomials in the place of variables."""
        if not any(name in values for monomial in self.terms for name, _ in monomial):
            return self
        result = ZERO
        for monomial, c in self.terms.items():
            part = Poly({(): c})
            for name, power in monomial:
                factor = values.get(name)
                if factor is None:
                    part = part * Poly({((name, power),): 1})
                else:
                    for _ in range(power):
                        part = part * factor
            result = result + part
        return result

    def split(self, name: str) -> tuple[Poly, Poly] | None:
        """(a, b) with self = a * name + b and name in neither; None if it occurs squared."""
        with_it: dict[Monomial, int] = {}
        without: dict[Monomial, int] = {}
        for monomial, c in self.terms.items():
            powers = dict(monomial)
            if name not in powers:
                without[monomial] = c
            elif powers[name] == 1:
                with_it[tuple(item for item in monomial if item[0] != name)] = c
            else:
                return None
        return Poly(with_it), Poly(without)

    def divided_by(self, other: int | Poly) -> Poly | None:
        """The exact quotient; None where there is a remainder."""
        divisor = Poly.of(other)
        quotient = self._quotient(divisor)
        if quotient is not None:
            conclude(self, "==", Operation("Mul", (quotient, divisor)))
        return quotient

    def _quotient(self, divisor: Poly) -> Poly | None:
        if not divisor.terms:
            return None
        names = sorted(self.variables() | divisor.variables())

        def order(item: tuple[Monomial, int]) -> tuple[int, ...]:
            powers = dict(item[0])
            return tuple(powers.get(name, 0) for name in names)

        lead, lead_c = max(divisor.terms.items(), key=order)
        rest, quotient = self, ZERO
        for _ in range(64):
            if not rest.terms:
                return quotient
            top, c = max(rest.terms.items(), key=order)
            monomial = _quotient(top, lead)
            if monomial is None or c % lead_c:
                return None
            step = Poly({monomial: c // lead_c})
            quotient = quotient + step
            rest = rest - step * divisor
        return None

    def at(self, values: Mapping[str, int]) -> int:
        """The number at given values of all variables.

        Raises:
            KeyError: A variable has no value.
        """
        total = 0
        for monomial, c in self.terms.items():
            part = c
            for name, power in monomial:
                part *= values[name] ** power
            total += part
        return total


def _product(a: Monomial, b: Monomial) -> Monomial:
    if not a:
        return b
    if not b:
        return a
    powers = dict(a)
    for name, power in b:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted(powers.items()))


def _quotient(a: Monomial, b: Monomial) -> Monomial | None:
    powers = dict(a)
    for name, power in b:
        left = powers.get(name, 0) - power
        if left < 0:
            return None
        powers[name] = left
    return tuple(sorted((n, p) for n, p in powers.items() if p))


ZERO = Poly({})
ONE = Poly({(): 1})


def tightened(poly: Poly) -> Poly:
    """A polynomial that is >= 0 for the same whole numbers, and smaller: 4 a + 3 becomes a."""
    parts = [c for monomial, c in poly.terms.items() if monomial]
    step = math.gcd(*parts)
    if step <= 1:
        return poly
    return Poly({monomial: c // step for monomial, c in poly.terms.items()})


def symbol(name: str) -> Poly:
    """The polynomial that is just this variable."""
    return Poly({((name, 1),): 1})


class Bounds:
    """What is known of the variables: sizes have a least value, indices run below a size."""

    def __init__(self) -> None:
        self.least: dict[str, int] = {}
        """Size -> its least value; a variable that is neither here nor in `sizes` is at least 0."""
        self.sizes: dict[str, Poly] = {}
        """Index variable -> the size it runs below."""
        self.least_of: dict[tuple[Poly, Poly], Poly] = {}
        """Two numbers -> the variable that is the smaller of them."""
        self._count = 0

    def index(self, size: Poly) -> str:
        """A new index variable."""
        self._count += 1
        name = f"${self._count}"
        self.sizes[name] = size
        return name

    def nonnegative(self, poly: Poly) -> bool:
        """Whether the polynomial is proved to be >= 0 for all values of its variables."""
        constant = poly.constant
        if constant is not None:
            return constant >= 0
        for name in sorted(poly.variables(), reverse=True):
            size = self.sizes.get(name)
            if size is None:
                continue
            parts = poly.split(name)
            if parts is None:
                return False
            slope, rest = parts
            if self.nonnegative(slope):
                return self.nonnegative(rest)
            if self.nonnegative(-slope):
                return self.nonnegative(rest + slope * (size - 1))
            return False
        shifted = poly.subs(
            {n: symbol(n) + self.least.get(n, 0) for n in poly.variables() if self.least.get(n)}
        )
        return all(c >= 0 for c in shifted.terms.values())

    def implied(self, poly: Poly, given: Sequence[Poly]) -> bool:
        """Whether poly >= 0 follows from all of `given` being >= 0."""
        follows = self._follows(poly, given)
        if follows:
            conclude(poly, ">=", 0, given=given, bounds=self)
        return follows

    def _follows(self, poly: Poly, given: Sequence[Poly]) -> bool:
        if self.nonnegative(poly):
            return True
        if any(self.nonnegative(poly - g * k) for g in given for k in _multiples(poly, g)):
            return True
        return len(given) > 1 and any(self.nonnegative(poly - a - b) for a, b in _pairs(given))


def _multiples(poly: Poly, given: Poly) -> set[int]:
    """How often an inequality may be worth taking: once, or so that a shared term cancels."""
    found = {1}
    for monomial, c in given.terms.items():
        own = poly.terms.get(monomial, 0) if monomial else 0
        if own * c > 0 and own % c == 0:
            found.add(own // c)
    return found


def _pairs(given: Sequence[Poly]) -> Iterable[tuple[Poly, Poly]]:
    for i, a in enumerate(given):
        for b in given[i + 1 :]:
            yield a, b
