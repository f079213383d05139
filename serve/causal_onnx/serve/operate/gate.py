"""What stands before all routes: keys, limits, request ids, and the log of requests."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from causal_onnx.serve.engine.generation import Generation
from causal_onnx.serve.errors import ForbiddenKeyError, RequestError
from causal_onnx.serve.keys import ApiKey, Quota, find_key
from causal_onnx.serve.tracing import RequestSpan, Tracing

__all__ = ["GENERATIONS", "MODEL", "Gate", "find_given_key", "log_request", "tokens_of"]

log = logging.getLogger("causal_onnx.serve.requests")

GENERATIONS = "causal_onnx.generations"
"""Where a request's scope holds what it had taken up."""

MODEL = "causal_onnx.model"
"""Where it holds the name of the model that was asked."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

OPEN = ("/", "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key: probes have none, and the page asks for one."""

UNLIMITED = ("/metrics", "/page/models")
"""Paths that need a key and use nothing of its limits: they say how the server is."""


class Gate:
    """An ASGI application before another one.

    Each answer has a request id, the client's own where it sent `X-Request-Id`. Each request is a
    line of JSON in the log `causal_onnx.serve.requests`, without anything of its texts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: tuple[ApiKey, ...],
        quotas: Mapping[str, Quota],
        tracing: Tracing | None,
        error_of: Callable[[str, RequestError], Response],
    ) -> None:
        """Stand before `app`.

        Args:
            app: What answers.
            keys: Those that are taken; none: everyone may ask.
            quotas: The name of each -> what was used of its limits, here and elsewhere.
            tracing: What makes a span of each request that asks for work; None: nothing does.
            error_of: Writes an error in the form of the protocol of a path.
        """
        self._app, self._keys, self._error_of = app, keys, error_of
        self._quotas, self._tracing = quotas, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        given = headers.get("x-request-id", "")
        identity = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        began, status, quota, name = time.monotonic(), 0, None, None
        generations: list[Generation] = []
        scope[GENERATIONS], scope[MODEL] = generations, None
        span = self._span(scope, headers)

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                pairs = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
                message = {**message, "headers": pairs}
            await send(message)

        try:
            try:
                if self._keys and scope["path"] not in OPEN:
                    key = find_given_key(self._keys, headers.get("authorization", ""))
                    name, wanted = key.name, self._quotas[key.name]
                    if scope["path"] not in UNLIMITED:
                        wanted.begin()
                        quota = wanted
            except RequestError as error:
                await self._error_of(scope["path"], error)(scope, receive, tagged)
            else:
                await self._app(scope, receive, tagged)
        finally:
            for item in generations:  # whatever ended the answer, nobody reads on
                if not item.is_done:
                    item.cancel()
            if quota is not None:
                quota.end(sum(tokens_of(item) for item in generations))
            log_request(
                scope["method"],
                scope["path"],
                identity=identity,
                name=name,
                status=status,
                seconds=time.monotonic() - began,
                generations=generations,
                span=span,
            )
            if span is not None:
                route = scope.get("route")
                span.end(
                    name=None if route is None else f"{scope['method']} {route.path}",
                    failed=status >= 500,
                    attributes={"http.response.status_code": status, "http.request.id": identity},
                    model=scope[MODEL],
                    generations=generations,
                )

    def _span(self, scope: Scope, headers: Mapping[str, str]) -> RequestSpan | None:
        """The span of a request for work; those that ask how the server is have none."""
        method, path = scope["method"], scope["path"]
        if self._tracing is None or path in (*OPEN, *UNLIMITED):
            return None
        attributes = {
            "http.request.method": method,
            "url.path": path,
            "url.scheme": scope["scheme"],
        }
        # By its method alone: paths are as many as clients like, until one is found to be served.
        return self._tracing.begin(method, headers, attributes)


def find_given_key(keys: tuple[ApiKey, ...], authorization: str) -> ApiKey:
    """The key in a header `Authorization`.

    Raises:
        ForbiddenKeyError: There is none, or it is not known.
    """
    kind, _, given = authorization.partition(" ")
    if kind.lower() != "bearer" or not given:
        raise ForbiddenKeyError(
            "a key is needed: the header Authorization: Bearer KEY", code="missing_api_key"
        )
    key = find_key(keys, given.strip())
    if key is None:
        raise ForbiddenKeyError("this key is not known", code="invalid_api_key")
    return key


def tokens_of(generation: Generation) -> int:
    """How many tokens a request has used of its key's."""
    return generation.written_tokens + (
        len(generation.prompt) if generation.times.started is not None else 0
    )


def log_request(
    method: str,
    path: str,
    *,
    identity: str,
    name: str | None,
    status: int,
    seconds: float,
    generations: list[Generation],
    span: RequestSpan | None = None,
) -> None:
    """Write the line of a request."""
    if not log.isEnabledFor(logging.INFO):
        return
    line: dict[str, Any] = {
        "request": identity,
        "key": name,
        "method": method,
        "path": path,
        "status": status,
        "ms": round(seconds * 1000, 1),
    }
    if span is not None:
        line["trace"] = span.trace_id
    if generations:
        line["prompt_tokens"] = sum(len(item.prompt) for item in generations)
        line["cached_tokens"] = sum(item.cached_tokens for item in generations)
        line["generation_tokens"] = sum(len(s.ids) for item in generations for s in item.sequences)
        line["finish"] = sorted({s.finish or "running" for g in generations for s in g.sequences})
    log.info("%s", json.dumps(line))
