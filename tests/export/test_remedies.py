"""Refusals: the line, the true reason, and a remedy that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import ExportError, export
from causal_onnx.runtime import load

DIM, EXPERTS = 8, 3


def attend(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, mask, is_causal=mask is None)


class Routed(nn.Module):
    """Each token by the expert that it chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(DIM, EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(EXPERTS))

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = attend(x).flatten(0, 1)
        return tokens, self.router(tokens).argmax(-1)


class ByList(Routed):
    def forward(self, x: Tensor) -> Tensor:
        tokens, choice = self.chosen(x)
        order = choice.argsort()
        counts = choice.bincount(minlength=EXPERTS).tolist()
        parts = tokens[order].split(counts)
        found = torch.cat([e(part) for e, part in zip(self.experts, parts, strict=True)])
        return torch.zeros_like(found).index_put((order,), found).view_as(x)


class ByNumpy(Routed):
    def forward(self, x: Tensor) -> Tensor:
        tokens, choice = self.chosen(x)
        order, found = choice.argsort(), torch.zeros_like(tokens)
        ends = choice.bincount(minlength=EXPERTS).numpy().cumsum()
        for expert, start, end in zip(self.experts, [0, *ends], ends, strict=False):
            found[order[start:end]] = expert(tokens[order[start:end]])
        return found.view_as(x)


class ByGate(Routed):
    """What the refusals of the others advise."""

    def forward(self, x: Tensor) -> Tensor:
        tokens, choice = self.chosen(x)
        gates = functional.one_hot(choice, EXPERTS).to(x.dtype)
        found = sum(gates[:, i, None] * e(tokens) for i, e in enumerate(self.experts))
        return torch.as_tensor(found).view_as(x)


class Longest(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return attend(x[:, : int(lengths.max().item())])


class Cached(nn.Module):
    """Keys and values of before come in, and go out with those of now."""

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        keys = torch.cat([past, x[:, None]], 2)
        seen = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool).tril(past.shape[2])
        out = functional.scaled_dot_product_attention(x[:, None], keys, keys, seen)
        return out[:, 0], keys


def refused(module: nn.Module, path: Path, *beside: Tensor, **options: Any) -> str:
    example = (torch.randn(3, 6, DIM), *beside)
    with pytest.raises(ExportError) as error:
        export(module.eval(), path / "m.onnx", example=example, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("module", "line"),
    [(ByList(), "bincount(minlength=EXPERTS).tolist()"), (ByNumpy(), ".numpy().cumsum()")],
    ids=["tolist", "numpy"],
)
def test_numbers_of_a_tensor_are_named_with_the_line(
    module: nn.Module, line: str, tmp_path: Path
) -> None:
    text = refused(module, tmp_path)
    assert line in text
    assert "values of a tensor become Python numbers here" in text
    assert "run every expert on all tokens" in text


def test_what_that_refusal_advises_is_exported(tmp_path: Path) -> None:
    module = ByGate().eval()
    export(module, tmp_path / "m.onnx", example=torch.randn(3, 6, DIM))
    x = torch.randn(2, 9, DIM)
    got = load(tmp_path / "m.onnx")(x.numpy())
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=0, atol=1e-5)


def test_a_length_read_from_a_tensor_is_no_fault_of_an_operator(tmp_path: Path) -> None:
    axes = [{0: "batch", 1: "seq"}, {0: "batch"}]
    text = refused(Longest(), tmp_path, torch.tensor([6, 2, 3]), axes=axes)
    assert "lengths.max().item()" in text
    assert "compare torch.arange with the tensor" in text


def test_a_module_with_a_cache_is_told_that_it_has_one(tmp_path: Path) -> None:
    axes, past = [{0: "batch", 1: "seq"}, {0: "batch", 2: "past_seq"}], torch.randn(3, 1, 4, DIM)
    text = refused(Cached(), tmp_path, past, axes=axes, cache=True)
    assert "Cached has a cache already: it takes past and returns output_1" in text


def test_what_that_refusal_advises_streams(tmp_path: Path) -> None:
    module, axes = Cached(), [{0: "batch", 1: "seq"}, {0: "batch", 2: "past_seq"}]
    example = torch.randn(3, 6, DIM), torch.randn(3, 1, 4, DIM)
    export(module, tmp_path / "m.onnx", example=example, axes=axes)
    model, x = load(tmp_path / "m.onnx"), torch.randn(2, 5, DIM)
    past, steps = np.zeros((2, 1, 0, DIM), np.float32), []
    for position in range(5):
        found = model.run(x[:, position : position + 1].numpy(), past)
        past = found["output_1"]
        steps.append(found["output"])
    expected = module(x, torch.zeros(2, 1, 0, DIM))[0].numpy()
    np.testing.assert_allclose(np.concatenate(steps, 1), expected, rtol=0, atol=1e-6)
