"""A padding mask of the module's own, replaced by the cache's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, ExportReport, export, verify
from causal_onnx.export.check.cache_rows import ragged_cases
from causal_onnx.export.check.later_tokens import LaterTokens
from causal_onnx.export.check.parity import Session
from causal_onnx.export.source.module import Filled, open_source
from causal_onnx.export.source.padding_mask import fill_padding
from causal_onnx.runtime import load


class Padded(nn.Module):
    """Causal attention that is also told which keys are tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attend(x, keep)

    def attend(self, x: Tensor, keep: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = self.qkv(x).chunk(3, -1)
        allowed = torch.ones(n, n, dtype=torch.bool).tril() & keep[:, None, :]
        weights = (q @ k.mT / 4).masked_fill(~allowed, -1e9).softmax(-1)
        result: Tensor = self.out(weights @ v)
        return result


class Ignoring(Padded):
    """True means padding."""

    def forward(self, x: Tensor, ignore: Tensor) -> Tensor:
        return self.attend(x, ~ignore)


class Counting(Padded):
    """Also divides by the number of tokens: rows that are padded differ from shorter ones."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attend(x, keep) * (keep.float().mean(1)[:, None, None])


class Marking(Padded):
    """Adds the mask to the features: what stands at a hidden position is still seen."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attend(x + keep[..., None], torch.ones_like(keep))


class Defaulting(Padded):
    """Without a mask it sees only itself."""

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.out(self.qkv(x)[..., -16:]) if keep is None else self.attend(x, keep)


def example(value: bool = True) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 5, 16), torch.full((2, 5), value)


@cache
def padded() -> Padded:
    """The same for all tests, so that it is captured once."""
    return Padded().eval()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Of `padded`, with a cache."""
    path = tmp_path_factory.mktemp("padded") / "m.onnx"
    return export(padded(), path, example=example(), cache=True)


@pytest.mark.parametrize("kind", [Padded, Ignoring])
def test_the_mask_of_the_cache_takes_the_place_of_the_modules(
    kind: type[Padded], tmp_path: Path
) -> None:
    module = kind().eval()
    report = export(module, tmp_path / "m.onnx", example=example(kind is Padded), cache=True)
    names = [spec.name for spec in report.contract.inputs]
    assert names == ["x", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    assert any("replaces it" in text for text in report.warnings)
    x, keep = torch.randn(3, 9, 16), torch.arange(9) < torch.tensor([[9], [4], [1]])
    got = load(tmp_path / "m.onnx").run(x.numpy(), attention_mask=keep.long().numpy())["output"]
    expected = module(x, keep if kind is Padded else ~keep).detach()
    np.testing.assert_allclose(got[keep.numpy()], expected[keep].numpy(), rtol=0, atol=1e-5)


def test_a_cached_file_is_verified_with_the_modules_own_example(report: ExportReport) -> None:
    assert verify(Padded().eval(), report.path, example=example()).passed


def test_without_a_cache_the_mask_stays_an_input(tmp_path: Path) -> None:
    report = export(Padded().eval(), tmp_path / "m.onnx", example=example())
    assert [spec.name for spec in report.contract.inputs] == ["x", "keep"]


@pytest.mark.parametrize("kind", [Counting, Marking, Defaulting])
def test_a_mask_that_does_more_than_pad_is_left_alone(kind: type[Padded]) -> None:
    source, specs = open_source(kind(), example(), None)
    assert fill_padding(source, specs) == (source, specs, None)


@pytest.mark.slow
def test_such_a_mask_gets_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no cache can be derived"):
        export(Counting().eval(), tmp_path / "m.onnx", example=example(), cache=True)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_compared_with_the_module_under_its_own_mask(report: ExportReport) -> None:
    session = Session(report.path, report.contract)
    source, specs = open_source(Padded(), example(), None)
    right, others, _ = fill_padding(source, specs)
    assert isinstance(right.filled, Filled)
    wrong, _ = open_source(Counting(), example(), None)
    for subject, passed in ((right, True), (wrong.filling(replace(right.filled)), False)):
        comparison = LaterTokens(subject, others, report.contract, 1e-5)
        cases = ragged_cases(session, others, report.contract, (11,), comparison)
        assert all(case.passed for case in cases) is passed
