"""Causal by blocks: declared, proved, and refused where a block sees the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import CausalityError, ExportReport, attest, export
from causal_onnx.runtime import load

DIM = 8


class Blocks(nn.Module):
    """Positions see their own block and earlier ones."""

    def __init__(self, block: int, ahead: int = 0) -> None:
        super().__init__()
        self.block, self.ahead, self.project = block, ahead, nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        last = place // self.block * self.block + self.block - 1 + self.ahead
        q = self.project(x)
        return functional.scaled_dot_product_attention(q, q, q, place <= last[:, None])


class Chunked(Blocks):
    """The same, by the number of the chunk."""

    def forward(self, x: Tensor) -> Tensor:
        chunk = torch.arange(x.shape[1]) // self.block
        q = self.project(x)
        return (q @ q.mT).masked_fill(chunk > chunk[:, None], -torch.inf).softmax(-1) @ q


def made(module: nn.Module, path: Path, causal: str, **options: Any) -> ExportReport:
    example = torch.randn(3, 6, DIM)
    return export(module.eval(), path / "m.onnx", example=example, causal=causal, **options)


@pytest.mark.parametrize("module", [Blocks(4), Chunked(4), Blocks(5)], ids=["4", "chunks", "5"])
def test_causal_blocks_are_exported_when_declared(module: Blocks, tmp_path: Path) -> None:
    report = made(module, tmp_path, f"blocks of {module.block}")
    assert report.contract.causal_block == module.block
    assert report.certificate.verdict == "causal"
    assert report.certificate.reason.endswith(f"up to the end of its block of {module.block}")
    x = torch.randn(2, 11, DIM)
    got = load(tmp_path / "m.onnx")(x.numpy())
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=0, atol=1e-5)


def test_the_file_alone_says_that_blocks_are_causal(tmp_path: Path) -> None:
    certificate = attest(made(Blocks(4), tmp_path, "blocks of 4").path)
    assert certificate.verdict == "causal"
    assert {case.cut % 4 for case in certificate.dynamic.cases} == {0}
    assert certificate.prefix_stable


@pytest.mark.parametrize(
    ("module", "causal"),
    [
        (Blocks(4, ahead=1), "blocks of 4"),
        (Blocks(4), "blocks of 3"),
        (Chunked(8), "blocks of 4"),
        (Blocks(4), "positions"),
    ],
    ids=["one ahead", "other boundaries", "twice as long", "not declared"],
)
def test_a_block_that_sees_the_next_one_is_refused_with_the_node(
    module: nn.Module, causal: str, tmp_path: Path
) -> None:
    with pytest.raises(CausalityError, match=r"NOT causal.* In the graph, the first "):
        made(module, tmp_path, causal)


def test_a_causal_module_is_so_by_blocks_too(tmp_path: Path) -> None:
    class Plain(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            q = self.project(x)
            return functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    assert made(Plain(4), tmp_path, "blocks of 4").certificate.every_length


@pytest.mark.parametrize(
    ("causal", "options", "message"),
    [
        ("blocks", {}, "causal must be 'positions', or 'blocks of N'"),
        ("blocks of 1", {}, "with N of at least 2, got 'blocks of 1'"),
        ("blocks of 4", {"cache": True}, "cache=True is for modules that are causal by positions"),
    ],
)
def test_other_declarations_are_refused(
    causal: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        made(Blocks(4), tmp_path, causal, **options)
