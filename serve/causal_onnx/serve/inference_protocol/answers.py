"""Answers in this protocol's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from causal_onnx.serve.errors import RequestError

__all__ = ["answer", "error_answer", "event", "json_bytes"]


def json_bytes(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON without spaces."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # What clients send, and errors repeat, may hold halves of characters.
    return text.encode("utf-8", "replace")


def answer(data: Mapping[str, Any] | Sequence[Any], *, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json_bytes(data), status_code=status, media_type="application/json")


def event(data: Mapping[str, Any]) -> bytes:
    """An event of a stream."""
    return b"data: " + json_bytes(data) + b"\n\n"


def error_answer(error: RequestError) -> Response:
    """An error as an answer."""
    response = answer({"error": str(error)}, status=error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
