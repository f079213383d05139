"""Polynomials, and what is proved of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_onnx.export.proof.symbolic.poly import Bounds, Poly, symbol, tightened

N, B, P = symbol("seq"), symbol("batch"), symbol("past_seq")

small = st.integers(-4, 4)


@st.composite
def polys(draw: st.DrawFn) -> Poly:
    found = Poly.of(draw(small))
    for monomial in (N, B, P, N * B, N * N):
        found = found + monomial * draw(small)
    return found


def bounds() -> Bounds:
    found = Bounds()
    found.least = {"seq": 1, "batch": 1}
    return found


@given(polys(), polys(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_arithmetic_agrees_with_numbers(a: Poly, b: Poly, n: int, m: int, p: int) -> None:
    values = {"seq": n, "batch": m, "past_seq": p}
    assert (a + b).at(values) == a.at(values) + b.at(values)
    assert (a - b).at(values) == a.at(values) - b.at(values)
    assert (a * b).at(values) == a.at(values) * b.at(values)
    assert a.subs({"seq": b}).at(values) == a.at({**values, "seq": b.at(values)})


@given(polys(), polys())
def test_division_is_exact_or_refused(a: Poly, b: Poly) -> None:
    if b != 0:
        assert (a * b).divided_by(b) == a
    quotient = a.divided_by(b)
    assert quotient is None or quotient * b == a


@given(polys(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 6))
def test_what_is_proved_nonnegative_is_so(a: Poly, n: int, m: int, p: int) -> None:
    if bounds().nonnegative(a):
        assert a.at({"seq": n, "batch": m, "past_seq": p}) >= 0


@given(polys(), polys(), st.integers(1, 5), st.integers(0, 5))
def test_indices_run_below_their_size(a: Poly, b: Poly, n: int, p: int) -> None:
    space = bounds()
    i, j = space.index(N), space.index(N + P)
    claim = a.subs({"batch": symbol(i)}) + b.subs({"batch": symbol(j)})
    if space.nonnegative(claim):
        for at_i in range(n):
            for at_j in range(n + p):
                assert claim.at({"seq": n, "past_seq": p, i: at_i, j: at_j}) >= 0


@pytest.mark.parametrize(
    ("claim", "given_", "holds"),
    [
        (N - 1, [], True),
        (N - 2, [], False),
        (P, [], True),
        (P - 1, [], False),
        (P - 3, [P - 3], True),
        (P - 2, [P - 3], True),
        (N * B - B, [], True),
        (N - P, [N - P - 1], True),
        (N + B - P - 7, [N - P - 4, B - 3], True),
        (N + B - P - 8, [N - P - 4, B - 3], False),
    ],
)
def test_consequences(claim: Poly, given_: list[Poly], holds: bool) -> None:
    assert bounds().implied(claim, given_) is holds


def test_text() -> None:
    assert repr(2 * N - 1) == "2*seq - 1"
    assert repr(Poly.of(0)) == "0"


def test_powers_are_not_split() -> None:
    assert (N * N + 1).split("seq") is None
    assert (3 * N + P).split("seq") == (Poly.of(3), P)


def test_an_inequality_between_whole_numbers_is_tightened() -> None:
    a, b = symbol("a"), symbol("b")
    assert tightened(a * 4 - b * 4 + 3) == a - b
    assert tightened(a * 4 - b * 4 - 1) == a - b - 1
    assert tightened(a * 4 - b * 3 + 3) == a * 4 - b * 3 + 3
