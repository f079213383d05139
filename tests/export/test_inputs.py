"""What inputs stand for, end to end: labels, times and flags beside the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import ExportReport, Input, export, verify
from causal_onnx.runtime import Model, load

DIM, PLACES = 8, 20
ROWS, BOTH = {0: "batch"}, {0: "batch", 1: "seq"}


def attend(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


class Labelled(nn.Module):
    """A label per row, from a table smaller than the table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.places = nn.Embedding(5, DIM), nn.Embedding(PLACES, DIM)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return attend(x + self.labels(label)[:, None] + self.places(torch.arange(x.shape[1])))


class Timed(nn.Module):
    """Times between events as a bias."""

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        gap = (times[:, :, None] - times[:, None]).abs().float().log1p()
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (x @ x.mT - gap).masked_fill(later, -torch.inf).softmax(-1) @ x


class Resetting(nn.Module):
    """Where a flag is raised, a key is hidden but for its own query."""

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        n = x.shape[1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        scores = x @ x.mT - 1e9 * hidden[:, None] * (1 - torch.eye(n))
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ x


def made(
    module: nn.Module, beside: Tensor, labels: dict[int, str], path: Path, **options: Input
) -> tuple[ExportReport, Model]:
    report = export(
        module,
        path / "m.onnx",
        example=(torch.randn(3, 6, DIM), beside),
        axes=[BOTH, labels],
        inputs=options or None,
    )
    return report, load(path / "m.onnx")


def worst(module: nn.Module, model: Model, seq: int, beside: Callable[[int], Tensor]) -> float:
    args = torch.randn(2, seq, DIM), beside(seq)
    return float(np.abs(model(*(x.numpy() for x in args)) - module(*args).detach().numpy()).max())


def test_a_label_does_not_limit_the_length(tmp_path: Path) -> None:
    module = Labelled().eval()
    report, model = made(module, torch.tensor([1, 0, 2]), ROWS, tmp_path)
    assert model.contract.max_seq_len == PLACES
    assert worst(module, model, PLACES, lambda n: torch.tensor([4, 0])) < 1e-5
    assert report.assumed == ("label: ids in [0, 5), as they are looked up in a table of 5 rows",)
    with pytest.raises(ValueError, match=r"'label' holds the id 5 .* \[0, 5\)"):
        model(np.zeros((1, 2, DIM), np.float32), np.array([5]))


def test_times_beyond_the_example_are_taken(tmp_path: Path) -> None:
    module = Timed().eval()
    report, model = made(module, torch.randint(60, (3, 6)), BOTH, tmp_path)
    assert worst(module, model, 9, lambda n: torch.randint(10**6, (2, n))) < 1e-4
    assert model.contract.inputs[1].kind == "values"
    assert "assumed times: numbers, as no table is indexed by them" in str(report)


def test_a_declared_range_is_in_the_contract_and_checked(tmp_path: Path) -> None:
    times = Input(axes=BOTH, kind="values", range=(0, 500))
    report, model = made(Timed().eval(), torch.randint(60, (3, 6)), BOTH, tmp_path, times=times)
    assert model.contract.inputs[1].describe() == "times: int64 (batch, seq), values in [0, 500)"
    assert report.assumed == ()
    with pytest.raises(ValueError, match="'times' holds 500 "):
        model(np.zeros((1, 2, DIM), np.float32), np.array([[0, 500]]))
    example, axes = (torch.randn(3, 6, DIM), torch.randint(60, (3, 6))), [BOTH, BOTH]
    found = verify(Timed(), report.path, example=example, axes=axes, inputs={"times": times})
    assert found.passed


def test_flags_whose_example_is_all_zeros_are_compared_raised_too(tmp_path: Path) -> None:
    module = Resetting().eval()
    _, model = made(module, torch.zeros(3, 6), BOTH, tmp_path)
    raised: Sequence[int] = (0, 1, 0, 1, 1)
    assert worst(module, model, 5, lambda n: torch.tensor([raised] * 2).float()) < 1e-5
    assert model.contract.inputs[1].kind == "flags"
