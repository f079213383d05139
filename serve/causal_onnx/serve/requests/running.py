"""Take up the generations of a request, and follow them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import groupby
from typing import TypeVar

from starlette.requests import Request

from causal_onnx.serve.engine.engine import Engine
from causal_onnx.serve.engine.generation import Generation, Token
from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.operate.gate import GENERATIONS, MODEL
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.service import Service, service_of
from causal_onnx.serve.web import read_object

__all__ = [
    "FINISH",
    "ONE_BY_ONE",
    "arrivals",
    "engine_of",
    "finish_all",
    "prepare_aside",
    "read_prompts",
    "read_request",
    "take_up",
]

FINISH = {"stop": "stop", "complete": "stop", "length": "length", "limit": "length"}
"""`Continuation.finish` -> `finish_reason`."""

ONE_BY_ONE = "causal_onnx.one_by_one"
"""Where a request's scope says that each token comes by itself, so that the same request gives the
same stream of events however tokens came together."""

T = TypeVar("T")


async def read_request(request: Request) -> tuple[Service, Fields]:
    """The service that a request came to, and the fields of its body.

    Raises:
        RequestError: The body is too large, or no JSON object, or the server takes no work.
    """
    service = service_of(request)
    options = service.options
    body = await read_object(request, most=options.max_body_bytes, timeout_s=options.body_timeout_s)
    service.check_open()
    return service, Fields(body)


def read_prompts(fields: Fields, name: str, *, most: int) -> tuple[str | list[int], ...]:
    """A text, texts, ids, or lists of ids.

    Raises:
        BadRequestError: It is something else, or holds more than `most`.
    """
    given = fields.any(name)
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and given:
        if all(type(item) is int for item in given):
            return (given,)
        if len(given) > most:
            raise fields.error(
                "prompt", f"holds {len(given)} prompts, and at most {most} are taken"
            )
        is_texts = all(isinstance(item, str) for item in given)
        is_ids = all(
            isinstance(item, list) and item and all(type(token) is int for token in item)
            for item in given
        )
        if is_texts or is_ids:
            return tuple(given)
    raise fields.error(name, "must be a string, a list of ids, or a list of one kind of these")


def take_up(request: Request, served: ServedModel, generations: Sequence[Generation]) -> None:
    """Let a model's engine have what was prepared, and the request's record name it.

    Raises:
        BusyError: As many requests wait as may.
        UnavailableError: The engine ends.
    """
    request.scope[MODEL] = served.name
    for generation in generations:
        generation.is_one_by_one = request.scope.get(ONE_BY_ONE, False)
    engine_of(served).enqueue(generations)
    request.scope[GENERATIONS] += generations


def engine_of(served: ServedModel) -> Engine:
    """What continues prompts.

    Raises:
        BadRequestError: The model is no language model with a cache.
    """
    if served.engine is None:
        reason = "is not a language model with a cache, so it cannot continue prompts"
        if served.model.start_ids:
            reason = (
                "has an encoder, which reads a source beside the prompt, and no request here has "
                "one; its tensors are served, or call generate(inputs=...) where it is loaded"
            )
        raise BadRequestError(f"{served.name} {reason}", param="model")
    return served.engine


async def prepare_aside(prepare: Callable[[], T]) -> T:
    """Tokenise, compile and check on another thread, so that others are answered meanwhile."""
    return await asyncio.to_thread(prepare)


async def finish_all(generations: Sequence[Generation]) -> list[list[Token]]:
    """All tokens of each, once all have ended; whoever stops waiting cancels them."""
    try:
        return [[token async for token in generation] for generation in generations]
    finally:
        _cancel(generations)


async def arrivals(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, list[Token]]]:
    """(which generation, tokens of one of its continuations) as they come; whoever takes no more
    cancels them."""
    try:
        if len(generations) == 1:
            async for group in _groups(generations[0]):
                yield 0, group
            return
        queue: asyncio.Queue[tuple[int, list[Token]] | Exception | None] = asyncio.Queue()

        async def follow(place: int) -> None:
            try:
                async for group in _groups(generations[place]):
                    queue.put_nowait((place, group))
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.ensure_future(follow(place)) for place in range(len(generations))]
        try:
            ended = 0
            while ended < len(tasks):
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    ended += 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
    finally:
        _cancel(generations)


async def _groups(generation: Generation) -> AsyncIterator[list[Token]]:
    """Tokens that came together, those of one continuation next to each other."""
    while tokens := await generation.arrived():
        if len(tokens) > 1:
            tokens.sort(key=lambda token: token.index)
        if generation.is_one_by_one:
            for token in tokens:
                yield [token]
            continue
        for _, group in groupby(tokens, key=lambda token: token.index):
            yield list(group)


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        if not generation.is_done:
            generation.cancel()
