from __future__ import annotations

import math

import numpy as np
import pytest

from causal_onnx.runtime.generation.sampling import Sampling, choose, log_softmax, probabilities

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 3.0], np.float32)
PROBABILITIES = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()


def drawn(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = 4000) -> np.ndarray:
    """How often each id comes, over evenly spread random numbers."""
    ids = [choose(logits, sampling, uniform=(i + 0.5) / count).id for i in range(count)]
    return np.bincount(ids, minlength=len(logits)) / count


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert choose(LOGITS, Sampling()).id == 4
    assert choose(np.zeros(3, np.float32), Sampling(), uniform=0.99).id == 0


def test_logprob_is_the_models_own() -> None:
    choice = choose(LOGITS, Sampling(temperature=3.0, top_k=1, logit_bias={4: -9.0}))
    assert choice.id == 0
    assert choice.logprob == pytest.approx(math.log(PROBABILITIES[0]), abs=1e-12)


def test_frequencies_are_the_softmax_of_the_scaled_logits() -> None:
    hot = np.exp(LOGITS.astype(np.float64) / 2.0)
    assert np.abs(drawn(Sampling(temperature=1.0)) - PROBABILITIES).max() < 1e-3
    assert np.abs(drawn(Sampling(temperature=2.0)) - hot / hot.sum()).max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_random_draws_fit_the_distribution(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = 20_000
    ids = [
        choose(LOGITS, Sampling(temperature=1.0), uniform=float(u)).id
        for u in generator.random(count)
    ]
    found = np.bincount(ids, minlength=5)
    chi_squared = ((found - count * PROBABILITIES) ** 2 / (count * PROBABILITIES)).sum()
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 4}),
        (Sampling(temperature=1.0, top_k=9), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1.0, top_p=0.6), {4}),
        (Sampling(temperature=1.0, top_p=0.65), {0, 4}),
        (Sampling(temperature=1.0, top_p=1.0), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1.0, min_p=0.13), {0, 1, 4}),
        (Sampling(temperature=1.0, min_p=1.0), {4}),
        (Sampling(temperature=1.0, logit_bias={4: -math.inf, 0: -math.inf}), {1, 2, 3}),
    ],
)
def test_truncation_keeps(sampling: Sampling, kept: set[int]) -> None:
    assert set(np.flatnonzero(drawn(sampling))) == kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_p(top_p: float, scale: float) -> None:
    """By a plain sort of all, where `choose` sorts only those that may be in it."""
    logits = (np.random.default_rng(0).standard_normal(5000) * scale).astype(np.float32)
    found = probabilities(logits, Sampling(temperature=1.0, top_p=top_p))
    plain = np.exp(log_softmax(logits))
    order = np.argsort(-plain)
    count = int((np.cumsum(plain[order]) < top_p).sum()) + 1
    assert set(np.flatnonzero(found)) == set(order[:count])
    kept = plain[order[:count]]
    np.testing.assert_allclose(found[order[:count]], kept / kept.sum())


def test_probabilities_are_what_is_drawn_by() -> None:
    for sampling in (Sampling(temperature=0.7, top_k=3), Sampling(temperature=2.0, min_p=0.2)):
        expected = drawn(sampling)
        np.testing.assert_allclose(probabilities(LOGITS, sampling), expected, atol=1e-3)
    assert list(probabilities(LOGITS, Sampling())) == [0, 0, 0, 0, 1]


def test_equals_of_the_last_kept_stay_together() -> None:
    logits = np.array([1.0, 0.0, 0.0, -5.0], np.float32)
    assert set(np.flatnonzero(drawn(Sampling(temperature=1.0, top_k=2), logits))) == {0, 1, 2}


def test_repetition_penalty_lowers_prompt_and_continuation_alike() -> None:
    sampling = Sampling(repetition_penalty=4.0)
    assert choose(LOGITS, sampling, prompt=[4]).id == 0
    assert choose(LOGITS, sampling, prompt=[4, 4], continuation=[0]).id == 1
    negative = np.array([-1.0, -2.0], np.float32)
    assert choose(negative, sampling, prompt=[0]).id == 1


def test_frequency_counts_and_presence_does_not() -> None:
    twice = {"prompt": [4], "continuation": [4, 4]}
    assert choose(LOGITS, Sampling(frequency_penalty=0.6), **twice).id == 0
    assert choose(LOGITS, Sampling(presence_penalty=0.6), **twice).id == 4
    assert choose(LOGITS, Sampling(presence_penalty=1.1), **twice).id == 0
    assert choose(LOGITS, Sampling(presence_penalty=9.0), prompt=[4]).id == 4


def test_only_what_a_grammar_allows_is_chosen() -> None:
    allowed = np.array([False, False, True, True, False])
    assert choose(LOGITS, Sampling(), allowed=allowed).id == 2
    assert choose(LOGITS, Sampling(temperature=1.0), allowed=allowed, uniform=0.999).id == 3


def test_no_logits_are_changed() -> None:
    before = LOGITS.copy()
    choose(LOGITS, Sampling(temperature=1.0, top_k=1, repetition_penalty=2.0), prompt=[0])
    np.testing.assert_array_equal(LOGITS, before)


def test_nothing_allowed_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="no token is allowed"):
        choose(LOGITS, Sampling(), allowed=np.zeros(5, np.bool_))
    with pytest.raises(ValueError, match="maximum is nan"):
        choose(np.array([0.0, np.nan], np.float32), Sampling())
    with pytest.raises(ValueError, match=r"shape \(vocab,\), got \(1, 5\)"):
        choose(LOGITS[None], Sampling())
    with pytest.raises(ValueError, match="names the id 7; the model has 5"):
        choose(LOGITS, Sampling(logit_bias={7: 1.0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"min_p": 1.5}, r"min_p must be in \(0, 1\], got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias is by token id, got -1"),
        ({"logit_bias": {1: math.inf}}, "must be below infinity"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_log_softmax_sums_to_one_however_large_the_logits() -> None:
    large = np.array([[1000.0, 999.0], [-1000.0, -1001.0]], np.float32)
    np.testing.assert_allclose(np.exp(log_softmax(large)).sum(axis=-1), 1.0, rtol=1e-12)


def test_ids_that_may_not_begin_a_continuation_may_follow() -> None:
    sampling = Sampling(begin_suppress_tokens=(4,))
    assert choose(LOGITS, sampling, prompt=[1]).id != 4
    assert choose(LOGITS, sampling, prompt=[1], continuation=[0]).id == 4


def test_the_first_id_is_forced_after_a_prompt_of_one_id_alone() -> None:
    sampling = Sampling(forced_bos_token_id=2, begin_suppress_tokens=(4,))
    assert choose(LOGITS, sampling, prompt=[1]).id == 2
    assert choose(LOGITS, sampling, prompt=[1], continuation=[2]).id != 4
    assert choose(LOGITS, Sampling(forced_bos_token_id=2), prompt=[1, 1]).id == 4


def test_the_last_id_is_forced_where_nothing_can_follow() -> None:
    sampling = Sampling(forced_eos_token_id=3)
    assert choose(LOGITS, sampling, is_final=True).id == 3
    assert choose(LOGITS, sampling).id == 4
    assert list(probabilities(LOGITS, sampling, is_final=True)) == [0, 0, 0, 1, 0]


def test_forced_ids_are_of_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="the id 9 is forced or suppressed; the model has 5"):
        choose(LOGITS, Sampling(forced_bos_token_id=9), prompt=[1])
    with pytest.raises(ValueError, match="forced_eos_token_id must be an id, or None, got -1"):
        Sampling(forced_eos_token_id=-1)
