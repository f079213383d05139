"""Answers in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from causal_onnx.serve.engine.generation import Generation
from causal_onnx.serve.errors import RequestError

__all__ = ["DONE", "answer", "error_answer", "error_data", "event", "usage_of"]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

DONE = b"data: [DONE]\n\n"


def _bytes(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # What clients send, and errors repeat, may hold halves of characters.
    return text.encode("utf-8", "replace")


def answer(data: Mapping[str, Any], *, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(_bytes(data), status_code=status, media_type="application/json")


def event(data: Mapping[str, Any]) -> bytes:
    """An event of a stream."""
    return b"data: " + _bytes(data) + b"\n\n"


def error_data(error: RequestError) -> dict[str, Any]:
    """An error as an object."""
    return {
        "error": {
            "message": str(error),
            "type": TYPES.get(error.status, "server_error"),
            "param": error.param,
            "code": error.code,
        }
    }


def error_answer(error: RequestError) -> Response:
    """An error as an answer."""
    response = answer(error_data(error), status=error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


def usage_of(generations: Sequence[Generation]) -> dict[str, Any]:
    """How many tokens were read and written, and how many of a prediction came true."""
    prompt = sum(len(item.prompt) for item in generations)
    written = sum(item.written_tokens for item in generations)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(i.cached_tokens for i in generations)},
    }
    if any(item.prediction for item in generations):
        names = "accepted_prediction_tokens", "rejected_prediction_tokens"
        usage["completion_tokens_details"] = {
            name: sum(getattr(item, name) for item in generations) for name in names
        }
    return usage
