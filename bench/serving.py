"""Time the server over HTTP: many clients at once, first tokens, gaps, and what HTTP itself costs.

    python -m bench.serving                            # 135M, int8 and fp32, beside its peers
    python -m bench.serving model/ --threads 2         # any model, alone
    python -m bench.serving model/ --llama-server /usr/bin/llama-server --gguf model.gguf

The server is a process of its own, as `causal-onnx serve` starts it; the clients are in this one.
Works are interleaved, and repeated; of each the best round counts, as other work only slows them.
Other servers do the same works in turns with ours: llama.cpp's on a file of `bench.gguf_file`,
onnx-genai-server on our own file, OpenVINO GenAI by its Python functions. A whole run writes
bench/README.md and bench/results.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.client import ROOT, WorkerError
from bench.command import one_line_errors
from bench.generation.cases import TINY
from bench.generation.files import Files, gguf_name, make_files, make_gguf
from bench.generation.openvino import OPENVINO, OPENVINO_REQUIREMENTS
from bench.generation.ours import ours_name
from bench.markdown import caution, facts, marked, table
from bench.peers import install_peers
from bench.program import LLAMA_SERVER, NO_LLAMA, find_program, processor_clock
from bench.readme import publish
from bench.results import Section, begin_section
from bench.serving_clients import (
    CHUNK,
    CLIENTS,
    Answer,
    Client,
    HttpFigures,
    HttpServer,
    Server,
    Works,
)
from bench.serving_peers import LlamaServer, OnnxGenaiServer, OpenVino, Peer
from bench.sizes import FULL, SMALL, ModelSizes, ModuleSizes
from causal_onnx.runtime import load
from causal_onnx.serve import Engine, EngineOptions

__all__ = [
    "OURS",
    "SECTION",
    "Figures",
    "ServingSection",
    "main",
    "measure",
    "running_server",
    "to_markdown",
]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-serving"
FILES = ROOT / "build" / "bench-generation"
SECTION = "serving"
DISTRIBUTIONS = ("onnxruntime", "numpy")

PAIRS = {"w8a8": "q8_0", "fp32": "f32"}
"""Our precision -> the kind of GGUF file beside it."""
OURS = "causal-onnx"

ROUND_S = 900.0
"""A server that does not end a round in this time is left out."""
WHOLE = Works(long_prompt=1984)
"""31 chunks: what, with the token after it, the model of 135M takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was found of one model."""

    ours: HttpFigures
    engine_cpu_ms: float
    """Processor time for a token of eight clients, in process."""
    replayed: int
    """Requests of a mixed load that were sent again alone."""
    different: int
    """Of them, those whose tokens or log-probabilities were others."""
    peers: Mapping[str, HttpFigures]
    """Other servers, in turns with ours."""
    left_out: Mapping[str, str]
    """Those that were not measured, each with the reason."""

    @property
    def http_cpu_ms(self) -> float:
        """Processor time of HTTP itself, for a token."""
        return self.ours.server_cpu_ms - self.engine_cpu_ms

    def rows(self) -> list[tuple[str, ...]]:
        """What is told, our figure, and those of the other servers."""
        shared = self.ours.rows()
        others = [[text for _, text in peer.rows()] for peer in self.peers.values()]
        blank = ("-",) * len(others)
        return [
            *((*row, *(one[place] for one in others)) for place, row in enumerate(shared)),
            ("processor time of HTTP itself", f"{self.http_cpu_ms:.2f} ms a token", *blank),
            ("replayed alone", f"{self.replayed}, {self.different} different", *blank),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingSection(Section):
    """All that a run found."""

    sizes: Mapping[str, Any]
    works: Mapping[str, int]
    threads: int
    files: Mapping[str, Figures]
    """By precision of ours."""
    left_out: Mapping[str, str]
    """Precisions that were not measured, each with the reason."""


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


def measure(
    model: Path,
    *,
    threads: int,
    works: Works,
    beside: Sequence[Peer] = (),
    left_out: Mapping[str, str] | None = None,
) -> Figures:
    """Measure one model.

    Args:
        model: A language model with a cache: its folder or file.
        threads: Of the server's calls.
        works: How much is done.
        beside: Do the same works in turns; one that fails is left out, with the reason.
        left_out: Peers that are known to be missing, each with the reason.

    Raises:
        RuntimeError: Our server does not start, or refuses a request.
    """
    loaded = load(model, threads=threads, trusted=True)
    vocab = next(s.vocab_size for s in loaded.contract.inputs if s.vocab_size is not None)
    random_ids = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [random_ids.randrange(3, vocab) for _ in range(length)]

    prompts = [prompt(works.prompt) for _ in range(CLIENTS)]
    options = EngineOptions(chunk=CHUNK, prefix_positions=0)
    in_process: list[float] = []
    long_prompt = prompt(works.long_prompt)
    lost = dict(left_out or {})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(Engine(loaded, options=options))
        process, address, name = stack.enter_context(
            running_server(model, threads, "--prefix-positions", "0")
        )
        client = Client(address, name)
        servers: dict[str, Server] = {OURS: HttpServer(client, processor_clock(process.pid))}
        for peer in beside:
            try:
                servers[peer.name] = peer.start(stack, threads, folder)
            except (RuntimeError, OSError, WorkerError) as error:
                lost[peer.name] = str(error)
        for _ in range(works.rounds):
            in_process.append(_engine_cpu(engine, prompts, works))
            asyncio.run(_in_turns(servers, prompts, long_prompt, works, lost))
        replayed, different = asyncio.run(_replays(client, prompts, long_prompt))
    found = {name: server.figures() for name, server in servers.items()}
    return Figures(
        ours=found.pop(OURS),
        engine_cpu_ms=min(in_process),
        replayed=replayed,
        different=different,
        peers=found,
        left_out=lost,
    )


def _engine_cpu(engine: Engine, prompts: Sequence[Sequence[int]], works: Works) -> float:
    began = time.process_time()
    begun = [engine.submit(ids, max_new_tokens=works.tokens) for ids in prompts]
    count = sum(len(found.ids) for generation in begun for found in generation.results())
    return (time.process_time() - began) / count * 1000


async def _in_turns(
    servers: dict[str, Server],
    prompts: Sequence[Sequence[int]],
    long_prompt: Sequence[int],
    works: Works,
    lost: dict[str, str],
) -> None:
    """A round; a peer that fails leaves `servers`, and `lost` says why."""
    for name, server in list(servers.items()):
        try:
            await asyncio.wait_for(server.round(prompts, long_prompt, works), ROUND_S)
        except (RuntimeError, OSError, WorkerError, TimeoutError, ValueError) as error:
            if name == OURS:
                raise
            lost[name] = str(error) or f"a round took more than {ROUND_S:.0f} s"
            del servers[name]


async def _replays(
    client: Client, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int]
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


def _told(answer: Answer) -> list[object]:
    """What an answer told, however its tokens came together in events."""
    told: list[object] = []
    for ids, logprobs in answer.tokens:
        told += zip(ids, logprobs["token_logprobs"], strict=True)
    return told


def to_markdown(section: ServingSection) -> str:
    """A table for each precision, losses in bold."""
    works = section.works
    parts = [
        f"{facts(section)}\n\n{section.sizes['name']} parameters with random weights, "
        f"{section.threads} thread{'s' * (section.threads > 1)} a server, in turns; {CLIENTS} "
        f"clients ask for {works['tokens']} tokens each after prompts of {works['prompt']} ids, "
        f"the long prompt has {works['long_prompt']}. The best of {works['rounds']} rounds.",
        caution(section.machine),
    ]
    for precision, figures in section.files.items():
        rows = figures.rows()
        ahead = {name: _losses(figures.ours, peer) for name, peer in figures.peers.items()}
        lines = []
        for place, (what, own, *others) in enumerate(rows):
            shown = [
                marked(text, place in ahead[name])
                for name, text in zip(figures.peers, others, strict=True)
            ]
            lines.append([what, own, *shown])
        heads = (
            "",
            f"{OURS}, {precision}",
            *(f"{name}, {_beside(name, precision)}" for name in figures.peers),
        )
        text = ["In bold: better than ours.", "", *table(heads, lines, left=1)]
        if figures.left_out:
            text += ["", "Not measured:", ""]
            text += [f"- {name}: {why}" for name, why in figures.left_out.items()]
        parts.append("\n".join([f"### {precision}", "", *text]))
    parts += [f"{precision} was not measured: {why}" for precision, why in section.left_out.items()]
    return "\n\n".join(part for part in parts if part)


def _beside(name: str, precision: str) -> str:
    return "the same file" if name == OnnxGenaiServer.name else PAIRS[precision].upper()


def _losses(ours: HttpFigures, peer: HttpFigures) -> set[int]:
    """The rows, by place, in which the peer is better."""
    less = [
        (peer.in_turn_tokens_s, ours.in_turn_tokens_s),
        (peer.together_tokens_s, ours.together_tokens_s),
        (ours.first_token_alone_ms, peer.first_token_alone_ms),
        (ours.first_token_in_company_ms, peer.first_token_in_company_ms),
        (ours.chunk_ms, peer.chunk_ms),
        (ours.gap_alone_ms, peer.gap_alone_ms),
        (ours.gap_in_reading_ms, peer.gap_in_reading_ms),
        (ours.server_cpu_ms, peer.server_cpu_ms),
    ]
    return {
        place
        for place, (high, low) in enumerate(less)
        if high is not None and low is not None and high > low
    }


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table; 0 done, 1 our server failed, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    given = {name: value for name in asdict(WHOLE) if (value := getattr(args, name)) is not None}
    program = find_program(LLAMA_SERVER, args.llama_server)
    if args.model is None:
        if args.gguf is not None:
            parser.error("--gguf is given with a model")
        section = _whole(
            SMALL if args.quick else FULL, replace(WHOLE, **given), args.threads, program
        )
        is_whole = not (args.quick or given or args.threads != 1)
        page = PAGE if is_whole else None
        publish(SECTION, section, to_markdown(section), WORK, page=page)
        return 0
    if (args.llama_server is None) != (args.gguf is None):
        parser.error("--llama-server and --gguf are given together")
    beside = [LlamaServer(program=program, gguf=args.gguf)] if program and args.gguf else []
    figures = measure(
        args.model, threads=args.threads, works=replace(Works(), **given), beside=beside
    )
    if args.json:
        print(json.dumps(asdict(figures), indent=2))
        return 0
    for what, *found in [("", OURS, *figures.peers), *figures.rows()]:
        print(f"{what:44} {' '.join(f'{text:26}' for text in found)}".rstrip())
    for name, why in figures.left_out.items():
        print(f"{name} was not measured: {why}")
    return 0


def _whole(sizes: ModelSizes, works: Works, threads: int, program: Path | None) -> ServingSection:
    """The model of `bench.generation` at each precision, beside all peers."""
    ended = begin_section(DISTRIBUTIONS)
    WORK.mkdir(parents=True, exist_ok=True)
    FILES.mkdir(parents=True, exist_ok=True)
    made = make_files(
        FILES, sizes, TINY, ModuleSizes(), precisions=tuple(PAIRS), note=_note, builder=()
    )
    found, left_out = {}, {}
    for precision, kind in PAIRS.items():
        _note(f"serving {sizes.name} {precision}")
        beside, missing = _peers(made, precision, kind, sizes, program)
        model = made.ours / ours_name(precision)
        try:
            found[precision] = measure(
                model, threads=threads, works=works, beside=beside, left_out=missing
            )
        except (RuntimeError, OSError) as error:
            left_out[precision] = str(error)
            _note(f"{precision}: {error}")
    if not found:
        raise RuntimeError("; ".join(f"{what}: {why}" for what, why in left_out.items()))
    return ServingSection(
        **ended(),
        sizes=asdict(sizes),
        works=asdict(works),
        threads=threads,
        files=found,
        left_out=left_out,
    )


def _peers(
    made: Files, precision: str, kind: str, sizes: ModelSizes, program: Path | None
) -> tuple[list[Peer], dict[str, str]]:
    """Those that can be tried, and the reasons of the others."""
    model = made.ours / ours_name(precision)
    served = OnnxGenaiServer(model=model, vocab_size=sizes.vocab_size)
    beside: list[Peer] = [served]
    missing = {}
    try:
        make_gguf(made.peers, kind, _note)
    except RuntimeError as error:
        return beside, dict.fromkeys((LlamaServer.name, OpenVino.name), str(error))
    if program is None:
        missing[LlamaServer.name] = NO_LLAMA
    else:
        beside.append(LlamaServer(program=program, gguf=made.peers / gguf_name(kind)))
    try:
        install_peers(OPENVINO_REQUIREMENTS, OPENVINO)
        beside.append(OpenVino(peers=made.peers, kind=kind))
    except RuntimeError as error:
        missing[OpenVino.name] = str(error)
    return beside, missing


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="a language model with a cache: folder or file (default: that of bench.generation)",
    )
    parser.add_argument("--quick", action="store_true", help="32M parameters instead of 135M")
    parser.add_argument("--threads", type=int, default=1)
    for name in asdict(WHOLE):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument(
        "--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's (default: on the PATH)"
    )
    parser.add_argument("--gguf", type=Path, help="the file that it serves; see bench.gguf_file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
