"""Paths of the Open Inference Protocol -> what answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from causal_onnx.serve.errors import BadRequestError, NotServedError
from causal_onnx.serve.inference_protocol.answers import answer, error_answer
from causal_onnx.serve.inference_protocol.descriptions import (
    described_model,
    described_server,
    model_config,
)
from causal_onnx.serve.inference_protocol.generate import generate, generate_stream
from causal_onnx.serve.inference_protocol.http_tensors import (
    decompressed,
    parse_object,
    read_tensors,
    write_tensors,
)
from causal_onnx.serve.inference_protocol.repository import index, load_model, unload_model
from causal_onnx.serve.inference_protocol.tensors import find_model, infer
from causal_onnx.serve.operate.gate import MODEL
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.service import service_of
from causal_onnx.serve.web import answering, read_body, while_connected

__all__ = ["PREFIX", "ROUTES"]

PREFIX = "/v2"
"""What paths of this protocol begin with: there, errors come in its form."""

READ_ASIDE = 1 << 16
"""Bytes that take a thread of their own to be read, so that others are answered meanwhile."""

T = TypeVar("T")


async def server(request: Request) -> Response:
    """What the server is."""
    return answer(described_server())


async def live(request: Request) -> Response:
    """200 as long as the process answers."""
    return answer({"live": True})


async def ready(request: Request) -> Response:
    """200 where work is taken."""
    is_ready = service_of(request).is_ready
    return answer({"ready": is_ready}, status=200 if is_ready else 503)


def _model_of(request: Request) -> ServedModel:
    path = request.path_params
    served = find_model(service_of(request), path["model"], path.get("version"))
    request.scope[MODEL] = served.name
    return served


async def model(request: Request) -> Response:
    """What a model takes and gives."""
    return answer(described_model(_model_of(request)))


async def config(request: Request) -> Response:
    """The same in the form of Triton's configuration."""
    return answer(model_config(_model_of(request)))


async def model_ready(request: Request) -> Response:
    """200 where a model takes work."""
    served = _model_of(request)
    is_ready = not service_of(request).is_draining and served.is_open
    return answer({"name": served.name, "ready": is_ready}, status=200 if is_ready else 503)


async def model_infer(request: Request) -> Response:
    """Tensors in, tensors out."""
    service, served = service_of(request), _model_of(request)
    options, headers = service.options, request.headers
    most = options.max_body_bytes
    body = await read_body(request, most=most, timeout_s=options.body_timeout_s)
    asked, all_binary = await _aside(
        lambda: read_tensors(served, body, headers, most=most),
        len(body) + most * ("content-encoding" in headers),
    )
    found = await while_connected(request, infer(service, served, asked))
    return await _aside(
        lambda: write_tensors(served, found, headers, all_binary=all_binary),
        sum(array.nbytes for _, array, _ in found.outputs),
    )


async def repository_index(request: Request) -> Response:
    """All models, with their states."""
    data = await _object(request)
    only_ready = data.pop("ready", False)
    if type(only_ready) is not bool:
        raise BadRequestError("ready must be true or false", param="ready")
    _check_end(data)
    return answer(index(service_of(request), only_ready=only_ready))


async def repository_change(request: Request) -> Response:
    """Load a model, or unload it."""
    data, path = await _object(request), request.path_params
    parameters = data.pop("parameters", None)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise BadRequestError("parameters must be an object", param="parameters")
    _check_end(data)
    change = {"load": load_model, "unload": unload_model}.get(path["change"])
    if change is None:
        raise NotServedError(f"a model is loaded or unloaded, got {path['change'][:60]!r}")
    await change(service_of(request), path["model"], parameters)
    return answer({})


async def _object(request: Request) -> dict[str, Any]:
    options = service_of(request).options
    most = options.max_body_bytes
    body = await read_body(request, most=most, timeout_s=options.body_timeout_s)
    return parse_object(decompressed(body, request.headers, most=most), most=most)


def _check_end(data: dict[str, Any]) -> None:
    for left in data:
        raise BadRequestError(f"{left[:60]} is not supported; leave it out")


async def _aside(work: Callable[[], T], size_bytes: int) -> T:
    return work() if size_bytes < READ_ASIDE else await asyncio.to_thread(work)


BASES = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

ROUTES = [
    Route(path, answering(handler, error_of=error_answer), methods=[method])
    for method, path, handler in (
        ("GET", "/v2", server),
        ("POST", "/v2/repository/index", repository_index),
        ("POST", "/v2/repository/models/{model}/{change}", repository_change),
        ("GET", "/v2/health/live", live),
        ("GET", "/v2/health/ready", ready),
        *(("GET", base, model) for base in BASES),
        *(("GET", f"{base}/config", config) for base in BASES),
        *(("GET", f"{base}/ready", model_ready) for base in BASES),
        *(("POST", f"{base}/infer", model_infer) for base in BASES),
        *(("POST", f"{base}/generate", generate) for base in BASES),
        *(("POST", f"{base}/generate_stream", generate_stream) for base in BASES),
    )
]
