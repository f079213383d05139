"""Sizes that a file leaves open: exact expressions of its axes, and bounds that grow with them.

A graph's axes (`batch`, `seq`, ...) are atoms. A size that follows from them by sums and products
is kept as a polynomial of atoms, so that `batch * seq * 768 / (seq * 768)` is `batch` again.
Anything else is a new atom between two bounds. Bounds are polynomials of one number n, the largest
of the axes of the inputs, and hold for every n from 1 to `LARGEST_AXIS`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

from causal_onnx.runtime.contract import LARGEST_AXIS
from causal_onnx.runtime.scan.limits import Refused

__all__ = [
    "MEMORY",
    "STATED",
    "Bound",
    "Number",
    "Size",
    "add",
    "at_least_one",
    "axis",
    "between",
    "bounded_steps",
    "chosen_by_caller",
    "degree",
    "divide",
    "high_of",
    "hull",
    "infimum",
    "is_chosen",
    "is_limited_by",
    "is_nonnegative",
    "low_of",
    "magnitude",
    "multiply",
    "negate",
    "never_negative",
    "product",
    "quotient",
    "relaxed",
    "subtract",
    "supremum",
    "within",
]  # fmt: skip

STATED = 16
"""The size at which bytes and work are judged, of every axis that the inputs leave open. A call
at k times that size costs k to the power of the largest degree more, at most."""

MAX_DEGREE = 6
MAX_TERMS = 8

MAX_STEPS = 100_000
"""Sums and products of sizes in one scan. Two cached layers take 500; each costs some
microseconds."""

MEMORY = 4096
"""Results of functions that are kept: the same of the same numbers is the same number again."""

Bound: TypeAlias = tuple[float, ...]
"""Coefficients of 1, n, n^2, ..."""


@dataclass(slots=True, eq=False)
class Atom:
    """One number that is not known, between two bounds."""

    number: int
    low: Bound
    high: Bound
    limits: tuple[Number, ...] = ()
    """Other numbers than which it is never larger."""
    is_chosen: bool = False
    """A number that a caller gives, as data and not as a size."""
    raised: Atom | None = None
    """The same number where it was found to be 1 at least."""


Terms: TypeAlias = "dict[tuple[Atom, ...], float]"


@dataclass(slots=True, eq=False)
class Size:
    """A polynomial of atoms, which is not a constant."""

    terms: Terms
    low: Bound
    high: Bound
    extent: float = field(init=False)
    """What an axis of this size is taken to have where bytes and work are judged."""

    def __post_init__(self) -> None:
        self.extent = max(supremum(self.high, STATED), 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))


Number: TypeAlias = "int | float | Size"

_numbers = itertools.count()

_steps_left: ContextVar[list[int] | None] = ContextVar("_steps_left", default=None)


@contextlib.contextmanager
def bounded_steps() -> Iterator[None]:
    """Refuse what takes more than `MAX_STEPS` sums and products of sizes.

    Raises:
        Refused: There were more.
    """
    token = _steps_left.set([MAX_STEPS])
    try:
        yield
    finally:
        _steps_left.reset(token)


def _count_step() -> None:
    left = _steps_left.get()
    if left is None:
        return
    left[0] -= 1
    if left[0] < 0:
        raise Refused(f"it computes sizes in more than {MAX_STEPS} steps, more than exports do")


def between(low: Bound, high: Bound, *limits: Number) -> Number:
    """A number of which only the bounds are known, and perhaps other numbers that limit it."""
    if low == high and len(low) == 1 and math.isfinite(low[0]):
        return low[0]
    _count_step()
    atom = Atom(next(_numbers), low, high, limits)
    return Size({(atom,): 1}, low, high)


def chosen_by_caller(low: float, high: float) -> Number:
    """A number among the data that a caller gives."""
    atom = Atom(next(_numbers), (low,), (high,), is_chosen=True)
    return Size({(atom,): 1}, atom.low, atom.high)


def is_chosen(number: Number) -> bool:
    """Whether it is just a number that a caller gives, and not computed from one."""
    return (
        isinstance(number, Size)
        and all(
            c == 1 and all(atom.is_chosen for atom in atoms) for atoms, c in number.terms.items()
        )
        and len(number.terms) == 1
    )


def is_limited_by(a: Number, b: Number) -> bool:
    """Whether one number is known never to be larger than another."""
    if not isinstance(a, Size) or len(a.terms) != 1:
        return False
    ((atoms, c),) = a.terms.items()
    return c == 1 and len(atoms) == 1 and b in atoms[0].limits


def relaxed(number: Number) -> Iterator[Number]:
    """Numbers that are not less, each with one atom replaced by one of its limits."""
    if not isinstance(number, Size) or any(c < 0 for c in number.terms.values()):
        return
    if len(number.terms) > 2:
        return
    for atom in {atom: None for atoms in number.terms for atom in atoms if atom.limits}:
        for limit in atom.limits:
            total: Number = 0
            for atoms, c in number.terms.items():
                parts = [limit if x is atom else Size({(x,): 1}, x.low, x.high) for x in atoms]
                total = add(total, product([c, *parts]))
            yield total


def never_negative(number: Number) -> bool:
    """Whether a number is 0 at least, by its bounds, or with the limit of what it subtracts."""
    if is_nonnegative(number):
        return True
    if not isinstance(number, Size):
        return False
    for atom in {atom: None for atoms in number.terms for atom in atoms if atom.limits}:
        terms = [(atoms, c) for atoms, c in number.terms.items() if atom in atoms]
        if any(c > 0 or infimum(x.low) < 0 for atoms, c in terms for x in atoms):
            continue
        for limit in atom.limits:
            least: Number = 0
            for atoms, c in number.terms.items():
                parts = [limit if x is atom else Size({(x,): 1}, x.low, x.high) for x in atoms]
                least = add(least, product([c, *parts]))
            if is_nonnegative(least):
                return True
    return False


def at_least_one(number: Number) -> Number:
    """The same number, which was found not to be 0."""
    if infimum(low_of(number)) >= 1:
        return number
    if not isinstance(number, Size):
        return max(number, 1)
    ((atoms, c), *more) = number.terms.items()
    if more or len(atoms) != 1 or c != 1:
        return between((1,), number.high)
    (atom,) = atoms
    if atom.raised is None:
        atom.raised = Atom(next(_numbers), (1,), atom.high, atom.limits)
    return Size({(atom.raised,): 1}, (1,), atom.high)


def axis(low: int) -> Number:
    """A new axis of an input: from `low` to n."""
    return between((low,), (0, 1))


def low_of(number: Number) -> Bound:
    return number.low if isinstance(number, Size) else (number,)


def high_of(number: Number) -> Bound:
    return number.high if isinstance(number, Size) else (number,)


def supremum(bound: Bound, n: int = LARGEST_AXIS) -> float:
    """What a bound is at most for sizes from 1 to n."""
    if len(bound) == 1:
        return bound[0]
    return sum(c * n**power if c > 0 else c for power, c in enumerate(bound) if c)


def infimum(bound: Bound) -> float:
    """What a bound is at least for sizes from 1 to `LARGEST_AXIS`."""
    return -supremum(_scaled(bound, -1))


def degree(number: Number) -> int:
    """The power of n with which a number grows at most."""
    if not isinstance(number, Size):
        return 0
    return max((power for power, c in enumerate(number.high) if c > 0), default=0)


def is_nonnegative(number: Number) -> bool:
    return infimum(low_of(number)) >= 0


def _scaled(bound: Bound, factor: float) -> Bound:
    return tuple(c * factor if c else 0 for c in bound)


def _sum(a: Bound, b: Bound) -> Bound:
    if len(a) < len(b):
        a, b = b, a
    return (*(x + y for x, y in zip(a, b, strict=False)), *a[len(b) :])


def _clipped(bound: Bound) -> Bound:
    """Not below the bound, and without negative coefficients."""
    return tuple(max(c, 0) for c in bound)


def _convolved(a: Bound, b: Bound) -> Bound:
    """The product of two bounds without negative coefficients."""
    if len(a) + len(b) - 1 > MAX_DEGREE + 1:
        return (math.inf,)
    result = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if x and y:
                result[i + j] += x * y
    return tuple(result)


def _highest(bounds: Sequence[Bound]) -> Bound:
    return tuple(max(found) for found in itertools.zip_longest(*bounds, fillvalue=0))


def _lowest(bounds: Sequence[Bound]) -> Bound:
    return tuple(min(found) for found in itertools.zip_longest(*bounds, fillvalue=0))


def _made(terms: Terms) -> Number:
    terms = {atoms: c for atoms, c in terms.items() if c}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    _count_step()
    low: Bound = (0,)
    high: Bound = (0,)
    for atoms, c in terms.items():
        least, most = _bounds(atoms)
        if c < 0:
            least, most = most, least
        low, high = _sum(low, _scaled(least, c)), _sum(high, _scaled(most, c))
    return Size(terms, low, high)


def _bounds(atoms: tuple[Atom, ...]) -> tuple[Bound, Bound]:
    if len(atoms) == 1:
        return atoms[0].low, atoms[0].high
    least: float = 1
    most: Bound = (1,)
    for atom in atoms:  # several in one term are never negative
        least, most = least * max(infimum(atom.low), 0), _convolved(most, _clipped(atom.high))
    return (least,), most


def _terms(number: Number) -> Terms:
    return number.terms if isinstance(number, Size) else {(): number}


def add(a: Number, b: Number) -> Number:
    if not isinstance(a, Size) and not isinstance(b, Size):
        return a + b
    terms = dict(_terms(a))
    for atoms, c in _terms(b).items():
        terms[atoms] = terms.get(atoms, 0) + c
    low, high = _sum(low_of(a), low_of(b)), _sum(high_of(a), high_of(b))
    if len(terms) > MAX_TERMS:
        return between(low, high)
    return within(_made(terms), low, high)


def within(number: Number, low: Bound, high: Bound) -> Number:
    """The same number, of which these bounds hold too."""
    if not isinstance(number, Size):
        return number
    return Size(
        number.terms,
        low if infimum(low) > infimum(number.low) else number.low,
        high if supremum(high) < supremum(number.high) else number.high,
    )


def negate(a: Number) -> Number:
    return multiply(a, -1)


def subtract(a: Number, b: Number) -> Number:
    return add(a, negate(b))


def multiply(a: Number, b: Number) -> Number:
    if not isinstance(a, Size):
        if not isinstance(b, Size):
            return a * b
        return _made({atoms: c * a for atoms, c in b.terms.items()})
    if not isinstance(b, Size):
        return multiply(b, a)
    if _has_nonnegative_atoms(a) and _has_nonnegative_atoms(b):
        terms: Terms = {}
        for atoms, c in a.terms.items():
            for more, d in b.terms.items():
                both = tuple(sorted((*atoms, *more), key=_number))
                terms[both] = terms.get(both, 0) + c * d
        if len(terms) <= MAX_TERMS and max(map(len, terms)) <= MAX_DEGREE:
            return _made(terms)
    if is_nonnegative(a) and is_nonnegative(b):
        high = _convolved(_clipped(a.high), _clipped(b.high))
        return between((infimum(a.low) * infimum(b.low),), high)
    most = _convolved(magnitude(a), magnitude(b))
    return between(_scaled(most, -1), most)


def product(numbers: Sequence[Number]) -> Number:
    result: Number = 1
    for number in numbers:
        result = multiply(result, number)
    return result


def _number(atom: Atom) -> int:
    return atom.number


def _has_nonnegative_atoms(a: Size) -> bool:
    return all(infimum(atom.low) >= 0 for atoms in a.terms for atom in atoms)


def magnitude(a: Number) -> Bound:
    """What a number is at most, its sign left out."""
    return _sum(_clipped(high_of(a)), _clipped(_scaled(low_of(a), -1)))


def quotient(a: Number, b: Number) -> Number | None:
    """What `a` is of `b`, where that is a polynomial without a remainder."""
    if b == 0:
        return None
    if not isinstance(a, Size) and not isinstance(b, Size):
        return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else None
    rest = a
    found: Terms = {}
    lead = max(_terms(b), key=_order)
    for _ in range(MAX_TERMS):
        if rest == 0:
            return _made(found)
        top = max(_terms(rest), key=_order)
        left, c, d = list(top), _terms(rest)[top], _terms(b)[lead]
        for atom in lead:
            if atom not in left:
                return None
            left.remove(atom)
        if c % d:
            return None
        share = c // d
        found[tuple(left)] = share
        rest = subtract(rest, multiply(_made({tuple(left): share}), b))
    return None


def _order(atoms: tuple[Atom, ...]) -> tuple[int, ...]:
    return len(atoms), *(atom.number for atom in atoms)


@functools.lru_cache(maxsize=MEMORY)
def divide(a: Number, b: Number) -> Number:
    """The quotient toward zero of whole numbers, of which `b` is 1 or more."""
    if not isinstance(a, Size) and not isinstance(b, Size):
        return int(abs(a) // b) * (1 if a >= 0 else -1)
    whole = quotient(a, b)
    if whole is not None:
        return whole
    least = max(infimum(low_of(b)), 1)
    most = _scaled(_clipped(high_of(a)), 1 / least)
    if is_nonnegative(a):
        fits = int(is_nonnegative(subtract(a, b)))
        return between((max(infimum(low_of(a)) // max(supremum(high_of(b)), 1), fits),), most)
    return between(_sum(_scaled(_clipped(_scaled(low_of(a), -1)), -1 / least), (-1,)), most)


def hull(numbers: Sequence[Number]) -> Number:
    """A number that is one of these, or between them."""
    first = numbers[0]
    if all(first == number for number in numbers[1:]):
        return first
    low = _lowest([low_of(number) for number in numbers])
    largest: list[Number] = []
    if len(numbers) <= 4:  # branches and axes; more are the elements of a value
        largest = [x for x in numbers if all(y == x or is_limited_by(y, x) for y in numbers)]
    return between(low, _highest([high_of(number) for number in numbers]), *largest[:1])
