"""A leak is one only where a run shows it: witnesses confirmed, and those that nothing confirms."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest

from causal_onnx.export.attestation import attest
from causal_onnx.export.proof import running
from causal_onnx.export.proof.certificate import Certificate
from tests.export.analysis.graphs import build
from tests.export.analysis.rule_cases import CASES

LEAKING = [case for case in CASES if case.verdict == "not_causal"]

# What later positions add is taken off again: causal, and no rule sees it.
CANCELLED = (
    "a = Constant <value_ints = [1]> () m = ReduceMax(x, a) c = Add(m, a0) d = Sub(m, c) "
    "y = Add(x, d)"
)
MIXING = "a = Constant <value_ints = [1]> () m = ReduceMean(x, a) y = Sub(x, m)"


def cancelled() -> onnx.ModelProto:
    return build(CANCELLED, a0=np.zeros((), np.float32))


@pytest.mark.parametrize("case", LEAKING, ids=lambda case: case.name)
def test_every_witness_is_confirmed_by_running(case) -> None:
    found = attest(case.model(), dynamic=False)
    assert found.confirmation is not None
    assert found.confirmation.confirmed, found.confirmation.reason
    assert found.verdict == "not_causal"


def test_the_confirmed_witness_names_an_element_a_later_position_and_the_change() -> None:
    found = attest(build(MIXING), dynamic=False)
    assert found.offence.witness.startswith("y[0, 0, 0], position 0, depends on position 1")
    assert "it moved by" in found.offence.witness


def test_what_no_run_confirms_is_undecided_and_names_the_node() -> None:
    found = attest(cancelled())
    assert found.verdict == "undecided"
    assert found.offence.op_type == "ReduceMax"
    assert "no change of a later position moved it" in found.reason
    assert "may depend on position" in found.offence.witness
    assert "output    y: undecided" in str(found)
    assert Certificate.from_json(found.to_json()) == found


def test_a_graph_that_onnxruntime_does_not_take_is_run_by_the_reference_evaluator() -> None:
    model = build(MIXING)
    model.ir_version = 99
    found = attest(model, dynamic=False)
    assert found.verdict == "not_causal"
    assert found.confirmation.confirmed


def test_without_onnxruntime_the_reference_evaluator_confirms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert attest(build(MIXING), dynamic=False).verdict == "not_causal"


def test_where_nothing_can_run_the_graph_a_leak_is_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(
        "causal_onnx.export.attestation.open_evaluator", lambda source: (None, "no evaluator")
    )
    found = attest(build(MIXING), dynamic=False)
    assert found.verdict == "undecided"
    assert "onnxruntime is not installed" in found.reason
    assert "no evaluator" in found.reason


def test_random_numbers_confirm_nothing() -> None:
    body = MIXING.replace("Sub(x, m)", "Sub(x, m2)").replace(
        " y =", " r = RandomNormalLike(m) m2 = Add(m, r) y ="
    )
    found = attest(build(body), dynamic=False)
    assert found.verdict == "undecided"
    assert "two runs on the same input give different outputs" in found.reason


def test_a_runner_reports_what_it_refuses() -> None:
    runner, problem = running.open_session(b"noise", ("CPUExecutionProvider",))
    assert runner is None
    assert problem.startswith("onnxruntime cannot load the graph")
    runner, problem = running.open_evaluator(b"noise")
    assert runner is None
    assert problem.startswith("the reference evaluator cannot load the graph")
