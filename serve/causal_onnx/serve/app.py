"""The web application: models in, an ASGI app out, for uvicorn and whatever else runs such."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler, Lifespan

from causal_onnx.runtime import Model
from causal_onnx.serve.errors import NotServedError, RequestError
from causal_onnx.serve.inference_protocol import answers as inference_answers
from causal_onnx.serve.inference_protocol import routes as inference_protocol
from causal_onnx.serve.openai import routes as openai
from causal_onnx.serve.openai.answers import error_answer
from causal_onnx.serve.openapi import document
from causal_onnx.serve.operate import health, metrics
from causal_onnx.serve.operate.gate import Gate
from causal_onnx.serve.options import ServeOptions
from causal_onnx.serve.page import routes as page
from causal_onnx.serve.registry import Registry, ServedModel
from causal_onnx.serve.service import Service

__all__ = ["create_app", "error_of"]


def create_app(
    models: Registry | Mapping[str, Model], options: ServeOptions | None = None
) -> Starlette:
    """Make the ASGI application that serves models.

    Args:
        models: A registry, which its maker closes; or loaded models by name, whose engines end
            with the application (at the ASGI shutdown event).
        options: Limits, keys and what else the application offers; None: the defaults.

    Returns:
        An ASGI application; `app.state.service` is the `Service` that its routes share.

    Raises:
        ValueError: A name contains characters that a path cannot have.
    """
    options = options or ServeOptions()
    lifespan = None
    if not isinstance(models, Registry):
        models = Registry([ServedModel.of(name, model) for name, model in models.items()])
        lifespan = _closing(models, drain_s=options.drain_s)
    service = Service(models, options)
    middleware = [
        Middleware(
            Gate,
            keys=options.keys,
            quotas=service.quotas,
            tracing=service.tracing,
            error_of=error_of,
        ),
    ]
    if options.cors_origins:
        middleware.insert(
            0,  # a page asks first whether it may ask, without a key
            Middleware(
                CORSMiddleware,
                allow_origins=list(options.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            ),
        )
    routes = [
        *health.ROUTES,
        *metrics.ROUTES,
        *document.ROUTES,
        *openai.ROUTES,
        *inference_protocol.ROUTES,
    ]
    if options.page:
        routes += page.ROUTES
    app = Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: _as_exception_handler()},
    )
    app.state.service = service
    return app


def _closing(models: Registry, *, drain_s: float) -> Lifespan[Starlette]:
    """Let the engines of models end with an application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(models.close, drain_s=drain_s)

    return lifespan


def error_of(path: str, error: RequestError) -> Response:
    """Returns an error in the form of the protocol that the path belongs to."""
    if path == inference_protocol.PREFIX or path.startswith(f"{inference_protocol.PREFIX}/"):
        return inference_answers.error_answer(error)
    return error_answer(error)


def _as_exception_handler() -> ExceptionHandler:
    """What Starlette itself refuses: unknown paths, and methods that a path does not take."""

    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        known: RequestError
        if error.status_code == NotServedError.status:
            known = NotServedError(f"there is no {what} here", code="unknown_url")
        else:
            known = RequestError(f"{what}: {error.detail}")
            known.status = error.status_code
        response = error_of(request.url.path, known)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    return handler
