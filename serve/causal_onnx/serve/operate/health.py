"""Whether the server lives, and whether it takes work."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from causal_onnx.serve.service import service_of

__all__ = ["ROUTES"]


async def live(request: Request) -> Response:
    """200 as long as the process answers."""
    return JSONResponse({"status": "live"})


async def ready(request: Request) -> Response:
    """200 where work is taken, 503 while the server drains or a model has failed."""
    is_ready = service_of(request).is_ready
    return JSONResponse(
        {"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503
    )


async def health(request: Request) -> Response:
    """The same as clients of llama.cpp ask it."""
    is_ready = service_of(request).is_ready
    return JSONResponse(
        {"status": "ok" if is_ready else "unavailable"}, status_code=200 if is_ready else 503
    )


ROUTES = [
    Route("/health/live", live),
    Route("/health/ready", ready),
    Route("/health", health),
]
