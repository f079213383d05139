"""Command line: `python -m bench.generation`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.client import ROOT
from bench.command import one_line_errors, positive
from bench.generation.cases import (
    GGUF_KINDS,
    PRECISIONS,
    TINY,
    WORKS,
    Batch,
    Work,
    as_small_as,
)
from bench.generation.openvino import OPENVINO, OPENVINO_REQUIREMENTS
from bench.generation.run import Plan, run
from bench.generation.subjects import llama, openvino, subjects_for
from bench.generation.table import to_markdown
from bench.peers import install_peers
from bench.program import LLAMA_SERVER, NO_LLAMA, find_program
from bench.readme import publish
from bench.rounds import RoundPolicy
from bench.sizes import FULL, SMALL

__all__ = ["main"]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-generation"
SECTION = "generation"

POLICY = RoundPolicy(at_least=3, at_most=7, precision=0.02, seconds=20.0)
QUICK_POLICY = RoundPolicy(at_least=2, at_most=2, at_least_slow=2, seconds=5.0)
QUICK_WORKS = (
    Work(kind="prefill", prompt=128),
    Work(kind="prefill", prompt=512),
    Work(kind="decode", prompt=16, new=32),
)
QUICK_BATCH = Batch(new=16)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 the subjects disagree or one failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    plan = _plan(arguments)
    is_whole = (
        arguments.full and not arguments.quick and arguments.out is None and not arguments.threads
    )
    section = run(plan)
    page = PAGE if is_whole else None
    publish(SECTION, section, to_markdown(section), plan.folder, page=page)
    known = {one.name for one in plan.subjects} | set(plan.missing)
    failed = [f"{part}: {why}" for part, why in section.left_out.items() if part not in known]
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    sizes = FULL if arguments.full else SMALL
    folder = WORK if arguments.out is None else arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    program = find_program(LLAMA_SERVER, arguments.llama_server)
    missing = {} if program else {"llama.cpp": NO_LLAMA}
    subjects = subjects_for(PRECISIONS) + (llama(GGUF_KINDS, program) if program else ())
    try:
        install_peers(OPENVINO_REQUIREMENTS, OPENVINO)
        subjects += openvino(kind for kind in GGUF_KINDS if kind != "f32")
        missing["OpenVINO GenAI F32"] = "it reads no GGUF file in float32"
    except RuntimeError as error:
        missing["OpenVINO GenAI"] = str(error)
    plan = Plan(
        sizes=sizes,
        folder=folder,
        tiny=as_small_as(TINY, sizes),
        policy=POLICY,
        subjects=subjects,
        missing=missing,
    )
    if arguments.threads:
        plan = replace(plan, threads=tuple(arguments.threads))
    if arguments.quick:
        plan = replace(
            plan,
            works=QUICK_WORKS,
            batch=QUICK_BATCH,
            sets=1,
            policy=QUICK_POLICY,
            start_rounds=2,
            overhead_rounds=5,
        )
    return plan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.generation",
        description=f"Time {', '.join(str(work) for work in WORKS)} of a Llama-style model with "
        "random weights in whole runtimes, batches, starts, and what Python adds to a step. "
        "The first run exports the models, with all proofs; the files are kept. A whole run "
        "with --full rewrites the tables of bench/README.md.",
    )
    parser.add_argument("--full", action="store_true", help="135M parameters instead of 32M")
    parser.add_argument("--quick", action="store_true", help="shorter works, one set of processes")
    parser.add_argument(
        "--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's (default: on the PATH)"
    )
    parser.add_argument("--threads", type=positive, nargs="+", metavar="N")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where all files go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
