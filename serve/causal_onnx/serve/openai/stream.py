"""Answers that come as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime.errors import CausalOnnxError
from causal_onnx.serve.errors import BadRequestError, RequestError
from causal_onnx.serve.openai.answers import DONE, error_data, event
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.service import Service
from causal_onnx.serve.web import EventStream

__all__ = ["Streaming", "event_stream", "read_streaming"]


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a request says of streaming."""

    is_wanted: bool
    with_usage: bool
    """Whether the last event tells how many tokens there were."""


def read_streaming(fields: Fields) -> Streaming:
    """Read `stream` and `stream_options`.

    Raises:
        BadRequestError: One does not fit.
    """
    is_wanted = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None and not is_wanted:
        raise fields.error("stream_options", "is for a stream: say stream=true")
    inner = Fields(options or {}, where="stream_options.")
    found = Streaming(is_wanted, inner.flag("include_usage"))
    inner.end({"include_obfuscation": "events are not padded"})
    return found


def event_stream(events: AsyncIterator[dict[str, Any]], *, service: Service) -> EventStream:
    """An answer of these events; what goes wrong meanwhile is an event too."""
    options = service.options
    return EventStream(
        _written(events), ping_s=options.ping_s, reader_timeout_s=options.reader_timeout_s
    )


async def _written(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for data in events:
            yield event(data)
    except (CausalOnnxError, ValueError) as error:
        known = error if isinstance(error, RequestError) else BadRequestError(str(error))
        yield event(error_data(known))
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
    yield DONE
