"""From the start of a process to a language model's first token: `python -m bench.cold_start`.

Each start is a fresh process: it imports, loads, reads a prompt of 16 tokens and has the logits of
the next. Counted are processor time, wall time, the most memory, and what each of several processes
holds that do so with the same file at once, what they share being divided among them (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import resident
from bench.client import ROOT, WorkerError, worker_environment
from bench.command import one_line_errors
from bench.first_token import PROMPT
from bench.generation.cases import TINY
from bench.generation.files import gguf_name, make_files, make_gguf
from bench.generation.ours import ours_name
from bench.markdown import caution, facts, marked, table
from bench.peers import PEERS
from bench.program import LLAMA_SERVER, NO_LLAMA, Program, find_program, llama_command
from bench.readme import publish
from bench.results import Section, begin_section
from bench.rounds import rotated
from bench.sizes import FULL, SMALL, ModuleSizes
from causal_onnx.runtime.bundle.weights import write_beside

__all__ = ["OURS", "SECTION", "StartRow", "StartSection", "main", "measure", "to_markdown"]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-cold-start"
FILES = ROOT / "build" / "bench-generation"
SECTION = "cold-start"
DISTRIBUTIONS = ("onnxruntime", "numpy")
PRECISIONS = ("fp32", "int4")
MB = 1e6
LLAMA_POSITIONS = 512

TITLES = {
    "bare": "onnxruntime alone",
    "load": "causal-onnx, `load(path)`",
    "beside": "causal-onnx, `load(folder)`, weights beside",
    "prepared": "causal-onnx, `load(path, prepared=...)`",
    "genai": "onnxruntime-genai, tuned",
    "llama": "llama.cpp, `llama-server`",
}
PEERS_OF_OURS = ("genai", "llama")
GGUF = {"fp32": "f32", "int4": "q4_0"}
"""Our precision -> the kind of GGUF file beside it."""


OURS = ("load", "beside", "prepared")


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRow:
    """The starts of one subject."""

    file: str
    kind: str
    processor_s: float
    wall_s: float
    peak_bytes: int
    together_bytes: int
    """Of each of the processes that held the file at once (PSS)."""
    alone_bytes: int = 0
    """Of one process that holds it alone (PSS)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartSection(Section):
    """All that a run found."""

    rows: Sequence[StartRow]
    sizes: Mapping[str, int]
    """Bytes of each file."""
    rounds: int
    together: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Peers that were not measured, by file and name, each with the reason."""


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 a start failed, 2 wrong usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for text in arguments.files or ():
        name, _, path = text.partition("=")
        if not name or not Path(path).is_file():
            parser.error(f"--files takes name=model.onnx pairs, got {text!r}")
    if not resident.is_supported():
        raise RuntimeError("what a process holds can be read on Linux alone: run the bench there")
    finish = begin_section(DISTRIBUTIONS)
    files = _given(arguments.files) if arguments.files else _made(quick=arguments.quick)
    rows: list[StartRow] = []
    sizes, left_out = {}, {}
    program = find_program(LLAMA_SERVER, arguments.llama_server)
    if program is None and not arguments.files:
        left_out[TITLES["llama"]] = NO_LLAMA
    for name, kinds in files.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        sizes[name] = kinds["load"].stat().st_size
        rows += measure(
            name,
            kinds,
            rounds=arguments.rounds,
            together=arguments.together,
            program=program,
            left_out=left_out,
        )
    section = StartSection(
        rows=rows,
        sizes=sizes,
        rounds=arguments.rounds,
        together=arguments.together,
        left_out=left_out,
        **finish(),
    )
    page = PAGE if arguments.page or not (arguments.files or arguments.quick) else None
    publish(SECTION, section, to_markdown(section), WORK, page=page)
    return 0


def measure(
    name: str,
    kinds: Mapping[str, Path],
    *,
    rounds: int,
    together: int,
    program: Path | None = None,
    left_out: dict[str, str] | None = None,
) -> list[StartRow]:
    """Start every kind in turn, each time in a process of its own; then several at once.

    The round before the first is not counted: it reads the libraries from the disk, and prepares.

    Args:
        name: Of the file.
        kinds: What is started -> its file or folder.
        rounds: Counted starts of each.
        together: Processes that hold the file at once.
        program: llama.cpp's server, for the kind "llama".
        left_out: Takes the peers that fail, each with the reason; the others go on.

    Raises:
        WorkerError: A start failed that is not a peer's, or two of ours gave different logits.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        if "beside" in kinds:
            (beside := Path(folder) / "beside").mkdir()
            write_beside(kinds["beside"], beside)
            kinds = {**kinds, "beside": beside}
        if program is None:
            kinds = {kind: path for kind, path in kinds.items() if kind != "llama"}
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        start = partial(_start, folder=Path(folder), program=program)
        for number in range(rounds + 1):
            for kind in rotated(list(kinds), number):
                try:
                    with start(kind, kinds[kind]) as one:
                        one["share_bytes"] = _share_bytes(one["pid"])
                        if kind in found:
                            found[kind] += [one] if number else []
                except (WorkerError, RuntimeError, OSError) as error:
                    if kind not in PEERS_OF_OURS:
                        raise
                    if left_out is not None:
                        left_out[f"{name}, {TITLES[kind]}"] = str(error)
                    found.pop(kind, None)
        digests = {one["digest"] for kind in OURS for one in found.get(kind, ())}
        if len(digests) > 1:
            raise WorkerError(
                f"{name}: it gives other logits by one way of loading than by another"
            )
        rows = []
        for kind, starts in found.items():
            with contextlib.ExitStack() as stack:
                held = [stack.enter_context(start(kind, kinds[kind])) for _ in range(together)]
                shares = [_share_bytes(one["pid"]) for one in held]
            rows.append(
                StartRow(
                    file=name,
                    kind=kind,
                    processor_s=statistics.median(one["processor_s"] for one in starts),
                    wall_s=statistics.median(one["wall_s"] for one in starts),
                    peak_bytes=int(statistics.median(one["peak_bytes"] for one in starts)),
                    together_bytes=sum(shares) // together,
                    alone_bytes=int(statistics.median(one["share_bytes"] for one in starts)),
                )
            )
        return rows


def to_markdown(section: StartSection) -> str:
    """The table."""
    lines = [
        "A fresh process imports, loads, and computes the logits behind a prompt of 16 tokens; one",
        f"thread; medians of {section.rounds} starts after one that is not counted. *Together*:",
        f"what each of {section.together} processes holds that have done so with the same file",
        "(PSS). In bold: more than onnxruntime alone.",
        "",
    ]
    cells = []
    for row in section.rows:
        bare = next(one for one in section.rows if one.file == row.file and one.kind == "bare")
        found = [f"{row.file}, {section.sizes[row.file] / MB:.0f} MB", TITLES[row.kind]]
        for name, unit, form in (
            ("processor_s", 1, "{:.2f}"),
            ("wall_s", 1, "{:.2f}"),
            ("peak_bytes", MB, "{:.0f}"),
            ("together_bytes", MB, "{:.0f}"),
        ):
            value, least = getattr(row, name), getattr(bare, name)
            found.append(marked(form.format(value / unit), value > least))
        cells.append(found)
    heads = ("file", "how", "processor time, s", "wall, s", "peak, MB", "together, MB each")
    lines += [*table(heads, cells, left=2), "", facts(section)]
    if section.left_out:
        lines += ["", "Not measured:", ""]
        lines += [f"- {what}: {why}" for what, why in section.left_out.items()]
    busy = caution(section.machine)
    return "\n".join([*lines, *(["", busy] if busy else [])])


@contextlib.contextmanager
def _started(kind: str, path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """One process that has its first token, and what it said; it ends with the context."""
    place = PEERS if kind == "genai" else folder / "prepared"
    command = [sys.executable, "-m", "bench.first_token", kind, str(path), "1", str(place)]
    log = folder / "said.txt"
    began = time.perf_counter()
    with (
        log.open("w") as said,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=worker_environment(1),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        wall_s = time.perf_counter() - began
        if not line:
            process.wait()
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkerError(f"{TITLES[kind]} did not start with {path}: {last}")
        yield {**json.loads(line), "wall_s": wall_s, "pid": process.pid}
        process.stdin.close()


def _start(
    kind: str, path: Path, *, folder: Path, program: Path | None
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    if kind == "llama":
        assert program is not None
        return _started_llama(program, path, folder)
    return _started(kind, path, folder)


@contextlib.contextmanager
def _started_llama(program: Path, gguf: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The same of llama.cpp's server, which is asked for one token."""
    command = llama_command(program, gguf, threads=1, slots=1, positions=LLAMA_POSITIONS)
    began = time.perf_counter()
    with Program(command, log=folder / "said.txt") as server:
        ids = list(range(3, 3 + PROMPT))
        server.post("/completion", {"prompt": ids, "n_predict": 1, "temperature": 0})
        yield {
            "wall_s": time.perf_counter() - began,
            "processor_s": server.processor_s(),
            "peak_bytes": resident.field_bytes(Path(f"/proc/{server.pid}/status"), "VmHWM"),
            "pid": server.pid,
        }


def _share_bytes(pid: int) -> int:
    """What a process holds, with its part of what it shares."""
    return resident.field_bytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _given(texts: Sequence[str]) -> dict[str, dict[str, Path]]:
    files = {}
    for text in texts:
        name, _, path = text.partition("=")
        own = Path(path).resolve()
        files[name] = dict.fromkeys(("bare", *OURS), own)
    return files


def _made(*, quick: bool) -> dict[str, dict[str, Path]]:
    """Our files and the peer's, those of `bench.generation`."""
    sizes = SMALL if quick else FULL

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    made = make_files(
        FILES,
        sizes,
        TINY,
        ModuleSizes(),
        precisions=PRECISIONS,
        note=note,
    )
    found = {}
    for precision in PRECISIONS:
        own = made.ours / ours_name(precision)
        kinds = dict.fromkeys(("bare", *OURS), own)
        gguf = made.peers / gguf_name(GGUF[precision])
        make_gguf(made.peers, GGUF[precision], note)
        peers = {"genai": made.peers / f"tuned-{precision}", "llama": gguf}
        found[f"{sizes.name} {precision}"] = {**kinds, **peers}
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cold_start",
        description="Measure the time and memory from a fresh process to a language model's first "
        "token. A whole run writes bench/README.md and bench/results.json; one with options writes "
        "to build/bench-cold-start.",
    )
    parser.add_argument("--quick", action="store_true", help="the model of 32M")
    parser.add_argument(
        "--files", nargs="+", metavar="NAME=PATH", help="these files of ours, without the peer"
    )
    parser.add_argument(
        "--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's (default: on the PATH)"
    )
    parser.add_argument("--page", action="store_true", help="write the page in any case")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each (default: 5)")
    parser.add_argument("--together", type=int, default=10, help="processes at once (default: 10)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
