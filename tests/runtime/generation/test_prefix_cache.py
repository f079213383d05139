"""Prompts that begin alike share what was read of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from causal_onnx.runtime import Model, PrefixCache, PromptLookup, Sampling, Stream
from tests.runtime.language import DIM, language_model

BEGIN = [int(token) for token in np.random.default_rng(0).integers(0, 280, size=40)]
PROMPTS = [[*BEGIN, *rest] for rest in ([1, 2, 3], [4, 5, 6], [1, 2, 9], [7] * 20)]


@pytest.fixture(scope="module")
def model() -> Model:
    return language_model()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of a model reads, row by row."""
    counts: list[int] = []
    run = Stream.run

    def spy(stream: Stream, ids: np.ndarray, **options: object) -> object:
        counts.append(ids.size)
        return run(stream, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "run", spy)
    return counts


def test_what_comes_out_is_the_same_and_beginnings_are_read_once(
    model: Model, read: list[int]
) -> None:
    cache = PrefixCache(model, capacity_positions=1000, block=8)
    sampling = Sampling(temperature=1.0)
    for prompt in [*PROMPTS, *PROMPTS]:
        plain = model.generate(prompt, max_new_tokens=6, sampling=sampling, seed=1)
        read.clear()
        found = model.generate(
            prompt, max_new_tokens=6, sampling=sampling, seed=1, prefix_cache=cache
        )
        assert found.ids == plain.ids
        np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-5)
    assert read[0] == len(PROMPTS[-1]) - 56  # the second time, 7 blocks of 8 are there
    stats = cache.stats
    assert (stats.prompts, stats.hits) == (8, 7)
    assert stats.positions_asked == 2 * sum(len(prompt) for prompt in PROMPTS)
    assert stats.positions_found == 3 * 40 + 3 * 40 + 56
    assert stats.positions_held == 40 + 16
    assert stats.bytes_held == 56 * DIM * 4
    assert stats.evicted == 0


def test_every_way_of_generating_uses_it(model: Model, read: list[int]) -> None:
    cache = PrefixCache(model, capacity_positions=1000, block=8)
    model.generate(PROMPTS[0], max_new_tokens=1, prefix_cache=cache)
    ways = (
        lambda **o: [c.id for c in model.tokens(PROMPTS[1], max_new_tokens=5, **o)],
        lambda **o: model.generate(PROMPTS[1], max_new_tokens=5, draft=PromptLookup(), **o).ids,
        lambda **o: [r.ids for r in model.beam_search(PROMPTS[1], max_new_tokens=5, **o)],
        lambda **o: [
            row.ids for row in model.generate_batch(PROMPTS[:3], n=2, max_new_tokens=5, **o)
        ],
    )
    for generate in ways:
        plain = generate()
        read.clear()
        assert generate(prefix_cache=cache) == plain
        assert read[0] in (3, 9)


def test_memory_is_bounded_and_what_was_not_used_goes_first(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=64, block=8)
    prompts = [[start] * 25 for start in range(12)]  # three blocks each
    often, *others = prompts
    for prompt in others:
        model.generate(often, max_new_tokens=1, prefix_cache=cache)
        model.generate(prompt, max_new_tokens=1, prefix_cache=cache)
        stats = cache.stats
        assert stats.positions_held <= 64
        assert stats.bytes_held == stats.positions_held * DIM * 4
    assert cache.stats.hits == len(others) - 1
    assert cache.stats.evicted == 8 * (3 * 12) - cache.stats.positions_held
    before = cache.stats.hits
    model.generate(others[0], max_new_tokens=1, prefix_cache=cache)
    assert cache.stats.hits == before


def test_a_prompt_longer_than_the_cache_is_kept_in_part(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=20, block=8)
    for _ in range(2):
        model.generate(PROMPTS[0], max_new_tokens=1, prefix_cache=cache)
    assert cache.stats.positions_held == 16
    assert cache.stats.positions_found == 16
    cache.clear()
    assert (cache.stats.positions_held, cache.stats.bytes_held) == (0, 0)
    model.generate(PROMPTS[0], max_new_tokens=1, prefix_cache=cache)
    assert cache.stats.positions_found == 16


def test_one_id_at_least_is_read(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=100, block=8)
    plain = model.generate(BEGIN, max_new_tokens=3).ids
    for _ in range(2):
        assert model.generate(BEGIN, max_new_tokens=3, prefix_cache=cache).ids == plain
    assert cache.stats.positions_found == 32


def test_several_threads_may_use_it(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=80, block=8)
    generator = np.random.default_rng(1)
    prompts = [[*BEGIN[: 8 * (i % 5)], *generator.integers(0, 280, size=20)] for i in range(40)]
    expected = [model.generate(prompt, max_new_tokens=3).ids for prompt in prompts]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for i in range(len(prompts)):
            place = (i * 7 + offset) % len(prompts)
            found = model.generate(prompts[place], max_new_tokens=3, prefix_cache=cache)
            if found.ids != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.stats.prompts == 160
    assert cache.stats.positions_held <= 80


def test_what_does_not_fit_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"capacity_positions \(7\) must be at least block \(8\)"):
        PrefixCache(model, capacity_positions=7, block=8)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        PrefixCache(model, capacity_positions=7, block=0)
    cache = PrefixCache(language_model(), capacity_positions=100)
    with pytest.raises(ValueError, match="prefix_cache must be a PrefixCache of this very model"):
        model.generate([1], max_new_tokens=1, prefix_cache=cache)
