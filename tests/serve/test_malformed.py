"""Requests that nobody should send: refused, never a failure of the server."""

from __future__ import annotations

import copy
import json
import logging
import random

import httpx
import pytest

from tests.serve.test_openai_client import PERSON, TOOL

SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
]

WHOLE = {
    "/v1/completions": {
        "model": "language",
        "prompt": [5, 3],
        "max_tokens": 2,
        "n": 1,
        "stop": ["x"],
        "logprobs": 1,
        "echo": True,
        "logit_bias": {"3": 1},
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/chat/completions": {
        "model": "talker",
        "messages": MESSAGES,
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": SCHEMA,
        "frequency_penalty": 0.1,
    },
    "/v1/chat/completions?tools": {
        "model": "talker",
        "messages": MESSAGES,
        "max_tokens": 2,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    },
    "/v1/embeddings": {"model": "decoder", "input": [[1, 2]], "encoding_format": "float"},
    "/tokenize": {"model": "talker", "prompt": "x", "add_special_tokens": True},
    "/detokenize": {"model": "talker", "tokens": [1, 2]},
    "/apply-template": {"model": "talker", "messages": MESSAGES},
}
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 1e300, -0.0, 0.5, "", "x", "\ud83d", "\x00",
    "é" * 99, [], [[]], [None], [1, "x"], [True], [-1], [2**40], ["x"] * 300, {}, {"type": "x"},
    {"x": {}},
)  # fmt: skip


def places(value: object) -> list[tuple[object, ...]]:
    """The paths to all values in some JSON."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [(), *((key, *rest) for key, item in items for rest in places(item))]


def spoiled(body: object, chance: random.Random) -> bytes:
    """The body with one or two places changed, or its text."""
    found = copy.deepcopy(body)
    for _ in range(chance.randint(1, 2)):
        path = chance.choice([place for place in places(found) if place])
        parent = found
        for key in path[:-1]:
            parent = parent[key]
        if chance.random() < 0.2:
            del parent[path[-1]]
        elif chance.random() < 0.1 and isinstance(parent, dict):
            parent[chance.choice(["", "\ud83d", "model", "odd"])] = 1
        else:
            parent[path[-1]] = copy.deepcopy(chance.choice(ODD))
    text = json.dumps(found).encode()
    if chance.random() < 0.1:
        cut = chance.randrange(len(text))
        text = text[:cut] + chance.choice([b"", b"\xff", b'"', b"]", b"1e999"]) + text[cut + 1 :]
    return text


@pytest.mark.parametrize("path", WHOLE)
def test_a_spoiled_request_is_refused_or_answered(
    address: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    chance = random.Random(path)
    with httpx.Client(base_url=address, timeout=60) as client:
        for _ in range(150):
            body = spoiled(WHOLE[path], chance)
            answer = client.post(path, content=body)
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"], body
            assert "Traceback" not in answer.text
    assert caplog.records == []
