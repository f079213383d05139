"""What positions decide, looked up for the position at which each row stands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.cache.row_lookup import RaggedError, RowPlan, plan_rows, write_rows
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
