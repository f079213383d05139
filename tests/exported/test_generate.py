"""Continuing prompts with an exported decoder, beside PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import Model, Sampling
from causal_onnx.runtime.contract import ORT_FORMS
from causal_onnx.runtime.generation.prompt import feed, prefill
from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.stream.stream import Stream
from tests.export.quick import quick_export

PROMPTS = [[5, 3, 8, 1, 9], [2], [7, 7, 4]]


@pytest.fixture(scope="module")
def decoder() -> DecoderLM:
    return DecoderLM(tiny_llama_config(), seed=0).eval()


@pytest.fixture(scope="module", params=ORT_FORMS)
def model(
    request: pytest.FixtureRequest, decoder: DecoderLM, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    path = tmp_path_factory.mktemp("generate") / "model.onnx"
    return quick_export(decoder, path, cache=True, max_seq_len=24, target=request.param)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of features, without a cache."""
    module = CausalMechanismV1(dim_in=8, dim_out=6, context_length=16)
    return quick_export(module, tmp_path_factory.mktemp("features") / "m.onnx")


def greedy(decoder: DecoderLM, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The likeliest tokens and their log-probabilities, each from a pass over all before it."""
    ids, logprobs = list(prompt), []
    for _ in range(count):
        with torch.no_grad():
            found = decoder(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
        ids.append(int(found.argmax()))
        logprobs.append(float(found.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_pytorchs(decoder: DecoderLM, model: Model, prompt: list[int]) -> None:
    expected, logprobs = greedy(decoder, prompt, 12)
    found = model.generate(prompt, max_new_tokens=12)
    assert list(found.ids) == expected
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-5)
    assert found.finish == "length"
    assert [c.id for c in model.tokens(prompt, max_new_tokens=12)] == expected


def test_prompts_together_become_what_each_becomes_alone(model: Model) -> None:
    together = model.generate_batch(PROMPTS, max_new_tokens=9)
    alone = [model.generate(prompt, max_new_tokens=9) for prompt in PROMPTS]
    assert [row.ids for row in together] == [row.ids for row in alone]


def test_rows_end_by_themselves(model: Model) -> None:
    free = model.generate_batch(PROMPTS, max_new_tokens=9)
    stop = {free[0].ids[3]}
    found = model.generate_batch(PROMPTS, max_new_tokens=9, stop=stop)
    assert found[0].ids == free[0].ids[: free[0].ids.index(free[0].ids[3]) + 1]
    assert found[0].finish == "stop"
    for row, before in zip(found, free, strict=True):
        assert row.ids == before.ids[: len(row.ids)]
        assert (row.ids[-1] in stop) == (row.finish == "stop")


def test_the_longest_sequence_ends_a_continuation(model: Model) -> None:
    found = model.generate(list(range(1, 21)), max_new_tokens=99)
    assert (len(found.ids), found.finish) == (5, "limit")  # the fifth is chosen after position 24
    assert len(list(model.tokens(list(range(1, 21)), max_new_tokens=99))) == 5
    rows = model.generate_batch([[1] * 23, [1, 2]], max_new_tokens=6)
    assert [(len(row.ids), row.finish) for row in rows] == [(2, "limit"), (6, "length")]


def test_a_seed_repeats_and_rows_differ(model: Model) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95)
    first, again, other = (
        model.generate([5, 3], max_new_tokens=15, sampling=sampling, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.ids != other.ids
    rows = model.generate_batch([[5, 3]] * 2, max_new_tokens=15, sampling=sampling, seed=1)
    assert rows[0].ids == first.ids
    assert rows[0].ids != rows[1].ids
    drawn = model.tokens([5, 3], max_new_tokens=15, sampling=sampling, seed=1)
    assert tuple(choice.id for choice in drawn) == first.ids


def test_long_prompts_are_read_in_chunks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate_batch(PROMPTS, max_new_tokens=5)
    monkeypatch.setattr("causal_onnx.runtime.generation.prompt.CHUNK", 2)
    assert model.generate_batch(PROMPTS, max_new_tokens=5) == [
        type(row)(ids=row.ids, logprobs=pytest.approx(row.logprobs, abs=1e-5), finish=row.finish)
        for row in expected
    ]


@pytest.mark.parametrize(("chunk", "calls"), [(2, [2, 2, 1]), (4, [4, 1]), (256, [5])])
def test_a_cpu_reads_a_long_prompt_in_chunks_and_a_gpu_in_larger_ones(
    model: Model, chunk: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "causal_onnx.runtime.generation.prompt"
    monkeypatch.setattr(f"{module}.CHUNK", chunk)
    read: list[int] = []

    def counted(stream: Stream, ids: Any, *args: Any, **named: Any) -> Any:
        read.append(ids.shape[1])
        return feed(stream, ids, *args, **named)

    monkeypatch.setattr(f"{module}.feed", counted)
    prefill(model.stream(), PROMPTS[:1])
    assert read == calls
    stream = model.stream()
    monkeypatch.setattr(Stream, "device", Device("cuda"))
    prefill(stream, PROMPTS[:1])
    assert read == [*calls, 5]


def test_what_cannot_be_generated_is_refused(model: Model, features: Model) -> None:
    for prompt, count, message in (
        ([], 3, "the prompt is empty"),
        ([1], 0, "max_new_tokens must be at least 1, got 0"),
        ([1] * 25, 3, "the prompt has 25 ids, and the model takes at most 24; shorten it"),
        ([-1], 3, "ids"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, max_new_tokens=count)
    with pytest.raises(ValueError, match=r"needs a language model.*float32.*without a cache"):
        features.generate([1], max_new_tokens=1)
