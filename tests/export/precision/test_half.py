"""precision="fp16": the file may round as much as PyTorch does in fp16, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.export.check.parity import Session, compare
from causal_onnx.export.precision.choose import in_precision
from causal_onnx.export.report import ParityReport
from causal_onnx.export.source.module import open_source
from causal_onnx.models import CausalMechanismV1
from causal_onnx.runtime import Contract, TensorSpec

WIDTH = 32


class Sharpening(nn.Module):
    """Layers of which each makes the rounding of the one before larger."""

    def __init__(self, layers: int, gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CausalMechanismV1(WIDTH, WIDTH, 300, seed=i) for i in range(layers)
        )
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(self.gain * layer(x))
        return x


class Off(Session):
    """A file whose results are off by `error` of their scale."""

    def __init__(self, module: nn.Module, error: float) -> None:
        self.output_names = ["output"]
        self.module, self.error = module, error

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            exact = self.module(torch.from_numpy(inputs[0]).float()).numpy()
        return [(exact + self.error * np.abs(exact).max()).astype(np.float16)]


def compared(module: nn.Module, error: float) -> ParityReport:
    source, specs = open_source(module.eval(), (torch.randn(2, 8, WIDTH),), None)
    _, reference, specs, _, _ = in_precision(source, specs, "fp16")
    axes = ("batch", "seq", WIDTH)
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float16", axes=axes),),
        outputs=(TensorSpec(name="output", dtype="float16", axes=axes),),
        precision="fp16",
    )
    return compare(Off(module, error), reference, specs, contract)


def test_a_module_that_pytorch_rounds_as_much_is_exported(tmp_path: Path) -> None:
    module = Sharpening(10, 6.0).eval()
    example = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(0))
    report = export(module, tmp_path / "m.onnx", example=(example,), precision="fp16", max_drift=1)
    worst = max(report.parity.cases, key=lambda case: case.error)
    assert worst.error > report.parity.tolerance
    assert worst.from_float64 is not None
    assert worst.error <= 2 * worst.from_float64


def test_an_error_that_pytorch_does_not_make_is_none_of_rounding() -> None:
    assert compared(Sharpening(1, 1.0), 4e-3).passed
    assert not compared(Sharpening(1, 1.0), 8e-3).passed


def test_more_than_twice_what_pytorch_rounds_is_refused() -> None:
    assert not compared(Sharpening(10, 6.0), 0.14).passed
