"""Triton's generate extension: a text in, a text out, whole or as a stream."""

from __future__ import annotations

import json

import httpx
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import open_models
from tests.runtime.artifacts import fixture
from tests.serve.serving import post, served


@pytest.fixture(scope="module")
def address(talker):
    with served(open_models([str(talker), str(fixture("language"))], threads=1)) as found:
        yield found


def events(address: str, path: str, body) -> list[dict]:
    with httpx.stream("POST", f"{address}{path}", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_text_is_continued_as_in_process(address: str, talker) -> None:
    body = {"text_input": "Once upon a time", "parameters": {"max_tokens": 20, "id": "7"}}
    status, found = post(address, "/v2/models/talker/generate", body)
    expected = load(talker, threads=1).generate("Once upon a time", max_new_tokens=20)
    assert status == 200
    assert found == {
        "model_name": "talker",
        "model_version": "1",
        "id": "7",
        "text_output": expected.text,
        "finish_reason": "length",
    }


def test_a_stream_has_the_same_text_in_pieces(address: str) -> None:
    body = {"text_input": "One day", "max_tokens": 12, "temperature": 0.8, "seed": 3}
    _, whole = post(address, "/v2/models/talker/generate", body)
    pieces = events(address, "/v2/models/talker/versions/1/generate_stream", body)
    assert "".join(piece["text_output"] for piece in pieces) == whole["text_output"]
    ends = [piece.get("finish_reason") for piece in pieces]
    assert ends == [None] * (len(pieces) - 1) + ["length"]


def test_ids_are_continued_where_nothing_reads_texts(address: str) -> None:
    body = {"input_ids": [5, 3], "max_tokens": 4}
    _, found = post(address, "/v2/models/language/generate", body)
    model = load(fixture("language"), threads=1)
    expected = model.generate([5, 3], max_new_tokens=4)
    assert found["output_ids"] == list(expected.ids)
    pieces = events(address, "/v2/models/language/generate_stream", body)
    assert [token for piece in pieces for token in piece["output_ids"]] == list(expected.ids)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "pass either text_input, a string, or input_ids, a list of ids"),
        ({"text_input": "a", "input_ids": [1]}, "pass either text_input"),
        ({"text_input": 1}, "text_input must be a string"),
        ({"input_ids": []}, "must be a list of ids, not empty"),
        ({"text_input": "a", "odd": 1}, "odd is not supported"),
        ({"text_input": "a", "n": 2}, "n must be 1: one text comes back"),
        ({"text_input": "a", "stream": True}, "ask for generate_stream"),
        ({"text_input": "a", "seed": 1, "parameters": {"seed": 1}}, "seed is given twice"),
        ({"text_input": "a", "parameters": [1]}, "parameters must be an object"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens must be a whole number from 1"),
    ],
)
@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_what_is_wrong_with_a_request_is_said(address, body, message: str, kind: str) -> None:
    status, found = post(address, f"/v2/models/talker/{kind}", body)
    assert status == 400
    assert message in found["error"]


def test_a_model_of_tensors_continues_nothing() -> None:
    with served(open_models([str(fixture("small"))], threads=1)) as address:
        status, found = post(address, "/v2/models/small/generate", {"text_input": "a"})
    assert (status, "not a language model with a cache" in found["error"]) == (400, True)
