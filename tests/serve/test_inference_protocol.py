"""Tensors over the Open Inference Protocol, asked for by its usual client."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from causal_onnx.runtime import Model, load
from causal_onnx.serve import Registry, ServeOptions, UnavailableError, open_models
from causal_onnx.serve.inference_protocol.tensors import TensorRequest, infer
from causal_onnx.serve.service import Service
from tests.runtime.artifacts import fixture
from tests.serve.serving import served

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
from tritonclient.utils import InferenceServerException  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
NAMES = ("small", "decoder", "half", "bfloat16", "cached", "seq_first", "grouped_query", "language")
WIRE = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "bfloat16": "BF16", "bool": "BOOL"}


@pytest.fixture(scope="module")
def models():
    return {name: load(fixture(name), threads=1, cast=True) for name in NAMES}


@pytest.fixture(scope="module")
def address():
    places = [str(fixture(name)) for name in NAMES]
    with served(open_models(places, threads=1), ServeOptions(max_body_bytes=1 << 20)) as found:
        yield found


@pytest.fixture
def client(address: str):
    with http.InferenceServerClient(address.removeprefix("http://")) as found:
        yield found


def arrays(model: Model, *, seed: int = 0, batch: int = 2, seq: int = 5):
    """Inputs that a model takes, without those that may be left out."""
    random, contract = np.random.default_rng(seed), model.contract
    sizes = {"batch": batch, "seq": seq, "past_seq": 0, "total_seq": seq}
    found = {}
    for spec in contract.inputs:
        if spec.name in contract.optional_names:
            continue
        shape = spec.shape(sizes)
        if spec.vocab_size is not None:
            found[spec.name] = random.integers(0, spec.vocab_size, shape).astype(spec.dtype)
        elif spec.dtype == "bool":
            found[spec.name] = random.random(shape) < 0.7
        else:
            found[spec.name] = (random.standard_normal(shape) * 9).astype(spec.host_dtype)
        if spec.dtype == "bfloat16":  # numbers that it has
            found[spec.name].view(np.uint32)[...] &= 0xFFFF0000
    return found


def triton_inputs(model: Model, given, *, binary: bool = True):
    specs = {spec.name: spec for spec in model.contract.inputs}
    found = []
    for name, array in given.items():
        item = http.InferInput(name, array.shape, WIRE[specs[name].dtype])
        found.append(item.set_data_from_numpy(array, binary_data=binary))
    return found


def same(result, expected) -> bool:
    return all(result.as_numpy(name).tobytes() == x.tobytes() for name, x in expected.items())


def as_json(model: Model, given) -> list[dict]:
    specs = {spec.name: spec for spec in model.contract.inputs}
    return [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": WIRE[specs[name].dtype],
            "data": array.tolist(),
        }
        for name, array in given.items()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_output_has_the_bits_of_a_call_in_process(client, models, name: str) -> None:
    given = arrays(models[name])
    result = client.infer(name, triton_inputs(models[name], given))
    assert same(result, models[name].run(**given))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("half", "bfloat16")])
def test_values_in_json_have_the_same_bits(client, models, name: str) -> None:
    given = arrays(models[name])
    model = models[name]
    kept = [spec.name for spec in model.contract.outputs]
    outputs = [http.InferRequestedOutput(name, binary_data=False) for name in kept]
    result = client.infer(name, triton_inputs(model, given, binary=False), outputs=outputs)
    assert same(result, model.run(**given))


@pytest.mark.parametrize("name", NAMES)
def test_nested_and_flat_values_are_the_same(address: str, models, name: str) -> None:
    given = arrays(models[name], batch=1)
    nested = as_json(models[name], given)
    flat = [{**item, "data": given[item["name"]].reshape(-1).tolist()} for item in nested]
    first, second = (
        httpx.post(f"{address}/v2/models/{name}/infer", json={"inputs": item}).json()
        for item in (nested, flat)
    )
    expected = models[name].run(**given)
    assert first == second
    for item in first["outputs"]:
        found = np.array(item["data"], expected[item["name"]].dtype).reshape(item["shape"])
        assert np.array_equal(found, expected[item["name"]])


@pytest.mark.parametrize("asked", ["gzip", "deflate"])
@pytest.mark.parametrize("sent", ["gzip", "deflate", None])
def test_bodies_are_compressed_both_ways(client, models, sent, asked: str) -> None:
    given = arrays(models["small"], seq=200)
    result = client.infer(
        "small",
        triton_inputs(models["small"], given),
        request_compression_algorithm=sent,
        response_compression_algorithm=asked,
    )
    assert same(result, models["small"].run(**given))


def test_an_answer_is_really_compressed(address: str, models) -> None:
    body = {"inputs": as_json(models["small"], {"x": np.zeros((1, 300), np.float32)})}
    url, headers = f"{address}/v2/models/small/infer", {"accept-encoding": "br, gzip;q=0, deflate"}
    answer = httpx.post(url, json=body, headers=headers)
    assert answer.headers["content-encoding"] == "deflate"
    plain = httpx.post(url, json=body, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert answer.json() == plain.json()


def test_only_the_outputs_that_are_asked_for_come_with_id_and_parameters(client, models) -> None:
    given = arrays(models["cached"])
    result = client.infer(
        "cached",
        triton_inputs(models["cached"], given),
        request_id="7",
        outputs=[http.InferRequestedOutput("y")],
        parameters={"trace": "a", "level": 3},
    )
    answer = result.get_response()
    assert [item["name"] for item in answer["outputs"]] == ["y"]
    assert (answer["id"], answer["parameters"]) == ("7", {"trace": "a", "level": 3})
    assert (answer["model_name"], answer["model_version"]) == ("cached", "1")


def test_an_empty_cache_may_be_given(client, models) -> None:
    given = {"input_ids": np.array([[3, 1, 4]]), "past": np.zeros((1, 0, 6), np.float32)}
    result = client.infer("language", triton_inputs(models["language"], given))
    assert same(result, models["language"].run(given["input_ids"]))


def test_an_input_without_the_batch_axis_comes_back_so(client, models) -> None:
    given = {"input_ids": np.array([3, 1, 4])}
    result = client.infer("decoder", triton_inputs(models["decoder"], given))
    assert same(result, models["decoder"].run(**given))


def test_bfloat16_may_be_asked_for_as_bits(address: str, models) -> None:
    given = arrays(models["bfloat16"])
    body = {
        "inputs": as_json(models["bfloat16"], given),
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "y"}],
    }
    answer = httpx.post(f"{address}/v2/models/bfloat16/infer", json=body)
    size = int(answer.headers["inference-header-content-length"])
    item = json.loads(answer.content[:size])["outputs"][0]
    bits = np.frombuffer(answer.content[size:], np.uint16).reshape(item["shape"])
    expected = models["bfloat16"].run(**given)[item["name"]]
    assert item["datatype"] == "BF16"
    assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32), expected)


def test_the_client_finds_what_is_served(client, models) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", "1")
    assert not client.is_model_ready("missing")
    assert client.get_server_metadata()["name"] == "causal-onnx"
    assert client.get_model_metadata("decoder", "1") == {
        "name": "decoder",
        "versions": ["1"],
        "platform": "onnx_causal-onnx",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1, 8]}],
    }
    config = client.get_model_config("decoder")
    assert config["input"][0]["data_type"] == "TYPE_INT64"


def test_each_extension_that_is_listed_has_tests(client) -> None:
    tensors = {"binary_tensor_data", "parameters", "model_configuration"}
    others = {"sequence", "model_repository", "generate"}  # in files of those names
    assert set(client.get_server_metadata()["extensions"]) == tensors | others


def test_the_client_of_the_page_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    section = PAGE.partition("## Tensors")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    code = code.replace("127.0.0.1:8000", address.removeprefix("http://"))
    exec(code.replace('"model"', '"language"'), {})
    assert capsys.readouterr().out == "(1, 3, 280)\n"


def test_the_paths_of_the_page_are_there(address: str) -> None:
    table = PAGE.partition("## Tensors")[2].partition("| path | what |")[2].partition("\n\n")[0]
    found = re.findall(r"`(GET|POST) (/[^`]+)`", table)
    assert len(found) == 6
    for method, path in found:
        answer = httpx.request(method, address + path.replace("NAME", "language"))
        assert answer.status_code in (200, 400), path


X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "FP64"}, "input 'x' is FP32, got 'FP64'"),
        ({"name": "z"}, "unknown input 'z'; the inputs are x"),
        ({"shape": [1, 4]}, "has 3 values, but its shape [1, 4] has 4"),
        ({"shape": [1, 1, 3]}, "input 'x' has rank 3, shape (1, 1, 3); expected rank 2"),
        ({"shape": [1, 0], "data": []}, "its axis 'seq' is empty"),
        ({"shape": [-1]}, "needs a shape: a list of sizes"),
        ({"data": [1, 2, "3"]}, "its data is numbers, got int, str"),
        ({"data": [1, 2, 1e39]}, "holds a number that is too large for FP32"),
        ({"data": [[1], [2], [3]]}, "nested otherwise than its shape [1, 3]"),
        ({"data": [[[1, 2, 3]]]}, "nested otherwise than its shape [1, 3]"),
        ({"data": [[1, 2, 3], 4]}, "nested otherwise than its shape [1, 3]"),
        ({"data": None}, "needs data: a list of values, or binary_data_size"),
        ({"parameters": {"binary_data_size": 12}}, "give one of them"),
        ({"parameters": {"binary_data_size": 12}, "data": None}, "and 0 are there"),
        ({"parameters": {"shared_memory_region": "r"}}, "'shared_memory_region' is not supported"),
        ({"odd": 1}, "has 'odd', which is not supported"),
    ],
)
def test_what_is_wrong_with_an_input_is_said(address: str, change, message: str) -> None:
    body = {"inputs": [{**X, **change}]}
    answer = httpx.post(f"{address}/v2/models/small/infer", json=body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": [{"name": "z"}]}, "unknown output 'z'; the outputs are y"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "an output is asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "'classification'"),
        ({"inputs": [X, X]}, "input 'x' is given twice"),
        ({"inputs": []}, "got 0 of 1 inputs; missing: x: float32"),
        ({"id": 7}, "id must be a string"),
        ({"odd": 1}, "odd is not supported; leave it out"),
        ({"parameters": {"a": [1]}}, "'a' must be a boolean, a number or a string"),
        ({"parameters": {"priority": 1}}, "priority is not supported"),
        ({"parameters": {"timeout": -1}}, "timeout must be an integer of microseconds, got -1"),
        (
            {"parameters": {"sequence_id": 1, "sequence_start": True}},
            "small keeps no sequences: it has no KV cache",
        ),
    ],
)
def test_what_is_wrong_with_a_request_is_said(address: str, change, message: str) -> None:
    body = {"inputs": [X], **change}
    answer = httpx.post(f"{address}/v2/models/small/infer", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_values_that_json_does_not_have_are_refused_with_the_way_out(client, models) -> None:
    given = {"x": np.array([[1, np.nan, 2]], np.float32)}
    outputs = [http.InferRequestedOutput("y", binary_data=False)]
    with pytest.raises(InferenceServerException, match=r"NaN or infinite.*binary_data"):
        client.infer("small", triton_inputs(models["small"], given), outputs=outputs)
    result = client.infer("small", triton_inputs(models["small"], given))
    assert same(result, models["small"].run(**given))


@pytest.mark.parametrize(
    ("headers", "content", "status", "message"),
    [
        ({"content-encoding": "br"}, b"{}", 400, "Content-Encoding must be gzip or deflate"),
        ({"content-encoding": "gzip"}, b"{}", 400, "the body is not valid gzip"),
        (
            {"content-encoding": "gzip"},
            gzip.compress(b"{}", mtime=0)[:-3],
            400,
            "not one complete gzip stream",
        ),
        (
            {"content-encoding": "deflate"},
            zlib.compress(bytes(2 << 20)),
            413,
            "the decompressed body has more than",
        ),
        ({}, bytes(2 << 20), 413, "the body has 2097152 bytes"),
        ({"inference-header-content-length": "9"}, b"{}", 400, "must be a number of bytes"),
        ({"inference-header-content-length": "-1"}, b"{}", 400, "must be a number of bytes"),
        ({}, b"[1", 400, "the body is not JSON that can be read"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(address, headers, content, status, message) -> None:
    url = f"{address}/v2/models/small/infer"
    answer = httpx.post(url, content=content, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models/missing/infer", "there is no model 'missing' here"),
        ("models/small/versions/2/infer", "model 'small' has no version '2'; it has '1'"),
        ("odd", "there is no POST /v2/odd here"),
    ],
)
def test_what_is_not_here_is_404_in_the_protocols_form(address, path: str, message: str) -> None:
    answer = httpx.post(f"{address}/v2/{path}", json={"inputs": [X]})
    assert answer.status_code == 404
    assert message in answer.json()["error"]


def test_the_client_raises_what_the_server_says(client, models) -> None:
    given = {"x": np.ones((1, 1, 4), np.float32)}
    with pytest.raises(InferenceServerException, match="expected rank 2"):
        client.infer("small", triton_inputs(models["small"], given))


def ask_without_answer(models, future: Future):
    """Ask a model whose engine answers by this."""
    engine = SimpleNamespace(submit=lambda inputs, adapter: future)
    contract = models["small"].contract
    model = SimpleNamespace(contract=contract, tensors=engine, name="small", adapter=None)
    asked = TensorRequest(id="", inputs={}, requested=[], parameters={"timeout": 1})
    return asyncio.run(infer(Service(Registry(), ServeOptions()), model, asked))


def test_a_timeout_in_microseconds_is_kept(models) -> None:
    with pytest.raises(UnavailableError, match="not answered within its timeout of 1e-06 s"):
        ask_without_answer(models, Future())


def test_a_request_to_a_model_that_is_taken_away_is_told(models) -> None:
    future: Future = Future()
    future.cancel()
    with pytest.raises(UnavailableError, match="the model is being unloaded"):
        ask_without_answer(models, future)
