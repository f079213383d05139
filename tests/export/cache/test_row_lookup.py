"""What positions decide, looked up for the position at which each row stands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.cache.lengths import Lengths
from causal_onnx.export.cache.row_lookup import (
    RaggedError,
    RowPlan,
    plan_rows,
    write_new_positions,
    write_rows,
)
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.position_region import PositionRegion
from tests.export.analysis.graphs import X_Y, build, i64
from tests.export.captured import run_model

TABLE = """
    n = Shape<start = 1, end = 2>(x)
    rows = Slice(table, zero, n, zero)
"""
WEIGHTS = np.arange(64.0).reshape(16, 4).astype(np.float32)


def planned(reader: str, axis: int, signature: str = X_Y) -> tuple[ir.Model, ir.Value, RowPlan]:
    """The plan for `rows`, positions on `axis`, as the node that gives y reads it."""
    model = load_model(build(TABLE + reader, signature, table=WEIGHTS, zero=i64(0)))
    layouts = Layouts(model)
    node = model.graph.outputs[0].producer()
    assert node is not None
    value = next(v for v in node.inputs if v is not None and not layouts.is_tainted(v))
    whole = PositionRegion(layouts, value).evaluate(2, 5)
    return model, value, plan_rows(layouts, value, axis, node, whole)


def looked_up(
    model: ir.Model, value: ir.Value, plan: RowPlan, positions: list[list[int]]
) -> np.ndarray:
    """The value for rows of new tokens at `positions`, computed from a value for 10 positions."""
    node = model.graph.outputs[0].producer()
    assert node is not None
    at = constant(model.graph, np.array(positions, np.int64))
    found = write_rows(model.graph, node, value, plan, at)
    found.name, found.type = "found", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(found)
    return run_model(model, [np.zeros((2, 10, 4), np.float32)])[-1]


def test_each_row_gets_the_entries_of_its_own_positions() -> None:
    model, value, plan = planned("y = Add(x, rows)", 0)
    found = looked_up(model, value, plan, [[3, 4], [0, 1]])
    assert np.array_equal(found, WEIGHTS[[[3, 4], [0, 1]]])


def test_a_batch_axis_of_equal_rows_gives_way() -> None:
    reader = """
        all = Shape<start = 0, end = 1>(x) one = Constant<value_ints = [1, 1]>()
        goal = Concat<axis = 0>(all, one) lead = Unsqueeze(rows, zero)
        wide = Expand(lead, goal) y = Add(x, wide)
    """
    model, value, plan = planned(reader, 1)
    assert plan.drop == 0
    found = looked_up(model, value, plan, [[9], [2]])
    assert np.array_equal(found, WEIGHTS[[[9], [2]]])


def test_a_module_without_a_batch_looks_up_one_row() -> None:
    signature = "(float[seq, 4] x) => (float[seq, 4] y)"
    reader = TABLE.replace("start = 1, end = 2", "start = 0, end = 1")
    model = load_model(build(reader + "y = Add(x, rows)", signature, table=WEIGHTS, zero=i64(0)))
    layouts, node = Layouts(model), model.graph.outputs[0].producer()
    assert node is not None
    value = node.inputs[1]
    assert value is not None
    plan = plan_rows(layouts, value, 0, node, PositionRegion(layouts, value).evaluate(1, 5))
    assert plan.batch is None


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("r = Transpose(rows) y = MatMul(x, r)", "it does not work entry by entry"),
        (
            "t = Transpose<perm = [0, 2, 1]>(x) r = Transpose(rows) y = Add(t, r)",
            "its positions are not those",
        ),
        (
            "s = ReduceMean<axes = [0], keepdims = 0>(x) y = Add(s, rows)",
            "no batch axis of its own",
        ),
    ],
    ids=["product", "other axis", "no batch"],
)
def test_a_reader_without_a_place_for_rows_is_named(reader: str, reason: str) -> None:
    message = f"rows of different lengths cannot share a call: .*{reason}"
    with pytest.raises(RaggedError, match=message):
        planned(reader, 0)


ANGLES = """
    n = Shape<start = 1, end = 2>(x) count = Squeeze(n) first = Constant<value_int = 0>()
    step = Constant<value_int = 1>() number = Range(first, count, step)
    row = Unsqueeze(number, one) real = Cast<to = 1>(row)
    angle = {angle} cosine = Cos(angle) lead = Unsqueeze(cosine, zero) y = Add(x, lead)
"""
FREQUENCIES = np.array([[1.0, 0.5, 0.25]], np.float32)


def at_new_positions(
    text: str, positions: list[list[int]], *, total: int = 50, ragged: bool = True
) -> tuple[np.ndarray, ir.Model]:
    """What positions decide of y, of a sequence of `total` positions so far."""
    width = "(float[batch, seq, 3] x) => (float[batch, seq, 3] y)"
    constants = {"zero": i64(0), "one": i64(1), "f": FREQUENCIES}
    model = load_model(build(text, width, **constants))
    layouts, reader = Layouts(model), model.graph.outputs[0].producer()
    assert reader is not None
    value, graph = reader.inputs[1], model.graph
    assert value is not None
    axis = len(layouts.axes(value)) - 2
    region = PositionRegion(layouts, value)
    plan = plan_rows(layouts, value, axis, reader, region.evaluate(2, 5)) if ragged else None
    at, new = np.array(positions, np.int64), len(positions[0])
    given = (constant(graph, np.array([n])) for n in (new, total, total - new))
    lengths = Lengths(*given, positions=constant(graph, at) if ragged else None)
    found = write_new_positions(graph, reader, region, axis, plan=plan, lengths=lengths)
    found.name, found.type = "found", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(found)
    return run_model(model, [np.zeros((len(at), new, 3), np.float32)])[-1], model


ANGLE_WRITTEN = {
    "product": "Mul(real, f)",
    "matrix product": "MatMul(real, f)",
    "joined": "Concat<axis = 1>(real, real, real)",
}


@pytest.mark.parametrize("written", ANGLE_WRITTEN)
def test_what_treats_positions_one_by_one_is_computed_for_the_new_ones_alone(written: str) -> None:
    found, model = at_new_positions(ANGLES.format(angle=ANGLE_WRITTEN[written]), [[48, 49], [3, 4]])
    factors = np.ones(3) if written == "joined" else FREQUENCIES[0]
    expected = np.cos(np.array([[48, 49], [3, 4]])[..., None] * factors)
    np.testing.assert_allclose(found.reshape(2, 2, 3), expected, atol=1e-6)
    assert entries_of(model, "Cos") < 50 * 3


def entries_of(model: ir.Model, op_type: str) -> int:
    """How many numbers the last node of a kind gives: the one that new positions need."""
    node = [node for node in model.graph if node.op_type == op_type][-1]
    model.graph.outputs.append(node.outputs[0])
    return run_model(model, [np.zeros((2, 2, 3), np.float32)])[-1].size


def test_rows_at_one_position_compute_the_new_ones_alone() -> None:
    found, model = at_new_positions(
        ANGLES.format(angle="Mul(real, f)"), [[48, 49], [48, 49]], ragged=False
    )
    expected = np.cos(np.array([48, 49])[:, None] * FREQUENCIES)
    np.testing.assert_allclose(found.reshape(2, 3), expected, atol=1e-6)
    assert entries_of(model, "Cos") == 2 * 3


def test_a_position_gets_the_same_bits_in_calls_of_any_length() -> None:
    text = ANGLES.format(angle="Mul(real, f)")
    together, _ = at_new_positions(text, [list(range(23))], total=23)
    for position in range(23):
        alone, _ = at_new_positions(text, [[position]], total=position + 1)
        assert np.array_equal(alone[0, 0], together[0, position])


def test_a_table_is_read_where_it_is_stored() -> None:
    text = "n = Shape<start = 1, end = 2>(x) rows = Slice(table, zero, n, zero) y = Add(x, rows)"
    model = load_model(build(text, X_Y, table=WEIGHTS, zero=i64(0)))
    layouts, reader = Layouts(model), model.graph.outputs[0].producer()
    assert reader is not None
    value, graph = reader.inputs[1], model.graph
    assert value is not None
    region = PositionRegion(layouts, value)
    plan = plan_rows(layouts, value, 0, reader, region.evaluate(2, 5))
    one, at = constant(graph, np.array([1])), constant(graph, np.array([[3], [5]]))
    lengths = Lengths(one, constant(graph, np.array([6])), one, positions=at)
    found = write_new_positions(graph, reader, region, 0, plan=plan, lengths=lengths)
    looked_up_in = found.producer()
    assert looked_up_in is not None
    assert looked_up_in.inputs[0] is graph.initializers["table"]
