"""The length limit in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export import export
from causal_onnx.export.limit import enforce_max_seq_len
from tests.export.captured import run_model
from tests.zoo import entry


def doubling(*, with_past: bool) -> ir.Model:
    """x (batch, seq, 2) -> x + x; an input `past` (batch, past_seq, 2) is passed through."""
    inputs = [
        ir.Value(
            name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", axis, 2])
        )
        for name, axis in (("x", "seq"), ("past", "past_seq"))[: 1 + with_past]
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}, name="g")
    for value in inputs:
        node = ir.node("Add", [value, value])
        node.outputs[0].type = value.type
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("seq", [1, 2, 5])
def test_up_to_the_limit_nothing_changes(seq: int) -> None:
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    x = np.ones((3, seq, 2), np.float32)
    np.testing.assert_array_equal(run_model(model, [x])[0], 2 * x)


def test_one_more_is_refused_by_name() -> None:
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    with pytest.raises(Exception, match="sequence_longer_than_max_seq_len_5"):
        run_model(model, [np.ones((3, 6, 2), np.float32)])


def test_past_positions_count() -> None:
    model = doubling(with_past=True)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5, past=("past", 1))
    x, past = np.ones((1, 2, 2), np.float32), np.ones((1, 3, 2), np.float32)
    np.testing.assert_array_equal(run_model(model, [x, past])[0], 2 * x)
    with pytest.raises(Exception, match="sequence_longer_than_max_seq_len_5"):
        run_model(model, [x, np.ones((1, 4, 2), np.float32)])


def test_an_output_of_one_position_has_the_limit_of_its_module(tmp_path: Path) -> None:
    item = entry("lm_last_position_only")
    report = export(item.factory(), tmp_path / "m.onnx", example=item.inputs(2, 5), axes=item.axes)
    assert report.contract.max_seq_len == item.limit == 24


@pytest.mark.parametrize("slots", [20, 33])
def test_slots_of_an_input_of_fixed_size_are_a_limit(slots: int, tmp_path: Path) -> None:
    item = entry("cache_static_scatter")
    x, keys, values, places = item.inputs(2, 5)
    shape = (*keys.shape[:2], slots, keys.shape[3])
    example = (x, keys.new_zeros(shape), values.new_zeros(shape), places)
    report = export(item.factory(), tmp_path / "m.onnx", example=example, axes=item.axes)
    assert report.contract.max_seq_len == slots
