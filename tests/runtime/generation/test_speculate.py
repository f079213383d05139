"""Guessing ahead changes no greedy token and no distribution."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from causal_onnx.runtime import DraftModel, Model, PromptLookup, Sampling, load
from causal_onnx.runtime.generation.continuation import GrowingSequence, Plan
from causal_onnx.runtime.generation.sampling import probabilities
from causal_onnx.runtime.generation.speculate import Speculator
from tests.runtime.artifacts import fixture
from tests.runtime.language import language_model, logprobs_after, weights

PROMPT = [5, 3, 8]


@pytest.fixture(scope="module")
def model() -> Model:
    return language_model()


@pytest.fixture(scope="module")
def other() -> Model:
    """Nearly the same model: its guesses are often right and often wrong."""
    embedding, _ = weights()
    noise = np.random.default_rng(0).standard_normal(embedding.shape).astype(np.float32)
    content = fixture("language").read_bytes()
    assert content.count(embedding.tobytes()) == 1
    return load(
        content.replace(embedding.tobytes(), (embedding + 0.3 * noise).tobytes()), threads=1
    )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_greedy_tokens_stay_and_calls_are_saved(model: Model, other: Model, count: int) -> None:
    plain = model.generate(PROMPT, max_new_tokens=60)
    for draft in (PromptLookup(count=count), DraftModel(model=other, count=count)):
        found = model.generate(PROMPT, max_new_tokens=60, draft=draft)
        assert found.ids == plain.ids
        told = found.speculation
        assert 0 < told.accepted < told.proposed
        assert told.calls_saved == 59 - told.model_calls > 0
        # Each call gives one token besides the guesses that it accepts.
        assert told.model_calls + told.accepted in (59, 60)
        assert [c.id for c in model.tokens(PROMPT, max_new_tokens=60, draft=draft)] == [*plain.ids]


def test_the_model_itself_is_always_right(model: Model) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        found = model.generate(PROMPT, max_new_tokens=41, sampling=sampling, seed=0, draft=model)
        told = found.speculation
        assert (told.model_calls, told.proposed, told.accepted) == (8, 32, 32)
        assert (told.draft_calls, told.calls_saved) == (32, 32)


def test_lookup_draws_what_is_drawn_without(model: Model) -> None:
    options = {"max_new_tokens": 50, "sampling": Sampling(temperature=0.4, top_k=20), "seed": 3}
    plain = model.generate(PROMPT, **options)
    found = model.generate(PROMPT, draft=PromptLookup(), **options)
    assert found.ids == plain.ids
    assert found.speculation.accepted > 0


def test_a_seed_repeats_with_a_draft_model(model: Model, other: Model) -> None:
    options = {"max_new_tokens": 30, "sampling": Sampling(temperature=1.0), "draft": other}
    first, again, second = (model.generate(PROMPT, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again
    assert first.ids != second.ids


def chi_squared(counts: np.ndarray, expected: np.ndarray) -> float:
    expected = expected * counts.sum() / expected.sum()
    likely = expected >= 5
    rest = np.array([counts[~likely].sum() - expected[~likely].sum()]) ** 2
    tail = rest / max(expected[~likely].sum(), 1e-9) if (~likely).any() else np.zeros(1)
    return float(((counts - expected)[likely] ** 2 / expected[likely]).sum() + tail.sum())


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1.0), Sampling(temperature=1.5, top_k=4)]
)
def test_rejection_sampling_keeps_the_distribution(model: Model, sampling: Sampling) -> None:
    """A guess from q, judged: the tokens come by p, whatever q is."""
    wanted, drafted = (
        np.array(logits, np.float32) for logits in ([2, 1, 0, -1, 3, 1.5], [3, -1, 1, 2, 0, 1.5])
    )
    p, q = (probabilities(logits, sampling) for logits in (wanted, drafted))
    plan = Plan(max_new_tokens=10**6, sampling=sampling)
    sequence = GrowingSequence(PROMPT, plan, np.random.default_rng(0))
    speculator = Speculator(model, sequence, plan, PromptLookup())
    guesses = np.random.default_rng(1).choice(6, size=20_000, p=q)
    judged = [speculator._judge(wanted, (int(g), q), False) for g in guesses]
    counts = np.bincount([choice.id for choice, _ in judged], minlength=6)
    assert chi_squared(counts, p) < 20.5  # at most 5 degrees of freedom: once in a thousand
    assert chi_squared(np.bincount(guesses, minlength=6), p) > 1000  # what the guesses alone are
    right = np.mean([is_right for _, is_right in judged])
    assert right == pytest.approx(np.minimum(p, q).sum(), abs=0.02)  # theorem 3.5 of the paper


def test_pairs_of_tokens_come_as_often_as_the_model_says(model: Model, other: Model) -> None:
    count, cut = 1500, 3
    sampling = Sampling(temperature=1.0, top_k=cut)
    generate = partial(model.generate, PROMPT, max_new_tokens=3, sampling=sampling, draft=other)
    found = [generate(seed=seed).ids for seed in range(count)]
    expected: dict[tuple[int, int], float] = {}
    for first, p in _likely(PROMPT, cut):
        for second, then in _likely([*PROMPT, first], cut):
            expected[first, second] = p * then
    counts = np.array([sum(ids[:2] == pair for ids in found) for pair in expected])
    assert counts.sum() == count
    assert chi_squared(counts, np.array(list(expected.values()))) < 26.1  # 8 degrees


def test_a_limit_ends_guessing(model: Model, other: Model) -> None:
    prompt = [1, 2] * 198
    plain = model.generate(prompt, max_new_tokens=99)
    assert (len(plain.ids), plain.finish) == (5, "limit")
    for draft in (PromptLookup(), other):
        found = model.generate(prompt, max_new_tokens=99, draft=draft)
        assert (found.ids, found.finish) == (plain.ids, plain.finish)


def test_a_stop_among_guesses_ends_there(model: Model) -> None:
    plain = model.generate(PROMPT, max_new_tokens=40)
    stop = [plain.ids[10]]
    expected = model.generate(PROMPT, max_new_tokens=40, stop=stop)
    for draft in (model, PromptLookup()):
        assert model.generate(PROMPT, max_new_tokens=40, stop=stop, draft=draft).ids == expected.ids


def test_what_cannot_guess_is_refused(model: Model) -> None:
    with pytest.raises(TypeError, match="draft must be a PromptLookup, a DraftModel or a model"):
        model.generate(PROMPT, max_new_tokens=3, draft="lookup")
    with pytest.raises(ValueError, match="generating needs a language model exported with cache"):
        model.generate(PROMPT, max_new_tokens=3, draft=load(fixture("one_head")))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        PromptLookup(count=0)


def _likely(ids: list[int], count: int) -> list[tuple[int, float]]:
    logprobs = logprobs_after(ids)
    best = np.argsort(-logprobs)[:count]
    shares = np.exp(logprobs[best]) / np.exp(logprobs[best]).sum()
    return [(int(token), float(share)) for token, share in zip(best, shares, strict=True)]
