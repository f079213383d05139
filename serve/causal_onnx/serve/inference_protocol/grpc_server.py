"""The Open Inference Protocol over gRPC, on the event loop of the server that has it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import RunError
from causal_onnx.runtime.text.extras import import_extra
from causal_onnx.serve.engine.generation import Generation
from causal_onnx.serve.errors import BadRequestError, RequestError
from causal_onnx.serve.inference_protocol.descriptions import (
    described_model,
    described_server,
    model_config,
)
from causal_onnx.serve.inference_protocol.generate import prepare_text
from causal_onnx.serve.inference_protocol.grpc_messages import SERVICE, message_class
from causal_onnx.serve.inference_protocol.grpc_tensors import (
    is_text_request,
    read_tensors,
    read_text,
    text_message,
    write_tensors,
)
from causal_onnx.serve.inference_protocol.repository import index, load_model, unload_model
from causal_onnx.serve.inference_protocol.tensors import find_model, infer
from causal_onnx.serve.keys import ApiKey, Quota
from causal_onnx.serve.operate.gate import find_given_key, log_request, tokens_of
from causal_onnx.serve.requests.running import engine_of, prepare_aside
from causal_onnx.serve.service import Service
from causal_onnx.serve.tracing import RequestSpan

__all__ = ["GrpcServer"]

log = logging.getLogger(__name__)

OPEN = ("ServerLive", "ServerReady")
"""What needs no key: probes have none."""

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
"""Statuses of HTTP -> gRPC's."""

MOST_MESSAGE = 2000
"""Characters of an error: it travels in a header, which has a limit."""
MOST_CALLS = 1024
"""At the same time; others are refused."""


@dataclass
class _Call:
    """One request, for its key and the log."""

    name: str
    key: str | None
    quota: Quota | None
    span: RequestSpan | None = None
    model: str | None = None
    began: float = field(default_factory=time.monotonic)
    status: int = 200
    generations: list[Generation] = field(default_factory=list)

    def end(self) -> None:
        if self.quota is not None:
            self.quota.end(sum(map(tokens_of, self.generations)))
        log_request(
            "gRPC",
            f"/{SERVICE}/{self.name}",
            identity=secrets.token_hex(12),
            name=self.key,
            status=self.status,
            seconds=time.monotonic() - self.began,
            generations=self.generations,
            span=self.span,
        )
        if self.span is not None:
            self.span.end(
                name=None,
                failed=self.status >= 500,
                attributes={},
                model=self.model,
                generations=self.generations,
            )


class GrpcServer:
    """Serves the Open Inference Protocol over gRPC (GRPCInferenceService).

    Clients send a key as the metadata `authorization: Bearer KEY`; it shares its limits with HTTP.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int,
        certificate: Path | None = None,
        private_key: Path | None = None,
        on_start: Callable[[int], None] = lambda port: None,
    ) -> None:
        """Take what is served.

        Args:
            service: The state of the server, `create_app(...).state.service`.
            host: The address to listen on.
            port: Its port; 0: a free one.
            certificate: As for `Server`.
            private_key: As for `Server`.
            on_start: Called with the port, once it listens.

        Raises:
            ImportError: grpcio or protobuf is not installed.
        """
        self._grpc = import_extra("grpc", extra="grpc", purpose="serving over gRPC")
        message_class("ModelInferRequest")  # an old protobuf is found now
        self._service, self._host, self._port = service, host, port
        self._certificate, self._private_key = certificate, private_key
        self._on_start = on_start
        self._server: Any = None

    @property
    def port(self) -> int:
        """The port; if a free one was asked for, the real one once the server listens."""
        return self._port

    async def start(self) -> None:
        """Listen, in this event loop.

        Raises:
            OSError: The address is taken, or not of this machine.
        """
        grpc, calls = self._grpc, self._unary_calls()
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._service.options.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # otherwise two servers may share a port unnoticed
            ],
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        # Messages come as bytes, so that one that cannot be read is the client's error.
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, handler))
            for name, handler in calls.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._port = self._bind(server, f"{host}:{self._port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{self._port} for gRPC: {error}") from error
        await server.start()
        self._server = server
        self._on_start(self._port)

    def _bind(self, server: Any, address: str) -> int:
        if self._certificate is None:
            return int(server.add_insecure_port(address))
        chain = self._certificate.read_bytes()
        key = chain if self._private_key is None else self._private_key.read_bytes()
        credentials = self._grpc.ssl_server_credentials([(key, chain)])
        return int(server.add_secure_port(address, credentials))

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and let those that run end within a time."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    # What stands before all calls.

    def _begin(self, name: str, context: Any) -> _Call:
        options, span = self._service.options, self._span(name, context)
        if not options.keys or name in OPEN:
            return _Call(name, None, None, span)
        try:
            key = self._key(context)
            quota = self._service.quotas[key.name]
            quota.begin()
        except RequestError as error:
            call = _Call(name, None, None, span, status=error.status)
            call.end()
            raise
        return _Call(name, key.name, quota, span)

    def _span(self, name: str, context: Any) -> RequestSpan | None:
        if self._service.tracing is None or name in OPEN:
            return None
        attributes = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": name}
        return self._service.tracing.begin(f"{SERVICE}/{name}", _metadata(context), attributes)

    def _key(self, context: Any) -> ApiKey:
        given = _metadata(context).get("authorization", "")
        return find_given_key(self._service.options.keys, given)

    async def _abort(self, context: Any, error: RequestError) -> None:
        code = getattr(self._grpc.StatusCode, CODES.get(error.status, "INTERNAL"))
        await context.abort(code, str(error)[:MOST_MESSAGE])

    def _unary(
        self, name: str, handler: Callable[[Any, _Call], Awaitable[Any]]
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        request_class = message_class(f"{name}Request")

        async def answer(raw: bytes, context: Any) -> bytes:
            try:
                call = self._begin(name, context)
                try:
                    found = await handler(_parsed(request_class, raw), call)
                    content: bytes = found.SerializeToString()
                    return content
                except Exception as error:
                    failure = _known(error, name)
                    call.status = failure.status
                    raise failure from error
                finally:
                    call.end()
            except RequestError as error:
                refused = error
            await self._abort(context, refused)
            raise AssertionError("abort raises")

        return answer

    async def _stream(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        """Requests one after the other, each with as many answers as it has; errors are answers."""
        request_class = message_class("ModelInferRequest")
        response_class = message_class("ModelStreamInferResponse")
        if self._service.options.keys:
            try:  # a stream that says nothing is open, too
                self._key(context)
            except RequestError as error:
                await self._abort(context, error)
        async for raw in requests:
            identity = ""
            try:
                call = self._begin("ModelStreamInfer", context)
                try:
                    message = _parsed(request_class, raw)
                    identity = message.id
                    async for found in self._answers(message, call):
                        yield response_class(infer_response=found).SerializeToString()
                except Exception as error:
                    failure = _known(error, "ModelStreamInfer")
                    call.status = failure.status
                    raise failure from error
                finally:
                    call.end()
            except RequestError as error:
                failed = response_class(error_message=str(error)[:MOST_MESSAGE])
                failed.infer_response.id = identity
                failed.infer_response.parameters["triton_final_response"].bool_param = True
                yield failed.SerializeToString()

    async def _answers(self, message: Any, call: _Call) -> AsyncIterator[Any]:
        served = find_model(self._service, message.model_name, message.model_version)
        call.model = served.name
        if not is_text_request(message):
            tensors = await infer(self._service, served, read_tensors(served, message))
            yield write_tensors(served, tensors, more={"triton_final_response": True})
            return
        self._service.check_open()
        data = read_text(message)
        pieces = await prepare_aside(lambda: prepare_text(served, data))
        engine_of(served).enqueue([pieces.generation])
        call.generations.append(pieces.generation)
        with pieces.generation:
            async for part in pieces.parts():
                yield text_message(part)

    # The calls.

    def _unary_calls(self) -> dict[str, Callable[[Any, _Call], Awaitable[Any]]]:
        return {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _live(self, message: Any, call: _Call) -> Any:
        return message_class("ServerLiveResponse")(live=True)

    async def _ready(self, message: Any, call: _Call) -> Any:
        return message_class("ServerReadyResponse")(ready=self._service.is_ready)

    async def _server_metadata(self, message: Any, call: _Call) -> Any:
        return message_class("ServerMetadataResponse")(**described_server())

    async def _model_ready(self, message: Any, call: _Call) -> Any:
        served = find_model(self._service, message.name, message.version)
        is_ready = not self._service.is_draining and served.is_open
        return message_class("ModelReadyResponse")(ready=is_ready)

    async def _model_metadata(self, message: Any, call: _Call) -> Any:
        served = find_model(self._service, message.name, message.version)
        return message_class("ModelMetadataResponse")(**described_model(served))

    async def _model_config(self, message: Any, call: _Call) -> Any:
        served = find_model(self._service, message.name, message.version)
        return message_class("ModelConfigResponse")(config=model_config(served))

    async def _infer(self, message: Any, call: _Call) -> Any:
        served = find_model(self._service, message.model_name, message.model_version)
        call.model = served.name
        tensors = await infer(self._service, served, read_tensors(served, message))
        return write_tensors(served, tensors)

    async def _index(self, message: Any, call: _Call) -> Any:
        found = index(self._service, only_ready=message.ready)
        return message_class("RepositoryIndexResponse")(models=found)

    async def _load(self, message: Any, call: _Call) -> Any:
        await load_model(self._service, message.model_name, message.parameters)
        return message_class("RepositoryModelLoadResponse")()

    async def _unload(self, message: Any, call: _Call) -> Any:
        await unload_model(self._service, message.model_name, message.parameters)
        return message_class("RepositoryModelUnloadResponse")()


def _metadata(context: Any) -> dict[str, str]:
    """What came beside a message, as far as it is text."""
    pairs = context.invocation_metadata() or ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def _parsed(request_class: Any, raw: bytes) -> Any:
    try:
        return request_class.FromString(raw)
    except Exception as error:  # protobuf's own, which is not imported here
        raise BadRequestError(f"the message cannot be read: {error}") from error


def _known(error: Exception, name: str) -> RequestError:
    """An error in our words: what a client asks for is its own, all else is in the log."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError | ImportError):
        return BadRequestError(str(error))
    log.error("a call of %s failed", name, exc_info=error)
    return RequestError(
        str(error) if isinstance(error, RunError) else "the server failed; its log says more"
    )
