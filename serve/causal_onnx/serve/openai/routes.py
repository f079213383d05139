"""Paths of OpenAI's API -> what answers them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from causal_onnx.serve.openai.answers import answer, error_answer
from causal_onnx.serve.openai.chat import chat_completions
from causal_onnx.serve.openai.completions import completions
from causal_onnx.serve.openai.embeddings import embeddings
from causal_onnx.serve.openai.texts import apply_template, detokenize, tokenize
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.service import service_of
from causal_onnx.serve.web import answering

__all__ = ["PREFIX", "ROUTES"]

PREFIX = "/v1/"
"""What paths of this protocol begin with: there, errors come in its form."""


async def list_models(request: Request) -> Response:
    """All models."""
    models = service_of(request).models
    return answer({"object": "list", "data": [_described(item) for item in models.values()]})


async def one_model(request: Request) -> Response:
    """One of them."""
    return answer(_described(service_of(request).models.find(request.path_params["name"])))


def _described(served: ServedModel) -> dict[str, object]:
    found: dict[str, object] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "causal-onnx",
    }
    if served.engine is not None:
        found["max_model_len"] = served.engine.context
    if served.parent is not None:
        found["parent"] = served.parent
    return found


ROUTES = [
    Route(path, answering(handler, error_of=error_answer), methods=[method])
    for method, path, handler in (
        ("GET", "/v1/models", list_models),
        ("GET", "/v1/models/{name}", one_model),
        ("POST", "/v1/completions", completions),
        ("POST", "/v1/chat/completions", chat_completions),
        ("POST", "/v1/embeddings", embeddings),
        ("POST", "/tokenize", tokenize),
        ("POST", "/detokenize", detokenize),
        ("POST", "/apply-template", apply_template),
    )
]
