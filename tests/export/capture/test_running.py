"""Running reductions in a file: the numbers of PyTorch, and the places of the extremes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from causal_onnx.export.capture.running import write_running
from causal_onnx.export.graph.cleanup import tidy
from tests.export.captured import run_model
from tests.export.quick import quick_export


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def product_of_integers(x: Tensor) -> Tensor:
    return (x > 0).cumprod(1).to(x)


def places_of_extremes(x: Tensor) -> Tensor:
    """Of equal ones too: the values are rounded."""
    rounded = (2 * x).round()
    return torch.cummax(rounded, 1)[1].to(x) - rounded.cummin(dim=1).indices.to(x)


def along_the_features(x: Tensor) -> Tensor:
    return x.logcumsumexp(-1) + torch.cumprod(x, dim=2)


def from_nothing(x: Tensor) -> Tensor:
    """A sum of exponentials to which the first positions add none."""
    none = torch.arange(x.shape[1])[:, None] < 2
    return x.masked_fill(none, -torch.inf).logcumsumexp(1)


def behind_what_has_no_shape(x: Tensor) -> Tensor:
    """onnxruntime does not find the rank of what a choice of softplus gives."""
    taken = torch.where(x >= 0, (x.clamp(0) + 0.5).log(), -F.softplus(-x))
    return (taken + F.softplus(x).cumsum(1)).logcumsumexp(1)


@pytest.mark.parametrize(
    "function",
    [
        behind_what_has_no_shape,
        product_of_integers,
        places_of_extremes,
        along_the_features,
        from_nothing,
    ],
)
def test_the_file_gives_what_pytorch_gives(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    model = quick_export(Applied(function).eval(), tmp_path / "m.onnx", example=x[:, :5])
    for seq in (1, 30):
        wanted = function(x[:, :seq]).numpy()
        np.testing.assert_allclose(model(x[:, :seq].numpy()), wanted, rtol=1e-5, atol=1e-5)


def running(kind: str) -> ir.Model:
    """A graph of one such node on x, float32 (2, 3)."""
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Running", [x], {"kind": kind, "axis": 1}, domain="causal_onnx", num_outputs=2)
    for value, dtype in zip(node.outputs, (ir.DataType.FLOAT, ir.DataType.INT64), strict=True):
        value.type, value.shape = ir.TensorType(dtype), x.shape
    node.outputs[0].name = "y"
    opsets = {"": 18, "causal_onnx": 1}
    return ir.Model(
        ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports=opsets), ir_version=10
    )


def test_a_body_that_gives_one_value_twice_keeps_two_after_tidying() -> None:
    model = running("prod")
    write_running(model)
    tidy(model)
    (body,) = model.graph.subgraphs()
    assert len(set(body.outputs)) == 2
    x = np.array([[2.0, 3.0, 4.0], [1.0, 5.0, 0.5]], np.float32)
    np.testing.assert_array_equal(run_model(model, [x])[0], np.cumprod(x, 1))
