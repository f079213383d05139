"""What is taken for attention, whatever its spelling, and what only looks like it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.lower import lower
from tests.export.analysis.graphs import build, i64
from tests.export.captured import run_model

BEFORE = """
    q = MatMul(x, w)
    k = MatMul(x, u)
    values = MatMul(x, v)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s0 = MatMul(q, kt)
    half = Constant <value_float = 0.5> ()
    s = Mul(s0, half)
    n1 = Shape <start = 1, end = 2> (x)
    nn = Concat <axis = 0> (n1, n1)
    ones = ConstantOfShape <value = float[1] {1.0}> (nn)
    tril = Trilu <upper = 0> (ones)
    seen = Cast <to = 9> (tril)
    low = Constant <value_float = -inf> ()
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    m = Where(seen, s, low)
"""
SINK = """
    b1 = Shape <start = 0, end = 2> (x)
    to_column = Concat <axis = 0> (b1, one_more)
    c0 = Constant <value_float = 0.7> ()
    column = Expand(c0, to_column)
"""
ARRAYS = {
    "last": i64(-1),
    "first": i64(0),
    "one_more": i64(1),
    "far": i64(1 << 40),
    "pads": i64(0, 0, 0, 0, 0, 1),
    "pads_before": i64(0, 0, 1, 0, 0, 0),
}

SAME = {
    "softmax": "p = Softmax <axis = -1> (m) y = MatMul(p, values)",
    "softmax over the first of two axes": (
        "mt = Transpose <perm = [0, 2, 1]> (m) pt = Softmax <axis = 1> (mt) "
        "p = Transpose <perm = [0, 2, 1]> (pt) y = MatMul(p, values)"
    ),
    "exp of log softmax": "l = LogSoftmax <axis = -1> (m) p = Exp(l) y = MatMul(p, values)",
    "exp of a difference": (
        "l = ReduceLogSumExp <keepdims = 1> (m, last) d = Sub(m, l) p = Exp(d) "
        "y = MatMul(p, values)"
    ),
    "exps over their sum": (
        "top = ReduceMax <keepdims = 1> (m, last) d = Sub(m, top) e = Exp(d) "
        "t = ReduceSum <keepdims = 1> (e, last) p = Div(e, t) y = MatMul(p, values)"
    ),
    "exps times a triangle": (
        "e0 = Exp(s) e = Mul(e0, tril) t = ReduceSum <keepdims = 1> (e, last) p = Div(e, t) "
        "y = MatMul(p, values)"
    ),
    "divided after the values": (
        "e = Exp(m) t = ReduceSum <keepdims = 1> (e, last) o = MatMul(e, values) y = Div(o, t)"
    ),
    "masked after the softmax and renormalised": (
        "p0 = Softmax <axis = -1> (s) p1 = Mul(p0, tril) "
        "t0 = ReduceSum <keepdims = 1> (p1, last) eps = Constant <value_float = 1.0e-15> () "
        "t = Add(t0, eps) p = Div(p1, t) y = MatMul(p, values)"
    ),
    "two products added": (
        "f = MatMul(x, w2) h = MatMul(x, u2) ht = Transpose <perm = [0, 2, 1]> (h) "
        "s2 = MatMul(f, ht) s3 = Add(s0, s2) m3 = Where(seen, s3, low) "
        "p = Softmax <axis = -1> (m3) y = MatMul(p, values)"
    ),
    "one more": (
        "e = Exp(m) t0 = ReduceSum <keepdims = 1> (e, last) t = Add(t0, one) "
        "o = MatMul(e, values) y = Div(o, t)"
    ),
    "one more, shifted": (
        "top0 = ReduceMax <keepdims = 1> (m, last) top = Max(top0, zero) d = Sub(m, top) "
        "e = Exp(d) t0 = ReduceSum <keepdims = 1> (e, last) n = Neg(top) t1 = Exp(n) "
        "t = Add(t0, t1) p = Div(e, t) y = MatMul(p, values)"
    ),
    "sink after the keys": SINK
    + (
        "j = Concat <axis = 2> (m, column) top = ReduceMax <keepdims = 1> (j, last) "
        "d = Sub(j, top) p0 = Softmax <axis = -1> (d) two = Constant <value_ints = [2]> () "
        "p = Slice(p0, first, last, two) y = MatMul(p, values)"
    ),
    "sink before the keys": SINK
    + (
        "j = Concat <axis = 2> (column, m) p0 = Softmax <axis = -1> (j) "
        "two = Constant <value_ints = [2]> () p = Slice(p0, one_more, far, two) "
        "y = MatMul(p, values)"
    ),
    "sink scaled with the scores": SINK
    + (
        "j0 = Concat <axis = 2> (m, column) j = Mul(j0, half) p0 = Softmax <axis = -1> (j) "
        "two = Constant <value_ints = [2]> () p = Slice(p0, first, last, two) "
        "y = MatMul(p, values)"
    ),
    "zero padded": (
        "j = Pad(m, pads) p0 = Softmax <axis = -1> (j) two = Constant <value_ints = [2]> () "
        "p = Slice(p0, first, last, two) y = MatMul(p, values)"
    ),
}

OTHER = {
    "masked after the softmax beside a guard that is felt": (
        "p0 = Softmax <axis = -1> (s) p1 = Mul(p0, tril) "
        "t0 = ReduceSum <keepdims = 1> (p1, last) eps = Constant <value_float = 1.0e-9> () "
        "t = Add(t0, eps) p = Div(p1, t) y = MatMul(p, values)"
    ),
    "softmax over queries": "p = Softmax <axis = 1> (m) y = MatMul(p, values)",
    "softmax over features": "p = Softmax <axis = -1> (q) y = Mul(p, values)",
    "squared weights": ("p0 = Softmax <axis = -1> (m) p = Mul(p0, p0) y = MatMul(p, values)"),
    "scaled by data": (
        "gate = ReduceMean <keepdims = 1> (x, last) s2 = Mul(s, gate) m2 = Where(seen, s2, low) "
        "p = Softmax <axis = -1> (m2) y = MatMul(p, values)"
    ),
    "hidden scores that still weigh": (
        "m2 = Where(seen, s, half) p = Softmax <axis = -1> (m2) y = MatMul(p, values)"
    ),
    "scores times a matrix": (
        "twice = Add(tril, tril) s2 = Mul(s, twice) m2 = Where(seen, s2, low) "
        "p = Softmax <axis = -1> (m2) y = MatMul(p, values)"
    ),
    "masked after the softmax only": (
        "p0 = Softmax <axis = -1> (s) p = Mul(p0, tril) y = MatMul(p, values)"
    ),
    "renormalised by more than the sum": (
        "p0 = Softmax <axis = -1> (s) p1 = Mul(p0, tril) "
        "t0 = ReduceSum <keepdims = 1> (p1, last) t = Add(t0, one) p = Div(p1, t) "
        "y = MatMul(p, values)"
    ),
    "exps over the sum of the queries": (
        "e = Exp(m) t = ReduceSum <keepdims = 1> (e, one_more) p = Div(e, t) y = MatMul(p, values)"
    ),
    "exps over the sum of others": (
        "e = Exp(m) e2 = Exp(s) t = ReduceSum <keepdims = 1> (e2, last) p = Div(e, t) "
        "y = MatMul(p, values)"
    ),
    "a key dropped in the place of the sink": SINK
    + (
        "j = Concat <axis = 2> (m, column) p0 = Softmax <axis = -1> (j) "
        "two = Constant <value_ints = [2]> () p = Slice(p0, one_more, far, two) "
        "y = MatMul(p, values)"
    ),
    "a sink that data decides": (
        "column = ReduceMean <keepdims = 1> (x, last) j = Concat <axis = 2> (m, column) "
        "p0 = Softmax <axis = -1> (j) two = Constant <value_ints = [2]> () "
        "p = Slice(p0, first, last, two) y = MatMul(p, values)"
    ),
}


def model_of(body: str) -> ir.Model:
    arrays = dict(ARRAYS)
    rng = np.random.default_rng(5)
    arrays |= {name: rng.standard_normal((4, 3)).astype(np.float32) for name in ("w2", "u2")}
    return load_model(build(BEFORE + body, **arrays))


def rewritten(body: str) -> tuple[ir.Model, list[CanonicalCore]]:
    model = model_of(body)
    cores, _ = canonicalise(model)
    return model, cores


@pytest.mark.parametrize("body", SAME.values(), ids=SAME)
def test_every_spelling_is_one_causal_core_that_computes_the_same(body: str) -> None:
    model, cores = rewritten(body)
    (core,) = cores
    assert core.footprint.kind == "causal"
    assert (core.num_heads, core.value_dim) == (1, 4)
    assert "Softmax" not in [node.op_type for node in model.graph]
    lower(model, cores, "portable")
    for seq in (1, 2, 9, 30):
        x = np.random.default_rng(seq).standard_normal((3, seq, 4)).astype(np.float32)
        expected, got = run_model(model_of(body), [x])[0], run_model(model, [x])[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("body", OTHER.values(), ids=OTHER)
def test_what_is_not_attention_is_left_alone(body: str) -> None:
    assert rewritten(body)[1] == []


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("one more", 0.0),
        ("one more, shifted", 0.0),
        ("zero padded", 0.0),
        ("sink after the keys", 0.7),
        ("sink before the keys", 0.7),
        ("sink scaled with the scores", 0.35),
    ],
)
def test_a_sink_is_one_score_per_head(name: str, score: float) -> None:
    sink = rewritten(SAME[name])[1][0].sink
    assert sink is not None
    assert sink.const_value is not None
    np.testing.assert_allclose(sink.const_value.numpy(), [score], rtol=1e-6)


@pytest.mark.parametrize("target", ["portable", "ort", "tiled"])
def test_every_form_counts_the_sink(target: str) -> None:
    body = SAME["sink after the keys"]
    model, cores = rewritten(body)
    lower(model, cores, target)
    x = np.random.default_rng(1).standard_normal((2, 7, 4)).astype(np.float32)
    expected, got = run_model(model_of(body), [x])[0], run_model(model, [x])[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_parts_of_the_weights_become_cores_of_their_own() -> None:
    body = """
        to5 = Constant <value_ints = [0, 0, 2, 2]> ()
        q2 = Reshape(q, to5)
        q4 = Transpose <perm = [0, 2, 1, 3]> (q2)
        k2 = Reshape(k, to5)
        k4 = Transpose <perm = [0, 2, 3, 1]> (k2)
        s4 = MatMul(q4, k4)
        m4 = Where(seen, s4, low)
        p = Softmax <axis = -1> (m4)
        i0 = Constant <value_int = 0> ()
        i1 = Constant <value_int = 1> ()
        p0 = Gather <axis = 1> (p, i0)
        p1 = Gather <axis = 1> (p, i1)
        p2 = Mul(p1, half)
        d = Sub(p0, p2)
        y = MatMul(d, values)
    """
    model, cores = rewritten(body)
    assert [core.footprint.kind for core in cores] == ["causal", "causal"]
    lower(model, cores, "portable")
    x = np.random.default_rng(0).standard_normal((2, 11, 4)).astype(np.float32)
    expected, got = run_model(model_of(body), [x])[0], run_model(model, [x])[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_weights_of_two_products_become_two_cores() -> None:
    body = "p = Softmax <axis = -1> (m) y0 = MatMul(p, values) y1 = MatMul(p, q) y = Sub(y0, y1)"
    model, cores = rewritten(body)
    assert [core.footprint.kind for core in cores] == ["causal", "causal"]
    lower(model, cores, "portable")
    x = np.random.default_rng(0).standard_normal((2, 11, 4)).astype(np.float32)
    expected, got = run_model(model_of(body), [x])[0], run_model(model, [x])[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_weights_that_are_read_besides_a_product_are_left_alone() -> None:
    body = "p = Softmax <axis = -1> (m) y0 = MatMul(p, values) y1 = MatMul(s, p) y2 = Identity(y1) "
    model, cores = rewritten(body + "t = MatMul(y2, values) y = Sub(y0, t)")
    assert cores == []
    assert sum(node.op_type == "Softmax" for node in model.graph) == 1


SCALED = """
    tall = Constant <value_float = 10000.0> ()
    hidden = Sub(one, tril)
    minus = Constant <value_float = -1.0> ()
"""


def test_a_number_that_scales_a_mask_is_no_length() -> None:
    body = SCALED + "h0 = Mul(hidden, tall) h = Mul(h0, minus) sm = Add(s, h) "
    _, (core,) = rewritten(body + "p = Softmax <axis = -1> (sm) y = MatMul(p, values)")
    assert (core.footprint.kind, core.has_bias) == ("causal", False)


def test_the_same_number_as_the_width_of_a_window_is_one() -> None:
    body = SCALED + (
        "z = Constant <value_int = 0> () o = Constant <value_int = 1> () n = Squeeze(n1) "
        "at0 = Range(z, n, o) at = Cast <to = 1> (at0) col = Unsqueeze(at, last) "
        "d = Sub(col, at) far_off = Greater(d, tall) f = Cast <to = 1> (far_off) "
        "both = Max(hidden, f) h0 = Mul(both, tall) h = Mul(h0, minus) sm = Add(s, h) "
    )
    _, (core,) = rewritten(body + "p = Softmax <axis = -1> (sm) y = MatMul(p, values)")
    assert core.footprint.kind == "other"
