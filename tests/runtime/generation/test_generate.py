"""Continuing prompts with a tiny model, beside the same model in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from causal_onnx.runtime import Model, Sampling, Stream
from tests.runtime.language import language_model, logprobs_after

PROMPT = [5, 3, 8]


@pytest.fixture(scope="module")
def model() -> Model:
    return language_model()


def greedy(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logprobs_after(ids).argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_the_likeliest(model: Model) -> None:
    found = model.generate(PROMPT, max_new_tokens=20)
    assert list(found.ids) == greedy(PROMPT, 20)
    assert (found.text, found.speculation) == (None, None)
    logprobs = [logprobs_after([*PROMPT, *found.ids[:i]])[t] for i, t in enumerate(found.ids)]
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-5)


def test_several_continuations_of_each_prompt_are_those_of_copies(model: Model) -> None:
    prompts = [PROMPT, [7, 7, 1]]
    options = {"max_new_tokens": 12, "sampling": Sampling(temperature=1.0), "seed": 3}
    found = model.generate_batch(prompts, n=3, **options)
    copies = model.generate_batch([prompt for prompt in prompts for _ in range(3)], **options)
    assert [row.ids for row in found] == [row.ids for row in copies]
    assert len({row.ids for row in found}) == 6


def test_a_prompt_is_read_once_for_several_continuations(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    run = Stream.run

    def spy(stream: Stream, ids: np.ndarray, **options: object) -> object:
        shapes.append(ids.shape)
        return run(stream, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "run", spy)
    model.generate_batch([PROMPT], n=4, max_new_tokens=2)
    assert shapes == [(1, 3), (4, 1)]


def test_first_tokens_come_as_often_as_the_model_says(model: Model) -> None:
    count, cut = 4000, 6
    sampling = Sampling(temperature=1.0, top_k=cut)
    found = model.generate_batch([PROMPT], n=count, max_new_tokens=1, sampling=sampling, seed=0)
    likely = np.argsort(-logprobs_after(PROMPT))[:cut]
    expected = np.exp(logprobs_after(PROMPT)[likely])
    expected *= count / expected.sum()
    counts = np.array([sum(row.ids[0] == token for row in found) for token in likely])
    assert counts.sum() == count
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 5 degrees, once in a thousand


def test_numbers_of_numpy_are_ids(model: Model) -> None:
    ids = model.generate(PROMPT, max_new_tokens=9).ids
    stop = np.array(ids[4:5])
    found = model.generate(np.array(PROMPT), max_new_tokens=9, stop=stop)
    assert found.ids == ids[: ids.index(ids[4]) + 1]
    assert all(type(token) is int for token in found.ids)


def test_what_does_not_fit_is_refused(model: Model) -> None:
    for options, message in (
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"stop": [""]}, "a stop text must not be empty"),
        ({"stop": "x"}, "text needs a tokenizer, and none is beside the model"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_batch([PROMPT], max_new_tokens=1, **options)
    for options, message in (
        ({"stop": [1.5]}, "stop holds ids and texts, got 1.5"),
        ({"sampling": 0.7}, "sampling must be a Sampling or None, got 0.7"),
        ({"constraint": "[ab]"}, r"constraint must be a Constraint, such as .* got '\[ab\]'"),
    ):
        with pytest.raises(TypeError, match=message):
            model.generate_batch([PROMPT], max_new_tokens=1, **options)
    with pytest.raises(ValueError, match=r"must have the same length, and .* have 3, 1 ids"):
        model.generate_batch([PROMPT, [1]], max_new_tokens=1)
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        model.generate("text", max_new_tokens=1)
    with pytest.raises(TypeError, match="prompts must be a list of prompts, got the text 'text'"):
        model.generate_batch("text", max_new_tokens=1)


def test_ids_that_end_a_text_by_the_contract_end_it_without_a_tokenizer() -> None:
    plain = language_model().generate([5, 3, 8], max_new_tokens=6).ids
    contract = replace(language_model().contract, eos_token_ids=(plain[4], plain[2]))
    found = language_model(contract=contract).generate([5, 3, 8], max_new_tokens=6)
    assert (found.finish, found.ids) == ("stop", plain[:3])
