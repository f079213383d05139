"""Check every byte of a bundle, and that this machine computes with it what PyTorch did.

It compares the hashes of all files, and the contract and golden vectors with those in the model.
Then it replays the golden vectors, also through the KV cache. Exit code 0 if all is right, 1 if
not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.options import add_device_arguments

if TYPE_CHECKING:
    from causal_onnx.runtime import BundleReport

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx verify-bundle model/
  causal-onnx verify-bundle model/ --isolated
"""

TRIAL_LIMITS = {
    "memory_bytes": "memory limit of that process in bytes",
    "processor_s": "its limit of processor time in seconds",
    "wall_s": "its time limit in seconds",
}
"""The options of `TrialLimits`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="the bundle's folder")
    add_device_arguments(parser)
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="first load and run the model in a separate process, with limits",
    )
    for name, meaning in TRIAL_LIMITS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            metavar="N",
            help=f"{meaning}, with --isolated",
        )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Check and print."""
    from causal_onnx.runtime import TrialLimits, verify_bundle

    given = {name: getattr(args, name) for name in TRIAL_LIMITS if getattr(args, name) is not None}
    if given and not args.isolated:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} needs --isolated")
    report = verify_bundle(
        args.bundle,
        device=args.device,
        threads=args.threads,
        isolated=args.isolated and TrialLimits(**given),
    )
    if args.json:
        console.json({"path": str(args.bundle), **report.to_dict()})
    else:
        _print(report, console)
    if not report.passed:
        first, *others = report.findings or ("its model was not run",)
        count = f"{1 + len(others)} findings, the first: " if others else ""
        raise CommandError(f"{args.bundle} does not verify: {count}{first}")
    return 0


def _print(report: BundleReport, console: Console) -> None:
    for finding in report.findings:
        console.print(f"  {finding}")
    if report.findings or report.selftest is None:
        return
    selftest = report.selftest
    errors = [case.error for case in report.streams]
    rows = [
        ["files", str(len(report.files)), "as contract.json says"],
        ["golden vectors", str(len(selftest.cases)), f"{selftest.max_error:.1e}"],
    ]
    if errors:
        rows.append(["through the cache", str(len(errors)), f"{max(errors):.1e}"])
    if report.test_data_error is not None:
        sets = {name.partition("/")[0] for name in report.files if "test_data_set_" in name}
        rows.append(["ONNX test data", str(len(sets)), f"{report.test_data_error:.1e}"])
    console.table(["checked", "count", "largest error"], rows, numbers=2)
    console.print(f"passed on {selftest.device}: limit {selftest.tolerance:.0e}")
