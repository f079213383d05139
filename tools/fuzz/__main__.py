"""Mutate files, load each in a process with limits of its own, and count what came of it.

    python -m tools.fuzz --files 20000

Every mutated file comes from a seed. A file that crashes the process, hangs, makes it read outside
of the folder, or ends in an exception that is not ours is kept in build/fuzz/found, under its seed;
`--first SEED --files 1` repeats it. Exit code 0 if there was none.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.fuzz.attempt import OUTCOMES
from tools.fuzz.child import answers
from tools.fuzz.corpus import build_corpus
from tools.fuzz.hostile_run import run_hostile
from tools.fuzz.worker import Fuzzer

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build/fuzz"

FILES_PER_WORKER = 2000

DEFECTS = ("crash", "hang", "unclear", "read outside")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that the arguments name, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--limit", type=float, default=120, metavar="S", help="time of one file")
    parser.add_argument(
        "--trusted", action="store_true", help="without the scan: what it is there for"
    )
    parser.add_argument("--verbose", action="store_true", help="print what was said of each file")
    parser.add_argument(
        "--hostile", type=int, metavar="N", help="instead, N graphs made to harm: one call of each"
    )
    args = parser.parse_args(argv)
    if args.hostile:
        return run_hostile(args.hostile, first=args.first, limit_s=args.limit, trusted=args.trusted)
    build_corpus(PLACE / "corpus", _tell)
    started = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="causal-onnx-fuzz-") as folder:
        check_detector(PLACE / "corpus", Path(folder) / "check")
        for answer in answers(
            range(args.first, args.first + args.files),
            Path(folder),
            PLACE / "corpus",
            files_per_worker=FILES_PER_WORKER,
            limit_s=args.limit,
            trusted=args.trusted,
        ):
            outcome = "read outside" if answer["read_outside"] else answer["outcome"]
            counts[outcome] += 1
            if args.verbose:
                print(answer)
            if outcome in DEFECTS:
                _keep(answer, outcome, Path(folder))
            if sum(counts.values()) % 500 == 0:
                _tell(f"{sum(counts.values())} files: {dict(counts)}")
    seconds = time.monotonic() - started
    print(table(counts, seconds))
    return 1 if any(counts[outcome] for outcome in DEFECTS) else 0


def check_detector(corpus: Path, scratch: Path) -> None:
    """Load, as trusted, a file that reads the secret by its hard link: it must be noticed."""
    if not Fuzzer(corpus, scratch).read_the_secret():
        raise SystemExit("error: a read of the secret file was not noticed; inotify does not work")


def table(counts: collections.Counter[str], seconds: float) -> str:
    """The figures."""
    total = sum(counts.values())
    rows = [("mutated files", total, f"{total / seconds:.0f} a second")]
    rows += [(name, counts[name], what) for name, what in OUTCOMES.items()]
    rows += [
        ("crash", counts["crash"], "the process died"),
        ("hang", counts["hang"], "over its processor or wall-clock time"),
        ("read outside", counts["read outside"], "the secret file was opened: a defect"),
    ]
    return "\n".join(f"{name:16} {count:7,}  {what}" for name, count, what in rows)


def _keep(answer: dict[str, Any], outcome: str, folder: Path) -> None:
    """Keep the file and what was said of it."""
    found = PLACE / "found"
    found.mkdir(parents=True, exist_ok=True)
    seed = answer["seed"]
    scratch = folder / "again"
    shutil.rmtree(scratch, ignore_errors=True)
    _, content, changes, kind = Fuzzer(PLACE / "corpus", scratch).make(seed)
    name = f"{outcome.replace(' ', '-')}-{seed}.{'onnx' if kind == 'model' else 'stream'}"
    (found / name).write_bytes(content)
    (found / f"{name}.txt").write_text(f"{changes}\n{answer['said']}\n")
    last = answer["said"].strip().splitlines()[-1:]
    _tell(f"{outcome}: seed {seed} ({changes}): {' '.join(last)[:200]}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
