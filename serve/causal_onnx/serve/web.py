"""What every protocol here does with HTTP: bodies within limits, streams of events, errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from causal_onnx.runtime.errors import RunError
from causal_onnx.runtime.json_text import read_json
from causal_onnx.serve.errors import BadRequestError, RequestError, TooLargeError

__all__ = ["EventStream", "Handler", "answering", "read_body", "read_object", "while_connected"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

CLIENT_GONE = 499
"""As nginx writes it down; nobody receives it."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def answering(handler: Handler, *, error_of: Callable[[RequestError], Response]) -> Handler:
    """A handler whose errors are answers in the form of its protocol.

    Args:
        handler: It may raise `RequestError`, and the `ValueError` of the runtime for what a client
            asks for.
        error_of: Writes an error.
    """

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        except RequestError as error:
            return error_of(error)
        except (ValueError, ImportError) as error:
            log.info("a request to %s was refused", request.url.path, exc_info=True)
            return error_of(BadRequestError(str(error)))
        except RunError as error:
            log.exception("a request to %s failed", request.url.path)
            return error_of(RequestError(str(error)))
        except Exception:
            log.exception("a request to %s failed", request.url.path)
            return error_of(RequestError("the server failed; its log says more"))

    return answer


async def read_body(request: Request, *, most: int, timeout_s: float) -> bytes:
    """The body of a request.

    Raises:
        TooLargeError: It is longer than `most` bytes.
        BadRequestError: It does not come within the time.
    """
    parts, size = [], 0
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise TooLargeError(f"the body has {stated} bytes, and this server accepts {most}")
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise TooLargeError(
                        f"the body has more than {most} bytes, the limit of this server"
                    )
                parts.append(part)
    except TimeoutError:
        raise BadRequestError(f"the body did not arrive within {timeout_s:g} s") from None
    return b"".join(parts)


async def read_object(request: Request, *, most: int, timeout_s: float) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        TooLargeError: It is longer than `most` bytes.
        BadRequestError: It is something else.
    """
    body = await read_body(request, most=most, timeout_s=timeout_s)
    try:
        data = read_json(body, max_bytes=most)
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON that can be read: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError(f"the body must be a JSON object, got {type(data).__name__}")
    return data


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """Wait for an answer as long as the client does; its body must have been read.

    Raises:
        ClientGoneError: The client has gone; the answer was cancelled.
    """
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: lines of data as they come, and comments while there are none."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], *, ping_s: float, reader_timeout_s: float = 60.0
    ) -> None:
        """Take what to send.

        Args:
            events: Whole events, `data: ...` and an empty line. Where the client goes, it is
                closed.
            ping_s: Seconds without an event until a comment is sent.
            reader_timeout_s: Seconds that a client may leave unread what was sent.
        """
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._ping_s, self._timeout_s = events, ping_s, reader_timeout_s
        self._sent = 0.0
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._sent = time.monotonic()
        events = asyncio.ensure_future(self._send_events(send))
        # Either ends it: the client goes, or reads nothing.
        ends = [
            asyncio.ensure_future(_disconnect(receive)),
            asyncio.ensure_future(self._watch(send)),
        ]
        try:
            await asyncio.wait([events, *ends], return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                events.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in (events, *ends):
                task.cancel()
            await asyncio.gather(events, *ends, return_exceptions=True)

    async def _send_events(self, send: Send) -> None:
        events = self._events
        try:
            async for event in events:
                await self._send(send, event)
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def _send(self, send: Send, event: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": event, "more_body": True})
        self._sent, self._is_sending = time.monotonic(), False

    async def _watch(self, send: Send) -> None:
        """Send comments where nothing was sent for a while; end where the client reads nothing."""
        step = min(self._ping_s, self._timeout_s)
        while True:
            silent = time.monotonic() - self._sent
            await asyncio.sleep(max(step - silent, step / 4))
            silent = time.monotonic() - self._sent
            if self._is_sending and silent >= self._timeout_s:
                log.info("a client left a stream unread for %g s", self._timeout_s)
                return
            if not self._is_sending and silent >= self._ping_s:
                await self._send(send, b": ping\n\n")
