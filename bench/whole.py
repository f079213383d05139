"""Measure everything that bench/README.md shows: `python -m bench.whole`.

Each section is a command of its own. One that fails says why, and the others go on: the page then
keeps what the section found before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.client import ROOT
from bench.program import LLAMA_SERVER, NO_LLAMA, find_program

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("bench",),
    ("bench.generation", "--full"),
    ("bench.cold_start",),
    ("bench.serving",),
    ("bench.targets",),
)
"""In the order in which files are made."""
WITH_LLAMA = ("bench.generation", "bench.cold_start", "bench.serving")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; 0 done, 1 some failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.whole", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's (default: on the PATH)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[command[0] for command in COMMANDS], metavar="SECTION"
    )
    arguments = parser.parse_args(argv)
    program = find_program(LLAMA_SERVER, arguments.llama_server)
    if program is None:
        print(f"llama.cpp will be missing: {NO_LLAMA}", file=sys.stderr)
    failed = []
    for name, *options in COMMANDS:
        if arguments.only and name not in arguments.only:
            continue
        began = time.monotonic()
        if program is not None and name in WITH_LLAMA:
            options += ["--llama-server", str(program)]
        done = subprocess.run([sys.executable, "-m", name, *options], cwd=ROOT, check=False)
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: code {done.returncode}, {minutes:.0f} minutes", file=sys.stderr, flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
