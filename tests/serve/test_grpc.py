"""The Open Inference Protocol over gRPC, asked for by its usual client."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import threading

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import ServeOptions, Server, create_app, open_models
from causal_onnx.serve.inference_protocol import grpc_messages
from causal_onnx.serve.inference_protocol.grpc_messages import message_class
from causal_onnx.serve.inference_protocol.grpc_server import GrpcServer
from causal_onnx.serve.keys import ApiKey
from causal_onnx.serve.server import bound_socket
from tests.runtime.artifacts import fixture
from tests.serve.serving import self_signed
from tests.serve.test_inference_protocol import WIRE, arrays, same
from tests.serve.test_sequences import chunks

grpc = pytest.importorskip("grpc", reason="needs the extra `grpc`")
client_of = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
from tritonclient.grpc import model_config_pb2, service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

NAMES = ("small", "decoder", "half", "bfloat16", "cached", "language")


@contextlib.contextmanager
def grpc_served(models, options: ServeOptions | None = None, **tls):
    """The address of a server over gRPC, beside one over HTTP."""
    app, started = create_app(models, options), threading.Event()
    calls = GrpcServer(app.state.service, port=0, on_start=lambda port: started.set(), **tls)
    server = Server(app, grpc=calls, **tls)
    with contextlib.closing(bound_socket("127.0.0.1", 0)) as socket:
        thread = threading.Thread(target=server.run, args=([socket],))
        thread.start()
        try:
            assert started.wait(60)
            yield f"127.0.0.1:{calls.port}"
        finally:
            server.should_exit = True
            thread.join()
            models.close()


@pytest.fixture(scope="module")
def models():
    return {name: load(fixture(name), threads=1, cast=True) for name in NAMES}


@pytest.fixture(scope="module")
def address(talker):
    places = [str(talker), *(str(fixture(name)) for name in NAMES)]
    with grpc_served(open_models(places, threads=1)) as found:
        yield found


@pytest.fixture
def client(address: str):
    with client_of.InferenceServerClient(address) as found:
        yield found


def triton_inputs(model, given):
    specs = {spec.name: spec for spec in model.contract.inputs}
    return [
        client_of.InferInput(name, x.shape, WIRE[specs[name].dtype]).set_data_from_numpy(x)
        for name, x in given.items()
    ]


def streamed(client, asks: list[dict]) -> list:
    """(result, error) of requests on one stream; until the last says that it is."""
    found: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    for ask in asks:
        client.async_stream_infer(**ask)
    results, left = [], len(asks)
    while left:
        result, error = found.get(timeout=60)
        results.append((result, error))
        if error is not None or is_final(result):
            left -= 1
    client.stop_stream()
    return results


def is_final(result) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def text_input(text: str):
    return client_of.InferInput("text_input", [1], "BYTES").set_data_from_numpy(
        np.array([text.encode()], np.object_)
    )


def test_the_messages_have_the_numbers_and_types_of_the_protocol() -> None:
    for name in grpc_messages.FIELDS:
        module = service_pb2 if hasattr(service_pb2, name.partition(".")[0]) else model_config_pb2
        theirs = module
        for part in name.split("."):
            theirs = getattr(theirs, part)
        known = theirs.DESCRIPTOR.fields_by_name
        for mine in message_class(name).DESCRIPTOR.fields:
            assert kind(mine) == kind(known[mine.name]), (name, mine.name)
        if module is service_pb2:
            assert len(message_class(name).DESCRIPTOR.fields) == len(known), name


def kind(field) -> tuple:
    types = [field.message_type, field.enum_type, field.containing_oneof]
    return field.number, field.type, field.is_repeated, [t and t.full_name for t in types]


@pytest.mark.parametrize("name", NAMES)
def test_every_output_has_the_bits_of_a_call_in_process(client, models, name: str) -> None:
    given = arrays(models[name])
    result = client.infer(name, triton_inputs(models[name], given))
    assert same(result, models[name].run(**given))


@pytest.mark.parametrize(
    ("name", "field"), [("small", "fp32_contents"), ("decoder", "int64_contents")]
)
def test_values_beside_raw_bytes_have_the_same_bits(address, models, name, field: str) -> None:
    given = arrays(models[name])
    ((input_name, array),) = given.items()
    ask = service_pb2.ModelInferRequest(model_name=name)
    datatype = WIRE[models[name].contract.inputs[0].dtype]
    item = ask.inputs.add(name=input_name, datatype=datatype, shape=array.shape)
    getattr(item.contents, field).extend(array.reshape(-1).tolist())
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{grpc_messages.SERVICE}/ModelInfer")
        answer = service_pb2.ModelInferResponse.FromString(call(ask.SerializeToString()))
    assert answer.raw_output_contents[0] == models[name].run(**given)["y"].tobytes()


def test_only_what_is_asked_for_comes_with_id_and_parameters(client, models) -> None:
    result = client.infer(
        "cached",
        triton_inputs(models["cached"], arrays(models["cached"])),
        request_id="7",
        outputs=[client_of.InferRequestedOutput("y")],
        parameters={"trace": "a", "level": 3},
    )
    answer = result.get_response()
    assert [item.name for item in answer.outputs] == ["y"]
    assert (answer.id, answer.model_version) == ("7", "1")
    assert answer.parameters["trace"].string_param == "a"
    assert answer.parameters["level"].int64_param == 3


def test_the_client_finds_what_is_served(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small", "1")
    assert client.get_server_metadata().name == "causal-onnx"
    metadata = client.get_model_metadata("decoder")
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("input_ids", "INT64", [-1, -1])
    ]
    config = client.get_model_config("decoder").config
    assert config.input[0].data_type == model_config_pb2.TYPE_INT64


def test_a_stream_keeps_the_cache_of_its_sequences(client, models) -> None:
    given = {name: chunks(name, 3, 1, 4) for name in (1, 2)}
    asks = [
        {
            "model_name": "language",
            "inputs": triton_inputs(models["language"], {"input_ids": given[name][place]}),
            "sequence_id": name,
            "sequence_start": place == 0,
            "sequence_end": place == 2,
        }
        for place in range(3)
        for name in given
    ]
    found = [result.as_numpy("logits") for result, _ in streamed(client, asks)]
    streams = {name: models["language"].stream() for name in given}
    for ask, one in zip(asks, found, strict=True):
        chunk = given[ask["sequence_id"]].pop(0)
        assert one.tobytes() == streams[ask["sequence_id"]].run(chunk)["logits"].tobytes()


def test_a_text_is_continued_piece_by_piece(client, talker) -> None:
    ask = {"model_name": "talker", "inputs": [text_input("Once upon a time")], "request_id": "1"}
    results = streamed(client, [{**ask, "parameters": {"max_tokens": 20}}])
    pieces = [result.as_numpy("text_output")[0].decode() for result, _ in results]
    expected = load(talker, threads=1).generate("Once upon a time", max_new_tokens=20)
    assert "".join(pieces) == expected.text
    assert [is_final(result) for result, _ in results] == [False] * (len(results) - 1) + [True]
    assert results[-1][0].get_response().id == "1"


def test_an_error_on_a_stream_is_an_answer_and_the_next_request_is_served(client, models) -> None:
    good = triton_inputs(models["small"], {"x": np.ones((1, 3), np.float32)})
    asks = [
        {"model_name": "missing", "inputs": good},
        {"model_name": "talker", "inputs": [text_input("a")], "parameters": {"odd": 1}},
        {"model_name": "small", "inputs": good},
    ]
    (_, first), (_, second), (result, error) = streamed(client, asks)
    assert "there is no model 'missing' here" in str(first)
    assert "odd is not supported" in str(second)
    assert error is None
    assert result.as_numpy("y").shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message", "status"),
    [
        ("missing", (1, 3), "FP32", "there is no model 'missing' here", "NOT_FOUND"),
        ("small", (1, 1, 3), "FP32", "expected rank 2", "INVALID_ARGUMENT"),
        ("decoder", (1, 3), "FP32", "unknown input 'x'", "INVALID_ARGUMENT"),
    ],
)
def test_what_is_wrong_is_said(client, name, shape, dtype, message: str, status: str) -> None:
    item = client_of.InferInput("x", shape, dtype).set_data_from_numpy(np.ones(shape, np.float32))
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(name, [item])
    assert caught.value.status() == f"StatusCode.{status}"


def test_a_key_is_needed_where_there_are_keys(models) -> None:
    key = ApiKey(name="a", sha256=hashlib.sha256(b"sk-1").hexdigest(), requests_per_minute=1)
    inputs = triton_inputs(models["small"], {"x": np.ones((1, 3), np.float32)})
    registry = open_models([str(fixture("small"))], threads=1)
    with (
        grpc_served(registry, ServeOptions(keys=(key,))) as address,
        client_of.InferenceServerClient(address) as client,
    ):
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="a key is needed"):
            client.infer("small", inputs)
        with grpc.insecure_channel(address) as channel:
            stream = channel.stream_stream(f"/{grpc_messages.SERVICE}/ModelStreamInfer")
            with pytest.raises(grpc.RpcError, match="a key is needed"):
                next(stream(iter(())))
        with pytest.raises(InferenceServerException, match="this key is not known"):
            client.infer("small", inputs, headers={"authorization": "Bearer sk-2"})
        client.infer("small", inputs, headers={"authorization": "Bearer sk-1"})
        with pytest.raises(InferenceServerException, match="1 requests a minute; come again"):
            client.infer("small", inputs, headers={"authorization": "Bearer sk-1"})


def test_a_certificate_is_used(tmp_path) -> None:
    certificate, key = self_signed(tmp_path)
    models = open_models([str(fixture("small"))], threads=1)
    tls = {"ssl": True, "root_certificates": str(certificate)}
    with (
        grpc_served(models, certificate=certificate, private_key=key) as address,
        client_of.InferenceServerClient(address, **tls) as client,
    ):
        assert client.is_server_ready()


def test_a_port_that_is_taken_is_said(address: str) -> None:
    registry = open_models([str(fixture("small"))], threads=1)
    app, port = create_app(registry), int(address.rpartition(":")[2])
    server = Server(app, grpc=GrpcServer(app.state.service, port=port))
    with (
        contextlib.closing(registry),
        contextlib.closing(bound_socket("127.0.0.1", 0)) as socket,
        pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} for gRPC"),
    ):
        server.run([socket])


def test_spoiled_messages_are_refused(address: str, models) -> None:
    chance = random.Random(5)
    ask = service_pb2.ModelInferRequest(model_name="small", id="1")
    ask.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    ask.outputs.add(name="y")
    ask.parameters["sequence_id"].int64_param = 0
    ask.raw_input_contents.append(np.ones(3, np.float32).tobytes())
    whole, seen = ask.SerializeToString(), set()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{grpc_messages.SERVICE}/ModelInfer")
        for _ in range(300):
            spoiled = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            try:
                call(bytes(spoiled[: chance.randint(1, len(whole))]))
                seen.add("OK")
            except grpc.RpcError as error:
                seen.add(error.code().name)
    assert "INVALID_ARGUMENT" in seen
    assert seen <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
