"""A causal mask that the caller gives: exported, proved under it, and applied as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import CausalityError, ExportReport, Input, attest, export
from causal_onnx.runtime import load

DIM = 8
BATCHED, PAIRS = {0: "batch", 1: "seq"}, {0: "seq", 1: "seq"}
FOUR = {0: "batch", 2: "seq", 3: "seq"}


class Attending(nn.Module):
    """One head over a projection; `how` reads the mask."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.project, self.how = nn.Linear(DIM, DIM), how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.how(self.project(x), mask)


def sdpa(x: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def heads(x: Tensor, mask: Tensor) -> Tensor:
    y = x.view(*x.shape[:2], 2, -1).transpose(1, 2)
    return sdpa(y, mask).transpose(1, 2).flatten(2)


def filled(x: Tensor, mask: Tensor) -> Tensor:
    return (x @ x.mT).masked_fill(mask, -torch.inf).softmax(-1) @ x


def weighed(x: Tensor, mask: Tensor) -> Tensor:
    weights = (x @ x.mT).softmax(-1) * mask
    return weights / weights.sum(-1, keepdim=True) @ x


class Encoder(nn.Module):
    """PyTorch's own, which takes the mask as it comes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layers(x, mask=mask)


def later(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def bias(n: int) -> Tensor:
    return torch.zeros(n, n).masked_fill(later(n), -torch.inf)


def alibi(n: int) -> Tensor:
    return bias(n) - 0.5 * (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0)


def four(mask: Tensor) -> Tensor:
    return mask.expand(3, 1, *mask.shape)


KINDS: Mapping[str, tuple[Any, Callable[[int], Tensor], dict[int, str], str]] = {
    "additive": (Attending(sdpa), bias, PAIRS, "causal_bias"),
    "very negative": (Attending(sdpa), lambda n: -1e9 * later(n).float(), PAIRS, "causal_bias"),
    "keep": (Attending(sdpa), lambda n: ~later(n), PAIRS, "causal_mask"),
    "hide": (Attending(filled), later, PAIRS, "causal_hide_mask"),
    "four axes": (Attending(heads), lambda n: four(~later(n)), FOUR, "causal_mask"),
    "additive, four axes": (Attending(heads), lambda n: four(bias(n)), FOUR, "causal_bias"),
    "with a slope": (Attending(sdpa), alibi, PAIRS, "causal_bias"),
    "TransformerEncoder": (Encoder(), bias, PAIRS, "causal_bias"),
    "TransformerEncoder, bool": (Encoder(), later, PAIRS, "causal_hide_mask"),
}


ENDLESS = ("additive", "keep", "hide")
"""Kinds without a longest sequence in the file, which takes three times as long to prove."""


def made(
    module: nn.Module, mask: Tensor, labels: dict[int, str], path: Path, **options: Any
) -> ExportReport:
    example = torch.randn(3, mask.shape[-1], DIM), mask
    options = {"max_seq_len": 24, **options}
    return export(
        module.eval(), path / "m.onnx", example=example, axes=[BATCHED, labels], **options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_mask_of_the_caller_is_exported_and_assumed(kind: str, tmp_path: Path) -> None:
    module, mask, labels, name = KINDS[kind]
    limit = None if kind in ENDLESS else 24
    report = made(module, mask(6), labels, tmp_path, max_seq_len=limit)
    assert report.contract.inputs[1].kind == name
    assert (report.certificate.verdict, report.certificate.every_length) == ("causal", True)
    assumed = [assumption.text for assumption in report.certificate.assumptions]
    assert "mask hides every key that comes after its query" in assumed
    x, given = torch.randn(3, 9, DIM), mask(9)
    expected = module(x, given).detach().numpy()
    got = load(tmp_path / "m.onnx")(x.numpy(), given.numpy())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


SQUEEZED: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, dict[int, str]]] = {
    "nothing": (lambda x, m: sdpa(x, m.squeeze()), bias(6), PAIRS),
    "an axis of one": (
        lambda x, m: filled(x, m.squeeze()),
        later(6)[None, None],
        {2: "seq", 3: "seq"},
    ),
}


@pytest.mark.parametrize("kind", SQUEEZED)
def test_a_mask_that_the_module_squeezes_keeps_its_axes_of_positions(
    kind: str, tmp_path: Path
) -> None:
    how, mask, labels = SQUEEZED[kind]
    module = Attending(how)
    report = made(module, mask, labels, tmp_path)
    assert (report.certificate.verdict, report.certificate.every_length) == ("causal", True)
    x, given = torch.randn(2, 1, DIM), mask[..., :1, :1]
    got = load(tmp_path / "m.onnx")(x.numpy(), given.numpy())
    np.testing.assert_allclose(got, module(x, given).detach().numpy(), rtol=0, atol=1e-5)


@cache
def by_heads() -> Attending:
    """The same for all forms, so that it is captured once for an operator set."""
    return Attending(heads)


@pytest.mark.parametrize("target", ["ort", "portable", "tiled"])
def test_what_else_the_mask_hides_is_hidden_in_every_form(target: str, tmp_path: Path) -> None:
    module = by_heads()
    made(module, four(bias(6)), FOUR, tmp_path, target=target)
    x = torch.randn(3, 9, DIM)
    window = torch.zeros(9, 9).masked_fill(later(9) | later(9).T.tril(-3), -torch.inf)
    expected = module(x, four(window)).detach().numpy()
    got = load(tmp_path / "m.onnx")(x.numpy(), four(window).numpy())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_file_alone_says_what_its_mask_is(tmp_path: Path) -> None:
    report = made(Attending(sdpa), bias(6), PAIRS, tmp_path)
    certificate = attest(report.path)
    assert certificate.verdict == "causal"
    assert certificate.dynamic.moved


def test_a_module_that_is_causal_by_itself_assumes_nothing_of_the_mask(tmp_path: Path) -> None:
    def both(x: Tensor, mask: Tensor) -> Tensor:
        return sdpa(x, mask.masked_fill(later(x.shape[1]), -torch.inf))

    certificate = made(Attending(both), bias(6), PAIRS, tmp_path).certificate
    assert certificate.verdict == "causal"
    assert "causal_mask" not in [assumption.kind for assumption in certificate.assumptions]


@pytest.mark.parametrize(
    "leak",
    [
        lambda x, mask: sdpa(x, mask.roll(1, 1)),
        lambda x, mask: sdpa(x, mask.T.masked_fill(torch.eye(len(mask)) > 0, 0.0)),
        lambda x, mask: sdpa(x, mask.clamp(min=-3.0)),
        lambda x, mask: sdpa(x, None),
    ],
    ids=["one column off", "keys before queries", "softened", "ignored"],
)
def test_a_module_that_sees_past_the_mask_is_refused_with_the_node(
    leak: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CausalityError, match=r"NOT causal.* In the graph, the first "):
        made(Attending(leak), bias(6), PAIRS, tmp_path)


def test_without_a_causal_mask_the_refusal_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(CausalityError, match="'mask' in the example lets queries see later keys"):
        made(Attending(sdpa), torch.zeros(6, 6), PAIRS, tmp_path)


def test_a_mask_that_is_declared_causal_and_is_not_is_refused(tmp_path: Path) -> None:
    declared = {"mask": Input(kind="causal_bias")}
    with pytest.raises(ValueError, match="is not of kind 'causal_bias'"):
        made(Attending(sdpa), torch.zeros(6, 6), PAIRS, tmp_path, inputs=declared)
