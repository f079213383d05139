"""Rows of shared buffers, with a model whose graph writes in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import Model, load
from causal_onnx.runtime.stream.row_pool import RowPool


@pytest.fixture(scope="module")
def model(stories: Path) -> Model:
    return load(stories, threads=1)


def test_neighbours_are_read_in_place_and_others_are_left_alone(model: Model) -> None:
    pool = RowPool(model.runner, rows=4, capacity=32)
    ids = np.random.default_rng(0).integers(0, 105, (3, 9))
    for row in range(3):
        pool.stream(row, [0]).run(ids[[row]])
    pool.stream(0, [9, 9]).run([[7], [8]])
    alone = model.stream()
    alone.run(ids[[2]])
    expected = alone.run([[5]])["logits"]
    assert np.array_equal(pool.stream(2, [9]).run([[5]])["logits"], expected)


def test_a_copied_row_goes_on_like_its_source(model: Model) -> None:
    pool = RowPool(model.runner, rows=3, capacity=32)
    pool.stream(2, [0]).run([[5, 6, 7, 8]])
    pool.copy(2, 0, 4)
    pool.copy(2, 1, 2)
    found = pool.stream(0, [4, 2]).run([[9], [7]])["logits"]
    alone = model.stream()
    alone.run([[5, 6, 7, 8]])
    assert np.array_equal(found[0], alone.run([[9]])["logits"][0])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("first", "lengths", "message"),
    [(2, [0, 0], "rows are 0 to 2, got 2 to 3"), (0, [9], r"lengths must lie in \[0, 8\]")],
)
def test_what_the_pool_has_not_is_refused(model: Model, first, lengths, message: str) -> None:
    pool = RowPool(model.runner, rows=3, capacity=8)
    with pytest.raises(ValueError, match=message):
        pool.stream(first, lengths)


def test_a_stream_reads_no_more_than_the_rows_have_room_for(model: Model) -> None:
    pool = RowPool(model.runner, rows=1, capacity=8)
    with pytest.raises(ValueError, match="the stream has room for at most 8"):
        pool.stream(0, [5]).run([[1, 2, 3, 4]])
