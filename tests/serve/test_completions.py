"""`/v1/completions` over HTTP."""

from __future__ import annotations

import json

import pytest

from tests.serve.serving import post

PATH = "/v1/completions"
ASKED = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
TEXT = ", there was a little"


def test_a_prompt_is_continued(address: str) -> None:
    status, found = post(address, PATH, ASKED)
    (choice,) = found["choices"]
    assert (status, found["object"]) == (200, "text_completion")
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (18, 20)


def test_a_stream_is_the_same_in_pieces(address: str) -> None:
    import httpx

    asked = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    lines = httpx.post(address + PATH, json=asked, timeout=60).text.strip().split("\n\n")
    *events, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT
    assert [event["choices"][0]["finish_reason"] for event in events[-2:]] == [None, "length"]
    assert {event["id"] for event in events} == {last["id"]}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 20)
    assert all(event["usage"] is None for event in events)


def test_ids_stream_as_they_come_without_a_tokenizer(address: str) -> None:
    import httpx

    asked = {"model": "language", "prompt": [5, 3], "max_tokens": 9}
    (whole,) = post(address, PATH, asked)[1]["choices"]
    lines = httpx.post(address + PATH, json={**asked, "stream": True}, timeout=60).text
    events = [json.loads(line[6:]) for line in lines.split("\n") if line.startswith("data: {")]
    ids = [token for event in events for token in event["choices"][0]["token_ids"]]
    assert ids == whole["token_ids"]
    assert events[0]["choices"][0]["prompt_token_ids"] == [5, 3]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"model": None}, "model"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"logit_bias": {"105": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(address: str, changed, param: str) -> None:
    status, found = post(address, PATH, {**ASKED, **changed})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    assert found["error"]["param"] == param
    assert found["error"]["message"].startswith((f"{param} ", "n is 9"))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"n": NaN}'])
def test_what_is_no_json_object_is_refused(address: str, body: bytes) -> None:
    status, found = post(address, PATH, body)
    assert status == 400
    assert found["error"]["message"].startswith("the body ")


@pytest.mark.parametrize("ids", [[105], [-1], [3, 2**40]])
def test_ids_that_the_model_has_not_are_refused(address: str, ids: list[int]) -> None:
    status, found = post(address, PATH, {**ASKED, "prompt": ids})
    assert (status, found["error"]["param"]) == (400, "prompt")
    assert f"the id {ids[-1]}, expected ids in [0, 105)" in found["error"]["message"]


def test_an_unknown_model_is_named_with_those_there_are(address: str) -> None:
    status, found = post(address, PATH, {**ASKED, "model": "gpt"})
    assert (status, found["error"]["code"]) == (404, "model_not_found")
    assert "served: stories, chatty, talker, language, small, decoder" in found["error"]["message"]


def test_a_model_of_tensors_continues_nothing(address: str) -> None:
    status, found = post(address, PATH, {**ASKED, "model": "small"})
    assert (status, found["error"]["param"]) == (400, "model")
    assert "not a language model with a cache" in found["error"]["message"]
