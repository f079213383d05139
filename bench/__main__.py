"""Command line: `python -m bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.attention import chart, table
from bench.attention.cases import (
    BATCHES,
    LENGTHS,
    QUICK_BATCHES,
    QUICK_LENGTHS,
    THREADS,
    default_cases,
)
from bench.attention.run import Plan, run
from bench.attention.section import Section
from bench.attention.subjects import OURS_NAME, REFERENCE, SUBJECTS
from bench.client import ROOT
from bench.command import one_line_errors, positive
from bench.readme import rewrite_page
from bench.results import write_section
from bench.rounds import RoundPolicy
from bench.sizes import ModuleSizes
from bench.subject import Subject

__all__ = ["main"]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench"
SECTION = "attention"

QUICK_POLICY = RoundPolicy(at_least=5, at_most=11, precision=0.03, seconds=3.0)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 a subject disagrees or ours failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    batches = arguments.batch or (QUICK_BATCHES if arguments.quick else BATCHES)
    lengths = arguments.lengths or (QUICK_LENGTHS if arguments.quick else LENGTHS)
    sizes = ModuleSizes(embed_dim=arguments.dim, num_heads=arguments.heads)
    plan = Plan(
        cases=default_cases(batches, lengths),
        threads=tuple(arguments.threads or THREADS),
        subjects=_chosen(arguments.only),
        folder=WORK if arguments.out is None else arguments.out,
        sizes=sizes,
        policy=QUICK_POLICY if arguments.quick else RoundPolicy(),
        has_memory=not arguments.no_memory,
    )
    if not plan.cases:
        print("error: no case is left; see --batch and --lengths", file=sys.stderr)
        return 2
    is_whole = arguments.out is None and plan == Plan(
        cases=default_cases(BATCHES, LENGTHS), threads=THREADS, subjects=SUBJECTS, folder=WORK
    )
    section = run(plan)
    _write(section, PAGE if is_whole else plan.folder, has_page=is_whole)
    failed = any(item.subject == OURS_NAME and item.has_failed for item in section.left_out)
    return 1 if failed else 0


def _write(section: Section, folder: Path, *, has_page: bool) -> None:
    """Write the figures and the chart; only a whole run may replace the page's tables."""
    write_section(folder / "results.json", SECTION, section.to_dict())
    (folder / "results.svg").write_text(chart.draw(section), encoding="utf-8")
    print(table.to_markdown(section, chart=None))
    written = [folder / "results.json", folder / "results.svg"]
    if has_page:
        rewrite_page(folder / "README.md", SECTION, table.to_markdown(section, chart="results.svg"))
        written.append(folder / "README.md")
    print(f"\nwrote {', '.join(str(path) for path in written)}")


def _chosen(only: Sequence[str] | None) -> tuple[Subject, ...]:
    if not only:
        return SUBJECTS
    return tuple(s for s in SUBJECTS if s.name in only or s.name == REFERENCE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time and memory of a whole attention module beside its peers. Without "
        "options: every case, about 20 minutes on 2 cores, and bench/README.md is rewritten. "
        "With options the results go to build/bench.",
    )
    parser.add_argument("--quick", action="store_true", help="few lengths, batch 1, fewer rounds")
    parser.add_argument("--lengths", type=positive, nargs="+", metavar="N")
    parser.add_argument("--batch", type=positive, nargs="+", metavar="N")
    parser.add_argument("--threads", type=positive, nargs="+", metavar="N")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[subject.name for subject in SUBJECTS],
        metavar="SUBJECT",
        help=f"of {', '.join(s.name for s in SUBJECTS)}; {REFERENCE} always runs",
    )
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--dim", type=positive, default=ModuleSizes().embed_dim, metavar="N")
    parser.add_argument("--heads", type=positive, default=ModuleSizes().num_heads, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where all files go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
