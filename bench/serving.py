"""Time the server over HTTP: many clients at once, first tokens, gaps, and what HTTP itself costs.

    python -m bench.serving model/ --threads 2

The server is a process of its own, as `causal-onnx serve` starts it; the clients are in this one.
Works are interleaved, and repeated; of each the best round counts, as other work only slows them.
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
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_onnx.runtime import load
from causal_onnx.serve import Engine, EngineOptions

__all__ = ["Figures", "Works", "main", "measure", "running_server"]

CHUNK = 64
CLIENTS, DECODING = 8, 4


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
class Figures:
    """What was found."""

    in_turn_tokens_s: float
    together_tokens_s: float
    first_token_alone_ms: float
    first_token_in_company_ms: float
    gap_alone_ms: float
    """The longest between two tokens."""
    gap_in_reading_ms: float
    """The same, while a long prompt is read."""
    engine_cpu_ms: float
    """Processor time for a token of eight clients, in process."""
    server_cpu_ms: float
    """The same, of the server's process over HTTP."""
    in_turn_cpu_ms: float
    """The same, of clients one after another."""
    replayed: int
    """Requests of a mixed load that were sent again alone."""
    different: int
    """Of them, those whose tokens or log-probabilities were others."""

    def rows(self) -> list[tuple[str, str]]:
        """What is told, and its figure."""
        gain = self.together_tokens_s / self.in_turn_tokens_s
        wait = self.first_token_in_company_ms / self.first_token_alone_ms
        cost = self.server_cpu_ms - self.engine_cpu_ms
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
                f"{self.server_cpu_ms:.2f} and {self.in_turn_cpu_ms:.2f} ms, "
                f"{self.in_turn_cpu_ms / self.server_cpu_ms:.1f}x",
            ),
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

    def __init__(self, address: str, model: str) -> None:
        host, port = re.sub(r"^http://", "", address).rsplit(":", 1)
        self._host, self._port, self._model = host, int(port), model

    async def ask(self, prompt: Sequence[int], count: int, **options: object) -> _Answer:
        """The whole answer, with the time of each event."""
        began, times = time.perf_counter(), []
        tokens: list[tuple[Any, Any]] = []
        async for data in self.events(prompt, count, **options):
            times.append(time.perf_counter())
            choice = data["choices"][0]
            tokens.append((choice["token_ids"], choice["logprobs"]))
        return _Answer(times, began, tokens)

    async def events(
        self, prompt: Sequence[int], count: int, **options: object
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer."""
        body = json.dumps(
            {
                "model": self._model,
                "prompt": list(prompt),
                "max_tokens": count,
                "stream": True,
                "return_token_ids": True,
                **options,
            }
        ).encode()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            async for line in reader:
                if line.startswith(b"data: {"):
                    data = json.loads(line[6:])
                    if "error" in data:
                        raise RuntimeError(data["error"]["message"])
                    yield data
        finally:
            writer.close()


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


def _processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(model: Path, *, threads: int, works: Works) -> Figures:
    """Measure one model.

    Args:
        model: A language model with a cache: its folder or file.
        threads: Of the server's calls.
        works: How much is done.

    Raises:
        RuntimeError: The server does not start, or refuses a request.
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
    with running_server(model, threads, "--prefix-positions", "0") as (process, address, name):
        client = _Client(address, name)
        return asyncio.run(
            _over_http(
                client,
                pid=process.pid,
                prompts=prompts,
                long_prompt=prompt(works.long_prompt),
                in_process_ms=in_process,
                works=works,
            )
        )


def _engine_cpu(engine: Engine, prompts: Sequence[Sequence[int]], works: Works) -> float:
    began = time.process_time()
    begun = [engine.submit(ids, max_new_tokens=works.tokens) for ids in prompts]
    count = sum(len(found.ids) for generation in begun for found in generation.results())
    return (time.process_time() - began) / count * 1000


async def _over_http(
    client: _Client,
    *,
    pid: int,
    prompts: Sequence[Sequence[int]],
    long_prompt: Sequence[int],
    in_process_ms: float,
    works: Works,
) -> Figures:
    total = CLIENTS * works.tokens
    in_turn, together, cpu, cpu_in_turn, alone, company = [], [], [], [], [], []
    gap_alone, gap_reading = [], []
    await client.ask(prompts[0], 4)
    for _ in range(works.rounds):
        began, used = time.perf_counter(), _processor_s(pid)
        for ids in prompts:
            answer = await client.ask(ids, works.tokens)
            alone.append(answer.times[0] - answer.began)
        in_turn.append(total / (time.perf_counter() - began))
        cpu_in_turn.append((_processor_s(pid) - used) / total * 1000)
        gap_alone.append(_longest_gap(answer))
        began, used = time.perf_counter(), _processor_s(pid)
        await asyncio.gather(*(client.ask(ids, works.tokens) for ids in prompts))
        together.append(total / (time.perf_counter() - began))
        cpu.append((_processor_s(pid) - used) / total * 1000)
        company.append(await _first_in_company(client, prompts, works))
        gap_reading.append(await _gap_while_reading(client, prompts[0], long_prompt, works))
    replayed, different = await _replays(client, prompts, long_prompt)
    return Figures(
        in_turn_tokens_s=max(in_turn),
        together_tokens_s=max(together),
        first_token_alone_ms=statistics.median(alone) * 1000,
        first_token_in_company_ms=statistics.median(company) * 1000,
        gap_alone_ms=min(gap_alone) * 1000,
        gap_in_reading_ms=min(gap_reading) * 1000,
        engine_cpu_ms=in_process_ms,
        server_cpu_ms=min(cpu),
        in_turn_cpu_ms=min(cpu_in_turn),
        replayed=replayed,
        different=different,
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
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    works = Works(**{name: getattr(args, name) for name in asdict(Works())})
    figures = measure(args.model, threads=args.threads, works=works)
    if args.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        for what, figure in figures.rows():
            print(f"{what:42} {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
