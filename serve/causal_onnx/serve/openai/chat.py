"""`POST /v1/chat/completions`: reply to a conversation."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from causal_onnx.runtime import Constraint
from causal_onnx.runtime.generation.chat import continues
from causal_onnx.runtime.text.tool_calls import form_of
from causal_onnx.serve.engine.generation import Generation, Token
from causal_onnx.serve.openai.answers import answer, usage_of
from causal_onnx.serve.openai.constraints import read_constraint
from causal_onnx.serve.openai.messages import read_messages, read_part, writer_of
from causal_onnx.serve.openai.stream import Streaming, event_stream, read_streaming
from causal_onnx.serve.openai.tokens import chat_logprobs
from causal_onnx.serve.openai.tools import CallReader, Tools, read_tools, text_with_marks
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.requests.running import (
    FINISH,
    arrivals,
    engine_of,
    finish_all,
    prepare_aside,
    read_request,
    take_up,
)
from causal_onnx.serve.requests.sampling import Choosing, read_choosing
from causal_onnx.serve.web import while_connected

__all__ = ["chat_completions"]

MOST_TOP_LOGPROBS = 20

UNSUPPORTED = {
    "audio": "texts alone are read and written",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "web_search_options": "there is no search",
    "reasoning_effort": "say chat_template_kwargs, as the model's template knows it",
    "verbosity": "no model here knows it",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A request, read."""

    messages: list[dict[str, Any]]
    tools: Tools
    documents: list[Any] | None
    variables: dict[str, Any] | None
    max_tokens: int | None
    choosing: Choosing
    constraint: Constraint | None
    prediction: str | None
    logprobs: bool
    top_logprobs: int
    streaming: Streaming


async def chat_completions(request: Request) -> Response:
    """Reply `n` times."""
    service, fields = await read_request(request)
    served = service.models.find(fields.required_text("model"))
    engine_of(served)  # before all else: whether it continues prompts
    asked = _read(fields, served)
    generation = await prepare_aside(lambda: _prepare(asked, served))
    take_up(request, served, [generation])
    writer = _Writer(served, asked, generation)
    if asked.streaming.is_wanted:
        return event_stream(writer.events(), service=service)
    return answer(await while_connected(request, writer.whole()))


def _read(fields: Fields, served: ServedModel) -> _Asked:
    tools, constraint = read_tools(fields), read_constraint(fields)
    if tools.constraint is not None and constraint is not None:
        raise fields.error("response_format", "and a call that must come exclude each other")
    logprobs = fields.flag("logprobs")
    top_logprobs = fields.whole("top_logprobs", most=MOST_TOP_LOGPROBS)
    if top_logprobs is not None and not logprobs:
        raise fields.error("top_logprobs", "needs logprobs=true")
    modalities = fields.any("modalities")
    if modalities not in (None, ["text"]):
        raise fields.error("modalities", f"must be ['text'], got {modalities!r}")
    if fields.flag("store"):
        raise fields.error("store", "must be false: nothing is stored here")
    for name in ("user", "safety_identifier", "prompt_cache_key"):  # they change no answer
        fields.text(name)
    fields.object("metadata")
    fields.choice("service_tier", "auto", "default")
    asked = _Asked(
        messages=read_messages(fields),
        tools=tools,
        documents=fields.list("documents"),
        variables=fields.object("chat_template_kwargs"),
        max_tokens=_max_tokens(fields),
        choosing=read_choosing(fields, served),
        constraint=constraint or tools.constraint,
        prediction=_prediction(fields),
        logprobs=logprobs,
        top_logprobs=top_logprobs or 0,
        streaming=read_streaming(fields),
    )
    fields.end(UNSUPPORTED)
    return asked


def _max_tokens(fields: Fields) -> int | None:
    old = fields.whole("max_tokens", least=1)
    new = fields.whole("max_completion_tokens", least=1)
    if old is not None and new is not None and old != new:
        raise fields.error("max_tokens", f"is {old}, and max_completion_tokens {new}: give one")
    return old if new is None else new


def _prediction(fields: Fields) -> str | None:
    """The text that the reply will be for the most part."""
    given = fields.object("prediction")
    if given is None:
        return None
    inner = Fields(given, where="prediction.")
    if inner.choice("type", "content") is None:
        raise inner.error("type", "must be 'content'")
    content = inner.any("content")
    if isinstance(content, list):
        parts = [read_part(part, f"prediction.content[{i}].") for i, part in enumerate(content)]
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise inner.error("content", "must be a string, or a list of parts")
    inner.end({})
    return content


def _prepare(asked: _Asked, served: ServedModel) -> Generation:
    choosing = asked.choosing
    writer = writer_of(
        served,
        tools=asked.tools.shown,
        documents=asked.documents,
        variables=asked.variables,
    )
    return engine_of(served).prepare(
        writer.ids(asked.messages),
        max_new_tokens=asked.max_tokens,
        sampling=choosing.sampling,
        stop=[*choosing.stop, *writer.end_ids()],
        seed=choosing.seed,
        constraint=asked.constraint,
        n=choosing.n,
        top_logprobs=asked.top_logprobs,
        priority=choosing.priority,
        joins_prompt=continues(asked.messages),
        prediction=asked.prediction,
        adapter=served.adapter,
    )


class _Writer:
    """Writes what becomes of a request."""

    def __init__(self, served: ServedModel, asked: _Asked, generation: Generation) -> None:
        self._asked, self._generation = asked, generation
        self._tokenizer = served.tokenizer
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created, self._model = int(time.time()), served.name
        template = served.template
        form = None if template is None else form_of(template.source(has_tools=True))
        self._readers = [CallReader(asked.tools, form) for _ in generation.sequences]

    def _text(self, tokens: Sequence[Token]) -> str:
        """Their text, and the marks of calls where these may come."""
        if not self._asked.tools.names:
            return "".join(token.text or "" for token in tokens)
        return text_with_marks([(t.score.id, t.text or "") for t in tokens], self._tokenizer)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    async def whole(self) -> dict[str, Any]:
        """All in one answer."""
        (tokens,) = await finish_all([self._generation])
        choices = [
            self._message(index, [token for token in tokens if token.index == index])
            for index in range(len(self._generation.sequences))
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of([self._generation]),
        }

    def _message(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        reader = self._readers[index]
        text = reader.push(self._text(tokens))
        rest, calls = reader.end()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": (text + rest) or (None if calls else ""),
            "refusal": None,
            "annotations": [],
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": _finish(tokens[-1].finish, calls),
        }

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Piece by piece."""
        extra = {"usage": None} if self._asked.streaming.with_usage else {}
        head = self._head("chat.completion.chunk")

        def chunk(
            index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None
        ) -> dict[str, Any]:
            choice = {
                "index": index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": finish,
            }
            return {**head, "choices": [choice], **extra}

        for index in range(len(self._readers)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for _, tokens in arrivals([self._generation]):
            index, finish = tokens[0].index, tokens[-1].finish
            reader = self._readers[index]
            text = reader.push(self._text(tokens))
            calls: list[dict[str, Any]] = []
            if finish is not None:
                rest, calls = reader.end()
                text += rest
            logprobs = self._logprobs(tokens)
            if text or logprobs:
                yield chunk(index, {"content": text}, logprobs=logprobs)
            if calls:
                numbered = [{"index": place, **call} for place, call in enumerate(calls)]
                yield chunk(index, {"tool_calls": numbered})
            if finish is not None:
                yield chunk(index, {}, _finish(finish, calls))
        if self._asked.streaming.with_usage:
            yield {**head, "choices": [], "usage": usage_of([self._generation])}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        return chat_logprobs([token.score for token in tokens], self._tokenizer)


def _finish(finish: str | None, calls: Sequence[object]) -> str | None:
    if finish is None:
        return None
    return "tool_calls" if calls else FINISH[finish]
