"""What only positions decide: evaluated at any length, and written again for past and new ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.position_region import PositionRegion, same_prefix, seq_axes
from tests.export.analysis.graphs import build, i64
from tests.export.captured import run_model

MASK = """
    n = Shape<start = 1, end = 2>(x)
    nn = Concat<axis = 0>(n, n)
    ones = ConstantOfShape<value = float[1] {1}>(nn)
    mask = Trilu<upper = 0>(ones)
    s = MatMul(x, t)
    m = Mul(s, mask)
    y = MatMul(m, x)
"""


def masked(body: str = MASK) -> onnx.ModelProto:
    return build("t = Transpose<perm = [0, 2, 1]>(x)" + body)


def region(model: onnx.ModelProto, name: str) -> tuple[ir.Model, PositionRegion]:
    loaded = load_model(model)
    value = next(v for node in loaded.graph for v in node.outputs if v.name == name)
    return loaded, PositionRegion(Layouts(loaded), value)


@pytest.mark.parametrize("seq", [1, 5, 37])
def test_a_mask_is_evaluated_at_any_length(seq: int) -> None:
    _, found = region(masked(), "mask")
    assert np.array_equal(found.evaluate(2, seq), np.tri(seq, dtype=np.float32))


def test_the_region_begins_at_shapes() -> None:
    _, found = region(masked(), "mask")
    assert [node.op_type for node in found.shapes] == ["Shape"]
    assert [node.op_type for node in found.nodes] == ["Concat", "ConstantOfShape", "Trilu"]


def test_axes_that_count_positions_are_told() -> None:
    model, found = region(masked(), "mask")
    assert seq_axes(Layouts(model), found.value) == [0, 1]


def test_numbers_that_it_computes_with_are_told() -> None:
    body = MASK.replace("Trilu<upper = 0>(ones)", "Trilu<upper = 0>(ones, k)")
    model = build("t = Transpose<perm = [0, 2, 1]>(x)" + body, k=np.asarray(-3))
    assert region(model, "mask")[1].integers() == {-3}


def test_a_value_that_data_decide_has_no_region() -> None:
    body = MASK.replace("Trilu<upper = 0>(ones)", "Add(ones, s)").replace("s = MatMul(x, t)", "")
    model = build("t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t)" + body)
    with pytest.raises(NotSupportedError, match=r"Add .* reads data of s"):
        region(model, "mask")


def test_it_is_written_again_for_past_and_new_positions() -> None:
    model, found = region(masked(), "mask")
    graph = model.graph
    reader = found.value.uses()[0].node
    seq = next(n for n in graph if n.op_type == "Shape").outputs[0]
    total = ir.node("Add", [seq, constant(graph, i64(3))])
    graph.insert_before(reader, total)
    longer = found.write_for_total(graph, reader, seq, total.outputs[0])
    longer.name, longer.type = "longer", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(longer)
    results = run_model(model, [np.ones((2, 5, 4), np.float32)])
    assert np.array_equal(results[-1], np.tri(8, dtype=np.float32))


def test_a_size_that_merges_positions_with_others_is_refused() -> None:
    model, found = region(build("n = Size(x) r = Cast<to = 1>(n) y = Mul(x, r)"), "r")
    node = found.value.uses()[0].node
    with pytest.raises(NotSupportedError, match="merges the positions"):
        found.write_for_total(model.graph, node, found.value, found.value)


def test_a_prefix_is_one_along_the_axes_alone() -> None:
    long = np.arange(12.0).reshape(3, 4)
    assert same_prefix(long[:2], long, [0])
    assert not same_prefix(long[1:], long, [0])
    assert not same_prefix(long[:, :2], long, [0])
