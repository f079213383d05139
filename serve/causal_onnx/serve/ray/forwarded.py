"""A request on its way from the ingress to a replica, and the parts of its answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from causal_onnx.runtime.json_text import read_json

__all__ = ["AnswerPart", "ForwardedRequest", "forward"]

SEEDED = ("/v1/completions", "/v1/chat/completions")
GENERATE = ("/generate", "/generate_stream")
IDS_PER_CHARACTER = 4
"""Characters that stand for one id, where a prompt is ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardedRequest:
    """A request of HTTP, read whole."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    model: str | None = None
    """The model that it names, as far as that could be read."""
    prefix: str | None = None
    """How its prompt begins, for the router."""


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """What came of an answer since the last part."""

    status: int | None
    """With the first one alone."""
    headers: tuple[tuple[bytes, bytes], ...]
    bodies: tuple[bytes, ...]
    """As the application sent them: of a stream, each is an event."""


def forward(request: ForwardedRequest, *, prefix_characters: int) -> ForwardedRequest:
    """Read which model a request is for and how its prompt begins, and draw its seed.

    With a seed, a request becomes the same wherever it is answered, so that another replica can
    go on with it. What cannot be read is passed on as it is, for the replica to refuse.

    Args:
        request: As it came.
        prefix_characters: How much of a prompt the router is told.
    """
    model = _model_of_path(request.path)
    data = _object(request.body) if request.method == "POST" else None
    if data is None:
        return replace(request, model=model)
    named = data.get("model")
    body = request.body
    if _is_seeded(request.path) and data and not _has_seed(data):
        seed, parameters = secrets.randbits(32), data.get("parameters")
        if isinstance(parameters, dict) and "seed" in parameters:  # null; twice is refused
            body = json.dumps({**data, "parameters": {**parameters, "seed": seed}}).encode()
        else:
            # Put at the end, where it counts more than one that is null, and all else stays as the
            # client wrote it.
            body = b'%b,"seed":%d}' % (body.rstrip()[:-1], seed)
    return replace(
        request,
        model=model or (named if isinstance(named, str) else None),
        prefix=_prefix(data, prefix_characters),
        body=body,
    )


def _model_of_path(path: str) -> str | None:
    for start in ("/v2/models/", "/v1/models/"):
        if path.startswith(start):
            return path.removeprefix(start).partition("/")[0] or None
    return None


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        data = read_json(body)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _is_seeded(path: str) -> bool:
    return path in SEEDED or (path.startswith("/v2/models/") and path.endswith(GENERATE))


def _has_seed(data: Mapping[str, Any]) -> bool:
    parameters = data.get("parameters")
    given = parameters.get("seed") if isinstance(parameters, dict) else None
    return data.get("seed") is not None or given is not None


def _prefix(data: Mapping[str, Any], characters: int) -> str | None:
    """The beginning of a prompt, of whichever form it is."""
    for name in ("prompt", "messages", "text_input", "input_ids", "input", "content"):
        value = data.get(name)
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            value = value[0]  # the first of many prompts
        if isinstance(value, str):
            return value[:characters]
        if isinstance(value, list) and value:
            if isinstance(value[0], dict):
                return json.dumps(value)[:characters]
            return json.dumps(value[: max(1, characters // IDS_PER_CHARACTER)])
    return None
