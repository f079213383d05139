"""Each operator on both sides of the line: within a position, and along positions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from causal_onnx.export.attestation import attest

from .graphs import build, static
from .rule_cases import CASES, Case, attend

IDS = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_static_proof_alone_gives_the_verdict(case: Case) -> None:
    proof = static(case.model())
    assert proof.verdict == case.verdict, proof.reason
    if case.blames:
        assert proof.offence is not None
        assert proof.offence.op_type == case.blames
        assert proof.offence.witness


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_runtime_agrees_with_the_verdict(case: Case) -> None:
    found = attest(case.model()).dynamic
    assert not found.skipped
    assert found.moved
    assert bool(found.leaks) == (case.verdict == "not_causal" and case.shows)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.verdict == "causal"], ids=lambda case: case.name
)
def test_the_proof_reaches_every_length(case: Case) -> None:
    proof = static(case.model())
    if proof.analysis is not None and proof.analysis.signature.fixed_seq is not None:
        return
    assert proof.symbolic is not None
    assert proof.symbolic.holds == case.every_length, proof.symbolic.reason
    assert bool(proof.symbolic.measured) == case.measured, proof.symbolic.measured


NUMBERS = "none = Sub(n, n) two = Constant <value_int = 2> () far = Constant <value_int = 5000> () "
LATE = """
    off = Sub(j, i) scaled = Mul(off, e) late = Greater(scaled, far)
    c1 = LessOrEqual(j, i) c = Or(c1, late) m = Where(c, s, lowest)
"""
"""Keys 5000 and more after the query are seen where `e`, which is 1 or 2, is not taken for 0."""
FAR_LEAKS = {
    "clip_without_a_lower_limit": """
        low = Constant <value_int = -5000> () back = Sub(i, j) cap = Clip(back, , low)
        c1 = LessOrEqual(j, i) late = Less(cap, low) c = Or(c1, late) m = Where(c, s, lowest)
    """,
    "remainder_with_the_sign_of_the_dividend": """
        k = Constant <value_int = -7> () a = Add(none, k) r = Mod <fmod = 1> (a, two)
        e = Sub(one, r)
    """ + LATE,
    "half_of_an_odd_float": """
        k = Constant <value_int = 7> () a = Add(none, k) af = Cast <to = 1> (a)
        tf = Cast <to = 1> (two) half = Div(af, tf) again = Mul(half, tf) ai = Cast <to = 7> (again)
        six = Constant <value_int = 6> () e = Sub(ai, six)
    """ + LATE,
    "bits_without_a_common_one": """
        a = Add(none, one) b = Add(none, two) both = BitwiseAnd(a, b) e = Sub(one, both)
    """ + LATE,
}  # fmt: skip


@pytest.mark.parametrize("mask", FAR_LEAKS.values(), ids=FAR_LEAKS)
def test_a_leak_beyond_the_lengths_followed_is_not_proved_away(mask: str) -> None:
    symbolic = static(build(attend(NUMBERS + mask))).symbolic
    assert symbolic is not None
    assert symbolic.measured or not symbolic.holds


UNKNOWN = "y = made.up.Mystery(x)"


def mystery() -> onnx.ModelProto:
    model = build("y = Relu(x)")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "made.up"
    model.opset_import.append(onnx.helper.make_opsetid("made.up", 1))
    return model


def test_an_operator_without_a_rule_is_named_and_never_assumed_harmless() -> None:
    proof = static(mystery())
    assert proof.verdict == "undecided"
    assert proof.offence is not None
    assert (proof.offence.domain, proof.offence.op_type) == ("made.up", "Mystery")
    assert "no rule" in proof.reason


def test_an_operator_without_a_rule_on_another_branch_does_not_matter() -> None:
    model = build("y = Relu(x)")
    model.graph.node.append(onnx.helper.make_node("Mystery", ["y"], ["unused"], domain="made.up"))
    info = onnx.helper.make_tensor_value_info("unused", 1, ["batch", "seq", 4])
    model.graph.value_info.append(info)
    assert static(model).verdict == "causal"


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("i = NonZero(x) t = Transpose(i) y0 = GatherND(x, t) y = Add(x, y0)", "NonZero"),
        (
            "z = Constant <value_ints = [0, 0, 0]> () f = GatherND(x, z) i = Cast <to = 7> (f) "
            "o = Constant <value_ints = [0]> () q = Unsqueeze(i, o) e = Shape <start = 1, end = 2> "
            "(x) a = Constant <value_ints = [1]> () y = Slice(x, q, e, a)",
            "Slice",
        ),
    ],
)
def test_shapes_that_depend_on_data_are_undecided_by_name(body: str, operator: str) -> None:
    proof = static(build(body))
    assert proof.verdict == "undecided"
    assert proof.offence is not None
    assert proof.offence.op_type == operator


def test_rows_of_the_batch_that_mix_are_reported() -> None:
    mixing = "a = Constant <value_ints = [0]> () m = ReduceMean(x, a) y = Sub(x, m)"
    assert attest(build(mixing), dynamic=False).batch_independent is False
    assert attest(build("y = Relu(x)"), dynamic=False).batch_independent is True


def test_a_finite_mask_is_an_assumption() -> None:
    finite = next(case for case in CASES if case.name == "where_finite")
    infinite = next(case for case in CASES if case.name == "where_compare")
    assert any("-1e+09" in a.text for a in static(finite.model()).assumptions)
    assert not static(infinite.model()).assumptions


def contrib(inputs: list[str], **attributes: object) -> onnx.ModelProto:
    """A graph of one operator of onnxruntime's from x (and given constants) to y."""
    op_type = str(attributes.pop("op"))
    shapes = dict(attributes.pop("shapes", {}))
    node = onnx.helper.make_node(op_type, inputs, ["y"], domain="com.microsoft", **attributes)
    model = build("y = Relu(x)", contrib=True)
    model.graph.node[0].CopyFrom(node)
    for name, shape in shapes.items():
        array = np.ones(shape, np.int64 if shape == () else np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


WITHOUT_KERNEL = [
    ("BiasAdd", ["x", "b", "x"], {"shapes": {"b": (4,)}}, "causal"),
    ("GemmFastGelu", ["x", "w4", "b"], {"shapes": {"w4": (4, 4), "b": (4,)}}, "causal"),
    ("BiasSplitGelu", ["x", "b"], {"shapes": {"b": (4,)}}, "causal"),
    ("BiasSoftmax", ["x", "b"], {"shapes": {"b": (4,)}, "axis": 2}, "causal"),
    ("BiasSoftmax", ["x", "b"], {"shapes": {"b": (4,)}, "axis": 1}, "not_causal"),
    ("QOrderedGelu", ["x", "s", "s"], {"shapes": {"s": (1,)}}, "causal"),
    ("QOrderedLayerNormalization", ["x", "s", "g4", "g4", "s"],
     {"shapes": {"s": (1,), "g4": (4,)}, "axis": -1}, "causal"),
    ("QOrderedMatMul", ["x", "s", "w4", "s", "s"], {"shapes": {"s": (1,), "w4": (4, 4)}}, "causal"),
    ("PackedAttention", ["x", "w4"], {"shapes": {"w4": (4, 12)}, "num_heads": 1}, "undecided"),
    ("RemovePadding", ["x", "b"], {"shapes": {"b": (2,)}}, "undecided"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "rest", "verdict"), WITHOUT_KERNEL)
def test_operators_without_a_kernel_here_are_followed_or_mix_by_name(
    op: str, inputs: list[str], rest: dict[str, object], verdict: str
) -> None:
    proof = static(contrib(inputs, op=op, **rest))
    assert proof.verdict == verdict, proof.reason
    if verdict == "undecided":
        assert proof.offence.op_type == op
        assert "no rule" in proof.reason
