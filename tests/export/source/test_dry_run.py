"""Running a module without its large tensors: what it takes, what it would cost, what is open."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.source.dry_run import MOST_STEPS, SHORT_CALL, DryRun, dry_run
from causal_onnx.export.source.inputs import CallSizes
from causal_onnx.export.source.module import open_source
from tests.export.modules import DIM, Head, example


def tried(module: nn.Module, seq: int) -> DryRun:
    source, specs = open_source(module.eval(), example(), None)
    return dry_run(source, specs, CallSizes(batch=1, seq=seq))


class Positions(Head):
    """A head with a table of 24 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(24, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.table(torch.arange(x.shape[1])))


class ChoosesByValue(Head):
    """Looks at the numbers of its scores, which a run without them cannot."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        return scores if scores.sum().item() > 0 else -scores


class CountsPositions(nn.Module):
    """One operator a position."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1]):
            x = x + 1
        return x


class Distances(nn.Module):
    """Sums what is far apart: every pair of positions is subtracted, and multiplied."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], dtype=x.dtype)
        apart = places[:, None] - places
        return x + (apart * places).sum(-1)[:, None]


def test_small_inputs_are_a_real_run() -> None:
    found = tried(Head(), 6)
    assert found.is_real
    assert found.accepted
    assert found.shapes == (torch.Size((1, 6, DIM)),)


def test_scores_of_8192_positions_are_followed_and_counted() -> None:
    found = tried(Head(), 8192)
    assert found.accepted
    assert not found.is_real
    assert found.largest == 8192**2
    assert found.flops >= 2 * 2 * 8192**2 * DIM  # the scores, and the values they weigh


def test_a_difference_of_all_pairs_is_followed_and_not_computed() -> None:
    found = tried(Distances(), 1_000_000)  # 4 TB, where they were computed
    assert found.accepted
    assert found.largest == 1_000_000**2


def test_a_table_that_is_too_short_shows_where_nothing_large_is_computed() -> None:
    found = tried(Positions(), 8192)
    assert found.accepted is False
    assert isinstance(found.error, IndexError)


def test_a_mask_that_does_not_fit_is_the_modules_answer() -> None:
    class Fixed(Head):
        def masked(self, scores: Tensor) -> Tensor:
            return scores + torch.zeros(2048, 2048)

    found = tried(Fixed(), 4096)
    assert found.accepted is False
    assert "2048" in str(found.error)


def test_a_branch_on_values_is_left_to_a_real_run() -> None:
    found = tried(ChoosesByValue(), 4096)
    assert found.accepted is None
    assert found.error is None


def test_a_loop_over_positions_is_not_followed_to_its_end() -> None:
    found = tried(CountsPositions(), MOST_STEPS + 1)
    assert found.accepted is None
    assert found.flops == math.inf


def test_many_layers_are_followed_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    deep, called = nn.Sequential(*(Head() for _ in range(40))), []
    deep.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0].shape[1]))
    source, specs = open_source(deep.eval(), example(), None)
    monkeypatch.setattr("causal_onnx.export.source.dry_run.MOST_STEPS", 100)
    called.clear()
    runs = [dry_run(source, specs, CallSizes(batch=1, seq=n)) for n in (8192, 4096)]
    assert [found.accepted for found in runs] == [True, True]
    assert runs[0].flops >= 40 * 2 * 2 * 8192**2 * DIM
    assert called == [8192, SHORT_CALL, 8192, 4096]  # the depth is found out once


def test_what_runs_out_of_memory_is_no_answer_of_the_module() -> None:
    class Full(Head):
        def forward(self, x: Tensor) -> Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        tried(Full(), 6)
