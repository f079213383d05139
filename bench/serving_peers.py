"""Servers that do the same works beside ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.client import ROOT, Worker, worker_environment
from bench.peers import install_peers, run_quietly
from bench.program import Program, llama_command
from bench.serving_clients import (
    CLIENTS,
    HttpFigures,
    HttpServer,
    LlamaClient,
    OnnxGenaiClient,
    Server,
    Works,
)

__all__ = ["LlamaServer", "OnnxGenaiServer", "OpenVino", "Peer"]

ONNX_GENAI = ROOT / "build" / "peers-onnx-genai"
ONNX_GENAI_REQUIREMENTS = ROOT / "bench" / "requirements-onnx-genai.txt"
_ONNX_GENAI_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from onnx_genai_server import main; sys.exit(main())"
)
_SERVE = "from causal_onnx.cli.main import main; import sys; sys.exit(main())"

SLOT_POSITIONS = 4096
"""Of the cache of each of llama.cpp's clients."""


class Peer(Protocol):
    """A server of another runtime."""

    @property
    def name(self) -> str:
        """For readers."""

    def start(self, stack: ExitStack, threads: int, folder: Path) -> Server:
        """Start it; it ends with the stack.

        Args:
            stack: Ends what was started.
            threads: Of the server's calls.
            folder: For logs and files.

        Raises:
            RuntimeError: It cannot be installed or does not start.
            WorkerError: Its process does not start.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaServer:
    """llama.cpp's server, and the file that it serves."""

    program: Path
    gguf: Path
    name: ClassVar[str] = "llama.cpp"

    def start(self, stack: ExitStack, threads: int, folder: Path) -> Server:
        """Start it, with a slot for each client."""
        command = llama_command(
            self.program, self.gguf, threads=threads, slots=CLIENTS, positions=SLOT_POSITIONS
        )
        program = stack.enter_context(Program(command, log=folder / "llama.log"))
        return HttpServer(LlamaClient(program.address), program.processor_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxGenaiServer:
    """onnx-genai-server with our file, in the folder that `causal-onnx bundle` writes.

    It decodes one sequence at a time: on a CPU it batches no model with past and present.
    """

    model: Path
    vocab_size: int
    name: ClassVar[str] = "onnx-genai-server"

    def start(self, stack: ExitStack, threads: int, folder: Path) -> Server:
        """Install it, write the folder, and start it."""
        install_peers(ONNX_GENAI_REQUIREMENTS, ONNX_GENAI)
        served = folder / "onnx-genai"
        shutil.rmtree(served, ignore_errors=True)
        bundle = [sys.executable, "-c", _SERVE, "bundle", str(self.model.resolve())]
        run_quietly([*bundle, "-o", str(served.resolve())], worker_environment(1))
        stack.callback(shutil.rmtree, served, ignore_errors=True)
        _number_words(served, self.vocab_size)
        command = [sys.executable, "-c", _ONNX_GENAI_START, str(ONNX_GENAI), "serve", str(served)]
        environment = worker_environment(1) | {"ONNX_GENAI_INTRA_OP_THREADS": str(threads)}
        program = stack.enter_context(
            Program(
                [*command, "--addr", "127.0.0.1:{port}"],
                log=folder / "onnx-genai.log",
                environment=environment,
            )
        )
        return HttpServer(OnnxGenaiClient(program.address, served.name), program.processor_s)


def _number_words(folder: Path, vocab_size: int) -> None:
    """A tokenizer with a word for each id; the last id ends a text, as one has to."""
    vocabulary = {f"t{number}": number for number in range(vocab_size)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = vocab_size - 1
    path.write_text(json.dumps(config), encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenVino:
    """OpenVINO GenAI's scheduler, asked by its Python functions: it has no server of its own."""

    peers: Path
    """With its GGUF file, as `bench.generation` makes them."""
    kind: str
    name: ClassVar[str] = "OpenVINO GenAI"

    def start(self, stack: ExitStack, threads: int, folder: Path) -> Server:
        """Start a process for clients at once, and one for clients in turn."""
        if self.kind == "f32":
            raise RuntimeError("it reads no GGUF file in float32")
        workers = {}
        for at_once in (True, False):
            setup: dict[str, Any] = {"folder": str(self.peers.resolve()), "ours": "", "sizes": {}}
            workers[at_once] = stack.enter_context(
                Worker(
                    "bench.generation.openvino:generation",
                    threads=threads,
                    setup={**setup, "kind": self.kind, "together": True},
                    log=folder / f"openvino-{'together' if at_once else 'in-turn'}.log",
                    name=self.name,
                )
            )
        return _Scheduler(workers)


class _Scheduler:
    """Tokens of several clients, without HTTP."""

    def __init__(self, workers: dict[bool, Worker]) -> None:
        self._workers = workers
        self._walls: dict[bool, list[float]] = {key: [] for key in workers}
        self._cpus: dict[bool, list[float]] = {key: [] for key in workers}

    async def round(
        self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int], works: Works
    ) -> None:
        """Decode for all prompts in turn, and at once."""
        total = len(prompts) * works.tokens
        for at_once, worker in self._workers.items():
            if not self._walls[at_once]:
                case = {"prompts": [list(ids) for ids in prompts], "new": works.tokens}
                case |= {"at_once": at_once}
                await asyncio.to_thread(worker.ask, "prepare", case=case)
            answer = await asyncio.to_thread(worker.ask, "turn", calls=1)
            self._walls[at_once].append(answer["wall_s"][0] / total)
            self._cpus[at_once].append(answer["cpu_s"][0] / total)

    def figures(self) -> HttpFigures:
        """Of all rounds."""
        return HttpFigures(
            in_turn_tokens_s=1 / min(self._walls[False]),
            together_tokens_s=1 / min(self._walls[True]),
            server_cpu_ms=min(self._cpus[True]) * 1000,
            in_turn_cpu_ms=min(self._cpus[False]) * 1000,
        )
