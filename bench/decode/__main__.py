"""Command line: `python -m bench.decode`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.client import ROOT
from bench.command import one_line_errors, positive
from bench.decode.cases import Step, default_steps
from bench.decode.run import Plan, run
from bench.decode.section import to_markdown
from bench.readme import publish
from bench.rounds import RoundPolicy
from bench.sizes import FULL, SMALL

__all__ = ["main"]

WORK = ROOT / "build" / "bench-decode"
SECTION = "decode"
POLICY = RoundPolicy(at_least=5, at_most=11, precision=0.01, seconds=2.0)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 0 done, 1 the graphs disagree or one failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    sizes = FULL if arguments.full else SMALL
    steps = default_steps(sizes.max_seq_len)
    if arguments.past is not None:
        steps = [Step(past_seq=past, seq=1) for past in arguments.past]
    plan = Plan(
        sizes=sizes,
        steps=steps,
        threads=tuple(arguments.threads),
        folder=(arguments.out or WORK).resolve() / sizes.name,
        policy=POLICY,
        processes=arguments.processes,
        keeps_files=arguments.keep,
    )
    section = run(plan)
    publish(SECTION, section, to_markdown(section), plan.folder, page=None)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode",
        description="Time one cached step of a Llama-style model with random weights: our graph "
        "beside the one that onnxruntime-genai's builder writes, in the same onnxruntime.",
    )
    parser.add_argument("--full", action="store_true", help="135M parameters instead of 32M")
    parser.add_argument(
        "--past", type=positive, nargs="+", metavar="N", help="single tokens after N, no prompts"
    )
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--processes", type=positive, default=5, metavar="N", help="pairs of them")
    parser.add_argument("--keep", action="store_true", help="take the files of the last run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where all files go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
