"""`/v1/embeddings`, by OpenAI's client, of a model that gives hidden states."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import Registry, ServedModel
from tests.runtime.artifacts import fixture
from tests.serve.serving import post, served

openai = pytest.importorskip("openai", reason="the client that judges the server")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    names = ("decoder", "language", "small")
    models = [ServedModel.of(name, load(fixture(name), threads=1)) for name in names]
    with served(Registry(models)) as found:
        yield found


def test_each_input_gets_the_state_after_its_last_token(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    inputs = [[1, 2, 3], [4, 5], [6, 7, 8]]
    with client:  # it asks for base64 by itself
        found = client.embeddings.create(model="decoder", input=inputs)
        plain = client.embeddings.create(model="decoder", input=inputs, encoding_format="float")
    model = load(fixture("decoder"), threads=1)
    states = [model(np.array([ids]))[0, -1] for ids in inputs]
    expected = [state / np.linalg.norm(state) for state in states]
    np.testing.assert_allclose([item.embedding for item in found.data], expected, rtol=1e-6)
    np.testing.assert_allclose([item.embedding for item in plain.data], expected, rtol=1e-6)
    assert (found.usage.prompt_tokens, [item.index for item in found.data]) == (8, [0, 1, 2])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "language", "input": [1]}, "model"),
        ({"model": "small", "input": [1]}, "model"),
        ({"model": "decoder"}, "input"),
        ({"model": "decoder", "input": "text"}, "input"),
        ({"model": "decoder", "input": [1], "dimensions": 3}, "dimensions"),
        ({"model": "decoder", "input": [1], "encoding_format": "hex"}, "encoding_format"),
        ({"model": "decoder", "input": [1], "odd": 1}, "odd"),
        ({"model": "decoder", "input": [11]}, None),
    ],
)
def test_what_cannot_be_embedded_is_refused(address: str, body, param: str | None) -> None:
    status, found = post(address, "/v1/embeddings", body)
    assert (status, found["error"]["param"]) == (400, param)
