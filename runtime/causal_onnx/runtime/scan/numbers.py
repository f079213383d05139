"""What is known of small values: shapes, trip counts, divisors, and their arithmetic.

Whole numbers wrap in a graph as they do in memory: a result that may leave the range of its type is
any number of that type.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from causal_onnx.runtime.scan.decode import KEPT
from causal_onnx.runtime.scan.sizes import (
    MEMORY,
    Number,
    Size,
    add,
    between,
    chosen_by_caller,
    divide,
    high_of,
    hull,
    infimum,
    is_chosen,
    is_limited_by,
    low_of,
    magnitude,
    multiply,
    negate,
    never_negative,
    quotient,
    subtract,
    supremum,
    within,
)

__all__ = ["INTEGERS", "PRECISION", "Contents", "anything", "elementwise", "joined", "of_type"]

INTEGERS: dict[int, tuple[int, int]] = {
    2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(1 << 31), (1 << 31) - 1),
    7: (-(1 << 63), (1 << 63) - 1), 9: (0, 1), 12: (0, (1 << 32) - 1), 13: (0, (1 << 64) - 1),
}  # fmt: skip
"""TensorProto.DataType -> the range of its whole numbers; 9 is bool."""

LARGEST_FLOAT = {1: 3e38, 10: 65504, 11: 1e308, 16: 3e38}
"""Float type -> its largest number; beyond it is infinity, which is any whole number."""

PRECISION = {1: 1 << 24, 10: 1 << 11, 11: 1 << 53, 16: 1 << 8}
"""Float type -> up to where it holds every whole number."""

SLACK = 0.01
"""By which share the result of arithmetic on floats may differ: more than bfloat16 rounds."""

TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Contents:
    """The elements of a value, row by row, or what holds all of them."""

    items: tuple[Number, ...] | None
    """Of each element; None: only `all` is known."""
    all: Number

    @classmethod
    def of(cls, items: Sequence[Number]) -> Contents:
        """A value of these elements, of which there is at least one."""
        return cls(tuple(items) if len(items) <= KEPT else None, hull(items))

    @classmethod
    def any_of(cls, number: Number) -> Contents:
        """A value of any number of elements within the bounds of one."""
        if is_chosen(number):
            return cls(None, chosen_by_caller(low_of(number)[0], high_of(number)[0]))
        return cls(None, between(low_of(number), high_of(number)))

    @property
    def exact(self) -> list[float] | None:
        """The elements where each is known exactly."""
        if self.items is None or any(isinstance(item, Size) for item in self.items):
            return None
        return list(self.items)  # type: ignore[arg-type]

    @property
    def low(self) -> float:
        return infimum(low_of(self.all))

    @property
    def high(self) -> float:
        return supremum(high_of(self.all))

    def map(self, function: Callable[[Number], Number]) -> Contents:
        items = None if self.items is None else tuple(map(function, self.items))
        return Contents(items, function(self.all) if items is None else hull(items))


def anything(dtype: int) -> Contents | None:
    """Any numbers of an integer type; None for other types."""
    if dtype not in INTEGERS:
        return None
    low, high = INTEGERS[dtype]
    return Contents.any_of(between((low,), (high,)))


def of_type(known: Contents | None, dtype: int) -> Contents | None:
    """The same, unless it may leave the range of its type: then any number of that type."""
    if dtype not in INTEGERS:
        most = LARGEST_FLOAT.get(dtype, 0)
        return known if known is not None and -most < known.low <= known.high < most else None
    if known is None:
        return anything(dtype)
    low, high = INTEGERS[dtype]
    if known.low >= low and known.high <= high:
        return known
    if known.items is None:
        return anything(dtype)

    def wrapped(item: Number) -> Number:
        inside = infimum(low_of(item)) >= low and supremum(high_of(item)) <= high
        return item if inside else between((low,), (high,))

    return Contents.of([wrapped(item) for item in known.items])


def joined(values: Sequence[Contents | None]) -> Contents | None:
    """One of several values, of the same number of elements where all know theirs."""
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return None
    rows = [value.items for value in known]
    if all(row is not None and len(row) == len(rows[0] or ()) for row in rows):
        return Contents.of([hull(part) for part in zip(*(row or () for row in rows), strict=True)])
    return Contents.any_of(hull([value.all for value in known]))


def elementwise(
    function: Callable[..., Number], values: Sequence[Contents | None], count: int | None
) -> Contents | None:
    """A function of numbers on values that are broadcast to `count` elements (None: many)."""
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return None
    rows = [value.items for value in known]
    if count is None or any(row is None or len(row) not in (1, count) for row in rows):
        # Elements of one value may meet others of the same value.
        return Contents.any_of(function(*(Contents.any_of(value.all).all for value in known)))
    wide = [row * count if len(row) == 1 else row for row in rows if row is not None]
    return Contents.of([function(*parts) for parts in zip(*wide, strict=True)])


def minimum(a: Number, b: Number) -> Number:
    # In one order, so that it is the same number again.
    return _extreme(b, a, min) if isinstance(b, Size) else _extreme(a, b, min)


def maximum(a: Number, b: Number) -> Number:
    return _extreme(b, a, max) if isinstance(b, Size) else _extreme(a, b, max)


@functools.lru_cache(maxsize=MEMORY)
def _extreme(a: Number, b: Number, choose: Callable[[float, float], float]) -> Number:
    if not isinstance(a, Size) and not isinstance(b, Size):
        return choose(a, b)
    apart = difference_sign(a, b)
    if apart is not None:
        return a if (apart > 0) == (choose is max) else b
    if choose is max:
        # At least the larger of two numbers, where both bounds are numbers.
        return between((max(infimum(low_of(a)), infimum(low_of(b))),), high_of(hull([a, b])))
    if is_limited_by(a, b) or is_limited_by(b, a):
        return a if is_limited_by(a, b) else b
    return between(low_of(hull([a, b])), min(high_of(a), high_of(b), key=supremum), a, b)


def difference_sign(a: Number, b: Number) -> int | None:
    """1 where `a` is at least `b` always, -1 where it is less always, else None."""
    apart = subtract(a, b)
    if never_negative(apart):
        return 1
    return -1 if supremum(high_of(apart)) < 0 else None


def truth(decided: bool | None) -> Number:
    return between((0,), (1,)) if decided is None else int(decided)


def less(a: Number, b: Number) -> Number:
    sign = difference_sign(a, b)
    return truth(None if sign is None else sign < 0)


def greater(a: Number, b: Number) -> Number:
    return less(b, a)


def less_or_equal(a: Number, b: Number) -> Number:
    return opposite(less(b, a))


def greater_or_equal(a: Number, b: Number) -> Number:
    return opposite(less(a, b))


def equal(a: Number, b: Number) -> Number:
    if a == b:
        return 1
    one, other = difference_sign(a, b), difference_sign(b, a)
    return truth(False if -1 in (one, other) else None)


def opposite(a: Number) -> Number:
    return truth(None) if isinstance(a, Size) else int(not a)


def both(a: Number, b: Number) -> Number:
    if a == 0 or b == 0:
        return 0
    return truth(None if isinstance(a, Size) or isinstance(b, Size) else True)


def either(a: Number, b: Number) -> Number:
    return opposite(both(opposite(a), opposite(b)))


def chosen(condition: Number, a: Number, b: Number) -> Number:
    if isinstance(condition, Size):
        return hull([a, b])
    return a if condition else b


def absolute(a: Number) -> Number:
    if infimum(low_of(a)) >= 0:
        return a
    return maximum(a, negate(a)) if isinstance(a, Size) else abs(a)


def ceiling(a: Number) -> Number:
    if not isinstance(a, Size):
        return math.ceil(a)
    return between(low_of(a), high_of(add(a, 1)))


def floor(a: Number) -> Number:
    if not isinstance(a, Size):
        return math.floor(a)
    return between(low_of(subtract(a, 1)), high_of(a))


def truncated(a: Number) -> Number:
    """A float as a whole number."""
    if not isinstance(a, Size):
        return int(a) if math.isfinite(a) else a
    return between(low_of(subtract(a, 1)), high_of(add(a, 1)))


def rounded(known: Contents, *operands: Contents) -> Contents:
    """What arithmetic on floats makes of a result: differences of large ones may become 0."""
    slack: Number = TINY
    for part in (known, *operands):
        slack = add(slack, multiply(between((0,), magnitude(part.all)), SLACK))
    most = high_of(slack)

    def widened(item: Number) -> Number:
        low = low_of(subtract(item, between((0,), most)))
        return between(low, high_of(add(item, between((0,), most))))

    return known.map(widened)


def divided(a: Number, b: Number) -> Number:
    """Whole numbers, toward zero; the divisor was found to be positive, or anything goes."""
    if infimum(low_of(b)) < 1:
        # -1 is the divisor with the largest results.
        most = high_of(absolute(a))
        return between(low_of(negate(between((0,), most))), most)
    return divide(a, b)


@functools.lru_cache(maxsize=MEMORY)
def _floor_divided(a: Number, b: float) -> Number:
    """By a positive number, downward: so a + (-a) % b is a multiple of b."""
    if not isinstance(a, Size):
        return a // b
    whole = quotient(a, b)
    if whole is not None:
        return whole
    low, high = multiply(subtract(a, b), 1 / b), multiply(a, 1 / b)
    if supremum(high_of(a)) < 0:  # as the opposite of a positive number, which products take
        least = between((-(supremum(high_of(a)) // b),), high_of(negate(low)))
        return negate(least)
    return between(low_of(low), high_of(high))


@functools.lru_cache(maxsize=MEMORY)
def remainder(a: Number, b: Number) -> Number:
    """With the sign of the divisor, as Mod has it for whole numbers."""
    if infimum(low_of(b)) > 0:
        most = high_of(subtract(b, 1))
        if isinstance(b, Size):
            return between((0,), most)
        return within(subtract(a, multiply(_floor_divided(a, b), b)), (0,), most)
    most = high_of(absolute(b))
    return between(low_of(negate(between((0,), most))), most)


@functools.lru_cache(maxsize=MEMORY)
def signed_remainder(a: Number, b: Number) -> Number:
    """With the sign of the dividend, as Mod has it with fmod."""
    if infimum(low_of(a)) >= 0:
        return remainder(a, b)
    most = high_of(absolute(b))
    return between(low_of(negate(between((0,), most))), most)


def real_quotient(a: Number, b: Number) -> Number:
    if not isinstance(b, Size):
        return multiply(a, 1 / b) if b else between((-math.inf,), (math.inf,))
    return between((-math.inf,), (math.inf,))


ARITHMETIC: dict[str, Callable[..., Number]] = {
    "Add": add, "Sub": subtract, "Mul": multiply, "Min": minimum, "Max": maximum, "Sum": add,
    "Equal": equal, "Less": less, "LessOrEqual": less_or_equal, "Greater": greater,
    "GreaterOrEqual": greater_or_equal, "And": both, "Or": either, "Where": chosen,
}  # fmt: skip
"""Operators of two or more numbers; Div and Mod have forms for whole numbers and for floats."""

ALONE: dict[str, Callable[[Number], Number]] = {
    "Abs": absolute, "Ceil": ceiling, "Floor": floor, "Neg": negate, "Not": opposite,
    "Identity": lambda a: a,
}  # fmt: skip
"""Operators of one number."""
