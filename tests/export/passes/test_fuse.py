"""Fusions fire where they compute the same, and nowhere else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from causal_onnx.export.lower.packed_projection import join_projections
from causal_onnx.export.passes.fuse import fuse
from tests.export.captured import captured, run_model, zoo_inputs
from tests.zoo import entry

HEAD = (
    '<ir_version: 10, opset_import: ["": 24]> '
    "g (float[batch, seq, 8] x{more}) => (float[batch, seq, n] y)"
)
CONSTANTS = """
    two = Constant <value = float {2.0}> ()
    one = Constant <value = float {1.0}> ()
    half = Constant <value = float {0.5}> ()
    eps = Constant <value = float {0.00001}> ()
    last = Constant <value = int64[1] {-1}> ()
    weight = Constant <value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}> ()
"""


def graph(body: str, more: str = "") -> ir.Model:
    """A graph of x (batch, seq, 8) and `more`, constants lifted, that ends in y."""
    text = f"{HEAD.format(more=more)} {{ {CONSTANTS} {body} }}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def with_matrices(body: str, *widths: int) -> ir.Model:
    """The same, with constant matrices w0, w1, ... of 8 rows."""
    generator = np.random.default_rng(1)
    lines = ""
    for index, width in enumerate(widths):
        numbers = ", ".join(f"{x:.3f}" for x in generator.standard_normal(8 * width))
        lines += f"w{index} = Constant <value = float[8, {width}] {{{numbers}}}> ()\n"
        numbers = ", ".join(f"{x:.3f}" for x in generator.standard_normal(width))
        lines += f"b{index} = Constant <value = float[{width}] {{{numbers}}}> ()\n"
    return graph(lines + body)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def fused(model: ir.Model, target: str = "ort") -> ir.Model:
    """A fused copy, checked to compute the same."""
    rewritten = model.clone()
    fuse(rewritten, target)
    ir.passes.common.RemoveUnusedNodesPass()(rewritten)
    ranks = [len(value.shape) for value in model.graph.inputs]
    generator = np.random.default_rng(0)
    inputs = [
        generator.standard_normal((2, 5, 8)[3 - rank :]).astype(np.float32) * 3 for rank in ranks
    ]
    for expected, got in zip(run_model(model, inputs), run_model(rewritten, inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    return rewritten


RMS = {
    "reciprocal of the root": "sq = Pow (x, two) m = ReduceMean (sq, last) a = Add (m, eps) "
    "r = Sqrt (a) i = Reciprocal (r) n = Mul (x, i) y = Mul (weight, n)",
    "division": "sq = Mul (x, x) m = ReduceMean (sq, last) a = Add (eps, m) "
    "r = Sqrt (a) n = Div (x, r) y = Mul (n, weight)",
    "one over the root": "sq = Pow (x, two) m = ReduceMean (sq, last) a = Add (m, eps) "
    "r = Sqrt (a) i = Div (one, r) n = Mul (i, x) y = Mul (n, weight)",
}
NOT_RMS = {
    "a third power": RMS["division"].replace("Mul (x, x)", "Pow (x, three)"),
    "x of another place": RMS["division"].replace("Div (x, r)", "Div (z, r)"),
    "the root is wanted elsewhere": RMS["division"].replace("Mul (n, weight)", "Mul (n, r)"),
    "no weight": RMS["division"].replace("Mul (n, weight)", "Identity (n)"),
    "no mean": RMS["division"].replace("ReduceMean", "ReduceSum"),
}
NOT_RMS = {
    name: f"three = Constant <value = float {{3.0}}> () z = Abs (x) {body}"
    for name, body in NOT_RMS.items()
}


@pytest.mark.parametrize("spelling", RMS.values(), ids=RMS)
def test_an_rms_norm_is_found_in_every_spelling(spelling: str) -> None:
    assert operators(fused(graph(spelling))) == {"RMSNormalization": 1}


@pytest.mark.parametrize("body", NOT_RMS.values(), ids=NOT_RMS)
def test_what_is_no_rms_norm_stays(body: str) -> None:
    model = graph(body)
    assert not operators(fused(model))["RMSNormalization"]


RESIDUAL = "s = Add (x, z) t = RMSNormalization <epsilon = 0.001> (s, weight) y = Add (t, s)"


def test_a_residual_sum_and_its_norm_become_one_node() -> None:
    found = operators(fused(graph(RESIDUAL, ", float[batch, seq, 8] z")))
    assert found == {"SkipSimplifiedLayerNormalization": 1, "Add": 1}


def test_a_residual_sum_and_a_layer_norm_become_one_node() -> None:
    body = RESIDUAL.replace("RMSNormalization", "LayerNormalization")
    found = operators(fused(graph(body, ", float[batch, seq, 8] z")))
    assert found == {"SkipLayerNormalization": 1, "Add": 1}


@pytest.mark.parametrize("shape", ["seq, 8", "8", "1, seq, 8"])
def test_a_sum_that_broadcasts_is_no_residual(shape: str) -> None:
    model = graph(RESIDUAL, f", float[{shape}] z")
    fuse(model, "ort")
    assert not operators(model)["SkipSimplifiedLayerNormalization"]


ACTIVATIONS = {
    "QuickGelu": "s = Sigmoid (x) y = Mul (x, s)",
    "QuickGelu, division": "n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (x, a)",
    "Gelu": "c = Constant <value = float {1.4142135}> () d = Div (x, c) e = Erf (d) "
    "a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "Gelu, by tanh": "c = Constant <value = float {0.044715}> () "
    "k = Constant <value = float {0.79788456}> () three = Constant <value = float {3.0}> () "
    "h = Mul (half, x) p = Pow (x, three) q = Mul (p, c) a = Add (x, q) b = Mul (a, k) "
    "t = Tanh (b) u = Add (t, one) y = Mul (h, u)",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_found_in_every_spelling(name: str) -> None:
    assert operators(fused(graph(ACTIVATIONS[name]))) == {name.partition(",")[0]: 1}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("QuickGelu", "Mul (x, s)", "Mul (s, s)"),
        ("Gelu", "1.4142135", "1.4152135"),
        ("Gelu, by tanh", "0.044715", "0.044615"),
    ],
)
def test_another_function_stays_as_it_is(name: str, old: str, new: str) -> None:
    model = graph(ACTIVATIONS[name].replace(old, new))
    assert not operators(fused(model))[name.partition(",")[0]]


def test_what_is_read_from_inside_an_activation_stays() -> None:
    found = operators(fused(graph("s = Sigmoid (x) g = Mul (x, s) y = Add (g, s)")))
    assert found["Sigmoid"] == 1


THREE = """
    q = MatMul (x, w0)
    k = MatMul (x, w1)
    v = MatMul (x, w2)
    y = Concat <axis = 2> (q, k, v)
"""
BIASED = """
    m = MatMul (x, w0)
    q = Add (m, b0)
    n = MatMul (x, w1)
    k = Add (b1, n)
    o = MatMul (x, w2)
    v = Add (o, b2)
    y = Concat <axis = 2> (q, k, v)
"""


def joined(model: ir.Model) -> ir.Value | None:
    """q, k and v in one, as the node that reads them sees it."""
    core = next(node for node in model.graph if node.op_type == "Concat")
    return join_projections(model.graph, core, list(core.inputs))


@pytest.mark.parametrize("body", [THREE, BIASED], ids=["plain", "with biases"])
def test_projections_of_one_input_become_one_product(body: str) -> None:
    model = with_matrices(body, 8, 4, 4)
    plain = model.clone()
    whole = joined(model)
    assert whole is not None
    whole.name = "joined"
    model.graph.outputs[0] = whole
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert operators(model)["MatMul"] == 1
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    (expected,), (got,) = run_model(plain, [x]), run_model(model, [x])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MatMul (x, w1)", "MatMul (z, w1)"),
        ("MatMul (x, w1)", "MatMul (x, w2)"),
        ("v = MatMul (x, w2)", "o = MatMul (x, w2) v = Add (o, b2)"),
        ("MatMul (x, w1)", "Add (x, x)"),
        ("y = Concat <axis = 2> (q, k, v)", "c = Concat <axis = 2> (q, k, v) y = Add (v, v)"),
    ],
    ids=["of two inputs", "by one matrix", "one with a bias", "not all", "read elsewhere"],
)
def test_other_products_stay_apart(old: str, new: str) -> None:
    assert joined(with_matrices("z = Abs (x)" + THREE.replace(old, new), 8, 4, 4)) is None


@pytest.mark.parametrize("target", ["portable", "tiled"])
def test_other_targets_keep_to_common_operators(target: str) -> None:
    model = graph(ACTIVATIONS["QuickGelu"])
    assert fuse(model, target) == 0
    assert operators(model) == {"Sigmoid": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "hf_llama_sdpa",
            {"SkipSimplifiedLayerNormalization": 4, "RMSNormalization": 1, "QuickGelu": 2},
        ),
        ("hf_gpt2_eager", {"SkipLayerNormalization": 4, "LayerNormalization": 1, "Gelu": 2}),
    ],
)
def test_whole_decoders_are_fused_and_compute_the_same(name: str, expected: dict[str, int]) -> None:
    plain = captured(name)
    model = plain.clone()
    fuse(model, "ort", entry(name).limit)
    found = operators(model)
    assert {op: found[op] for op in expected} == expected
    inputs = zoo_inputs(name, 2, 9)
    for want, got in zip(run_model(plain, inputs), run_model(model, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
