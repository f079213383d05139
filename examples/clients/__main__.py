"""Run every client against the bundles, and print a table: `python -m examples.clients`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from causal_onnx.cli.console import plain_table
from examples.bundles import BLOCK, LANGUAGE_MODEL, MECHANISM, make_bundles
from examples.clients.client import ROOT, MissingError, Outcome, run_client
from examples.clients.languages import CLIENTS

BUNDLES = (MECHANISM, BLOCK, LANGUAGE_MODEL)


def main(argv: Sequence[str] | None = None) -> int:
    """Give 0 where every client that can be run here passes."""
    parser = argparse.ArgumentParser(description="Run the clients of every language.")
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bundles")
    parser.add_argument("--train-s", type=float, default=20.0, help="of the language model")
    parser.add_argument("--offline", action="store_true", help="install nothing")
    parser.add_argument("--prepare", action="store_true", help="install and build, run nothing")
    parser.add_argument("clients", nargs="*", help="names; all if none is given")
    args = parser.parse_args(argv)
    names = {client.name for client in CLIENTS}
    if unknown := set(args.clients) - names:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(names)}")
    if args.prepare:
        return prepare()
    print(f"bundles in {args.bundles}", flush=True)
    make_bundles(args.bundles, train_s=args.train_s)
    outcomes = []
    for client in CLIENTS:
        if args.clients and client.name not in args.clients:
            continue
        folders = [args.bundles / name for name in BUNDLES]
        outcomes.append(run_client(client, folders, install=not args.offline))
        print(f"{client.name}: {state_of(outcomes[-1])}", flush=True)
    print()
    print(table(outcomes))
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"{outcome.name}: {problem}", file=sys.stderr)
    return int(any(outcome.failed for outcome in outcomes))


def prepare() -> int:
    """Make every client ready, and say which could not be; that is no failure."""
    for client in CLIENTS:
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
    headers += [f"ms, {name.replace('_', ' ')}" for name in BUNDLES]
    rows = []
    for outcome in outcomes:
        if outcome.untested:
            rows.append([outcome.name, f"untested: {outcome.untested}", *[""] * (len(headers) - 2)])
            continue
        passed = f"{outcome.passed} of {outcome.bundles}"
        times = [f"{time:.3f}" for time in outcome.ms_per_call]
        times += [""] * (len(BUNDLES) - len(times))
        rows.append([outcome.name, outcome.runtime, passed, f"{outcome.error:.1e}", *times])
    return plain_table(headers, rows, numbers=len(BUNDLES) + 2)


if __name__ == "__main__":
    sys.exit(main())
