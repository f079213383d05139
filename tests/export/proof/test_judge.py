"""Reading runs: the axis of positions, the first leak, and the node where it begins."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.elements import Elements
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.interpret import Constants, Run, run
from causal_onnx.export.analysis.signature import Sizes, read_signature
from causal_onnx.export.proof.judge import all_leaks, is_causal_somehow, judge_output, offender
from tests.export.analysis.graphs import X_Y, build, i64

SIZES = (Sizes(batch=2, seq=5), Sizes(batch=2, seq=7))


def runs(model: onnx.ModelProto) -> tuple[ir.Model, list[Run]]:
    loaded = load_model(model)
    signature, constants = read_signature(loaded), Constants()
    return loaded, [run(loaded, signature, sizes, constants) for sizes in SIZES]


def elements(reach: object, sizes: Sizes) -> Elements:
    reached = np.asarray(reach, np.int16)
    return Elements(reached.shape, reached)


def test_each_position_for_itself_is_causal_along_its_axis() -> None:
    model, found = runs(build("y = MatMul(x, w)"))
    verdict = judge_output(model.graph.outputs[0], found)
    assert verdict.leak is None
    assert verdict.axes == (1,)


def test_a_leak_names_the_position_and_the_later_one() -> None:
    model, found = runs(build("y = CumSum<reverse = 1>(x, one)", one=np.asarray(1)))
    leak = judge_output(model.graph.outputs[0], found).leak
    assert leak is not None
    assert (leak.sizes, leak.position, leak.reach) == (SIZES[0], 0, 4)


def test_leaks_at_every_size_are_told() -> None:
    model, found = runs(build("y = CumSum<reverse = 1>(x, one)", one=np.asarray(1)))
    leaks = all_leaks(model.graph.outputs[0], found, (1,))
    assert [leak.sizes for leak, _ in leaks] == list(SIZES)


def test_scores_of_pairs_are_causal_in_the_later_of_both() -> None:
    signature = "(float[batch, seq, 4] x) => (float[batch, seq, seq] y)"
    model, found = runs(build("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", signature))
    verdict = judge_output(model.graph.outputs[0], found)
    assert verdict.leak is None
    assert verdict.axes == (1, 2)


@pytest.mark.parametrize(
    ("body", "signature", "note"),
    [
        ("y = ReduceMean<axes = [1]>(x)", "(float[batch, seq, 4] x) => (float[batch, 1, 4] y)",
         "has no position axis"),
        ("s = Shape(x) y = Cast<to = 1>(s)", "(float[batch, seq, 4] x) => (float[3] y)",
         "does not depend on any data"),
    ],
)  # fmt: skip
def test_outputs_without_positions_are_told(body: str, signature: str, note: str) -> None:
    model, found = runs(build(body, signature, opset=17))
    assert judge_output(model.graph.outputs[0], found).note == note


def test_the_offender_is_the_node_after_which_nothing_restores_the_order() -> None:
    body = "a = MatMul(x, w) b = ReduceSum(a, one) c = Add(a, b) y = MatMul(c, u)"
    model, found = runs(build(body, X_Y, one=i64(1)))
    order = {node: place for place, node in enumerate(model.graph)}
    node = offender(found[0], model.graph.outputs[0], order)
    assert node is not None
    assert node.op_type in ("ReduceSum", "Add")


def test_a_reversal_alone_is_where_the_order_was_turned() -> None:
    body = "a = Slice(x, last, first, one, back) y = MatMul(a, w)"
    arrays = {"last": i64(-1), "first": i64(-(2**62)), "one": i64(1), "back": i64(-1)}
    model, found = runs(build(body, X_Y, **arrays))
    order = {node: place for place, node in enumerate(model.graph)}
    node = offender(found[0], model.graph.outputs[0], order)
    assert node is not None
    assert node.op_type == "Slice"


def test_a_reading_must_fit_all_elements() -> None:
    sizes = Sizes(batch=1, seq=4)
    assert is_causal_somehow(elements([[0], [1], [2], [3]], sizes), sizes)
    assert is_causal_somehow(elements([[3], [2], [1], [0]], sizes), sizes)
    assert not is_causal_somehow(elements([[3], [2], [1], [0]], sizes), sizes, flipped=False)
    assert not is_causal_somehow(elements([[3], [0], [3], [0]], sizes), sizes)
