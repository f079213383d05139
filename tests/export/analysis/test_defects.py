"""What is wrong with a rule of ours is an error, and never a finding about the graph."""

from __future__ import annotations

import traceback

import numpy as np
import onnx
import pytest

from causal_onnx.cli.main import main
from causal_onnx.export.analysis.rules import RULES
from causal_onnx.export.attestation import attest

from .graphs import build, i64, static
from .odd_graphs import ODD


@pytest.mark.parametrize(
    "error", [IndexError, AssertionError, KeyError, ValueError, TypeError, ZeroDivisionError]
)
def test_a_defect_of_a_rule_propagates_and_names_the_node(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ctx, node, inputs):
        raise error("planted")

    monkeypatch.setitem(RULES, ("", "Relu"), broken)
    with pytest.raises(error, match="planted") as caught:
        attest(build("y = Relu(x)"))
    assert any("while following Relu" in note for note in caught.value.__notes__)


def test_a_defect_in_the_search_for_attention_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("planted")

    monkeypatch.setattr("causal_onnx.export.attestation.find_all_cores", broken)
    with pytest.raises(IndexError, match="planted"):
        attest(build("y = Relu(x)"))


REFUSED = {
    "broadcast": ("y = Add(x, t)", {"t": i64(1, 2, 3, 4, 5).astype("float32")}, "broadcast"),
    "bounds": ("r = Gather <axis = 2> (x, i) y = Add(x, r)", {"i": i64(9)}, "index 9"),
    "count": ("y = Reshape(x, s)", {"s": i64(1009, -1)}, "cannot be reshaped"),
    "fixed_count": ("y = Reshape(x, s)", {"s": i64(5, 7)}, "cannot reshape"),
    "product": ("y = MatMul(x, t)", {"t": i64(1, 2, 3).astype("float32")}, "MatMul of shapes"),
    "axis": ("y = Softmax <axis = 7> (x)", {}, "axis 7 of a tensor of rank 3"),
    "order": ("y = Transpose <perm = [0, 1]> (x)", {}, "axes don't match"),
    "parts": ("y, z = Split <axis = 2> (x, s)", {"s": i64(1, 1)}, "Split of an axis of size 4"),
    "joint": (
        "r = Relu(t) y = Concat <axis = 1> (x, r)",
        {"t": i64(1).astype("float32")},
        "Concat",
    ),
    "copies": ("y = Expand(x, s)", {"s": i64(1, 1, 7)}, "broadcast"),
    "window": ("y = MaxPool <kernel_shape = [9]> (x)", {}, "a window of 9"),
    "width": (
        "y = com.microsoft.MultiHeadAttention <num_heads = 3> (x, x, x)",
        {},
        "no multiple of 3 heads",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_refuses_is_a_refusal_with_its_reason(name: str) -> None:
    body, arrays, message = REFUSED[name]
    proof = static(build(body, contrib=True, **arrays))
    assert proof.verdict == "undecided"
    assert "accepts none of the lengths tried" in proof.reason
    assert message in proof.reason
    assert proof.offence is not None


def test_a_length_that_the_graph_does_not_take_is_still_refused_there() -> None:
    found = attest(build("y = Slice(x, z, e, a) q = Gather <axis = 1> (x, i)", z=i64(0), e=i64(9),
                         a=i64(1), i=i64(4)))  # fmt: skip
    assert found.verdict == "causal"
    assert any("length 3" in text and "index 4 of an axis of size 3" in text
               for text in found.refused)  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_graph_is_judged_or_refused_by_a_typed_error(name: str) -> None:
    try:
        found = attest(ODD[name]())
    except ValueError as error:
        # One that attest raises itself, not one of numpy's that got through.
        raised = traceback.extract_tb(error.__traceback__)[-1]
        assert (raised.line or "").startswith("raise ValueError(")
        return
    assert found.verdict != "undecided" or found.reason


def test_a_missing_input_or_attribute_is_named() -> None:
    text = attest(ODD["missing_required_input"]()).reason
    assert "input 1 (B) is missing" in text
    assert "attribute axis is missing" in attest(ODD["missing_required_attribute"]()).reason


def test_a_defect_ends_the_command_with_code_3(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(ctx, node, inputs):
        raise IndexError("planted")

    monkeypatch.setitem(RULES, ("", "Relu"), broken)
    onnx.save(build("y = Relu(x)"), tmp_path / "m.onnx")
    assert main(["attest", str(tmp_path / "m.onnx")]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: IndexError: planted")
    assert "while following Relu" in said
    assert said.count("\n") == 1


MISFIT = {
    "MatMul": ("y = MatMul(x, t)", np.asarray(2.0, np.float32)),
    "Conv": ("y = Conv(x, t)", np.ones((4,), np.float32)),
    "Concat": ("y = Concat <axis = 1> (x, t)", np.asarray(2.0, np.float32)),
    "GatherND": ("y = GatherND(x, t)", np.asarray(1)),
    "Pad": ("y = Pad(x, t)", np.asarray([1])),
    "Tile": ("y = Tile(x, t)", np.asarray([1])),
    "GatherElements": ("y = GatherElements(x, t)", np.asarray([1])),
    "EyeLike": ("y = EyeLike(x)", np.asarray([1])),
}


@pytest.mark.parametrize("name", MISFIT)
def test_a_rank_that_onnx_refuses_is_a_refusal_whatever_the_rule_stumbles_over(name: str) -> None:
    body, array = MISFIT[name]
    proof = static(build(body, t=array))
    assert proof.verdict == "undecided"
    assert "accepts none of the lengths tried" in proof.reason
    assert proof.offence.op_type == name
