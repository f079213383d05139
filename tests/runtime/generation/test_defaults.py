"""What a folder says of the choice of tokens, and how long a continuation is by default."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from causal_onnx.runtime import ArtifactError, Sampling, load
from causal_onnx.runtime.generation.defaults import decoder_start, default_sampling
from tests.runtime.artifacts import fixture
from tests.runtime.language import CONTEXT, language_model


def settings(folder: Path, **content: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": None},
            Sampling(temperature=0.6, top_p=0.9),
        ),
        ({"suppress_tokens": [3]}, Sampling(logit_bias={3: -math.inf})),
        ({"bad_words_ids": [[4], [1, 2]]}, Sampling(logit_bias={4: -math.inf})),
        (
            {"begin_suppress_tokens": [3], "forced_bos_token_id": 5, "forced_eos_token_id": [7, 6]},
            Sampling(begin_suppress_tokens=(3,), forced_bos_token_id=5, forced_eos_token_id=6),
        ),
    ],
)
def test_settings_of_a_folder_are_read(
    tmp_path: Path, content: dict[str, object], expected: Sampling
) -> None:
    assert default_sampling(settings(tmp_path, **content)) == expected


def test_a_model_offers_what_lies_beside_it_and_generates_greedily(tmp_path: Path) -> None:
    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    settings(tmp_path, do_sample=True, temperature=2.0, top_k=0)
    model = load(tmp_path / "model.onnx", threads=1)
    assert model.default_sampling == Sampling(temperature=2.0)
    greedy = language_model().generate([5], max_new_tokens=9)
    assert model.generate([5], max_new_tokens=9) == greedy
    drawn = model.generate([5], max_new_tokens=9, sampling=model.default_sampling, seed=1)
    assert drawn != greedy


def test_a_decoder_alone_needs_a_prompt_and_is_forced_to_nothing(tmp_path: Path) -> None:
    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    settings(tmp_path, decoder_start_token_id=5, forced_eos_token_id=7)
    model = load(tmp_path / "model.onnx", threads=1)
    assert (model.start_ids, model.greedy) == ((), Sampling())
    with pytest.raises(ValueError, match=r"a prompt is needed: no generation_config.json beside"):
        model.generate(max_new_tokens=3)


def test_the_id_that_a_decoder_begins_with_is_one(tmp_path: Path) -> None:
    assert decoder_start(tmp_path) == ()
    assert decoder_start(settings(tmp_path, decoder_start_token_id=5)) == (5,)
    with pytest.raises(ArtifactError, match=r"decoder_start_token_id in .* is \[5, 6\], expected"):
        decoder_start(settings(tmp_path, decoder_start_token_id=[5, 6]))


def test_a_model_without_a_place_is_greedy() -> None:
    assert load(fixture("language").read_bytes()).default_sampling == Sampling()


def test_settings_without_a_counterpart_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        default_sampling(settings(tmp_path, typical_p=0.5, num_beams=1, bad_words_ids=[[1, 2]]))
    (record,) = caplog.records
    said = "sets typical_p, bad_words_ids of several ids, which is not applied here"
    assert said in record.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"do_sample": true, "temperature": -1}', "temperature must be 0 .*, got -1"),
        ('{"do_sample": true, "top_k": "many"}', "top_k must be at least 1, got 'many'"),
        ('{"repetition_penalty": "x"}', "repetition_penalty must be a number, got 'x'"),
        ('{"suppress_tokens": 3}', "suppress_tokens must be a list of ids, got 3"),
        ('{"suppress_tokens": [[]]}', "unhashable"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=rf"generation_config\.json cannot be used: {message}"):
        default_sampling(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "must hold a JSON object, got list"), ("{", "is not JSON: Exp")],
)
def test_settings_that_are_no_object_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=rf"generation_config\.json {message}"):
        default_sampling(tmp_path)


def test_by_default_a_continuation_is_as_long_as_the_context() -> None:
    model = language_model()
    found = model.generate([5, 3, 8])
    assert (len(found.ids), found.finish) == (CONTEXT - 3 + 1, "limit")
    assert [choice.id for choice in model.tokens([5, 3, 8])] == list(found.ids)
    assert model.generate_batch([[5, 3, 8]]) == [found]
    assert model.beam_search([5, 3, 8], beams=1)[0].ids == found.ids


def test_by_default_a_continuation_without_an_end_has_1024_tokens() -> None:
    contract = replace(language_model().contract, max_seq_len=None)
    model = language_model(contract=contract)
    found = model.generate([5, 3, 8])
    assert (len(found.ids), found.finish) == (1024, "length")
