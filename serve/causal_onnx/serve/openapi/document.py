"""The document, and the path that answers it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from causal_onnx.runtime import __version__
from causal_onnx.serve.openai.answers import answer, error_answer
from causal_onnx.serve.openapi import inference, openai
from causal_onnx.serve.openapi.schemas import (
    Schema,
    json_answer,
    object_of,
    of_type,
    operation,
    text,
)
from causal_onnx.serve.service import Service, service_of
from causal_onnx.serve.web import answering

__all__ = ["PATH", "ROUTES", "document"]

PATH = "/openapi.json"


def document(service: Service) -> dict[str, Any]:
    """An OpenAPI 3.1 document of what this server takes now; it names the models it serves."""
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "causal-onnx",
            "version": __version__,
            "description": "Fields that are null count as left out; others than those here are "
            "refused.",
        },
        "paths": {**_operation_paths(), **openai.paths(service), **inference.paths(service)},
    }
    if service.options.keys:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found


def _operation_paths() -> dict[str, Schema]:
    status = object_of({"status": text()})
    is_ready = {200: json_answer(status, "It is."), 503: json_answer(status, "It is not.")}
    plain = {"description": "All metrics.", "content": {"text/plain": {"schema": text()}}}
    refused = {code: json_answer(openai.ERROR, openai.ERRORS[code]) for code in (401, 429)}

    def get(name: str, summary: str, answers: dict[int, Schema], *, is_open: bool) -> Schema:
        errors = {} if is_open else refused
        return {"get": operation(name, summary, answers=answers, errors=errors, is_open=is_open)}

    return {
        "/health": get("health", "Whether work is taken.", is_ready, is_open=True),
        "/health/live": get(
            "live", "Whether the process answers.", {200: is_ready[200]}, is_open=True
        ),
        "/health/ready": get("ready", "Whether work is taken.", is_ready, is_open=True),
        "/metrics": get("metrics", "For Prometheus.", {200: plain}, is_open=False),
        PATH: get(
            "openapi",
            "This document.",
            {200: json_answer(of_type("object"), "It.")},
            is_open=False,
        ),
    }


async def openapi(request: Request) -> Response:
    """The document."""
    return answer(document(service_of(request)))


ROUTES = [Route(PATH, answering(openapi, error_of=error_answer), methods=["GET"])]
