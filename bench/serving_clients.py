"""Clients of servers, and what they see of one: rates, first tokens, gaps."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

__all__ = [
    "CHUNK",
    "CLIENTS",
    "DECODING",
    "Answer",
    "Client",
    "HttpFigures",
    "HttpServer",
    "LlamaClient",
    "OnnxGenaiClient",
    "Server",
    "Works",
]

CHUNK = 64
CLIENTS, DECODING = 8, 4

AT_ONCE = 0.5
"""Of the time of a token: where the longest gap is shorter, tokens did not come one by one."""

REST_STEP_S = 0.05
REST_SHARE = 0.1
REST_LIMIT_S = 60.0
"""After a work whose clients go away, a server may compute on for them; none is timed meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Works:
    """How much is done."""

    tokens: int = 64
    """That each client asks for."""
    prompt: int = 32
    """Ids of their prompts."""
    long_prompt: int = 512
    rounds: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpFigures:
    """What clients see of a server, and what it costs; None is what it cannot be asked for."""

    in_turn_tokens_s: float
    together_tokens_s: float
    server_cpu_ms: float
    """Processor time for a token of eight clients, of the server's process."""
    in_turn_cpu_ms: float
    """The same, of clients one after another."""
    first_token_alone_ms: float | None = None
    first_token_in_company_ms: float | None = None
    chunk_ms: float | None = None
    """To the first token of a prompt of one chunk, alone."""
    gap_alone_ms: float | None = None
    """The longest between two tokens."""
    gap_in_reading_ms: float | None = None
    """The same, while a long prompt is read."""

    @property
    def gain(self) -> float:
        """How many times less processor time a token takes of eight clients at once."""
        return self.in_turn_cpu_ms / self.server_cpu_ms

    def rows(self) -> list[tuple[str, str]]:
        """What is told, and its figure."""
        gain = self.together_tokens_s / self.in_turn_tokens_s
        return [
            ("one after another", f"{self.in_turn_tokens_s:.0f} tokens/s"),
            (f"{CLIENTS} at once", f"{self.together_tokens_s:.0f} tokens/s, {gain:.1f}x"),
            ("first token, alone", _ms(self.first_token_alone_ms)),
            (
                f"first token, {DECODING} others decoding",
                _ms(self.first_token_in_company_ms, self.first_token_alone_ms),
            ),
            (f"first token of a prompt of {CHUNK}, alone", _ms(self.chunk_ms)),
            ("longest gap, alone", _ms(self.gap_alone_ms)),
            (
                "longest gap while a long prompt is read",
                _ms(self.gap_in_reading_ms, self.chunk_ms, "of one chunk"),
            ),
            (
                "processor time a token, at once and in turn",
                f"{self.server_cpu_ms:.2f} and {self.in_turn_cpu_ms:.2f} ms, {self.gain:.1f}x",
            ),
        ]


def _ms(value: float | None, base: float | None = None, of: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.1f} ms" + (f", {value / base:.1f}x {of}".rstrip() if base else "")


@dataclass(frozen=True, slots=True)
class Answer:
    times: list[float]
    """When each event with a token came."""
    began: float
    tokens: list[tuple[Any, Any]]
    """What came, ids and log-probabilities."""


class Client:
    """Asks for streams, over a connection each, with as little of its own as can be."""

    path = "/v1/completions"

    def __init__(self, address: str, model: str = "") -> None:
        host, port = re.sub(r"^http://", "", address).rsplit(":", 1)
        self._host, self._port, self._model = host, int(port), model

    def body(self, prompt: Sequence[int], count: int) -> dict[str, object]:
        return {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": count,
            "stream": True,
            "return_token_ids": True,
        }

    def token(self, data: dict[str, Any]) -> tuple[Any, Any]:
        """The ids of an event, and their log-probabilities."""
        choice = data["choices"][0]
        return choice["token_ids"], choice["logprobs"]

    def has_token(self, data: dict[str, Any]) -> bool:
        """Whether an event brings any: some servers end with others."""
        return bool(self.token(data)[0])

    async def ask(self, prompt: Sequence[int], count: int, **options: object) -> Answer:
        """The whole answer, with the time of each event."""
        began, times = time.perf_counter(), []
        tokens: list[tuple[Any, Any]] = []
        async for data in self.events(prompt, count, **options):
            times.append(time.perf_counter())
            tokens.append(self.token(data))
        return Answer(times, began, tokens)

    async def events(
        self, prompt: Sequence[int], count: int, **options: object
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer."""
        body = json.dumps({**self.body(prompt, count), **options}).encode()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = f"POST {self.path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        head += "Content-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            async for line in reader:
                if not line.startswith(b"data: {"):
                    continue
                data = json.loads(line[6:])
                if "error" in data:
                    raise RuntimeError(data["error"]["message"])
                if self.has_token(data):
                    yield data
        finally:
            writer.close()


class LlamaClient(Client):
    """The same of llama.cpp's server, by its own route."""

    path = "/completion"

    def body(self, prompt: Sequence[int], count: int) -> dict[str, object]:
        return {
            "prompt": list(prompt),
            "n_predict": count,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }

    def token(self, data: dict[str, Any]) -> tuple[Any, Any]:
        return data["tokens"], None

    def has_token(self, data: dict[str, Any]) -> bool:
        return not data.get("stop")


class OnnxGenaiClient(Client):
    """The same of onnx-genai-server, which takes text: a word for each id, as its tokenizer has."""

    def body(self, prompt: Sequence[int], count: int) -> dict[str, object]:
        words = " ".join(f"t{number}" for number in prompt)
        asked: dict[str, object] = {"model": self._model, "prompt": words, "max_tokens": count}
        return {**asked, "temperature": 0, "stream": True}

    def token(self, data: dict[str, Any]) -> tuple[Any, Any]:
        words = [choice["text"] for choice in data.get("choices", ())]
        return [int(word.strip()[1:]) for word in words if word.strip()], None


class Server(Protocol):
    """What is measured in turns."""

    async def round(
        self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int], works: Works
    ) -> None:
        """Do each work once."""

    def figures(self) -> HttpFigures:
        """Of all rounds."""


class HttpServer:
    """One server that is asked over HTTP, and what was measured of it so far."""

    def __init__(self, client: Client, processor_s: Callable[[], float]) -> None:
        self.client, self._processor_s = client, processor_s
        self._times: dict[str, list[float]] = defaultdict(list)

    async def round(
        self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int], works: Works
    ) -> None:
        """Do each work once.

        Raises:
            RuntimeError: It refuses a request, or gives fewer tokens than it was asked for.
            OSError: It is gone.
        """
        times, client, total = self._times, self.client, CLIENTS * works.tokens
        if not times:
            await client.ask(prompts[0], 4)  # the first call reads the weights
        began, used = time.perf_counter(), self._processor_s()
        for ids in prompts:
            answer = _whole(await client.ask(ids, works.tokens), works.tokens)
            times["alone"].append(answer.times[0] - answer.began)
        times["in turn"].append(total / (time.perf_counter() - began))
        times["cpu in turn"].append((self._processor_s() - used) / total)
        times["gap alone"].append(_longest_gap(answer))
        began, used = time.perf_counter(), self._processor_s()
        found = await asyncio.gather(*(client.ask(ids, works.tokens) for ids in prompts))
        times["together"].append(total / (time.perf_counter() - began))
        times["cpu"].append((self._processor_s() - used) / total)
        for answer in found:
            _whole(answer, works.tokens)
        chunk = await client.ask(long_prompt[:CHUNK], 1)
        times["chunk"].append(chunk.times[0] - chunk.began)
        times["company"].append(await _first_in_company(client, prompts, works))
        await self._rest()
        reading = await _gap_while_reading(client, prompts[0], long_prompt, works)
        times["gap reading"].append(reading)
        await self._rest()

    def figures(self) -> HttpFigures:
        """Of all rounds."""
        times = self._times
        found = HttpFigures(
            in_turn_tokens_s=max(times["in turn"]),
            together_tokens_s=max(times["together"]),
            first_token_alone_ms=statistics.median(times["alone"]) * 1000,
            chunk_ms=min(times["chunk"]) * 1000,
            server_cpu_ms=min(times["cpu"]) * 1000,
            in_turn_cpu_ms=min(times["cpu in turn"]) * 1000,
        )
        longest = min(times["gap alone"])
        if longest < AT_ONCE / found.in_turn_tokens_s:
            return found  # an answer comes as a whole, and between its tokens is nothing to see
        return replace(
            found,
            first_token_in_company_ms=statistics.median(times["company"]) * 1000,
            gap_alone_ms=longest * 1000,
            gap_in_reading_ms=min(times["gap reading"]) * 1000,
        )

    async def _rest(self) -> None:
        end = time.monotonic() + REST_LIMIT_S
        while time.monotonic() < end:
            before = self._processor_s()
            await asyncio.sleep(REST_STEP_S)
            if self._processor_s() - before < REST_SHARE * REST_STEP_S:
                return


def _whole(answer: Answer, count: int) -> Answer:
    found = sum(len(ids) for ids, _ in answer.tokens)
    if found != count:
        raise RuntimeError(f"it gave {found} tokens where {count} were asked for")
    return answer


def _longest_gap(answer: Answer) -> float:
    """The longest wait between two events; the only one where all tokens came in one event."""
    times = answer.times if len(answer.times) > 1 else [answer.began, *answer.times]
    return max(after - before for before, after in itertools.pairwise(times))


async def _first_in_company(
    client: Client, prompts: Sequence[Sequence[int]], works: Works
) -> float:
    """The time to a first token while others are decoded."""
    events = [client.events(ids, 4 * works.tokens) for ids in prompts[:DECODING]]
    for stream in events:
        await anext(stream)
    answer = await client.ask(prompts[-1], 1)
    for stream in events:
        await stream.aclose()  # type: ignore[attr-defined]
    return answer.times[0] - answer.began


async def _gap_while_reading(
    client: Client, prompt: Sequence[int], long_prompt: Sequence[int], works: Works
) -> float:
    """The longest gap of one client's tokens while another's long prompt is read."""
    events, times = client.events(prompt, 4 * works.tokens), []

    async def follow() -> None:
        async for _ in events:
            times.append(time.perf_counter())

    await anext(events)
    decoding = asyncio.ensure_future(follow())
    first = await client.ask(long_prompt, 1)
    await decoding
    gaps = itertools.pairwise(times)
    return max((b - a for a, b in gaps if b >= first.began and a <= first.times[0]), default=0.0)
