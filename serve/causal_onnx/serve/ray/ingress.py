"""What stands before the replicas: it passes requests on, and goes on where a replica is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from causal_onnx.serve.app import error_of
from causal_onnx.serve.errors import (
    BadRequestError,
    BusyError,
    RequestError,
    UnavailableError,
    no_such_model,
)
from causal_onnx.serve.openai.answers import DONE, answer, error_data, event
from causal_onnx.serve.ray.forwarded import AnswerPart, ForwardedRequest, forward
from causal_onnx.serve.web import read_body

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["Ingress", "Resumed"]

log = logging.getLogger(__name__)

COME_AGAIN = (BusyError.status, UnavailableError.status)
PAUSE_S = 0.2
"""Between two attempts: so long Ray needs to see that a replica is gone."""


class Ingress:
    """Passes requests on to replicas, and their answers back.

    A request whose replica is lost is given to another one. The same request gives the same
    tokens everywhere, so a stream goes on behind what the client has, and nothing comes twice.
    """

    def __init__(
        self,
        replicas: DeploymentHandle,
        *,
        models: Sequence[str],
        adapters: Sequence[str] = (),
        is_multiplexed: bool,
        prefix_characters: int,
        retry_s: float,
        max_body_bytes: int,
        body_timeout_s: float,
    ) -> None:
        """Take what Ray binds.

        Args:
            replicas: Of `ModelReplica`.
            models: The names of all models.
            adapters: Those of the adapters of the one model, if it has some.
            is_multiplexed: Whether replicas load models as they are asked for.
            prefix_characters: How much of a prompt the router is told.
            retry_s: How long a request is tried again after its replica was lost.
            max_body_bytes: The largest body of a request.
            body_timeout_s: How long a client may take to send one.
        """
        self._replicas, self._models = replicas, dict(zip(models, models, strict=True))
        # Whoever holds a model holds its adapters.
        self._models.update(dict.fromkeys(adapters, models[0]))
        self._is_multiplexed = is_multiplexed
        self._prefix_characters, self._retry_s = prefix_characters, retry_s
        self._most, self._body_timeout_s = max_body_bytes, body_timeout_s
        self._created = int(time.time())

    async def __call__(self, request: Request) -> Response:
        """Answer a request of HTTP."""
        try:
            asked = await self._read(request)
            if self._is_multiplexed and asked.model is None:
                return self._without_model(asked)
            return await self._answer(asked)
        except RequestError as error:
            return error_of(request.url.path, error)

    async def _read(self, request: Request) -> ForwardedRequest:
        path = request.url.path
        if path.startswith("/v2/repository/models/"):
            raise BadRequestError("models are loaded and unloaded by Ray: deploy anew")
        body = await read_body(request, most=self._most, timeout_s=self._body_timeout_s)
        whole = ForwardedRequest(
            method=request.method,
            path=path,
            query=request.url.query.encode(),
            headers=tuple(pair for pair in request.headers.raw if pair[0] != b"content-length"),
            body=body,
        )
        found = await asyncio.to_thread(forward, whole, prefix_characters=self._prefix_characters)
        if self._is_multiplexed and found.model is not None and found.model not in self._models:
            raise no_such_model(found.model[:60], self._models)
        return found

    def _without_model(self, request: ForwardedRequest) -> Response:
        """Where models are loaded as they are asked for: what is asked of none of them."""
        if request.path == "/v1/models":
            models = [
                {"id": name, "object": "model", "created": self._created, "owned_by": "causal-onnx"}
                | ({} if name == held else {"parent": held})
                for name, held in self._models.items()
            ]
            return answer({"object": "list", "data": models})
        if request.path.startswith(("/health", "/v2/health")):
            return answer({"status": "ready"})
        raise BadRequestError("the request names no model", param="model")

    async def _answer(self, request: ForwardedRequest) -> Response:
        parts = self._parts(request)
        head: AnswerPart | None = None
        bodies: list[bytes] = []
        async for part in parts:
            if part is None:
                head = None
                bodies.clear()
                continue
            if head is None:
                head = part
                if _is_stream(head):
                    return StreamingResponse(
                        _events(head, parts), status_code=head.status or 200, headers=_headers(head)
                    )
            bodies += part.bodies
        assert head is not None
        assert head.status is not None
        return Response(b"".join(bodies), status_code=head.status, headers=_headers(head))

    async def _parts(self, request: ForwardedRequest) -> AsyncGenerator[AnswerPart | None, None]:
        """The parts of an answer; None: what follows is a whole answer, from the beginning.

        Raises:
            UnavailableError: No replica could be had in time.
        """
        handle = self._replicas.options(
            stream=True,
            multiplexed_model_id=self._models[request.model or ""] if self._is_multiplexed else "",
        )
        was_lost, until = False, math.inf
        while True:
            stream, has_ended, why = handle.answer.remote(request), False, ""
            try:
                async for part in stream:
                    if was_lost and part.status in COME_AGAIN:  # those that are left are full
                        why = f"another one answered {part.status}"
                        break
                    until = math.inf
                    yield part
                else:
                    has_ended = True
                    return
            except (RayTaskError, TaskCancelledError):  # what our own code raised
                raise
            except RayError as error:
                why = str(error)
            finally:
                if not has_ended:
                    with contextlib.suppress(RayError):
                        stream.cancel()
            was_lost, until = True, min(until, time.monotonic() + self._retry_s)
            if time.monotonic() >= until:
                raise UnavailableError(
                    f"the model's replica was lost, and no other one came: {why}"
                )
            log.warning("a replica was lost, and the request is tried again: %s", why)
            yield None
            await asyncio.sleep(PAUSE_S)


def _is_stream(head: AnswerPart) -> bool:
    return _headers(head).get("content-type", "").startswith("text/event-stream")


def _headers(head: AnswerPart) -> dict[str, str]:
    """Without the length, which is that of the answer as it is put together here."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]
    return {name: value for name, value in pairs if name != "content-length"}


async def _events(
    first: AnswerPart, parts: AsyncGenerator[AnswerPart | None, None]
) -> AsyncIterator[bytes]:
    """The events of a stream, each once, from whichever replicas they come."""
    resumed = Resumed()
    async with contextlib.aclosing(parts):
        yield b"".join(resumed.pass_on(first.bodies))
        try:
            async for part in parts:
                if part is None:
                    resumed.begin_anew()
                    continue
                found = b"".join(resumed.pass_on(part.bodies))
                if found:
                    yield found
        except RequestError as error:
            yield event(error_data(error)) + DONE


class Resumed:
    """Of streams that say the same, lets through what was not let through before.

    Each token is an event of its own, and those of one continuation always come in the same order;
    only how continuations take turns may differ.
    """

    def __init__(self) -> None:
        self._passed: Counter[int | None] = Counter()
        """Of each continuation, how many events the client has."""
        self._to_skip: Counter[int | None] = Counter()
        self._head: dict[str, Any] = {}
        """What all events say, of the first stream."""
        self._is_first = True

    def begin_anew(self) -> None:
        """Say that what follows is another stream."""
        self._to_skip = self._passed.copy()
        self._is_first = False

    def pass_on(self, events: Sequence[bytes]) -> Iterator[bytes]:
        """The events that are new, under the name of the first stream."""
        for given in events:
            data = _data(given)
            if data is None or "error" in data:  # a comment, the end of all, or of this
                yield given
                continue
            key = _continuation(data)
            if self._to_skip[key] > 0:
                self._to_skip[key] -= 1
                continue
            self._passed[key] += 1
            if self._is_first:
                self._head = self._head or {
                    name: data[name] for name in ("id", "created") if name in data
                }
                yield given
            else:
                yield event({**data, **self._head})


def _data(given: bytes) -> dict[str, Any] | None:
    if not given.startswith(b"data: {"):
        return None
    found: dict[str, Any] = json.loads(given.removeprefix(b"data: "))
    return found


def _continuation(data: dict[str, Any]) -> int | None:
    choices = data.get("choices")
    return int(choices[0]["index"]) if choices else None
