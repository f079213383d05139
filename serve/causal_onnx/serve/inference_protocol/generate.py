"""`generate` and `generate_stream`: a text in, a text out, as Triton's extension has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from causal_onnx.runtime.errors import CausalOnnxError
from causal_onnx.serve.engine.generation import Generation, Token
from causal_onnx.serve.errors import BadRequestError, RequestError
from causal_onnx.serve.inference_protocol.answers import answer, event
from causal_onnx.serve.inference_protocol.http_tensors import decompressed, parse_object
from causal_onnx.serve.inference_protocol.tensors import VERSION, find_model
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.requests.running import FINISH, arrivals, engine_of, prepare_aside, take_up
from causal_onnx.serve.requests.sampling import read_choosing
from causal_onnx.serve.service import service_of
from causal_onnx.serve.web import EventStream, read_body, while_connected

__all__ = ["Pieces", "generate", "generate_stream", "prepare_text"]

NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A request that is continued, and how its answer is written."""

    served: ServedModel
    generation: Generation
    head: Mapping[str, Any]
    with_ids: bool
    """The prompt came as ids, or nothing here turns ids into text."""

    def write(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """What these tokens add."""
        found: dict[str, Any] = {**self.head}
        if self.with_ids:
            found["output_ids"] = [token.score.id for token in tokens]
        else:
            found["text_output"] = "".join(token.text or "" for token in tokens)
        finish = tokens[-1].finish if tokens else None
        if finish is not None:
            found["finish_reason"] = FINISH.get(finish, finish)
        return found

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """What comes, piece by piece; nothing but the last may be empty."""
        async for _, tokens in arrivals([self.generation]):
            part = self.write(tokens)
            if part.get("text_output") or "output_ids" in part or "finish_reason" in part:
                yield part

    async def whole(self) -> dict[str, Any]:
        """All of it."""
        return self.write([t async for _, tokens in arrivals([self.generation]) for t in tokens])


def prepare_text(served: ServedModel, data: Mapping[str, Any]) -> Pieces:
    """Read the fields of a request: `text_input` or `input_ids`, and how tokens are chosen.

    The latter may stand in `parameters` or beside it.

    Raises:
        BadRequestError: A field does not fit, or is not known.
        ValueError: The model cannot do it.
    """
    fields, engine = dict(data), engine_of(served)
    parameters = fields.pop("parameters", None)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise BadRequestError("parameters must be an object", param="parameters")
    if twice := parameters.keys() & fields.keys():
        raise BadRequestError(f"{min(twice)[:60]} is given twice, in parameters and beside them")
    reader = Fields({**fields, **parameters})
    identity, text, ids = reader.text("id"), reader.text("text_input"), reader.list("input_ids")
    if (text is None) == (ids is None):
        raise BadRequestError("pass either text_input, a string, or input_ids, a list of ids")
    if ids is not None and not (ids and all(type(item) is int for item in ids)):
        raise reader.error("input_ids", "must be a list of ids, not empty")
    most = reader.whole("max_tokens", least=1, default=NEW_TOKENS)
    choosing = read_choosing(reader, served)
    if choosing.n != 1:
        raise reader.error("n", "must be 1: one text comes back")
    reader.end({"stream": "ask for generate_stream"})
    prompt: str | list[int] = ids if text is None else text  # type: ignore[assignment]
    generation = engine.prepare(
        prompt,
        max_new_tokens=most,
        sampling=choosing.sampling,
        stop=choosing.stop,
        seed=choosing.seed,
        priority=choosing.priority,
        adapter=served.adapter,
    )
    head = {"model_name": served.name, "model_version": VERSION}
    if identity:
        head["id"] = identity
    return Pieces(
        served=served,
        generation=generation,
        head=head,
        with_ids=text is None or served.tokenizer is None,
    )


async def _take_up(request: Request) -> Pieces:
    service, path = service_of(request), request.path_params
    served = find_model(service, path["model"], path.get("version"))
    options = service.options
    most = options.max_body_bytes
    body = await read_body(request, most=most, timeout_s=options.body_timeout_s)
    data = parse_object(decompressed(body, request.headers, most=most), most=most)
    service.check_open()
    pieces = await prepare_aside(lambda: prepare_text(served, data))
    take_up(request, pieces.served, [pieces.generation])
    return pieces


async def generate(request: Request) -> Response:
    """Continue a text, all in one answer."""
    pieces = await _take_up(request)
    return answer(await while_connected(request, pieces.whole()))


async def generate_stream(request: Request) -> Response:
    """Continue a text, with an event for each piece."""
    pieces, options = await _take_up(request), service_of(request).options
    return EventStream(
        _events(pieces.parts()),
        ping_s=options.ping_s,
        reader_timeout_s=options.reader_timeout_s,
    )


async def _events(parts: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for part in parts:
            yield event(part)
    except (CausalOnnxError, ValueError) as error:
        known = error if isinstance(error, RequestError) else BadRequestError(str(error))
        yield event({"error": str(known)})
    finally:
        if isinstance(parts, AsyncGenerator):
            await parts.aclose()
