"""Graphs that switch their form by the length: both branches are followed, run and reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from causal_onnx.export.analysis.analyse import Analysis, default_grid
from causal_onnx.export.analysis.branches import branch_sizes, missed_branches
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import read_signature
from causal_onnx.export.attestation import attest

from .graphs import X_Y, build
from .rule_cases import attend

SHORT = 40
"""The longest sequence that takes the short branch."""

CAUSAL = "c = LessOrEqual(j, i) m = Where(c, s, lowest)"
FULL = "m = Identity(s)"
WINDOW = (
    "k = Constant <value_int = 20> () e = Sub(i, k) c1 = LessOrEqual(j, i) c2 = Greater(j, e) "
    "c = And(c1, c2) m = Where(c, s, lowest)"
)


def as_branch(body: str, tag: str) -> onnx.GraphProto:
    """The nodes as the body of an If, their values named apart from any other's."""
    model = build(body, X_Y)
    own = {name for node in model.graph.node for name in node.output}
    for index, node in enumerate(model.graph.node):
        for names in (node.input, node.output):
            names[:] = [f"{name}_{tag}" if name in own else name for name in names]
        node.name = f"{node.op_type}_{tag}_{index}"
    output = onnx.ValueInfoProto()
    output.CopyFrom(model.graph.output[0])
    output.name = f"y_{tag}"
    return helper.make_graph(model.graph.node, tag, [], [output])


def switching(long: str, short: str, *, at: int = SHORT) -> onnx.ModelProto:
    """The nodes `long` for sequences longer than `at`, else `short`; both make y of x."""
    head = "n = Shape <start = 1, end = 2> (x) one = Squeeze(n) is_long = Greater(one, limit)"
    model = build(f"{head} y = Identity(x)", X_Y, limit=np.asarray(at, np.int64))
    del model.graph.node[-1]
    node = helper.make_node("If", ["is_long"], ["y"], name="switch")
    node.attribute.append(helper.make_attribute("then_branch", as_branch(long, "long")))
    node.attribute.append(helper.make_attribute("else_branch", as_branch(short, "short")))
    model.graph.node.append(node)
    onnx.checker.check_model(model)
    return model


def test_one_attention_in_two_forms_is_followed_in_both_and_counted_once() -> None:
    found = attest(switching(attend(CAUSAL), attend(CAUSAL)))
    assert found.verdict == "causal", str(found)
    assert f"0+{SHORT + 1}" in found.lengths
    assert {case.seq for case in found.dynamic.cases} >= {13, SHORT + 1}
    assert [core.footprint for core in found.cores] == ["causal"]
    assert found.length_dependent == ()
    assert found.prefix_stable


def test_a_leak_in_the_branch_of_long_sequences_is_found_by_proof_and_by_running() -> None:
    found = attest(switching(attend(FULL), attend(CAUSAL)))
    assert found.verdict == "not_causal"
    assert found.offence is not None
    assert found.offence.node.startswith("Softmax_long")
    assert {case.seq for case in found.dynamic.leaks} == {SHORT + 1}


def test_branches_that_attend_differently_are_both_listed() -> None:
    found = attest(switching(attend(WINDOW), attend(CAUSAL)))
    assert [core.footprint for core in found.cores] == ["causal", "causal window 20"]
    assert found.verdict == "causal"
    assert found.prefix_stable is False


def test_a_window_beyond_the_lengths_of_its_branch_is_found_by_its_mask() -> None:
    window = WINDOW.replace("20", "300")
    found = attest(switching(attend(window), attend(window), at=640), dynamic=False)
    assert [core.footprint for core in found.cores] == ["causal window 300"]


def test_a_branch_too_long_to_follow_is_proved_with_symbols() -> None:
    found = attest(switching(attend(CAUSAL), attend(CAUSAL), at=100_000), dynamic=False)
    assert (found.verdict, found.every_length) == ("causal", True)


def test_a_leak_in_a_branch_too_long_to_follow_is_not_called_causal() -> None:
    found = attest(switching(attend(FULL), attend(CAUSAL), at=100_000), dynamic=False)
    assert found.verdict == "undecided"
    assert found.offence is not None
    assert found.offence.node == "switch"


def test_a_branch_within_a_branch_is_reached() -> None:
    inner = switching(attend(CAUSAL), attend(CAUSAL), at=90)
    outer = switching("y = Mul(x, x)", attend(CAUSAL))
    body = outer.graph.node[-1].attribute[0].g
    del body.node[:]
    body.node.extend(inner.graph.node)
    body.output[0].name = "y"
    for node in body.node:
        for names in (node.input, node.output):
            names[:] = [f"{n}_in" if n in ("n", "one", "is_long", "y") else n for n in names]
    body.output[0].name = "y_in"
    for initializer in inner.graph.initializer:
        if initializer.name == "limit":
            body.initializer.add().CopyFrom(initializer)
            body.initializer[-1].name = "limit_in"
    body.node[2].input[1] = "limit_in"
    found = attest(outer, dynamic=False)
    assert found.lengths[-2:] == (f"0+{SHORT + 1}", "0+91")


def test_the_limit_of_a_graph_keeps_branches_out_of_reach() -> None:
    model = load_model(switching(attend(CAUSAL), attend(CAUSAL)))
    signature = replace(read_signature(model), max_seq_len=SHORT)
    analysis = Analysis(model, signature)
    analysis.runs.append(analysis.by_position(default_grid(signature)[0]))
    assert [condition for _, condition in missed_branches(analysis)] == [True]
    assert branch_sizes(analysis) == []
