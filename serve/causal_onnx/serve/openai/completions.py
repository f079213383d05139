"""`POST /v1/completions`: continue texts or ids."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from causal_onnx.runtime import Constraint
from causal_onnx.serve.engine.generation import Generation, Token
from causal_onnx.serve.openai.answers import answer, usage_of
from causal_onnx.serve.openai.constraints import read_constraint
from causal_onnx.serve.openai.stream import Streaming, event_stream, read_streaming
from causal_onnx.serve.openai.tokens import completion_logprobs
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.requests.running import (
    FINISH,
    arrivals,
    engine_of,
    finish_all,
    prepare_aside,
    read_prompts,
    read_request,
    take_up,
)
from causal_onnx.serve.requests.sampling import Choosing, read_choosing
from causal_onnx.serve.web import while_connected

__all__ = ["completions"]

MOST_LOGPROBS = 5
NEW_TOKENS = 16
"""As OpenAI has it where nobody says how many."""

UNSUPPORTED = {
    "suffix": "texts are continued here, and gaps are not filled",
    "best_of": "ask for n continuations",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A request, read."""

    prompts: tuple[str | list[int], ...]
    max_tokens: int
    choosing: Choosing
    logprobs: int | None
    echo: bool
    constraint: Constraint | None
    streaming: Streaming
    with_ids: bool


async def completions(request: Request) -> Response:
    """Continue each prompt `n` times."""
    service, fields = await read_request(request)
    served = service.models.find(fields.required_text("model"))
    engine_of(served)  # before all else: whether it continues prompts
    asked = _read(fields, served, most_prompts=service.options.most_prompts)
    generations = await prepare_aside(lambda: _prepare(asked, served))
    take_up(request, served, generations)
    writer = _Writer(served, asked, generations)
    if asked.streaming.is_wanted:
        return event_stream(writer.events(), service=service)
    return answer(await while_connected(request, writer.whole()))


def _read(fields: Fields, served: ServedModel, *, most_prompts: int) -> _Asked:
    best_of = fields.any("best_of")
    fields.text("user")  # it changes nothing
    asked = _Asked(
        prompts=read_prompts(fields, "prompt", most=most_prompts),
        max_tokens=_max_tokens(fields),
        choosing=read_choosing(fields, served),
        logprobs=fields.whole("logprobs", most=MOST_LOGPROBS),
        echo=fields.flag("echo"),
        constraint=read_constraint(fields),
        streaming=read_streaming(fields),
        with_ids=fields.flag("return_token_ids") or served.tokenizer is None,
    )
    if best_of is not None and best_of != asked.choosing.n:
        raise fields.error("best_of", f"is not supported: {UNSUPPORTED['best_of']}")
    if asked.max_tokens == 0 and not asked.echo:
        raise fields.error("max_tokens", "must be at least 1, or 0 together with echo")
    fields.end(UNSUPPORTED)
    return asked


def _max_tokens(fields: Fields) -> int:
    found = fields.whole("max_tokens")
    return NEW_TOKENS if found is None else found


def _prepare(asked: _Asked, served: ServedModel) -> list[Generation]:
    engine, choosing = engine_of(served), asked.choosing
    return [
        engine.prepare(
            prompt,
            max_new_tokens=asked.max_tokens,
            sampling=choosing.sampling,
            stop=choosing.stop,
            seed=choosing.seed,
            constraint=asked.constraint,
            n=choosing.n,
            top_logprobs=asked.logprobs or 0,
            score_prompt=asked.echo and (asked.logprobs is not None or asked.max_tokens == 0),
            priority=choosing.priority,
            adapter=served.adapter,
        )
        for prompt in asked.prompts
    ]


class _Writer:
    """Writes what becomes of a request."""

    def __init__(
        self, served: ServedModel, asked: _Asked, generations: Sequence[Generation]
    ) -> None:
        self._asked, self._generations = asked, generations
        self._tokenizer = served.tokenizer
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        self._offsets = [[0] * len(item.sequences) for item in generations]

    async def whole(self) -> dict[str, Any]:
        """All in one answer."""
        tokens = await finish_all(self._generations)
        choices = [
            self._choice(
                place, index, [t for t in tokens[place] if t.index == index], is_first=True
            )
            for place, generation in enumerate(self._generations)
            for index in range(len(generation.sequences))
        ]
        return {**self._head, "choices": choices, "usage": usage_of(self._generations)}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Piece by piece."""
        begun: set[tuple[int, int]] = set()
        usage = {"usage": None} if self._asked.streaming.with_usage else {}
        async for place, tokens in arrivals(self._generations):
            index = tokens[0].index
            is_first = (place, index) not in begun
            begun.add((place, index))
            choice = self._choice(place, index, tokens, is_first=is_first)
            says_something = choice["text"] or choice["finish_reason"] or choice["logprobs"]
            if says_something or is_first or self._asked.with_ids:
                yield {**self._head, "choices": [choice], **usage}
        for place, generation in enumerate(self._generations):
            for index in range(len(generation.sequences) if generation.only_scores else 0):
                choice = self._choice(place, index, [], is_first=True)
                yield {**self._head, "choices": [choice], **usage}
        if self._asked.streaming.with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(self._generations)}

    def _choice(
        self, place: int, index: int, tokens: Sequence[Token], *, is_first: bool
    ) -> dict[str, Any]:
        """What came of one continuation; with the prompt before it, where that is asked for."""
        asked, generation = self._asked, self._generations[place]
        text = "".join(token.text or "" for token in tokens)
        scores = [token.score for token in tokens]
        ids = [token.score.id for token in tokens]
        if is_first and asked.echo:
            text = self._prompt_text(place) + text
            scores = [*generation.prompt_scores, *scores]
        logprobs = None
        if asked.logprobs is not None:
            offset = self._offsets[place][index]
            logprobs = completion_logprobs(scores, self._tokenizer, offset=offset)
            self._offsets[place][index] += sum(map(len, logprobs["tokens"]))
        finish = tokens[-1].finish if tokens else None
        if generation.only_scores:
            finish = "length"
        choice: dict[str, Any] = {
            "index": place * asked.choosing.n + index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if finish is None else FINISH[finish],
        }
        if asked.with_ids:
            choice["token_ids"] = ids
            if is_first:
                choice["prompt_token_ids"] = list(generation.prompt)
        return choice

    def _prompt_text(self, place: int) -> str:
        prompt = self._asked.prompts[place]
        if isinstance(prompt, str):
            return prompt
        return "" if self._tokenizer is None else self._tokenizer.decode(prompt)
