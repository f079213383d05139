"""A weight that stands in the graph twice, once transposed, is stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from causal_onnx.export import export
from causal_onnx.export.graph.cleanup import tidy
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.passes.tied_weights import (
    multiply_by_transposed_weights,
    share_transposed_weights,
)
from causal_onnx.models import DecoderLM, tiny_gpt2_config
from tests.export.captured import run_model


def graph_with(first: np.ndarray, second: np.ndarray) -> ir.Model:
    """ids -> first[ids] @ second."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 20}, name="g")
    table, head = constant(graph, first, "table"), constant(graph, second, "head")
    rows = ir.node("Gather", [table, ids])
    product = ir.node("MatMul", [rows.outputs[0], head])
    graph.extend([rows, product])
    graph.outputs.append(product.outputs[0])
    return ir.Model(graph, ir_version=10)


def test_transposed_copy_becomes_a_transpose_of_the_table() -> None:
    table = np.arange(512, dtype=np.float32).reshape(32, 16)
    model = graph_with(table, np.ascontiguousarray(table.T))
    assert share_transposed_weights(model) == 1
    assert list(model.graph.initializers) == ["table"]
    assert [node.op_type for node in model.graph] == ["Transpose", "Gather", "MatMul"]


def test_onnxruntime_multiplies_by_the_table_as_it_is() -> None:
    table = np.random.default_rng(0).standard_normal((32, 16), dtype=np.float32)
    separate = graph_with(table, np.ascontiguousarray(table.T))
    shared = graph_with(table, np.ascontiguousarray(table.T))
    assert share_transposed_weights(shared) == 1
    assert multiply_by_transposed_weights(shared) == 1
    tidy(shared)
    assert [node.op_type for node in shared.graph] == ["Gather", "FusedMatMul"]
    ids = np.array([3, 0, 31, 3])
    first, second = (run_model(model, [ids])[0] for model in (separate, shared))
    assert np.array_equal(first, second)
    assert first.shape == (4, 32)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_what_onnxruntime_has_no_kernel_for_stays(dtype: type[np.floating[Any]]) -> None:
    table = np.arange(1024, dtype=dtype).reshape(32, 32)[:, :16]
    model = graph_with(table, np.ascontiguousarray(table.T))
    assert share_transposed_weights(model) == 1
    assert multiply_by_transposed_weights(model) == 0


def test_a_product_with_what_is_computed_stays() -> None:
    table = np.arange(512, dtype=np.float32).reshape(32, 16)
    model = graph_with(table, np.ascontiguousarray(table.T))
    share_transposed_weights(model)
    turn = next(node for node in model.graph if node.op_type == "Transpose")
    doubled = ir.node("Add", [turn.inputs[0], turn.inputs[0]])
    model.graph.insert_before(turn, doubled)
    turn.replace_input_with(0, doubled.outputs[0])
    assert multiply_by_transposed_weights(model) == 0


def test_a_matrix_that_differs_in_one_place_stays() -> None:
    table = np.arange(512, dtype=np.float32).reshape(32, 16)
    other = np.ascontiguousarray(table.T)
    other[3, 5] += 1
    model = graph_with(table, other)
    assert share_transposed_weights(model) == 0
    assert set(model.graph.initializers) == {"table", "head"}


def test_file_of_a_tied_decoder_holds_the_embedding_once(tmp_path: Path) -> None:
    decoder = DecoderLM(tiny_gpt2_config(), seed=0).eval()
    report = export(decoder, tmp_path / "m.onnx", max_seq_len=8)
    tensors = ir.load(tmp_path / "m.onnx").graph.initializers.values()
    weight = next(m.weight for m in decoder.modules() if isinstance(m, nn.Embedding))
    shapes = [tuple(t.const_value.shape) for t in tensors if t.const_value is not None]
    rows, columns = weight.shape
    assert shapes.count((rows, columns)) + shapes.count((columns, rows)) == 1
    operators = [node.op_type for node in ir.load(tmp_path / "m.onnx").graph.all_nodes()]
    assert operators.count("FusedMatMul") == 1
    assert "Transpose" not in operators
    assert report.parity.passed
