"""Requests to the Open Inference Protocol that nobody should send: refused, never a failure."""

from __future__ import annotations

import gzip
import json
import logging
import random
import zlib

import httpx
import numpy as np
import pytest

from causal_onnx.serve import open_models
from tests.runtime.artifacts import fixture
from tests.serve.serving import served
from tests.serve.test_malformed import spoiled

REQUESTS = 250
TENSORS = {
    "id": "1",
    "parameters": {"binary_data_output": False, "sequence_id": 0, "timeout": 0, "own": "x"},
    "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]}],
    "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
}
SEQUENCE = {
    "parameters": {"sequence_id": 3, "sequence_start": True, "sequence_end": False},
    "inputs": [{"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}],
}
GENERATE = {
    "input_ids": [5, 3],
    "parameters": {"max_tokens": 2, "temperature": 0.5, "seed": 1, "stop": ["x"]},
}
INDEX = {"ready": True, "own": [1, {"x": 2}]}


@pytest.fixture(scope="module")
def address():
    places = [str(fixture(name)) for name in ("small", "language")]
    with served(open_models(places, threads=1)) as found:
        yield found


def refused_or_answered(address: str, path: str, requests) -> set[int]:
    seen = set()
    with httpx.Client(base_url=address, timeout=60) as client:
        for content, headers in requests:
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code in (200, 400, 404, 413), (content, headers, answer.text)
            if answer.status_code != 200:
                assert isinstance(answer.json()["error"], str), content
            assert b"Traceback" not in answer.content
            seen.add(answer.status_code)
        health = client.get("/v2/health/ready")
    assert health.status_code == 200
    return seen


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/small/infer", TENSORS),
        ("/v2/models/language/infer", SEQUENCE),
        ("/v2/models/language/generate", GENERATE),
        ("/v2/repository/index", INDEX),
    ],
)
def test_spoiled_json_is_refused_or_answered(
    address: str, path: str, body, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    chance = random.Random(path)
    seen = refused_or_answered(
        address, path, ((spoiled(body, chance), {}) for _ in range(REQUESTS))
    )
    assert 400 in seen
    assert caplog.records == []


def binary_request(chance: random.Random) -> tuple[bytes, dict[str, str]]:
    """A binary body of which something is wrong: its bytes, its lengths or how it is compressed."""
    raw = np.ones((2, 2), np.float32).tobytes()
    item = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    item["parameters"] = {"binary_data_size": len(raw) + chance.choice((0, 0, 1, -1, 1 << 40))}
    text = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    content = bytearray(text + raw[: chance.choice((16, 16, 15, 0))])
    for _ in range(chance.randint(0, 2)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    length = chance.choice((len(text), len(text), len(text) + 1, 0, -1, 10**30, "x", ""))
    headers = {"inference-header-content-length": str(length)}
    coding = chance.choice(("gzip", "deflate", "br", None, None))
    body = bytes(content)
    if coding is not None:
        headers["content-encoding"] = coding
        body = {"gzip": gzip.compress, "deflate": zlib.compress, "br": bytes}[coding](body)
        body = body[: len(body) - chance.choice((0, 0, 3))] + chance.choice((b"", b"", b"x"))
    return body, headers


def test_spoiled_binary_bodies_are_refused_or_answered(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    chance = random.Random(7)
    requests = (binary_request(chance) for _ in range(2 * REQUESTS))
    assert {200, 400} <= refused_or_answered(address, "/v2/models/small/infer", requests)
    assert caplog.records == []
