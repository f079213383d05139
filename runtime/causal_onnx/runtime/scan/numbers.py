"""What is known of the small integer values of a graph: each a span from lowest to highest.

Shapes and trip counts are computed in the graph from the sizes of its inputs, which are known only
when it runs. Interval arithmetic over at most `KEPT` numbers says how large and how small they
can become.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from causal_onnx.runtime.scan.decode import KEPT

__all__ = ["DIMENSION", "Known", "compute"]

Number = int | float
Span = tuple[Number, Number]

DIMENSION: Span = (0, 1 << 20)
"""What the size of an axis is taken to be: up to a million positions."""


@dataclass(frozen=True, slots=True)
class Known:
    """A value of whole numbers, or of real ones."""

    items: tuple[Span, ...] | None
    """Of each element; None: their number is not known."""
    hull: Span
    """Holds every element."""
    is_real: bool = False

    @classmethod
    def of(cls, items: Sequence[Span], *, is_real: bool = False) -> Known:
        """A value of these elements, of which there is at least one."""
        lows, highs = zip(*items, strict=True)
        return cls(tuple(items) if len(items) <= KEPT else None, (min(lows), max(highs)), is_real)

    @classmethod
    def any_of(cls, hull: Span, *, is_real: bool = False) -> Known:
        return cls(None, hull, is_real)

    @property
    def exact(self) -> list[Number] | None:
        """The elements where each is known exactly."""
        if self.items is None or any(low != high for low, high in self.items):
            return None
        return [low for low, _ in self.items]

    def least_product(self) -> Number:
        """What the product of the elements is at least, where none is 0 or negative."""
        return math.prod(max(low, 1) for low, _ in self.items or ())


def compute(
    op_type: str, inputs: Sequence[Known | None], numbers: dict[str, list[int]]
) -> Known | None:
    """What is known of an operator's first output; None: nothing.

    Args:
        op_type: The operator, of the default domain.
        inputs: What is known of its inputs; None for one that is absent or unknown.
        numbers: Its integer attributes.
    """
    if op_type == "Shape":
        return _shape(numbers)
    if op_type == "Size":
        return Known.of([(0, math.inf)])
    if not inputs or inputs[0] is None:
        return None
    first = inputs[0]
    if op_type in ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"):
        return first
    if op_type == "Cast":
        return _cast(first, numbers.get("to", [0])[0])
    if op_type in ("Expand", "Tile"):
        return Known.any_of(first.hull, is_real=first.is_real)
    if op_type == "Gather" and len(inputs) > 1:
        return _gather(first, inputs[1])
    if op_type == "Slice":
        return _slice(first, inputs)
    if op_type in ("ReduceMax", "ReduceMin"):
        return Known.of([first.hull], is_real=first.is_real)
    if op_type in ("ReduceSum", "ReduceProd"):
        return _total(op_type, first)
    known = [value for value in inputs if value is not None]
    if len(known) != len(inputs):
        return None
    if op_type == "Concat":
        return _concat(known)
    if op_type == "Range" and len(known) == 3:
        low = min(known[0].hull[0], known[1].hull[0])
        high = max(known[0].hull[1], known[1].hull[1])
        return Known.any_of((low, high), is_real=first.is_real)
    if op_type in _ELEMENTWISE and len(known) >= 2:
        result = known[0]
        for other in known[1:]:
            result = _elementwise(_ELEMENTWISE[op_type], result, other)
        return result
    if op_type == "Neg":
        return _elementwise(_multiply, first, Known.of([(-1, -1)]))
    if op_type in ("Ceil", "Floor"):
        return _elementwise(_add, first, Known.of([(-1, 1)]))
    return None


def _shape(numbers: dict[str, list[int]]) -> Known:
    start, end = numbers.get("start", [0])[0], numbers.get("end")
    count = None
    if end is not None and (start < 0) == (end[0] < 0):
        count = end[0] - start
    elif end is None and start < 0:
        count = -start
    if count is None or not 0 < count <= KEPT:
        return Known.any_of(DIMENSION)
    return Known.of([DIMENSION] * count)


_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 12, 13))


def _cast(value: Known, to: int) -> Known:
    if to not in _INTEGERS or not value.is_real:
        return Known(value.items, value.hull, value.is_real or to not in _INTEGERS)

    def truncate(span: Span) -> Span:
        return tuple(x if math.isinf(x) else int(x) for x in span)  # type: ignore[return-value]

    items = None if value.items is None else tuple(truncate(span) for span in value.items)
    return Known(items, truncate(value.hull))


def _gather(value: Known, indices: Known | None) -> Known:
    exact = None if indices is None else indices.exact
    if value.items is None or not exact:
        return Known.any_of(value.hull, is_real=value.is_real)
    count = len(value.items)
    if any(not -count <= index < count for index in exact):
        return Known.any_of(value.hull, is_real=value.is_real)
    return Known.of([value.items[int(index)] for index in exact], is_real=value.is_real)


def _slice(value: Known, inputs: Sequence[Known | None]) -> Known:
    whole = Known.any_of(value.hull, is_real=value.is_real)
    bounds = [None if x is None else x.exact for x in inputs[1:3]]
    steps = inputs[4] if len(inputs) > 4 else Known.of([(1, 1)])
    if value.items is None or steps is None or steps.exact != [1] or len(bounds) < 2:
        return whole
    start, end = bounds
    if not start or not end or len(start) != 1 or len(end) != 1:
        return whole
    chosen = value.items[int(start[0]) : int(end[0])]
    return Known.of(chosen, is_real=value.is_real) if chosen else whole


def _total(op_type: str, value: Known) -> Known | None:
    if value.items is None:
        return None
    join = _add if op_type == "ReduceSum" else _multiply
    total = value.items[0]
    for span in value.items[1:]:
        total = join(total, span)
    return Known.of([total], is_real=value.is_real)


def _concat(values: Sequence[Known]) -> Known:
    is_real = any(value.is_real for value in values)
    hull = Known.of([value.hull for value in values]).hull
    items: list[Span] = []
    for value in values:
        if value.items is None:
            return Known.any_of(hull, is_real=is_real)
        items += value.items
    return Known.of(items, is_real=is_real)


def _elementwise(join: Callable[[Span, Span], Span], a: Known, b: Known) -> Known:
    is_real = a.is_real or b.is_real
    if join is _divide and is_real:
        join = _divide_real
    lefts, rights = a.items, b.items
    if lefts is None or rights is None or len({1, len(lefts), len(rights)}) > 2:
        return Known.any_of(join(a.hull, b.hull), is_real=is_real)
    count = max(len(lefts), len(rights))
    lefts, rights = (x * count if len(x) == 1 else x for x in (lefts, rights))
    return Known.of([join(x, y) for x, y in zip(lefts, rights, strict=True)], is_real=is_real)


def _hull(values: Sequence[Number]) -> Span:
    # 0 x infinity is not a number; whatever it is, it is between the two.
    if any(math.isnan(value) for value in values):
        return -math.inf, math.inf
    return min(values), max(values)


def _add(a: Span, b: Span) -> Span:
    return a[0] + b[0], a[1] + b[1]


def _subtract(a: Span, b: Span) -> Span:
    return a[0] - b[1], a[1] - b[0]


def _multiply(a: Span, b: Span) -> Span:
    return _hull([x * y for x in a for y in b])


def _divide_real(a: Span, b: Span) -> Span:
    if b[0] <= 0 <= b[1]:
        return -math.inf, math.inf
    return _hull([x / y for x in a for y in b])


def _divide(a: Span, b: Span) -> Span:
    """Integers, toward zero. A divisor of 0 is an error when it runs, so 1 is the least."""
    if b[0] < 0:
        return _hull([-max(map(abs, a)), max(map(abs, a))])
    least, most = max(b[0], 1), max(b[1], 1)
    low, high = _hull(
        [x / y if math.isinf(x) else _quotient(x, y) for x in a for y in (least, most)]
    )
    return low, high


def _quotient(x: Number, y: Number) -> Number:
    if math.isinf(y):
        return 0
    return abs(int(x)) // int(y) * (1 if x >= 0 else -1)


def _minimum(a: Span, b: Span) -> Span:
    return min(a[0], b[0]), min(a[1], b[1])


def _maximum(a: Span, b: Span) -> Span:
    return max(a[0], b[0]), max(a[1], b[1])


def _remainder(a: Span, b: Span) -> Span:
    most = max(map(abs, b))
    return -most, most


_ELEMENTWISE: dict[str, Callable[[Span, Span], Span]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Min": _minimum,
    "Max": _maximum,
    "Mod": _remainder,
}
