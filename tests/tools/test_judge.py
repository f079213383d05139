"""What the symbolic proof accepts, z3 proves again; what is planted in it, z3 refutes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from tools.judge import verdict
from tools.judge.__main__ import main
from tools.judge.problem import problems
from tools.judge.tables import Leaf, Table, tabulate
from tools.judge.terms import OPERATORS, UntranslatableError
from tools.judge.verdict import Judgement, judge, merged
from tools.zoo.__main__ import _refuted
from tools.zoo.page import summary_lines

from causal_onnx.export.analysis.elements import Known
from causal_onnx.export.proof.symbolic import arranging, computing, expression, implication
from causal_onnx.export.proof.symbolic.engine import Prover
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Apply,
    AtLeastZero,
    Constant,
    Expression,
    IsZero,
    Linear,
    Lookup,
    Measured,
    Sample,
    Select,
    Vanish,
    apply,
    evaluate,
    linear,
)
from causal_onnx.export.proof.symbolic.implication import (
    ImplicationLog,
    Operation,
    conclude,
    logging_implications,
)
from causal_onnx.export.proof.symbolic.poly import Bounds, Poly, symbol
from tests.export.analysis.graphs import build, static
from tests.export.analysis.rule_cases import CASES, INF, attend

GRAPHS = {case.name: case.model for case in CASES if case.verdict == "causal"}
BOUNDS = Bounds()
BOUNDS.least = {"seq": 1}
N = symbol("seq")
I, J = symbol(BOUNDS.index(N)), symbol(BOUNDS.index(N))  # noqa: E741 - query i, key j
LATER = (J - I - 1,)
TRIL = Lookup(Known(np.tril(np.ones((9, 9), np.bool_)), constant=True), (I, J))
HIDDEN = Lookup(Known(np.triu(np.full((7, 7), -np.inf), 1), constant=True), (I, J))


def judged(model: onnx.ModelProto) -> Judgement:
    """What z3 says of the symbolic proof of a graph, whatever the runs showed."""
    analysis = static(model).analysis
    assert analysis is not None
    with logging_implications() as log:
        prover = Prover(analysis)
        prover.follow()
        prover.judge(analysis.model.graph.outputs[0], (1,))
    return judge(log)


def claimed(left: Any, relation: Any, right: Any, **given: Any) -> Judgement:
    """What z3 says of one implication."""
    with logging_implications() as log:
        conclude(left, relation, right, **given)
    return judge(log)


def answer(left: Any, relation: Any, right: Any, **given: Any) -> str:
    (found,) = claimed(left, relation, right, **given).distinct.values()
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_what_the_proof_accepts_is_proved_again(name: str) -> None:
    found = judged(GRAPHS[name]())
    assert found.count("proved") == len(found.distinct) > 0, found.remarks


COUNTED = INF + "m2 = Constant <value_int = 2> () m7 = Constant <value_int = -7> () "
"""With numbers that are known as polynomials of the sizes alone."""


def shaped(arithmetic: str) -> onnx.ModelProto:
    """A graph that computes `k` from its length `n`, and keeps its input."""
    return build(f"{COUNTED} none = Sub(n, n) minus = Add(none, m7) {arithmetic} y = Identity(x)")


def causal_mask(mask: str) -> onnx.ModelProto:
    return build(attend(mask))


def tabled_mask() -> onnx.ModelProto:
    """A causal mask from a table, with one entry too many."""
    holed = np.tril(np.ones((16, 16), np.bool_))
    holed[3, 7] = True
    cut = "t = Slice(holed, a0, n1, a0) c = Slice(t, a0, n1, a1) m = Where(c, s, lowest)"
    return build(attend(cut), holed=holed)


def table_of_16() -> onnx.ModelProto:
    return build(
        INF + "t = Slice(table, a0, n1, a0) y = Add(x, t)",
        table=np.ones((16, 4), np.float32),
    )


Plant = Callable[[pytest.MonkeyPatch], None]


def off_by_one(patch: pytest.MonkeyPatch) -> None:
    """A <= b is accepted where a <= b + 1 holds."""
    right = Bounds._follows
    patch.setattr(Bounds, "_follows", lambda self, poly, given: right(self, poly + 1, given))


def invented_fact(patch: pytest.MonkeyPatch) -> None:
    """What was concluded with a fact is accepted without it."""
    right = Bounds._follows
    patch.setattr(Bounds, "_follows", lambda self, poly, given: right(self, poly, (*given, 16 - N)))


def dropped_fact(patch: pytest.MonkeyPatch) -> None:
    """What holds beyond the diagonal is accepted everywhere."""
    right = expression.surely

    def wrong(factor: Any, number: float, bounds: Bounds, given: Any, **rest: Any) -> bool:
        with logging_implications():
            found = right(factor, number, bounds, given, **rest)
        if found:
            conclude(factor, "==" if rest["exactly"] else "<=", number, bounds=bounds)
        return found

    patch.setattr("causal_onnx.export.proof.symbolic.tensor.surely", wrong)


def rounding_down(patch: pytest.MonkeyPatch) -> None:
    """Whole numbers are divided rounding down."""
    patch.setattr(
        computing, "_whole_quotient", lambda _, a, b: Poly.of((a.constant or 0) // b.constant)
    )


def mod_of_c(patch: pytest.MonkeyPatch) -> None:
    """The remainder has the dividend's sign."""
    patch.setitem(
        computing._ON_WHOLE,
        "Mod",
        lambda space, column: Poly.of(int(math.fmod(*(poly.constant for poly in column)))),
    )


def lost_remainder(patch: pytest.MonkeyPatch) -> None:
    """Polynomials are divided term by term, rounding."""
    patch.setattr(
        Poly,
        "_quotient",
        lambda self, d: Poly({m: c // (d.constant or 1) for m, c in self.terms.items()}),
    )


def largest_for_least(patch: pytest.MonkeyPatch) -> None:
    """Max gives the smaller."""
    patch.setitem(computing._ON_WHOLE, "Max", computing._ON_WHOLE["Min"])


def lax_comparison(patch: pytest.MonkeyPatch) -> None:
    """J <= i is taken for j <= i + 1."""
    patch.setitem(expression._COMPARISONS, "LessOrEqual", lambda a, b: AtLeastZero(b - a + 1))


def blind_or(patch: pytest.MonkeyPatch) -> None:
    """Or is taken to be false."""
    patch.setitem(expression._OPERATORS, "Or", lambda values: (0.0, 0.0))


def unclamped(patch: pytest.MonkeyPatch) -> None:
    """A bound of a slice is not clamped to the axis."""
    patch.setattr(arranging, "_clamped", lambda ctx, node, bound, size: bound)


def blind_to_holes(patch: pytest.MonkeyPatch) -> None:
    """A table holds nothing but its smallest number."""
    patch.setattr(expression, "_extremes", lambda values: (float(values.min()),) * 2)


@pytest.mark.parametrize(
    ("plant", "model", "named"),
    [
        (off_by_one, causal_mask("k = Add(i, one) c = LessOrEqual(j, k) m = Where(c, s, lowest)"),
         "MatMul"),
        (invented_fact, table_of_16(), "Slice"),
        (dropped_fact, causal_mask("c = LessOrEqual(j, i) m = Where(c, s, lowest)"), "Softmax"),
        (rounding_down, shaped("k = Div(minus, m2)"), "Div"),
        (mod_of_c, shaped("k = Mod(minus, m2)"), "Mod"),
        (lost_remainder, shaped("d = Add(n, one) k = Div(d, m2)"), "Div"),
        (largest_for_least, shaped("d = Add(n, one) k = Max(n, d)"), "Max"),
        (lax_comparison, causal_mask("c = LessOrEqual(j, i) m = Where(c, s, lowest)"), "LessOr"),
        (blind_or, causal_mask(
            "c1 = LessOrEqual(j, i) c2 = Equal(j, j) c = Or(c1, c2) m = Where(c, s, lowest)"),
         "Softmax"),
        (unclamped, build(INF + "l = Add(n1, a1) y = Slice(x, a0, l, a1)"), "Slice"),
        (blind_to_holes, tabled_mask(), "Softmax"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_wrong_rule_is_refuted(
    plant: Plant, model: onnx.ModelProto, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(model).count("refuted") == 0
    plant(monkeypatch)
    found = judged(model)
    assert found.count("refuted") > 0
    assert any(named in text for key, text in found.remarks.items() if "wrong" in text)


NUMBERS = (-7, -2, -1, 0, 1, 2, 3, 7)
ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "Abs": abs,
    "Add": lambda a, b: a + b,
    "And": lambda a, b: bool(a and b),
    "BitwiseAnd": lambda a, b: a & b,
    "Cast": float,
    "CastBool": bool,
    "CastInt": int,
    "Ceil": math.ceil,
    "Div": lambda a, b: a / b,
    "DivInt": lambda a, b: int(a / b),
    "Equal": lambda a, b: a == b,
    "Exp": math.exp,
    "Floor": math.floor,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "IsInf": math.isinf,
    "IsNaN": math.isnan,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Log": math.log,
    "Max": max,
    "Min": min,
    "Mod": lambda a, b: a % b,
    "Mul": lambda a, b: a * b,
    "Neg": lambda a: -a,
    "Not": lambda a: not a,
    "Or": lambda a, b: bool(a or b),
    "Reciprocal": lambda a: 1 / a,
    "Relu": lambda a: max(a, 0),
    "Round": round,
    "Sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "Sub": lambda a, b: a - b,
    "Where": lambda a, b, c: b if a else c,
    "Xor": lambda a, b: bool(a) != bool(b),
}
INEXACT = {"Exp", "Log", "Sigmoid", "BitwiseAnd"}
"""Told by some of their properties: never refuted, proved where those suffice."""


def test_every_operator_is_compared_with_numbers() -> None:
    assert set(ON_NUMBERS) == set(OPERATORS)
    assert expression._FOLLOWED | set(expression._OPERATORS) <= set(OPERATORS)


@pytest.mark.parametrize("op", ON_NUMBERS)
def test_an_operator_means_what_it_computes(op: str) -> None:
    draw = random.Random(op)
    count = ON_NUMBERS[op].__code__.co_argcount if hasattr(ON_NUMBERS[op], "__code__") else 0
    count = count or {"Max": 2, "Min": 2}.get(op, 1)
    for _ in range(12):
        numbers = [draw.choice(NUMBERS) for _ in range(count)]
        try:
            right = float(ON_NUMBERS[op](*numbers))
        except (ZeroDivisionError, ValueError):
            continue
        if not right.is_integer() and op in {"Div", "Reciprocal"}:
            continue  # the float that is nearest is not the quotient
        parts = tuple(Constant(float(number)) for number in numbers)
        told = answer(Apply(op, parts), "==", right)
        assert told == "proved" or (op in INEXACT and told == "undecided"), numbers
        assert answer(Apply(op, parts), "==", right + 1) in {"refuted", *_unsure(op)}, numbers


def _unsure(op: str) -> set[str]:
    return {"undecided"} if op in INEXACT else set()


@pytest.mark.parametrize(("op", "right"), [("FloorDiv", -4), ("CeilDiv", -3), ("DivInt", -3)])
def test_quotients_of_polynomials_are_rounded_as_they_say(op: str, right: int) -> None:
    division = Operation(op, (N - N - 7, Poly.of(2)))
    assert answer(division, "==", Poly.of(right)) == "proved"
    assert answer(division, "==", Poly.of(right - 1)) == "refuted"
    assert answer(Operation(op, (N * 2, Poly.of(2))), "==", N) == "proved"


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (UNKNOWN, "refuted"),
        (Constant(0.0), "proved"),
        (Linear(I - I), "proved"),
        (AtLeastZero(I - J), "proved"),
        (IsZero(I - J), "proved"),
        (TRIL, "proved"),
        (Measured((Sample({"seq": 4}, np.tril(np.ones((4, 4)))),), (I, J)), "proved"),
        (Measured((Sample({"seq": 4}, np.ones((4, 4))),), (I, J)), "refuted"),
        (Select(AtLeastZero(J - I), Constant(0.0), UNKNOWN), "proved"),
        (Apply("Mul", (UNKNOWN, TRIL)), "proved"),
        (Vanish(HIDDEN), "proved"),
        (Vanish(Constant(-50.0)), "refuted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_expression_is_judged(side: Expression, expected: str) -> None:
    assert answer(side, "==", 0.0, given=LATER, bounds=BOUNDS) == expected
    assert isinstance(side, get_args(expression.Expression))


def test_an_operator_without_translation_is_named_and_not_proved() -> None:
    found = claimed(Apply("Hypot", (Linear(I),)), "==", 0.0)
    assert found.count("untranslatable") == len(found.distinct) == 1
    assert "no translation of operator Hypot" in "".join(found.remarks.values())
    with pytest.raises(UntranslatableError, match="operator Hypot"):
        problems(implication.Implication(Operation("Hypot", (N,)), "==", N))


def test_what_z3_cannot_decide_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "WORK", 1)
    found = claimed(N * N * N + 1, ">=", 3 * N - 1, given=(N - 1000,), bounds=BOUNDS)
    assert found.count("undecided") == len(found.distinct) == 1
    assert "no answer in 1 steps" in "".join(found.remarks.values())


def test_values_read_off_the_runs_are_judged_at_their_sizes() -> None:
    samples = tuple(Sample({"seq": n}, np.tril(np.ones((n, n)))) for n in (3, 8))
    found = claimed(Measured(samples, (I, J)), "==", 0.0, given=LATER, bounds=BOUNDS)
    assert len(found.of_runs) == len(found.distinct) == 2
    assert found.count("proved") == 2


def test_a_value_that_a_run_does_not_know_may_be_anything() -> None:
    holed = np.tril(np.ones((4, 4)))
    holed[0, 2] = np.nan
    side = Measured((Sample({"seq": 4}, holed),), (I, J))
    assert answer(side, "==", 0.0, given=LATER, bounds=BOUNDS) != "proved"


def at(table: Table, index: tuple[int, ...]) -> Leaf:
    while not isinstance(table, Leaf):
        place = index[table.axis] - (0 if table.minus is None else index[table.minus])
        inside = [piece for end, piece in table.pieces if place < end]
        table = inside[0] if inside else table.pieces[-1][1]
    return table


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0),
        np.tril(np.ones((5, 7))),
        np.tril(np.ones((7, 5)), 1) - np.tril(np.ones((7, 5)), -2),
        np.random.default_rng(1).integers(0, 3, (4, 5)),
        np.stack([np.triu(np.full((6, 6), -np.inf), k) for k in (1, 1, 3)])[:, None],
        np.where(np.tril(np.ones((40, 40))), np.random.default_rng(2).normal(size=(40, 40)), -1e9),
        np.array([[0.0, np.nan], [1.0, 2.0]]),
    ],
    ids=["line", "tril", "band", "any", "heads", "coarse", "nan"],
)
def test_a_table_holds_what_the_array_does(array: np.ndarray[Any, Any]) -> None:
    table = tabulate(array, masked=-1e3)
    for index in np.ndindex(array.shape):
        leaf, number = at(table, index), float(array[index])
        if leaf.low is None or leaf.high is None:
            assert math.isnan(number)
        else:
            assert leaf.low <= number <= leaf.high
            assert (leaf.high <= -1e3) == (number <= -1e3)


LEAVES = [
    *(Constant(x) for x in (-math.inf, 0.0, 1.0, -1e9, 2.0, -1.0, 0.5, -2000.0, 6.0)),
    linear(I), linear(J), linear(J - I), AtLeastZero(I - J), AtLeastZero(J - I), IsZero(I - J),
    TRIL, HIDDEN, UNKNOWN, UNKNOWN, Vanish(HIDDEN),
]  # fmt: skip
ONE_PART = {"Abs", "Cast", "CastInt", "CastBool", "Neg", "Not", "Relu", "IsNaN", "IsInf"}
TWO_PARTS = expression._FOLLOWED - ONE_PART - INEXACT - {"DivInt", "Mod", "Reciprocal"}


def random_expression(draw: random.Random, depth: int) -> Expression:
    if not depth or draw.random() < 0.2:
        return draw.choice(LEAVES)
    op = draw.choice(sorted(ONE_PART | TWO_PARTS | {"Where"}))
    count = 1 if op in ONE_PART else 3 if op == "Where" else 2
    return apply(op, [random_expression(draw, depth - 1) for _ in range(count)])


def test_the_bounds_of_random_expressions_are_proved_again() -> None:
    draw, settled = random.Random(5), 0
    for _ in range(600):
        side = random_expression(draw, draw.randint(1, 3))
        with logging_implications() as log:
            found = evaluate(side, BOUNDS, LATER)
            if found is not None and found[1] <= -1e3:
                conclude(side, "<=", -1e3, given=LATER, bounds=BOUNDS)
            if found in {(0.0, 0.0), (1.0, 1.0)}:
                conclude(side, "==", found[0], given=LATER, bounds=BOUNDS)
        told = judge(log)
        assert told.count("proved") == len(told.distinct), told.remarks
        settled += len(told.distinct)
    assert settled > 300


def test_nothing_is_logged_unless_asked_for() -> None:
    conclude(N, ">=", 0)
    with logging_implications() as log:
        assert not log.counts
        conclude(N, ">=", 0)
    conclude(N, ">=", 1)
    assert list(log.counts.values()) == [1]
    assert isinstance(log, ImplicationLog)


def refuted() -> dict[str, Any]:
    return claimed(N, ">=", 2, bounds=BOUNDS).to_dict()


def test_the_page_has_the_figures_and_every_refutation() -> None:
    steps = {"ours": {"status": "right", "implications": refuted()}}
    lines = summary_lines([], {"some": steps, "other": steps})
    assert any("2 implications, 1 distinct: 0 proved, 1 refuted, 0 undecided" in x for x in lines)
    assert any("wrong at seq = 1" in line for line in lines)


def test_a_refutation_fails_the_zoo() -> None:
    (text,) = _refuted({"some": {"ours": {"implications": refuted()}, "plain": None}})
    assert "a proof rests on what is refuted: judging an output: seq >= 2: wrong at seq = 1" in text


def test_proofs_that_share_an_implication_count_it_once() -> None:
    found = merged(Judgement.from_dict(refuted()) for _ in range(3))
    assert (found.implications, len(found.distinct), found.count("refuted")) == (3, 1, 1)


@pytest.mark.parametrize(("planted", "status"), [(False, 0), (True, 1)])
def test_the_command_fails_where_something_is_refuted(
    planted: bool, status: int, tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    onnx.save(causal_mask("c = LessOrEqual(j, i) m = Where(c, s, lowest)"), tmp_path / "m.onnx")
    if planted:
        monkeypatch.setattr(Bounds, "nonnegative", lambda self, poly: True)
    assert main([str(tmp_path / "m.onnx")]) == status
    assert ("0 refuted" in capsys.readouterr().out) == (status == 0)
