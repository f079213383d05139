"""Continuations by exported classes of transformers are those of transformers' own `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from causal_onnx.runtime import Continuation, DraftModel, Model, PrefixCache, PromptLookup, Sampling
from causal_onnx.runtime.generation.kept_stream import KeptStream
from causal_onnx.runtime.generation.prompt import can_rewind
from tests.export.quick import quick_export
from tests.runtime.language import language_model
from tests.zoo import entry

PROMPTS = [[5, 3, 8, 1, 9], [2], [7, 7, 4]]

# Learned positions, windows on every and on every other layer, grouped heads, norms on queries and
# keys, ALiBi, an offset of positions, a parallel residual with partial rotary, experts.
NAMES = [
    "hf_gpt2_sdpa",
    "hf_mistral_eager",
    "hf_llama_sdpa",
    "hf_gemma3_sdpa",
    "hf_bloom_eager",
    "hf_opt_sdpa",
    "hf_gpt_neox_sdpa",
    "hf_mixtral_sdpa",
]


@dataclass(frozen=True)
class Subject:
    source: Any
    model: Model

    def expected(self, prompt: list[int], count: int, **options: Any) -> list[list[int]]:
        found = self.source.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **{"eos_token_id": None, **options},
        )
        return found[:, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    source = entry(request.param).factory().eval()
    source.generation_config.eos_token_id = None  # what ends a text is given call by call
    path = tmp_path_factory.mktemp("huggingface") / "model.onnx"
    return Subject(source, quick_export(source, path, cache=True))


@pytest.mark.parametrize("penalty", [1.0, 5.0])
def test_greedy_tokens_are_those_of_transformers(subject: Subject, penalty: float) -> None:
    sampling = Sampling(repetition_penalty=penalty)
    options = {"max_new_tokens": 24, "sampling": sampling}
    if subject.model.contract.mask is None:
        found = [subject.model.generate(prompt, **options) for prompt in PROMPTS]
    else:
        found = subject.model.generate_batch(PROMPTS, **options)
    for prompt, row in zip(PROMPTS, found, strict=True):
        (expected,) = subject.expected(prompt, 24, repetition_penalty=penalty)
        assert list(row.ids) == expected
    if penalty > 1:  # or a model that repeats one token would say little
        assert min(len(set(row.ids)) for row in found) > 10


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.5])
def test_beams_are_those_of_transformers(
    subject: Subject, early_stopping: bool | str, length_penalty: float
) -> None:
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    ends = [6, 11, 23, 40, 52]
    for prompt in PROMPTS:
        expected = subject.expected(
            prompt, 8, num_beams=3, num_return_sequences=3, eos_token_id=ends, **options
        )
        found = subject.model.beam_search(prompt, max_new_tokens=8, beams=3, stop=ends, **options)
        assert [list(beam.ids) for beam in found] == [_until(ids, ends) for ids in expected]
        for beam in found:
            assert beam.finish == ("stop" if beam.ids[-1] in ends else "length")
        scores = [sum(b.logprobs) / len(b.ids) ** length_penalty for b in found]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("penalty", [1.0, 5.0])
def test_guesses_change_no_greedy_token(subject: Subject, penalty: float) -> None:
    model = subject.model
    options = {"max_new_tokens": 30, "sampling": Sampling(repetition_penalty=penalty)}
    for prompt in PROMPTS:
        plain = model.generate(prompt, **options)
        for draft in (PromptLookup(count=5), model, DraftModel(model=model, count=7)):
            found = model.generate(prompt, draft=draft, **options)
            assert found.ids == plain.ids
            np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-4)
            told = found.speculation
            assert told.calls_saved == len(plain.ids) - 1 - told.model_calls >= 0
            if not isinstance(draft, PromptLookup):  # its guesses are right
                assert told.accepted == told.proposed
                assert told.model_calls <= 6


@pytest.mark.parametrize("capacity", [200, 24])
def test_prompts_that_begin_alike_share_it(subject: Subject, capacity: int) -> None:
    """In batches of rows that find beginnings of different lengths, windows among them."""
    model = subject.model
    begin = np.random.default_rng(0).integers(3, 67, size=14).tolist()
    prompts = [[*begin, 5, 9], [*begin[:9], 4], [8], [*begin, 5, 11, 2, 6], begin[:8]]
    cache = PrefixCache(model, capacity_positions=capacity, block=4)
    options = {"max_new_tokens": 8, "sampling": Sampling(repetition_penalty=5.0)}
    expected = [model.generate(prompt, **options) for prompt in prompts]
    batches = [[0], [1, 2], [3, 4, 0], [0, 1, 2, 3, 4]]
    if model.contract.mask is None:
        batches = [[0], [1], [3], [0, 0], [4], [3]]
    for batch in batches:
        found = model.generate_batch([prompts[i] for i in batch], prefix_cache=cache, **options)
        for i, row in zip(batch, found, strict=True):
            assert row.ids == expected[i].ids
            np.testing.assert_allclose(row.logprobs, expected[i].logprobs, atol=1e-4)
    assert cache.stats.hits >= 3
    assert cache.stats.positions_held <= capacity


def test_a_prompt_that_begins_as_the_last_one_is_read_on(subject: Subject) -> None:
    """Where the cache keeps a window, it is read anew unless it begins with all of the last."""
    model, kept = subject.model, KeptStream(subject.model)
    prompt, options = [5, 9, 3, 8, 1, 6], {"max_new_tokens": 8}
    first = model.generate(prompt, prefix_cache=kept, **options)
    kept.wrote(first.ids)
    longer = [*prompt, *first.ids, 7]
    for following in (longer, [*longer[:9], 4, 4], longer[:3]):
        found = model.generate(following, prefix_cache=kept, **options)
        kept.wrote(found.ids)
        assert found.ids == model.generate(following, **options).ids
    assert kept.positions_found >= len(longer) - 2
    if can_rewind(model):
        assert (kept.positions_found, kept.positions_read) == (13 + 9 + 2, 6 + 2 + 2 + 1)


def test_rows_that_find_much_do_not_push_others_over_the_limit(subject: Subject) -> None:
    model = subject.model
    if model.contract.mask is None:
        pytest.skip("rows have the same length")
    prompts = [[5, 9] * 18, [4, 7] * 14]
    cache = PrefixCache(model, capacity_positions=100, block=4)
    model.generate(prompts[0], max_new_tokens=1, prefix_cache=cache)
    found = model.generate_batch(prompts, max_new_tokens=3, prefix_cache=cache)
    assert found == [
        Continuation(ids=row.ids, logprobs=pytest.approx(row.logprobs, abs=1e-4), finish="length")
        for row in model.generate_batch(prompts, max_new_tokens=3)
    ]


def test_a_draft_model_of_other_ids_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="the draft model has 280 ids, this one 67"):
        subject.model.generate([1], max_new_tokens=2, draft=language_model())


def _until(ids: list[int], ends: list[int]) -> list[int]:
    place = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: place + 1]
