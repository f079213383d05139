"""A program is traced a second time where an operator needs it, and the file is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.onnx._internal.exporter import _fx_passes

from causal_onnx.export import export
from causal_onnx.export.capture import capture
from causal_onnx.export.torch_patches.translator import listed_once
from causal_onnx.runtime import load
from tests.export.modules import example, through


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The operators of each program that is traced a second time."""
    seen: list[list[str]] = []
    original = _fx_passes.decompose_with_registry

    def counted(program: torch.export.ExportedProgram, registry: object) -> object:
        seen.append([str(node.target) for node in program.graph.nodes])
        return original(program, registry)  # type: ignore[arg-type]

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counted)
    return seen


def _converted(x: Tensor) -> Tensor:
    y = x.to(torch.float64).to(x) + x.to(torch.float32) + x.to("cpu", torch.float64).float()
    return y.to(torch.float32, copy=True) + (x > 0).to(dtype=torch.float32)


def _bits(x: Tensor) -> Tensor:
    high, low, codes = x > 0.1, x < -0.1, (x * 100).to(torch.int64)
    return ((high | low) & (high ^ low)) * x + ((codes & 7) ^ (codes | codes)).to(x.dtype)


def _differences(x: Tensor) -> Tensor:
    first = torch.zeros_like(x[..., :1])
    y = torch.diff(x, prepend=first) + (x > 0).diff(dim=-1, append=first > 0)
    return y + torch.nn.functional.pad(x.diff(), (1, 0)) + torch.diff(x, 2, -1, first, first)


def _shapes(x: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    by_pair = pairs.flatten(0, 1).swapaxes(0, 1)
    y = by_pair.transpose(1, 2).reshape(pairs.shape[2], 2, -1).permute(2, 0, 1)
    joined = torch.cat(y.reshape(x.shape).chunk(3, -1)[::-1], -1)
    return joined.flatten(1).unflatten(1, x.shape[1:]) + x[..., :1].expand_as(x) + x.flatten(-1)


def _arithmetic(x: Tensor) -> Tensor:
    y = 1 - x.square() + torch.rsub(x, 2, alpha=3)
    return torch.min(y, torch.max(x, y)) @ torch.ones(x.shape[-1], x.shape[-1]).tril().T


def _written_into(x: Tensor) -> Tensor:
    mask = torch.zeros_like(x).masked_fill_(x > 0, -1.0)
    y = (x * 2).add_(mask).clamp_(-1, 1)
    return torch.relu_(y.div_(3)) - x


def _seen_by_another_name(x: Tensor) -> Tensor:
    y = x * 2
    same = torch.nn.functional.dropout(y, 0.1, training=False)
    y.mul_(3)
    return y + same


def _nothing_done_to_the_result(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x, 0.1, training=False).to(torch.float32)


@pytest.mark.parametrize(
    "then",
    [
        torch.sigmoid,
        _converted,
        _bits,
        _shapes,
        _arithmetic,
        _written_into,
        _nothing_done_to_the_result,
    ],
)
def test_what_has_a_translation_is_not_traced_again(
    then: Callable[[Tensor], Tensor], tmp_path: Path, decomposed: list[list[str]]
) -> None:
    export(through(then).eval(), tmp_path / "m.onnx", example=example())
    assert decomposed == []
    with pytest.MonkeyPatch.context() as always:
        # Decomposes always: what stands in its place is entered already and changes nothing.
        always.setattr(capture, "decomposed_where_needed", listed_once)
        export(through(then).eval(), tmp_path / "again.onnx", example=example())
    assert len(decomposed) == 1
    x = np.random.default_rng(0).standard_normal((3, 11, example().shape[-1]), dtype=np.float32)
    one, other = (load(tmp_path / name, threads=1) for name in ("m.onnx", "again.onnx"))
    assert np.array_equal(one(x), other(x))


def _behind_a_view(x: Tensor) -> Tensor:
    y = x * 2
    first = y[..., :1]
    y.mul_(3)
    return y + first


def _behind_what_may_be_a_copy(x: Tensor) -> Tensor:
    y = x * 2
    y.reshape(-1).mul_(3)
    return y


def _into_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[..., :1].mul_(3)
    return y


def _by_rows(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * row.T.sum(0)[:, None])(x)


def _of_whole_numbers(x: Tensor) -> Tensor:
    return (x > 0).to(torch.int64).add_(1).to(x.dtype) * x


@pytest.mark.parametrize(
    "then", [_behind_a_view, _behind_what_may_be_a_copy, _into_a_view, _by_rows, _of_whole_numbers]
)
def test_what_has_no_other_name_is_traced_again(
    then: Callable[[Tensor], Tensor], tmp_path: Path, decomposed: list[list[str]]
) -> None:
    export(through(then).eval(), tmp_path / "m.onnx", example=example())
    assert len(decomposed) == 1
    x = torch.randn(3, 11, example().shape[-1], generator=torch.Generator().manual_seed(0))
    expected = through(then).eval()(x).detach().numpy()
    assert_allclose(load(tmp_path / "m.onnx", threads=1)(x.numpy()), expected, atol=1e-5)


def test_what_does_nothing_is_another_name_of_what_is_written_into(tmp_path: Path) -> None:
    # PyTorch's decomposition takes it for a copy: the file computed 8x here, and was refused.
    export(through(_seen_by_another_name).eval(), tmp_path / "m.onnx", example=example())
    x = torch.randn(3, 11, example().shape[-1], generator=torch.Generator().manual_seed(0))
    expected = through(_seen_by_another_name).eval()(x).detach().numpy()
    assert_allclose(load(tmp_path / "m.onnx", threads=1)(x.numpy()), expected, atol=1e-5)


def test_a_difference_is_slices_but_for_a_second_one(
    tmp_path: Path, decomposed: list[list[str]]
) -> None:
    export(through(_differences).eval(), tmp_path / "m.onnx", example=example())
    (operators,) = decomposed
    assert operators.count("aten.diff.default") == 1


def test_the_program_itself_stays_as_it_was() -> None:
    class Converts(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.float64)

    program = torch.export.export(Converts(), (torch.zeros(2),))
    before = str(program.graph)
    with capture.decomposed_where_needed():
        torch.onnx.export(program, (), verbose=False)
    assert "aten.to.dtype" in before
    assert str(program.graph) == before
