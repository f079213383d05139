"""The OpenAPI document says what the server does: its paths, and the fields that they take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import ServeOptions, create_app, open_models
from causal_onnx.serve.keys import ApiKey, new_key
from causal_onnx.serve.openapi.document import document
from causal_onnx.serve.service import Service
from tests.runtime.artifacts import fixture
from tests.serve.serving import post, served


@pytest.fixture(scope="module")
def address(talker: Path) -> Iterator[str]:
    places = [str(talker), *(str(fixture(name)) for name in ("language", "small", "decoder"))]
    with served(open_models(places, threads=1)) as found:
        yield found


@pytest.fixture(scope="module")
def described(address: str) -> dict[str, Any]:
    return httpx.get(f"{address}/openapi.json").json()


def test_every_path_is_in_the_document_and_no_other() -> None:
    model = load(fixture("language"))
    app = create_app({"language": model})
    try:
        routes = {(r.path, m) for r in app.routes for m in r.methods - {"HEAD"}}
        paths = document(app.state.service)["paths"]
    finally:
        app.state.service.models.close()
    of_document = {(path, m.upper()) for path, item in paths.items() for m in item}
    changes = {f"/v2/repository/models/{{model}}/{change}" for change in ("load", "unload")}
    of_people = {("/", "GET"), ("/page/models", "GET")}  # the page is no interface
    assert of_document - {(path, "POST") for path in changes} == routes - of_people - {
        ("/v2/repository/models/{model}/{change}", "POST")
    }


def bodies(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema of an object) for every body that may be sent."""
    for path, item in described["paths"].items():
        body = item.get("post", {}).get("requestBody")
        if body is not None and "{version}" not in path and not path.endswith("load"):
            schema = body["content"]["application/json"]["schema"]
            for kind in schema.get("anyOf", [schema]):
                yield path.replace("{model}", "language"), kind


def test_every_field_of_the_document_is_read(address: str, described: dict[str, Any]) -> None:
    unread = []
    for path, schema in bodies(described):
        for name in [*schema["properties"], "zzzz"]:
            _, answer = post(address, path, {**least(schema), name: {"odd": [1]}})
            if re.search(rf"\b{name}'? is not supported; (leave it out|did you mean)", str(answer)):
                unread.append((path, name))
    assert unread == [(path, "zzzz") for path, _ in bodies(described)]


def least(schema: dict[str, Any]) -> dict[str, Any]:
    """The fields that a body must have, and the end of what comes of it."""
    fields = schema["properties"]
    found = {name: smallest(fields[name]) for name in schema.get("required", ())}
    return {**found, "max_tokens": 1} if "max_tokens" in fields else found


def smallest(schema: dict[str, Any]) -> Any:
    """A value that a schema allows, as far as these schemas go."""
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][-1]
    if schema["type"] == "object":
        return {name: smallest(schema["properties"][name]) for name in schema.get("required", ())}
    if schema["type"] == "array":
        return [smallest(schema["items"])] * schema.get("minItems", 0)
    return {"string": "x", "integer": 1}[schema["type"]]


def test_a_field_that_is_not_in_the_document_is_refused(
    address: str, described: dict[str, Any]
) -> None:
    for path, schema in bodies(described):
        assert schema["additionalProperties"] is False
        status, answer = post(address, path, {**least(schema), "odd": 1})
        assert status == 400, (path, answer)
        assert "odd" in str(answer), (path, answer)


def test_the_document_names_the_models_by_what_they_can(described: dict[str, Any]) -> None:
    def models(path: str, field: str = "model") -> list[str]:
        body = described["paths"][path]["post"]["requestBody"]
        return body["content"]["application/json"]["schema"]["properties"][field]["enum"]

    assert models("/v1/completions") == ["talker", "language"]
    assert models("/v1/chat/completions") == ["talker"]


def test_the_document_says_where_a_key_is_needed() -> None:
    key, digest = new_key()
    del key
    options = ServeOptions(keys=(ApiKey(name="alice", sha256=digest),))
    models = open_models([str(fixture("language"))])
    try:
        found = document(Service(models, options))
    finally:
        models.close()
    assert found["security"] == [{"key": []}]
    assert found["paths"]["/health/live"]["get"]["security"] == []


def test_a_server_of_tensors_alone_is_described() -> None:
    with served(open_models([str(fixture("small"))])) as address:
        found = httpx.get(f"{address}/openapi.json").json()
    assert found["paths"]["/v2/models/{model}/infer"]["post"]["parameters"][0]["schema"] == {
        "type": "string",
        "enum": ["small"],
    }


@pytest.mark.parametrize("stop", [0, False, {}], ids=repr)
def test_a_stop_that_is_no_text_is_refused_however_empty(address: str, stop: object) -> None:
    body = {"model": "language", "prompt": [5], "stop": stop}
    status, answer = post(address, "/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "stop")


@pytest.mark.parametrize("parameters", [0, False, [], ""], ids=repr)
def test_parameters_of_a_load_that_are_no_object_are_refused(
    address: str, parameters: object
) -> None:
    path = "/v2/repository/models/language/load"
    status, answer = post(address, path, {"parameters": parameters})
    assert (status, answer["error"]) == (400, "parameters must be an object")


@pytest.mark.parametrize("parameters", [0, False, [], ""], ids=repr)
def test_parameters_of_a_text_that_are_no_object_are_refused(
    address: str, parameters: object
) -> None:
    body = {"input_ids": [5], "max_tokens": 1, "parameters": parameters}
    status, answer = post(address, "/v2/models/language/generate", body)
    assert status == 400
    assert "parameters" in answer["error"]


def test_a_name_that_is_an_empty_list_is_refused(address: str) -> None:
    message = {"role": "user", "content": "x", "name": []}
    body = {"model": "talker", "messages": [message]}
    status, answer = post(address, "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "messages[0].name")


def test_a_tool_choice_with_more_than_a_name_is_refused(address: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    choice = {"type": "function", "function": {"name": "f", "strict": True}}
    body = {"model": "talker", "messages": [{"role": "user", "content": "x"}]}
    body |= {"tools": [tool], "tool_choice": choice, "max_tokens": 1}
    status, answer = post(address, "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "tool_choice")


def test_a_reply_has_the_fields_of_openais_message(address: str) -> None:
    body = {"model": "talker", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    _, answer = post(address, "/v1/chat/completions", body)
    message = answer["choices"][0]["message"]
    assert (message["refusal"], message["annotations"]) == (None, [])


def test_a_server_that_keeps_no_sequences_says_so() -> None:
    models = open_models([str(fixture("language"))], threads=1, keeps_sequences=False)
    item = {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [1]}
    body = {"inputs": [item], "parameters": {"sequence_id": 1, "sequence_start": True}}
    with served(models) as address:
        status, answer = post(address, "/v2/models/language/infer", body)
    assert status == 400
    assert "keeps no sequences" in answer["error"]
