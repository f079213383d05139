"""Attention cores: operands, layouts, scale, masks and footprints, whatever the arrangement."""

from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.export.analysis.analyse import default_grid
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import read_signature
from causal_onnx.export.attention.axis_map import layout_of
from causal_onnx.export.attention.core import AttentionCore
from causal_onnx.export.attention.footprint import Footprint, Seen, footprint_of, pattern
from causal_onnx.export.attention.in_branches import find_all_cores
from causal_onnx.export.proof.prove import prove
from tests.export.analysis.graphs import build, i64
from tests.export.analysis.rule_cases import attend
from tests.zoo import GRAPHS

WIDE = "(float[batch, seq, 12] x) => (float[batch, seq, 12] y)"
MASK = """
    n1 = Shape <start = 1, end = 2> (x)
    nn = Concat <axis = 0> (n1, n1)
    ones = ConstantOfShape <value = float[1] {1.0}> (nn)
    tril = Trilu <upper = 0> (ones)
    seen = Cast <to = 9> (tril)
    low = Constant <value_float = -inf> ()
"""


def cores(body: str, signature: str = WIDE, **rest: object) -> list[AttentionCore]:
    model = load_model(build(body, signature, **rest))  # type: ignore[arg-type]
    found = read_signature(model)
    proof = prove(model, found, default_grid(found))
    assert proof.analysis is not None
    return find_all_cores(proof.analysis)


def only(body: str, signature: str = WIDE, **rest: object) -> AttentionCore:
    (core,) = cores(body, signature, **rest)
    return core


GROUPED = (
    MASK
    + """
    q0 = Reshape(x, to_q)
    q1 = Transpose <perm = [0, 2, 1, 3]> (q0)
    half = Constant <value_float = 0.5> ()
    q = Mul(q1, half)
    k0 = MatMul(x, narrow)
    k1 = Reshape(k0, to_k)
    k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
    k3 = Unsqueeze(k2, two)
    ks = Shape(k2)
    b1 = Slice(ks, zero, two)
    b2 = Slice(ks, two, four)
    groups = Constant <value_ints = [2]> ()
    shape5 = Concat <axis = 0> (b1, groups, b2)
    k4 = Expand(k3, shape5)
    k5 = Reshape(k4, to_kk)
    kt = Transpose <perm = [0, 1, 3, 2]> (k5)
    s0 = MatMul(q, kt)
    third = Constant <value_float = 3.0> ()
    s1 = Div(s0, third)
    s = Where(seen, s1, low)
    p = Softmax <axis = -1> (s)
    o = MatMul(p, k5)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape(o1, to_y)
    """
)
GROUPED_ARRAYS = {
    "to_q": i64(0, 0, 4, 3),
    "to_k": i64(0, 0, 2, 3),
    "to_kk": i64(0, 4, -1, 3),
    "to_y": i64(0, 0, 12),
    "zero": i64(0),
    "two": i64(2),
    "four": i64(4),
    "narrow": np.random.default_rng(0).random((12, 6)).astype(np.float32),
}


def test_repeated_heads_scales_and_transposes_are_undone() -> None:
    core = only(GROUPED, **GROUPED_ARRAYS)
    assert core.problem == ""
    assert (core.num_heads, core.num_kv_heads, core.head_dim, core.v_dim) == (4, 2, 3, 3)
    assert core.scale == pytest.approx(0.5 / 3)
    assert core.q is not None
    assert core.k is not None
    assert core.output is not None
    assert (core.q.value.name, str(core.q.layout)) == ("x", "b s (hd)")
    assert (core.k.value.name, str(core.k.layout), core.k.layout.heads) == ("k0", "b s (hd)", 2)
    assert (core.output.value.name, str(core.output.layout)) == ("y", "b s (hd)")
    assert core.footprint == Footprint(kind="causal")
    assert [term.kind for term in core.terms] == ["where"]


def test_a_softcap_is_told_from_a_scale() -> None:
    capped = GROUPED.replace(
        "s = Where(seen, s1, low)",
        "cap = Constant <value_float = 5.0> () d = Div(s1, cap) t = Tanh(d) "
        "s2 = Mul(t, cap) s = Where(seen, s2, low)",
    )
    core = only(capped, **GROUPED_ARRAYS)
    assert core.softcap == pytest.approx(5.0)
    assert core.scale == pytest.approx(0.5 / 3)


def test_other_uses_of_the_weights_are_noticed() -> None:
    signature = "(float[batch, seq, 12] x) => (float[batch, seq, 12] y, float[b, 4, s, s] p)"
    assert only(GROUPED, signature, **GROUPED_ARRAYS).weights_used
    assert not only(GROUPED, **GROUPED_ARRAYS).weights_used


def test_what_cannot_be_rewritten_says_why() -> None:
    odd = GROUPED.replace("o = MatMul(p, k5)", "p2 = Mul(p, p) o = MatMul(p2, k5)")
    assert "Mul is applied to the weights" in only(odd, **GROUPED_ARRAYS).problem


def test_a_softmax_over_features_is_no_core() -> None:
    assert cores("y = Softmax <axis = 2> (x)") == []


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_footprints_of_the_stock_graphs(graph) -> None:
    model = load_model(graph.model())
    found = read_signature(model)
    proof = prove(model, found, default_grid(found))
    assert proof.analysis is not None
    words = {
        str(core.footprint).replace("causal window ", "window:")
        for core in find_all_cores(proof.analysis)
    }
    assert words <= {graph.footprint}


@pytest.mark.parametrize(
    ("mask", "footprint"),
    [
        ("c = LessOrEqual(j, i) m = Where(c, s, lowest)", "causal"),
        ("m = Identity(s)", "full"),
        (
            "c1 = LessOrEqual(j, i) k = Constant <value_int = 70> () e = Sub(i, k) "
            "c2 = Greater(j, e) c = And(c1, c2) m = Where(c, s, lowest)",
            "causal window 70",
        ),
        (
            "k = Constant <value_int = 4> () ci = Div(i, k) cj = Div(j, k) c1 = Equal(ci, cj) "
            "c2 = LessOrEqual(j, i) c = And(c1, c2) m = Where(c, s, lowest)",
            "causal chunk 4",
        ),
        (
            "k = Constant <value_int = 3> () c1 = Less(j, k) c2 = LessOrEqual(j, i) "
            "c = Or(c1, c2) m = Where(c, s, lowest)",
            "prefix 3",
        ),
        ("c = Less(j, i) m = Where(c, s, lowest)", "other, never a later key"),
    ],
)
def test_footprints(mask: str, footprint: str) -> None:
    (core,) = cores(attend(mask), "(float[batch, seq, 4] x) => (float[batch, seq, 4] y)")
    assert str(core.footprint) == footprint


def test_a_slope_per_distance_is_alibi() -> None:
    mask = (
        "d = Sub(j, i) f = Cast <to = 1> (d) r = Constant <value_float = 0.25> () e = Mul(f, r) "
        "a = Add(s, e) c = LessOrEqual(j, i) m = Where(c, a, lowest)"
    )
    (core,) = cores(attend(mask), "(float[batch, seq, 4] x) => (float[batch, seq, 4] y)")
    assert core.bias == "ALiBi"


@pytest.mark.parametrize(
    "footprint",
    [
        Footprint(kind="causal"),
        Footprint(kind="window", size=3),
        Footprint(kind="chunk", size=4),
        Footprint(kind="prefix", size=8, never_later=False),
        Footprint(kind="full", never_later=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("past", [0, 5])
def test_a_footprint_is_found_from_its_patterns(footprint: Footprint, past: int) -> None:
    seen = [Seen(pattern(footprint, n, past + n, past)[None], past) for n in (1, 2, 5, 9, 13)]
    assert footprint_of(seen) == footprint


def test_one_length_that_does_not_fit_makes_it_other() -> None:
    good = [Seen(pattern(Footprint(kind="causal"), n, n, 0)[None], 0) for n in (3, 13)]
    odd = pattern(Footprint(kind="causal"), 5, 5, 0)[None].copy()
    odd[0, 0, 4] = True
    assert footprint_of([*good, Seen(odd, 0)]) == Footprint(kind="other", never_later=False)


def test_layouts_are_read_from_where_elements_are_used() -> None:
    b, h, s, d = np.ix_(range(2), range(4), range(5), range(3))
    merged = ((b * 5 + s) * 4 + h) * 3 + d
    found = layout_of(merged, (2, 5, 12))
    assert found is not None
    assert (str(found), found.heads) == ("b s (hd)", 4)
    shared = ((b * 5 + s) * 2 + h // 2) * 3 + d
    found = layout_of(shared, (2, 5, 2, 3))
    assert found is not None
    assert (str(found), found.heads) == ("b s h d", 2)
    assert layout_of(merged + 1, (2, 5, 12)) is None
    assert layout_of(merged, (2, 5, 24)) is None
    found = layout_of(((b * 5 + s) * 4 + (h ^ 1)) * 3 + d, (2, 5, 12))
    assert found is not None
    assert (found.heads, found.picks) == (4, (1, 0, 3, 2))
    found = layout_of(((b * 5 + s) * 8 + 2 * h) * 3 + d, (2, 5, 24))
    assert found is not None
    assert (found.heads, found.picks) == (8, (0, 2, 4, 6))
    found = layout_of(merged, (2, 5, 2, 2, 3))
    assert found is not None
    assert (str(found), found.groups) == ("b s g h d", 2)
    assert layout_of(((b * 5 + s) * 4 + h * h) * 3 + d, (2, 5, 12)) is None
