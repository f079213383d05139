"""Run every client against the bundles, and print a table: `python -m examples.clients`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from causal_onnx.cli.console import plain_table
from examples.bundles import LANGUAGE_MODEL, PORTABLE, SERVED, TRAIN_STEPS, make_bundles
from examples.clients.client import ROOT, MissingError, Outcome, run_client
from examples.clients.fresh import COMMANDS, Fresh, run_every_command
from examples.clients.generation import Generated, generate
from examples.clients.languages import CLIENTS, GENERATORS


def main(argv: Sequence[str] | None = None) -> int:
    """Give 0 where every client that can be run here passes."""
    parser = argparse.ArgumentParser(description="Run the clients of every language.")
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bundles")
    parser.add_argument(
        "--train-steps", type=int, default=TRAIN_STEPS, help="of the language model (%(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="take the bundles that are there")
    parser.add_argument("--offline", action="store_true", help="install nothing")
    parser.add_argument("--prepare", action="store_true", help="install and build, run nothing")
    parser.add_argument("clients", nargs="*", help="names; all if none is given")
    args = parser.parse_args(argv)
    names = {client.name for client in (*CLIENTS, *GENERATORS)}
    if unknown := set(args.clients) - names:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(names)}")
    if args.prepare:
        return prepare()
    print(f"bundles in {args.bundles}", flush=True)
    if not args.keep or not (args.bundles / PORTABLE[-1]).is_dir():
        make_bundles(args.bundles, train_steps=args.train_steps)
    outcomes = []
    for client in CLIENTS:
        if args.clients and client.name not in args.clients:
            continue
        folders = [args.bundles / (client.prefix + name) for name in SERVED]
        outcomes.append(run_client(client, folders, install=not args.offline))
        print(f"{client.name}: {state_of(outcomes[-1])}", flush=True)
    generated = [
        generate(client, args.bundles / LANGUAGE_MODEL, install=not args.offline)
        for client in GENERATORS
        if not args.clients or client.name in args.clients
    ]
    fresh = None
    if not args.clients:
        fresh = run_every_command(args.bundles / LANGUAGE_MODEL, install=not args.offline)
    print()
    print(table(outcomes))
    print()
    print(generation_table(generated))
    for found in generated:
        if found.problem:
            print(f"{found.name}: {found.problem}", file=sys.stderr)
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"{outcome.name}: {problem}", file=sys.stderr)
    if fresh is not None:
        print(f"\n{fresh_text(fresh)}")
    failed = [fresh is not None and fresh.failed, *(outcome.failed for outcome in outcomes)]
    failed += [found.failed for found in generated]
    return int(any(failed))


def prepare() -> int:
    """Make every client ready, and say which could not be; that is no failure."""
    for client in (*CLIENTS, *GENERATORS):
        try:
            client.prepare(True)
        except MissingError as error:
            print(f"{client.name}: {error}", file=sys.stderr)
    return 0


def state_of(outcome: Outcome) -> str:
    """One word on what came of it, or the reason."""
    if outcome.untested:
        return f"untested: {outcome.untested}"
    return "FAILED" if outcome.failed else "passed"


def table(outcomes: Sequence[Outcome]) -> str:
    """One row per client; times in the order of the bundles."""
    headers = ["client", "runtime", "bundles", "largest error"]
    headers += [f"ms, {name.replace('_', ' ')}" for name in SERVED]
    rows = []
    for outcome in outcomes:
        if outcome.untested:
            rows.append([outcome.name, f"untested: {outcome.untested}", *[""] * (len(headers) - 2)])
            continue
        passed = f"{outcome.passed} of {outcome.bundles}"
        times = [f"{time:.3f}" for time in outcome.ms_per_call]
        times += [""] * (len(SERVED) - len(times))
        rows.append([outcome.name, outcome.runtime, passed, f"{outcome.error:.1e}", *times])
    return plain_table(headers, rows, numbers=len(SERVED) + 2)


def fresh_text(fresh: Fresh) -> str:
    """What ran where nothing but numpy and onnxruntime is installed."""
    if fresh.untested:
        return f"fresh environment untested: {fresh.untested}"
    lines = [f"fresh environment with {', '.join(fresh.packages)}"]
    lines.append(f"  {len(fresh.passed)} of {len(COMMANDS)} commands: {', '.join(fresh.passed)}")
    return "\n".join([*lines, *(f"  {problem}" for problem in fresh.problems)])


def generation_table(generated: Sequence[Generated]) -> str:
    """One row per runtime that continues ids by itself."""
    rows = []
    for found in generated:
        if found.untested:
            rows.append([found.name, f"untested: {found.untested}", "", "", ""])
            continue
        tokens = f"{found.equal} of {found.count}"
        text = "yes" if found.text_is_right else "NO"
        rows.append([found.name, found.runtime, tokens, text, f"{found.ms_per_token:.2f}"])
    headers = ["generates", "runtime", "equal greedy tokens", "text", "ms a token"]
    return plain_table(headers, rows, numbers=3)


if __name__ == "__main__":
    sys.exit(main())
