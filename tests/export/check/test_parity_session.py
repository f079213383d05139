"""The bare session of the checks: what it runs, and what it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.check.parity import Session
from causal_onnx.export.outcome import SessionError
from causal_onnx.export.write import write_mapped
from causal_onnx.runtime.contract import CachePair, Contract, TensorSpec

AXES = ("batch", 1, "seq", 2)


def cached(*, rows: int) -> ir.Model:
    """`y` is `x`; the new cache is looked up at row 3 of a table of `rows` rows."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x, past = (
        ir.Value(name=name, type=kind, shape=ir.Shape(["batch", 1, name, 2]))
        for name in ("x", "past")
    )
    table = ir.Value(name="table", const_value=ir.tensor(np.zeros((rows, 2), np.float32)))
    place = ir.Value(name="place", const_value=ir.tensor(np.array([3], np.int64)))
    same = ir.Node("", "Identity", [x], num_outputs=1)
    row = ir.Node("", "Gather", [table, place], num_outputs=1)
    joined = ir.Node("", "Concat", [past, x], {"axis": ir.AttrInt64("axis", 2)}, num_outputs=1)
    moved = ir.Node("", "Add", [joined.outputs[0], row.outputs[0]], num_outputs=1)
    for node, name in ((same, "y"), (moved, "present")):
        node.outputs[0].name, node.outputs[0].type = name, kind
    graph = ir.Graph(
        [x, past],
        [same.outputs[0], moved.outputs[0]],
        nodes=[same, row, joined, moved],
        initializers=[table, place],
        opset_imports={"": 20},
    )
    return ir.Model(graph, ir_version=10)


def opened(path: Path, *, rows: int) -> Session:
    write_mapped(cached(rows=rows), path, {})
    x, y = (TensorSpec(name=name, dtype="float32", axes=AXES) for name in "xy")
    past, present = (
        TensorSpec(name=name, dtype="float32", axes=("batch", 1, axis, 2))
        for name, axis in (("past", "past_seq"), ("present", "total_seq"))
    )
    pair = CachePair(past="past", present="present")
    contract = Contract(inputs=(x, past), outputs=(y, present), cache=(pair,))
    return Session(path, contract)


def test_a_call_gives_the_outputs_and_a_step_the_cache_too(tmp_path: Path) -> None:
    session, x = opened(tmp_path / "m.onnx", rows=4), np.ones((1, 1, 3, 2), np.float32)
    assert [value.shape for value in session([x])] == [x.shape]
    outputs, cache = session.step([x], session.empty_past([x]))
    np.testing.assert_array_equal(outputs + cache, [x, x])


def test_what_makes_the_cache_runs_in_a_call_that_does_not_give_it(tmp_path: Path) -> None:
    session = opened(tmp_path / "m.onnx", rows=3)
    with pytest.raises(SessionError, match="indices element out of data bounds, idx=3"):
        session([np.ones((1, 1, 3, 2), np.float32)])
