"""Whether a server holds under a mixed load: `python -m bench.serving_soak model/ --minutes 10`.

A thousand clients ask at random times, over connections of their own: completions, whole and
streamed, scores of prompts, and tensors, of which each must be what it was when it was asked alone;
some read slowly, some go away in the middle, some send what cannot be taken. In the end nothing may
be wrong, lost or stuck, and memory must not have grown since the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.command import positive
from bench.resident import field_bytes
from bench.serving import running_server

__all__ = ["Report", "main", "soak_server"]

CLIENTS = 1000
STUCK_S = 300.0
"""Longer than this no answer may take, however long the queue is."""
ALLOWED_BYTES = 16 << 20
"""Of 1,000 connections, each with buffers of its own, more may be open at the end than before."""
TOKENS = 24
KINDS = {
    "whole": 30,
    "streamed": 30,
    "scored": 10,
    "tensors": 10,
    "slow reader": 5,
    "gone away": 8,
    "bad input": 7,
}
"""What clients do -> how often, of a hundred times."""
BAD = (
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"model": "bench"}',
    b'{"model": "none", "prompt": "x"}',
    b'{"model": "bench", "prompt": [-1]}',
    b'{"model": "bench", "prompt": [1], "odd": 1}',
    b'{"model": "bench", "prompt": [1], "temperature": "hot"}',
    b'{"model": "bench", "prompt": [' + b"1," * 20000 + b"1]}",
)


@dataclass(kw_only=True)
class Report:
    """What became of all requests."""

    done: Counter[str] = field(default_factory=Counter)
    """Kind -> how many were answered as they had to be."""
    busy: int = 0
    """Times that a client was told to come again, and did."""
    problems: list[str] = field(default_factory=list)
    """Requests that were wrong, lost or stuck, and what the server was like at the end."""
    before_bytes: int = 0
    after_bytes: int = 0

    @property
    def passed(self) -> bool:
        return not self.problems and self.after_bytes - self.before_bytes <= ALLOWED_BYTES

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.done.items())
        return (
            f"{self.done.total()} requests ({kinds}), {self.busy} times busy; "
            f"{len(self.problems)} wrong, lost or stuck; memory {self.before_bytes / 1e6:.1f} MB "
            f"after a third, {self.after_bytes / 1e6:.1f} MB at the end"
        )


class _Clients:
    """All clients, and what the right answers are."""

    def __init__(self, address: str, vocab: int, report: Report) -> None:
        host, port = re.sub(r"^http://", "", address).rsplit(":", 1)
        self._place = host, int(port)
        self._report = report
        ids = random.Random(1)
        self._prompts = [
            [ids.randrange(vocab) for _ in range(1 + 11 * place % 150)] for place in range(24)
        ]
        self._expected: dict[tuple[str, int], Any] = {}

    async def learn(self) -> None:
        """Ask everything once, alone."""
        for place in range(len(self._prompts)):
            for kind in ("whole", "scored", "tensors"):
                status, answer = await self._post(*self._request(kind, place))
                if status != 200:
                    raise RuntimeError(f"a request was refused: {answer!r}")
                self._expected[kind, place] = _told(kind, answer)

    async def client(self, seed: int, until: float, pause_s: float) -> None:
        """One client: it asks, waits, and asks again."""
        chance = random.Random(seed)
        await asyncio.sleep(chance.uniform(0, pause_s))
        while time.monotonic() < until:
            (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
            place = chance.randrange(len(self._prompts))
            try:
                await asyncio.wait_for(self._act(kind, place, chance), STUCK_S)
            except TimeoutError:
                self._report.problems.append(f"stuck: {kind} {place}")
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._report.problems.append(f"lost: {kind} {place}: {error!r}")
            await asyncio.sleep(chance.uniform(0, 2 * pause_s))

    async def _act(self, kind: str, place: int, chance: random.Random) -> None:
        if kind == "bad input":
            status, answer = await self._post("/v1/completions", chance.choice(BAD))
            is_right = status in (400, 404)
        elif kind == "gone away":
            await self._go_away(place, chance)
            is_right = True
        elif kind in ("streamed", "slow reader"):
            pause_s = chance.uniform(0.01, 0.3) if kind == "slow reader" else 0.0
            answer = await self._stream(place, pause_s)
            is_right = answer == self._expected["whole", place]
        else:
            status, answer = await self._patient(*self._request(kind, place))
            is_right = status == 200 and _told(kind, answer) == self._expected[kind, place]
        if is_right:
            self._report.done[kind] += 1
        else:
            self._report.problems.append(f"wrong: {kind} {place}: {str(answer)[:200]}")

    def _request(self, kind: str, place: int, *, stream: bool = False) -> tuple[str, bytes]:
        prompt = self._prompts[place]
        if kind == "tensors":
            item = {"name": "input_ids", "datatype": "INT64", "shape": [1, len(prompt)]}
            data = {"inputs": [{**item, "data": prompt}], "outputs": [{"name": "logits"}]}
            return "/v2/models/bench/infer", json.dumps(data).encode()
        body: dict[str, Any] = {"model": "bench", "prompt": prompt, "return_token_ids": True}
        body |= {"temperature": place % 2, "seed": place, "logprobs": 1}
        if kind == "scored":
            body |= {"echo": True, "max_tokens": 0}
        else:
            body |= {"max_tokens": TOKENS, "stream": stream}
        return "/v1/completions", json.dumps(body).encode()

    async def _open(
        self, path: str, body: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._place)
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return reader, writer

    async def _post(self, path: str, body: bytes) -> tuple[int, Any]:
        reader, writer = await self._open(path, body)
        try:
            status = await _status(reader)
            return status, json.loads(await reader.read())
        finally:
            writer.close()

    async def _patient(self, path: str, body: bytes) -> tuple[int, Any]:
        """The same, coming again where the server says that it is busy."""
        while True:
            status, answer = await self._post(path, body)
            if status != 429:
                return status, answer
            self._report.busy += 1
            await asyncio.sleep(1)

    async def _stream(self, place: int, pause_s: float) -> Any:
        """What a stream tells; read by a client that waits after each event."""
        path, body = self._request("whole", place, stream=True)
        while True:
            reader, writer = await self._open(path, body)
            try:
                status = await _status(reader)
                if status == 429:
                    self._report.busy += 1
                    await asyncio.sleep(1)
                    continue
                return await _events(reader, pause_s)
            finally:
                writer.close()

    async def _go_away(self, place: int, chance: random.Random) -> None:
        path, body = self._request("whole", place, stream=chance.random() < 0.5)
        if chance.random() < 0.2:
            body = body[: len(body) // 2]  # goes while it sends
        reader, writer = await self._open(path, body)
        try:
            await asyncio.wait_for(reader.read(200), chance.uniform(0.01, 1.0))
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    if not line:
        raise ValueError("the connection was closed without an answer")
    while (await reader.readline()).strip():
        pass
    return int(line.split()[1])


async def _events(reader: asyncio.StreamReader, pause_s: float) -> Any:
    ids: list[int] = []
    logprobs: list[float] = []
    finish, is_whole = None, False
    async for line in reader:
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            ids += choice["token_ids"]
            logprobs += choice["logprobs"]["token_logprobs"]
            finish = choice["finish_reason"]
            await asyncio.sleep(pause_s)
        is_whole = is_whole or line.startswith(b"data: [DONE]")
    return (ids, logprobs, finish) if is_whole else "a stream without an end"


def _told(kind: str, answer: Any) -> Any:
    """Of an answer, what must be the same whenever it is asked."""
    if kind == "tensors":
        return answer["outputs"][0]["data"]
    choice = answer["choices"][0]
    if kind == "scored":
        return choice["logprobs"]["token_logprobs"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]


def soak_server(
    model: Path,
    *,
    seconds: float,
    clients: int = CLIENTS,
    pause_s: float = 30.0,
    threads: int = 1,
    lookup: bool = False,
) -> Report:
    """Serve a model, let clients ask for some time, and look at what is left.

    Args:
        model: A language model with a cache: its folder or file.
        seconds: How long clients begin new requests.
        clients: How many there are.
        pause_s: How long one of them waits between two requests, on average.
        threads: Of the server's calls.
        lookup: Whether the server guesses ahead, where the model allows it.

    Raises:
        RuntimeError: The server does not start, or refuses a request that it should not.
    """
    from causal_onnx.runtime import load  # noqa: PLC0415 - the server's process has its own

    contract = load(model, trusted=True).contract
    vocab = next(spec.vocab_size for spec in contract.inputs if spec.vocab_size is not None)
    report = Report()
    options = ["--lookup"] if lookup else []
    with running_server(model, threads, *options) as (process, address, _):
        status = Path(f"/proc/{process.pid}/status")
        asyncio.run(
            _all(
                _Clients(address, vocab, report),
                clients=clients,
                seconds=seconds,
                pause_s=pause_s,
                status=status,
                report=report,
            )
        )
        report.after_bytes = field_bytes(status, "VmRSS")
        report.problems += _left(address)
        process.terminate()
        if process.wait(timeout=60) != 0:
            report.problems.append(f"the server ended with {process.returncode}")
    return report


async def _all(
    clients_of: _Clients,
    *,
    clients: int,
    seconds: float,
    pause_s: float,
    status: Path,
    report: Report,
) -> None:
    await clients_of.learn()
    until = time.monotonic() + seconds

    async def look() -> None:
        await asyncio.sleep(seconds / 3)
        report.before_bytes = field_bytes(status, "VmRSS")

    await asyncio.gather(
        look(), *(clients_of.client(seed, until, pause_s) for seed in range(clients))
    )


def _left(address: str) -> list[str]:
    """What a server without clients should not have."""
    deadline = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            text = answer.read().decode()
        left = [
            line
            for line in text.splitlines()
            if re.match(r"causal_onnx:num_requests_(running|waiting)\{.*\} [^0]", line)
        ]
        if not left or time.monotonic() > deadline:
            return [f"left behind: {line}" for line in left]
        time.sleep(0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Soak and print; 0 all was right, 1 something was not."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="a language model with a cache: folder or file")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=positive, default=CLIENTS)
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between two requests")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--lookup", action="store_true", help="let the server guess ahead")
    args = parser.parse_args(argv)
    report = soak_server(
        args.model,
        seconds=args.minutes * 60,
        clients=args.clients,
        pause_s=args.pause,
        threads=args.threads,
        lookup=args.lookup,
    )
    print(report)
    for problem in report.problems[:20]:
        print(f"  {problem}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
