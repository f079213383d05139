"""Pieces along an axis of any size: chunk and split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.export.quick import quick_export


class Guided(nn.Module):
    """The batch doubled, attended, and taken apart by `apart`."""

    def __init__(self, apart: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x * 0.5])
        y = functional.scaled_dot_product_attention(y, y, y, is_causal=True)
        one, other = self.apart(y, x)
        return other + 2 * (one - other)


@pytest.mark.parametrize(
    "apart",
    [
        lambda y, x: y.chunk(2),
        lambda y, x: torch.chunk(y, 2, dim=0),
        lambda y, x: y.split(x.shape[0]),
        lambda y, x: torch.split(y, x.shape[0]),
        lambda y, x: torch.split(y, [x.shape[0]] * 2),
        lambda y, x: y.movedim(0, -1).chunk(chunks=2, dim=-1)[::-1],
    ],
    ids=["chunk", "torch.chunk", "split", "torch.split", "sections", "by keyword"],
)
def test_pieces_along_the_batch_equal_pytorch(
    apart: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    module = Guided(apart)
    model = quick_export(module, tmp_path / "m.onnx", example=torch.randn(3, 6, 8))
    for batch, seq in ((1, 1), (4, 9)):
        x = torch.randn(batch, seq, 8)
        np.testing.assert_allclose(model(x.numpy()), module(x).numpy(), rtol=0, atol=1e-6)


def test_chunks_of_an_odd_length_are_as_pytorch_makes_them(tmp_path: Path) -> None:
    def apart(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = torch.cat([x, x[:, :1]], 1).chunk(2, 1)
        return torch.cat([first * 2, second], 1)[:, :-1], y[: x.shape[0]]

    module = Guided(apart)
    model = quick_export(module, tmp_path / "m.onnx", example=torch.randn(3, 8, 8))
    for seq in (2, 7, 12):
        x = torch.randn(2, seq, 8)
        np.testing.assert_allclose(model(x.numpy()), module(x).numpy(), rtol=0, atol=1e-6)
