"""How far from float64 a file may be where PyTorch rounds more than the tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.check.parity import CODED_ROUNDINGS, ROUNDINGS, Session, compare
from causal_onnx.export.report import ParityReport
from causal_onnx.export.source.module import open_source
from causal_onnx.runtime import Contract, TensorSpec

AXES = ("batch", "seq", 4)


class Rounding(nn.Module):
    """Its input, to the 1e-4 that are left of it beside a thousand."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1000) - 1000


class Off(Session):
    """A file that is `times` as far from float64 as PyTorch."""

    def __init__(self, times: float, roundings: int) -> None:
        self.output_names, self.times, self.roundings = ["output"], times, roundings

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        (x,) = inputs
        theirs = np.abs(Rounding()(torch.from_numpy(x)).numpy() - x.astype(np.float64)).max()
        return [(x + self.times * theirs).astype(np.float32)]


def compared(times: float, roundings: int) -> ParityReport:
    example = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    source, specs = open_source(Rounding(), (example,), None)
    x, y = (TensorSpec(name=name, dtype="float32", axes=AXES) for name in ("x", "output"))
    return compare(Off(times, roundings), source, specs, Contract(inputs=(x,), outputs=(y,)))


@pytest.mark.parametrize("roundings", [ROUNDINGS, CODED_ROUNDINGS])
def test_a_file_may_round_some_times_as_much_as_pytorch_and_no_more(roundings: int) -> None:
    within, beyond = (compared(share * roundings, roundings) for share in (0.9, 1.1))
    assert within.passed
    assert not beyond.passed
    theirs = max(case.from_float64 or 0 for case in within.cases)
    assert within.tolerance < within.widest_tolerance == roundings * theirs


def test_whatever_pytorch_rounds_a_file_may_not_be_far_off() -> None:
    assert not compared(40, 100).passed
