"""precision="bf16": the file computes in bfloat16, and its twin proves that on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from causal_onnx.export import CausalityError, export
from causal_onnx.export.graph.bfloat16 import make_twin
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import DeviceError, load
from tests.export.captured import run_model
from tests.export.modules import ShiftedMask, example

BRAIN = ir.DataType.BFLOAT16


def bf16_value(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(BRAIN), shape=ir.Shape(["n", 8]))


def test_the_twin_rounds_after_every_step() -> None:
    x = bf16_value("x")
    square = ir.node("Mul", [x, x])
    total = ir.node("Add", [square.outputs[0], x])
    scaled = ir.node("Sigmoid", [total.outputs[0]])
    result = scaled.outputs[0]
    result.name, result.type, result.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [result], nodes=[square, total, scaled], opset_imports={"": 20}, name="g")
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (values * values + values).sigmoid().float().numpy()
    got = run_model(make_twin(ir.Model(graph, ir_version=10)), [values.float().numpy()])[0]
    np.testing.assert_array_equal(got, expected)
    assert result.dtype == BRAIN
    assert len(graph) == 3


def test_weights_products_and_outputs_are_bfloat16(tmp_path: Path) -> None:
    module = CausalMechanismV1(16, 16, 12, seed=0)
    report = export(module, tmp_path / "m.onnx", precision="bf16")
    graph = onnx.load(tmp_path / "m.onnx").graph
    floats = {t.data_type for t in graph.initializer if t.data_type != onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.BFLOAT16}
    assert not [node for node in graph.node if node.op_type == "Cast"]
    assert report.contract.outputs[0].dtype == "bfloat16"
    assert report.contract.precision == "bf16"
    assert 1e-4 < report.parity.max_error < 4e-2
    assert report.drift is not None
    assert report.certificate.every_length


def test_the_cpu_refuses_it_and_says_what_to_do(tmp_path: Path) -> None:
    export(CausalMechanismV1(16, 16, 12, seed=0), tmp_path / "m.onnx", precision="bf16")
    with pytest.raises(
        DeviceError, match="bfloat16, which onnxruntime supports only on CUDA; load it"
    ):
        load(tmp_path / "m.onnx")


def test_a_decoder_gets_a_cache(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0).bfloat16()
    report = export(module, tmp_path / "m.onnx", precision="bf16", cache=True)
    assert report.cache is not None
    assert report.cache.passed
    assert {spec.dtype for spec in report.contract.outputs} == {"bfloat16"}
    assert report.certificate.verdict == "causal"


def test_a_leak_is_found_in_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(CausalityError, match="is NOT causal"):
        export(ShiftedMask(), tmp_path / "m.onnx", example=example(), precision="bf16")
    assert list(tmp_path.iterdir()) == []
