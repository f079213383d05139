"""Opset 17 holds what opset 18 computes, or refuses by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from causal_onnx.export import ExportError, export
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.passes.opset17 import to_opset_17
from causal_onnx.models import DecoderLM, tiny_gpt2_config
from tests.export.captured import run_model


def one_node(
    op_type: str, numbers: Sequence[np.ndarray | None], outputs: int = 1, **attributes: object
) -> ir.Model:
    """A model of one node on x (batch, 4, 6), its other inputs constant."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape(["batch", 4, 6]), type=float32)
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="one")
    given = [None if array is None else constant(graph, array) for array in numbers]
    node = ir.node(op_type, [x, *given], dict(attributes), num_outputs=outputs)  # type: ignore[arg-type]
    for index, value in enumerate(node.outputs):
        value.name, value.type = f"y{index}", float32
    graph.append(node)
    graph.outputs.extend(node.outputs)
    return ir.Model(graph, ir_version=10)


SAME = {
    "mean": lambda: one_node("ReduceMean", [np.array([-1, 1])], keepdims=1),
    "largest": lambda: one_node("ReduceMax", [np.array([2])], keepdims=0),
    "norm over all": lambda: one_node("ReduceL2", []),
    "split": lambda: one_node("Split", [], outputs=3, axis=2, num_outputs=3),
    "pad of one axis": lambda: one_node("Pad", [np.array([1, 2]), None, np.array([-2])]),
    "pad of two axes": lambda: one_node("Pad", [np.array([1, 0, 2, 3]), None, np.array([2, 0])]),
}


@pytest.mark.parametrize("name", SAME)
def test_older_spelling_computes_the_same(name: str) -> None:
    model = SAME[name]()
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    expected = run_model(model, [x])
    to_opset_17(model)
    assert model.opset_imports[""] == 17
    for got, wanted in zip(run_model(model, [x]), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: one_node("Mish", []), r"Mish \(.*opset 17: the operator is newer"),
        (
            lambda: one_node(
                "ScatterElements",
                [np.zeros((1, 1, 1), np.int64), np.ones((1, 1, 1), np.float32)],
                reduction="max",
            ),
            "it reduces by the largest or smallest. Export at opset 18 or newer",
        ),
    ],
    ids=["operator", "reduction"],
)
def test_what_17_lacks_is_refused_by_name(model: object, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_opset_17(model())  # type: ignore[operator]


@cache
def decoder() -> DecoderLM:
    """The same for both targets, so that it is captured once."""
    return DecoderLM(tiny_gpt2_config(), seed=0)


@pytest.mark.parametrize("target", ["portable", "tiled"])
def test_decoder_with_a_cache(target: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export(decoder(), path, target=target, opset=17, cache=True)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 10
    assert report.certificate.verdict == "causal"


class Modern(nn.Module):
    """Ends in an activation that opset 17 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ x.mT).tril()
        return torch.bitwise_and((scores @ self.project(x)).int(), 3).float()


def test_a_module_that_needs_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"BitwiseAnd .* cannot be written in opset 17"):
        export(
            Modern(), tmp_path / "m.onnx", example=torch.randn(2, 5, 8), target="portable", opset=17
        )
    assert list(tmp_path.iterdir()) == []
