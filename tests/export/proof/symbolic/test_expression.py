"""Values of masks wherever the key stands after the query, proved for every size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from causal_onnx.export.analysis.elements import Known
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Constant,
    Expression,
    Lookup,
    Measured,
    Sample,
    Vanish,
    apply,
    evaluate,
    linear,
    mentions,
    substitute,
)
from causal_onnx.export.proof.symbolic.poly import Bounds, Poly, symbol

BOUNDS = Bounds()
BOUNDS.least = {"seq": 1, "batch": 1}
N = symbol("seq")
I, J = symbol(BOUNDS.index(N)), symbol(BOUNDS.index(N))  # noqa: E741 - query i, key j
LATER = (J - I - 1,)
"""The key stands after the query."""
CAUSAL = apply("LessOrEqual", [linear(J), linear(I)])
INF = Constant(-math.inf)
ZERO, ONE = Constant(0.0), Constant(1.0)
TABLE = Known(np.tril(np.ones((9, 9), np.bool_)), constant=True)
LOOKED_UP = Lookup(TABLE, (I, J))


def value(expression: Expression) -> tuple[float, float] | None:
    return evaluate(expression, BOUNDS, LATER)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (CAUSAL, (0.0, 0.0)),
        (apply("Not", [CAUSAL]), (1.0, 1.0)),
        (apply("And", [CAUSAL, UNKNOWN]), (0.0, 0.0)),
        (apply("Or", [apply("Not", [CAUSAL]), UNKNOWN]), (1.0, 1.0)),
        (apply("Where", [CAUSAL, UNKNOWN, INF]), (-math.inf, -math.inf)),
        (apply("Add", [UNKNOWN, apply("Where", [CAUSAL, ZERO, INF])]), (-math.inf, -math.inf)),
        (apply("Log", [apply("Cast", [CAUSAL])]), (-math.inf, -math.inf)),
        (apply("Mul", [UNKNOWN, CAUSAL]), (0.0, 0.0)),
        (apply("Where", [CAUSAL, UNKNOWN, Constant(-1e9)]), (-1e9, -1e9)),
        (Vanish(apply("Where", [CAUSAL, UNKNOWN, INF])), (0.0, 0.0)),
        (Vanish(apply("Where", [CAUSAL, UNKNOWN, Constant(-50.0)])), None),
        (apply("Exp", [apply("Where", [CAUSAL, UNKNOWN, INF])]), (0.0, 0.0)),
        (apply("Cast", [LOOKED_UP]), (0.0, 0.0)),
        (apply("Greater", [linear(J), linear(I + 1)]), (0.0, 1.0)),
        (apply("Equal", [linear(J), linear(I)]), (0.0, 0.0)),
        (UNKNOWN, None),
    ],
)
def test_values_beyond_the_diagonal(
    expression: Expression, expected: tuple[float, float] | None
) -> None:
    assert value(expression) == expected


def test_a_ramp_is_as_low_as_its_slope() -> None:
    ramp = apply("Relu", [linear(J - I)])
    low = apply("Sub", [UNKNOWN, apply("Mul", [ramp, Constant(1e8)])])
    found = value(low)
    assert found is not None
    assert found[1] <= -1e8


def test_a_hole_in_a_table_is_seen() -> None:
    holed = np.tril(np.ones((9, 9), np.bool_))
    holed[3, 7] = True
    assert value(Lookup(Known(holed, constant=True), (I, J))) == (0.0, 1.0)


def test_a_table_read_with_an_offset_covers_the_offset() -> None:
    assert value(Lookup(TABLE, (I, J - 1))) == (0.0, 1.0)
    assert value(Lookup(TABLE, (I, J + 1))) == (0.0, 0.0)


def test_measured_tensors_say_what_was_measured() -> None:
    names = [next(iter(index.variables())) for index in (I, J)]
    assert len(set(names)) == 2
    samples = tuple(Sample({"seq": n}, np.tril(np.ones((n, n)))) for n in (3, 8))
    assert value(Measured(samples, (I, J))) == (0.0, 0.0)
    assert evaluate(Measured(samples, (I, J)), BOUNDS, (I - J,)) == (1.0, 1.0)


def test_a_run_that_does_not_know_a_value_is_no_evidence_for_it() -> None:
    full, holed = np.tril(np.ones((8, 8))), np.tril(np.ones((3, 3)))
    holed[0, 2] = np.nan
    samples = (Sample({"seq": 3}, holed), Sample({"seq": 8}, full))
    assert value(Measured(samples, (I, J))) is None


def test_whole_numbers_have_their_own_operators() -> None:
    six, two = Constant(6.0), Constant(2.0)
    assert value(apply("DivInt", [ONE, two])) == (0.0, 0.0)
    assert value(apply("Div", [ONE, two])) == (0.5, 0.5)
    assert value(apply("BitwiseAnd", [ONE, two])) == (0.0, 0.0)
    assert value(apply("BitwiseAnd", [six, two])) == (2.0, 2.0)
    assert value(apply("BitwiseAnd", [UNKNOWN, ZERO])) == (0.0, 0.0)


def test_an_unmasked_row_decides_nothing() -> None:
    assert apply("Add", [UNKNOWN, Constant(3.0)]) == UNKNOWN
    assert apply("And", [UNKNOWN, UNKNOWN]) == UNKNOWN
    assert apply("Sin", [linear(I)]) == UNKNOWN


def test_numbers_stay_exact() -> None:
    assert apply("Add", [linear(I), linear(J)]) == linear(I + J)
    assert apply("Sub", [linear(I), linear(I)]) == ZERO
    assert apply("Greater", [linear(I + 1), linear(I)]) == ONE


def test_substitution_reaches_every_part() -> None:
    (name,) = J.variables()
    moved = substitute(apply("Where", [CAUSAL, UNKNOWN, INF]), {name: I})
    assert not mentions(moved, [name])
    assert evaluate(moved, BOUNDS, ()) is None


def test_casting_to_an_integer_truncates() -> None:
    assert value(apply("CastInt", [Constant(0.9)])) == (0.0, 0.0)
    assert value(apply("CastBool", [Constant(0.9)])) == (1.0, 1.0)


def test_depth_is_limited() -> None:
    deep: Expression = CAUSAL
    for _ in range(60):
        deep = apply("Not", [deep])
    assert deep == UNKNOWN or isinstance(deep, type(apply("Not", [CAUSAL])))
    assert Poly.of(0) == 0


@pytest.mark.parametrize(("op", "low"), [("Div", 0.25), ("DivInt", 0.0)])
def test_a_quotient_of_integers_is_rounded_towards_zero(op: str, low: float) -> None:
    bounds = Bounds()
    index = symbol(bounds.index(symbol("seq")))
    quotient = apply(op, [linear(index), Constant(4.0)])
    found = evaluate(quotient, bounds, [index - 1])
    assert found is not None
    assert found[0] == low
