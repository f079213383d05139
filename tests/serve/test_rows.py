"""How many rows a decoding call may have, where kernels differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import Model, PromptLookup, load
from causal_onnx.serve import Engine, EngineOptions
from causal_onnx.serve.engine import guesses, rows
from causal_onnx.serve.engine.rows import PooledRows, SeparateRows, equal_sizes, open_rows

FEED = rows.feed


@pytest.fixture(scope="module")
def model(stories: Path) -> Model:
    return load(stories, threads=1)


def rounding(monkeypatch: pytest.MonkeyPatch, differs: Callable[[int], object]) -> None:
    """Let the logits of decoding calls differ in their last bits, by the number of rows."""

    def feed(stream, ids, lengths=None, *, last_only=False):
        found = FEED(stream, ids, lengths, last_only=last_only)
        return found if last_only else found + np.asarray(differs(len(ids)), np.float32)

    monkeypatch.setattr(rows, "feed", feed)


def test_all_numbers_of_rows_are_equal_here(model: Model) -> None:
    assert equal_sizes(model, count=5, capacity=64) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("differs", "sizes"),
    [
        (lambda size: 1e-3 * (size % 2), (2, 4)),
        (lambda size: 1e-3 * (size == 1), (2, 3, 4)),
        (lambda size: 1e-3 * (size == 3), (1, 2, 4)),
    ],
    ids=["odd rows", "one row", "three rows"],
)
def test_numbers_of_rows_with_other_bits_are_found(
    model: Model, monkeypatch: pytest.MonkeyPatch, differs, sizes: tuple[int, ...]
) -> None:
    rounding(monkeypatch, differs)
    assert equal_sizes(model, count=4, capacity=64) == sizes


def test_rows_that_differ_within_a_call_are_found(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding(monkeypatch, lambda size: 1e-3 * np.arange(size)[:, None, None])
    assert equal_sizes(model, count=4, capacity=64) == (1,)


def test_a_call_that_differs_where_rows_are_equally_long_is_found(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def feed(stream, ids, lengths=None, *, last_only=False):
        found = FEED(stream, ids, lengths, last_only=last_only)
        differs = len(ids) > 1 and len(set(stream.lengths)) == 1
        return found + np.float32(1e-3 * differs)

    monkeypatch.setattr(rows, "feed", feed)
    assert equal_sizes(model, count=4, capacity=200) == (1,)


def test_where_no_numbers_agree_sequences_are_decoded_in_turn(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding(monkeypatch, lambda size: 1e-3 * size)
    assert isinstance(open_rows(model, count=4, capacity=64), SeparateRows)


def test_rows_are_filled_up_to_a_number_that_agrees(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding(monkeypatch, lambda size: 1e-3 * (size % 2))
    asked = [[1, *range(3, 4 + 9 * i)] for i in range(5)]
    options = EngineOptions(sequences=4, chunk=8)
    with Engine(model, options=options) as engine:
        begun = [engine.submit(prompt, max_new_tokens=20) for prompt in asked]
        together = [generation.results() for generation in begun]
        alone = [engine.submit(prompt, max_new_tokens=20).results() for prompt in asked]
    assert engine.batch_sizes == (2, 4)
    assert together == alone


def test_a_row_that_is_read_survives_being_filled_up_with(model: Model) -> None:
    pool = PooledRows(model, count=4, capacity=64, sizes=(4,))
    pool.begin().run([[1, 5, 6]])
    pool.join(1)
    prompt = pool.begin()
    prompt.run([[1, 7]])
    for token in (8, 9, 10):
        pool.step([token])
        prompt.run([[token, 5]])
    alone = model.stream()
    for chunk in ([1, 7], [8, 5], [9, 5]):
        alone.run([chunk])
    alone.run([[10, 5]])
    pool.join(1)
    assert np.array_equal(pool.step([3, 4])[1], alone.run([[4]])["logits"][0, -1])


def test_a_row_reads_several_ids_and_takes_some_back(model: Model) -> None:
    pool = PooledRows(model, count=3, capacity=64, sizes=(1, 2, 3))
    for prompt in ([1, 5, 6], [1, 7]):
        pool.begin().run([prompt])
        pool.join(1)
    pool.step([8, 9])
    found = pool.read(1, [10, 11, 12])
    pool.take_back(1, 2)
    after = pool.step([3, 4])
    alone, other = model.stream(), model.stream()
    for chunk in ([1, 7], [9], [10, 11, 12]):
        expected = alone.run([chunk])["logits"][0]
    alone.rewind(4)
    other.run([[1, 5, 6]])
    other.run([[8]])
    assert np.array_equal(found, expected)
    assert np.array_equal(after[1], alone.run([[4]])["logits"][0, -1])
    assert np.array_equal(after[0], other.run([[3]])["logits"][0, -1])


def test_rows_that_are_decoded_together_guess_only_while_one_runs_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a processor where pieces have the bits of steps.
    monkeypatch.setattr(guesses, "_are_equal", lambda rows, ids: True)
    monkeypatch.setattr(guesses, "piece_costs", lambda rows, ids: [1.0] * len(ids))
    prompt = [1, 5, 6, 7]
    ids = model.generate(prompt, max_new_tokens=60).ids
    options = EngineOptions(sequences=4, chunk=8, draft=PromptLookup())
    with Engine(model, options=options) as engine:
        alone = engine.submit(prompt, max_new_tokens=60, prediction=ids)
        assert alone.results()[0].ids == ids
        pair = engine.submit(prompt, max_new_tokens=60, prediction=ids, n=2)
        assert [found.ids for found in pair.results()] == [ids, ids]
    assert alone.accepted_tokens > 30
    assert pair.proposed_tokens == 0
