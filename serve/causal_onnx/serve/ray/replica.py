"""What runs on a node: the engine of each model, behind the application that HTTP has too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Message, Scope

from causal_onnx.serve.app import create_app
from causal_onnx.serve.engine.engine import EngineOptions
from causal_onnx.serve.options import ServeOptions
from causal_onnx.serve.ray.forwarded import AnswerPart, ForwardedRequest
from causal_onnx.serve.registry import Registry, open_models
from causal_onnx.serve.requests.running import ONE_BY_ONE

__all__ = ["ModelReplica", "answer_parts", "replica_class"]


class ModelReplica:
    """Answers requests to models, many at once.

    It is the whole application: what a request becomes, and how errors are written, is as without
    Ray.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        *,
        engine_options: EngineOptions | None = None,
        serve_options: ServeOptions | None = None,
        device: str = "cpu",
        threads: int | None = None,
        group_s: float = 0.02,
        loads_lazily: bool = False,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        """Load the models, or take note of where they are.

        Args:
            places: The name of each model -> its folder or file, which is on every node.
            engine_options: Of each engine.
            serve_options: How requests are taken.
            device: As for `load`.
            threads: As for `load`.
            group_s: Seconds that events are collected after the first ones.
            loads_lazily: Whether a model is loaded when a request names it.
            adapters: Of the one model, as for `open_models`.
        """
        self._places = dict(places)
        self._options = serve_options or ServeOptions()
        self._engine_options, self._group_s = engine_options, group_s
        self._device, self._threads = device, threads
        self._adapters = {name: Path(path) for name, path in (adapters or {}).items()}
        self._all = None if loads_lazily else self._open(self._places)

    def _open(self, places: Mapping[str, str]) -> _Opened:
        registry = open_models(
            [f"{name}={path}" for name, path in places.items()],
            device=self._device,
            threads=self._threads,
            engine_options=self._engine_options,
            keeps_sequences=False,
            adapters=self._adapters,
        )
        return _Opened(registry, create_app(registry, self._options), self._options.drain_s)

    async def load_model(self, name: str) -> _Opened:
        """Load one model; of those that are multiplexed, the one asked least recently goes."""
        return await asyncio.to_thread(self._open, {name: self._places[name]})

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[AnswerPart]:
        """Answer a request; what comes after the first parts comes in groups."""
        opened = self._all
        if opened is None:
            opened = await self.load_model(serve.get_multiplexed_model_id())
        async with contextlib.aclosing(
            answer_parts(opened.app, request, group_s=self._group_s)
        ) as parts:
            async for part in parts:
                yield part

    def __del__(self) -> None:
        opened: _Opened | None = getattr(self, "_all", None)
        if opened is not None:
            opened.close()


class _Opened:
    """Models that are loaded, and the application that answers for them."""

    def __init__(self, registry: Registry, app: ASGIApp, drain_s: float) -> None:
        self.registry, self.app, self._drain_s = registry, app, drain_s

    def close(self) -> None:
        self.registry.close(drain_s=self._drain_s)

    def __del__(self) -> None:  # Ray drops models that give way to others
        self.close()


def replica_class(models_per_replica: int | None) -> type[ModelReplica]:
    """The class of a replica that keeps so many models, loaded as they are asked for.

    Args:
        models_per_replica: None: all of them, loaded at the start.
    """
    if models_per_replica is None:
        return ModelReplica
    load = serve.multiplexed(max_num_models_per_replica=models_per_replica)

    class MultiplexedReplica(ModelReplica):
        @load  # type: ignore[untyped-decorator]
        async def load_model(self, name: str) -> _Opened:
            return await ModelReplica.load_model(self, name)

    return MultiplexedReplica


async def answer_parts(
    app: ASGIApp, request: ForwardedRequest, *, group_s: float
) -> AsyncGenerator[AnswerPart, None]:
    """Let an ASGI application answer, and hand over what it sends.

    The head and the first event come at once; later ones are collected for `group_s` seconds,
    because each part is a message between processes. Whoever closes this is a client that goes.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": request.body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    task = asyncio.ensure_future(app(_scope(request), receive, send))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        count, has_ended = 0, False
        while not has_ended:
            if count >= 2:
                await asyncio.sleep(group_s)
            found = [await messages.get()]
            while not messages.empty():
                found.append(messages.get_nowait())
            has_ended = found[-1] is None
            part = _part([message for message in found if message is not None])
            if part is not None:
                count += 1
                yield part
        task.result()
    finally:
        gone.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _scope(request: ForwardedRequest) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": request.method,
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "client": None,
        "server": None,
        ONE_BY_ONE: True,
    }


def _part(messages: list[Message]) -> AnswerPart | None:
    """What some messages say; None: nothing."""
    status: int | None = None
    headers: tuple[Any, ...] = ()
    bodies = []
    for message in messages:
        if message["type"] == "http.response.start":
            status, headers = message["status"], tuple(map(tuple, message.get("headers", ())))
        elif message.get("body"):
            bodies.append(message["body"])
    return AnswerPart(status, headers, tuple(bodies)) if status or bodies else None
