"""What integers stand for, found by what a module does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the spelling that the modules below would use
from torch import Tensor, nn

from causal_onnx.export.source.inputs import Input, InputSpec
from causal_onnx.export.source.meaning import find_meanings
from causal_onnx.export.source.module import open_source
from tests.export.modules import DIM

Run = Callable[[Any, Tensor, Tensor], Tensor]


class Beside(nn.Module):
    """Features, integers beside them, and what `run` does with both."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.table, self.small, self.run = nn.Embedding(24, DIM), nn.Embedding(9, DIM), run
        self.register_buffer("rows", torch.randn(11, DIM))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.run(self, x, given)


def meaning(run: Run, given: Tensor, said: Input | None = None) -> InputSpec:
    torch.manual_seed(0)
    example = torch.randn(3, 7, DIM), given
    inputs = None if said is None else {"given": said}
    return find_meanings(*open_source(Beside(run).eval(), example, None, inputs))[1]


PER_ROW = torch.tensor([2, 0, 5])
PER_POSITION = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(1))


def counted(m: Any, x: Tensor, n: Tensor) -> Tensor:
    return x * (torch.arange(x.shape[1])[None] < n[:, None])[..., None]


@pytest.mark.parametrize(
    ("run", "rows"),
    [
        (lambda m, x, c: x + m.small(c)[:, None], 9),
        (lambda m, x, c: x + m.rows[c.long()][:, None], 11),
        (lambda m, x, c: x + m.rows.index_select(0, c)[:, None], 11),
        (lambda m, x, c: x + F.one_hot(c, DIM)[:, None], DIM),
        (lambda m, x, c: x + (m.small(c) + m.table(c))[:, None], 9),
        (lambda m, x, c: x + m.small(c + 2)[:, None], 7),
    ],
    ids=["embedding", "buffer", "index_select", "one_hot", "two tables", "behind an offset"],
)
def test_an_integer_per_row_that_is_looked_up_is_an_id(run: Run, rows: int) -> None:
    found = meaning(run, PER_ROW)
    assert (found.kind, found.vocab_size) == ("ids", rows)
    assert f"ids in [0, {rows}), as " in (found.assumption or "")


@pytest.mark.parametrize(
    "run",
    [
        counted,
        lambda m, x, n: x + x[torch.arange(len(n)), n - 1][:, None],
        lambda m, x, n: counted(m, x, n) + m.table(n)[:, None],
        lambda m, x, n: x * (torch.arange(x.shape[1]) - n[:, None]).clamp(0, 1)[..., None],
    ],
    ids=["compared", "picks the last", "compared and embedded", "subtracted"],
)
def test_an_integer_per_row_that_meets_positions_is_a_length(run: Run) -> None:
    assert meaning(run, torch.tensor([7, 3, 5])).kind == "lengths"


@pytest.mark.parametrize("given", [PER_ROW, PER_POSITION], ids=["per row", "per position"])
def test_integers_that_no_table_is_indexed_by_are_values(given: Tensor) -> None:
    found = meaning(lambda m, x, t: x + t.view(3, -1)[..., None].float().log1p(), given)
    assert (found.kind, found.vocab_size, found.value_range) == ("values", None, None)
    assert "no table is indexed by them" in (found.assumption or "")


def test_a_table_behind_a_clamp_takes_any_number() -> None:
    found = meaning(lambda m, x, t: x + m.small(t.clamp(0, 8)), PER_POSITION)
    assert (found.kind, found.vocab_size) == ("values", None)


def test_numbers_that_a_table_takes_from_one_on_have_both_limits() -> None:
    found = meaning(lambda m, x, t: x + m.small(t - 1), PER_POSITION.clamp(1))
    assert (found.kind, found.value_range) == ("values", (1, 10))


def test_a_declared_kind_is_kept() -> None:
    declared = Input(kind="values", range=(0, 50))
    found = meaning(lambda m, x, c: x + m.table(c)[:, None], PER_ROW, declared)
    assert (found.kind, found.vocab_size, found.assumption) == ("values", None, None)


def test_ids_have_as_many_values_as_their_smallest_table() -> None:
    found = meaning(lambda m, x, i: m.table(i) + m.small(i), PER_POSITION)
    assert found.vocab_size == 9


def test_a_table_that_other_indices_look_up_says_nothing_of_the_ids() -> None:
    def run(m: Any, x: Tensor, ids: Tensor) -> Tensor:
        return m.table(ids) + m.small(torch.arange(ids.shape[1]))

    assert meaning(run, PER_POSITION).vocab_size == 24
