"""Time the server over HTTP: many clients at once, first tokens, gaps, and what HTTP itself costs.

    python -m bench.serving model/ --threads 2
    python -m bench.serving model/ --llama-server /usr/bin/llama-server --gguf model.gguf

The server is a process of its own, as `causal-onnx serve` starts it; the clients are in this one.
Works are interleaved, and repeated; of each the best round counts, as other work only slows them.
llama.cpp's server does the same works in turns with ours, on a file of `bench.gguf_file`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.program import Program, llama_command, processor_clock
from causal_onnx.runtime import load
from causal_onnx.serve import Engine, EngineOptions

__all__ = [
    "Figures",
    "HttpFigures",
    "LlamaServer",
    "Works",
    "main",
    "measure",
    "running_server",
]

CHUNK = 64
CLIENTS, DECODING = 8, 4
SLOT_POSITIONS = 4096
"""Of the cache of each of llama.cpp's clients."""


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
    """What clients see of a server, and what it costs."""

    in_turn_tokens_s: float
    together_tokens_s: float
    first_token_alone_ms: float
    first_token_in_company_ms: float
    gap_alone_ms: float
    """The longest between two tokens."""
    gap_in_reading_ms: float
    """The same, while a long prompt is read."""
    server_cpu_ms: float
    """Processor time for a token of eight clients, of the server's process."""
    in_turn_cpu_ms: float
    """The same, of clients one after another."""

    def rows(self) -> list[tuple[str, str]]:
        """What is told, and its figure."""
        gain = self.together_tokens_s / self.in_turn_tokens_s
        wait = self.first_token_in_company_ms / self.first_token_alone_ms
        saved = ""
        if self.server_cpu_ms:  # the system counts in hundredths of a second
            saved = f", {self.in_turn_cpu_ms / self.server_cpu_ms:.1f}x"
        return [
            ("one after another", f"{self.in_turn_tokens_s:.0f} tokens/s"),
            (f"{CLIENTS} at once", f"{self.together_tokens_s:.0f} tokens/s, {gain:.1f}x"),
            ("first token, alone", f"{self.first_token_alone_ms:.1f} ms"),
            (
                f"first token, {DECODING} others decoding",
                f"{self.first_token_in_company_ms:.1f} ms, {wait:.1f}x",
            ),
            ("longest gap, alone", f"{self.gap_alone_ms:.1f} ms"),
            ("longest gap while a long prompt is read", f"{self.gap_in_reading_ms:.1f} ms"),
            (
                "processor time a token, at once and in turn",
                f"{self.server_cpu_ms:.2f} and {self.in_turn_cpu_ms:.2f} ms{saved}",
            ),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was found."""

    ours: HttpFigures
    engine_cpu_ms: float
    """Processor time for a token of eight clients, in process."""
    replayed: int
    """Requests of a mixed load that were sent again alone."""
    different: int
    """Of them, those whose tokens or log-probabilities were others."""
    llama_server: HttpFigures | None
    """llama.cpp's server, in turns with ours."""

    def rows(self) -> list[tuple[str, ...]]:
        """What is told, our figure, and that of the other server."""
        cost = self.ours.server_cpu_ms - self.engine_cpu_ms
        shared = self.ours.rows()
        others = [] if self.llama_server is None else [text for _, text in self.llama_server.rows()]
        return [
            *((*row, *others[place : place + 1]) for place, row in enumerate(shared)),
            ("processor time of HTTP itself", f"{cost:.2f} ms a token"),
            ("replayed alone", f"{self.replayed}, {self.different} different"),
        ]


@dataclass(frozen=True, slots=True)
class _Answer:
    times: list[float]
    """When each event with a token came."""
    began: float
    tokens: list[tuple[Any, Any]]
    """What came, ids and log-probabilities."""


class _Client:
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

    async def ask(self, prompt: Sequence[int], count: int, **options: object) -> _Answer:
        """The whole answer, with the time of each event."""
        began, times = time.perf_counter(), []
        tokens: list[tuple[Any, Any]] = []
        async for data in self.events(prompt, count, **options):
            times.append(time.perf_counter())
            tokens.append(self.token(data))
        return _Answer(times, began, tokens)

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
                if not data.get("stop"):  # llama.cpp's last event, without a token
                    yield data
        finally:
            writer.close()


class _LlamaClient(_Client):
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


@contextlib.contextmanager
def running_server(
    model: Path, threads: int, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, address and name of a model that is served; it is terminated in the end."""
    start = "from causal_onnx.cli.main import main; import sys; sys.exit(main())"
    options = ("--port", "0", "--threads", str(threads), *options)
    process = subprocess.Popen(
        [sys.executable, "-c", start, "serve", f"bench={model}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                yield process, line.split()[-1], "bench"
                return
        raise RuntimeError(f"the server of {model} did not start")
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaServer:
    """llama.cpp's server, and the file that it serves."""

    program: Path
    gguf: Path

    def start(self, threads: int, log: Path) -> Program:
        """Start it, with a slot for each client.

        Raises:
            RuntimeError: It does not start.
        """
        command = llama_command(
            self.program, self.gguf, threads=threads, slots=CLIENTS, positions=SLOT_POSITIONS
        )
        return Program(command, log=log)


def measure(
    model: Path, *, threads: int, works: Works, beside: LlamaServer | None = None
) -> Figures:
    """Measure one model.

    Args:
        model: A language model with a cache: its folder or file.
        threads: Of the server's calls.
        works: How much is done.
        beside: Does the same works in turns.

    Raises:
        RuntimeError: A server does not start, or refuses a request.
    """
    loaded = load(model, threads=threads, trusted=True)
    vocab = next(s.vocab_size for s in loaded.contract.inputs if s.vocab_size is not None)
    random_ids = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [random_ids.randrange(3, vocab) for _ in range(length)]

    prompts = [prompt(works.prompt) for _ in range(CLIENTS)]
    with Engine(loaded, options=EngineOptions(chunk=CHUNK, prefix_positions=0)) as engine:
        in_process = min(_engine_cpu(engine, prompts, works) for _ in range(works.rounds))
    del loaded, engine
    long_prompt = prompt(works.long_prompt)
    with contextlib.ExitStack() as stack:
        process, address, name = stack.enter_context(
            running_server(model, threads, "--prefix-positions", "0")
        )
        client = _Client(address, name)
        servers = [_Server(client, processor_clock(process.pid))]
        if beside is not None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "llama.log"
            peer = stack.enter_context(beside.start(threads, log))
            servers.append(_Server(_LlamaClient(peer.address), peer.processor_s))
        return asyncio.run(_over_http(servers, prompts, long_prompt, in_process, works))


def _engine_cpu(engine: Engine, prompts: Sequence[Sequence[int]], works: Works) -> float:
    began = time.process_time()
    begun = [engine.submit(ids, max_new_tokens=works.tokens) for ids in prompts]
    count = sum(len(found.ids) for generation in begun for found in generation.results())
    return (time.process_time() - began) / count * 1000


async def _over_http(
    servers: Sequence[_Server],
    prompts: Sequence[Sequence[int]],
    long_prompt: Sequence[int],
    in_process_ms: float,
    works: Works,
) -> Figures:
    for server in servers:
        await server.client.ask(prompts[0], 4)
    for _ in range(works.rounds):
        for server in servers:
            await server.round(prompts, long_prompt, works)
    replayed, different = await _replays(servers[0].client, prompts, long_prompt)
    found = [server.figures() for server in servers]
    return Figures(
        ours=found[0],
        engine_cpu_ms=in_process_ms,
        replayed=replayed,
        different=different,
        llama_server=found[1] if len(found) > 1 else None,
    )


class _Server:
    """One server, and what was measured of it so far."""

    def __init__(self, client: _Client, processor_s: Callable[[], float]) -> None:
        self.client, self._processor_s = client, processor_s
        self._times: dict[str, list[float]] = defaultdict(list)

    async def round(
        self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int], works: Works
    ) -> None:
        """Do each work once."""
        times, client, total = self._times, self.client, CLIENTS * works.tokens
        began, used = time.perf_counter(), self._processor_s()
        for ids in prompts:
            answer = await client.ask(ids, works.tokens)
            times["alone"].append(answer.times[0] - answer.began)
        times["in turn"].append(total / (time.perf_counter() - began))
        times["cpu in turn"].append((self._processor_s() - used) / total)
        times["gap alone"].append(_longest_gap(answer))
        began, used = time.perf_counter(), self._processor_s()
        await asyncio.gather(*(client.ask(ids, works.tokens) for ids in prompts))
        times["together"].append(total / (time.perf_counter() - began))
        times["cpu"].append((self._processor_s() - used) / total)
        times["company"].append(await _first_in_company(client, prompts, works))
        reading = await _gap_while_reading(client, prompts[0], long_prompt, works)
        times["gap reading"].append(reading)

    def figures(self) -> HttpFigures:
        """Of all rounds."""
        times = self._times
        return HttpFigures(
            in_turn_tokens_s=max(times["in turn"]),
            together_tokens_s=max(times["together"]),
            first_token_alone_ms=statistics.median(times["alone"]) * 1000,
            first_token_in_company_ms=statistics.median(times["company"]) * 1000,
            gap_alone_ms=min(times["gap alone"]) * 1000,
            gap_in_reading_ms=min(times["gap reading"]) * 1000,
            server_cpu_ms=min(times["cpu"]) * 1000,
            in_turn_cpu_ms=min(times["cpu in turn"]) * 1000,
        )


def _longest_gap(answer: _Answer) -> float:
    """The longest wait between two events; the only one where all tokens came in one event."""
    times = answer.times if len(answer.times) > 1 else [answer.began, *answer.times]
    return max(after - before for before, after in itertools.pairwise(times))


async def _first_in_company(
    client: _Client, prompts: Sequence[Sequence[int]], works: Works
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
    client: _Client, prompt: Sequence[int], long_prompt: Sequence[int], works: Works
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


async def _replays(
    client: _Client, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int]
) -> tuple[int, int]:
    """How many requests of a mixed load were sent again alone, and how many became others."""
    asked = [
        (ids[: 1 + place * 3], 5 + 7 * place % 40, {"temperature": place % 2, "seed": place})
        for place, ids in enumerate([*prompts, long_prompt, *prompts])
    ]
    loaded = await asyncio.gather(
        *(client.ask(ids, count, logprobs=2, **more) for ids, count, more in asked)
    )
    different = 0
    for (ids, count, more), before in zip(asked, loaded, strict=True):
        alone = await client.ask(ids, count, logprobs=2, **more)
        different += _told(alone) != _told(before)
    return len(asked), different


def _told(answer: _Answer) -> list[object]:
    """What an answer told, however its tokens came together in events."""
    told: list[object] = []
    for ids, logprobs in answer.tokens:
        told += zip(ids, logprobs["token_logprobs"], strict=True)
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="a language model with a cache: folder or file")
    parser.add_argument("--threads", type=int, default=1)
    for name, default in asdict(Works()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="measured beside ours")
    parser.add_argument("--gguf", type=Path, help="the file that it serves; see bench.gguf_file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    works = Works(**{name: getattr(args, name) for name in asdict(Works())})
    if (args.llama_server is None) != (args.gguf is None):
        parser.error("--llama-server and --gguf are given together")
    beside = args.gguf and LlamaServer(program=args.llama_server, gguf=args.gguf)
    figures = measure(args.model, threads=args.threads, works=works, beside=beside)
    if args.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        print(f"{'':42} {'causal-onnx':24} {'llama.cpp' if beside else ''}".rstrip())
        for what, *found in figures.rows():
            print(f"{what:42} {' '.join(f'{text:24}' for text in found)}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
