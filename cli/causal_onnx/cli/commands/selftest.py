"""Replay the golden vectors in a file: does this machine compute what PyTorch did?

Exit code 0 if it does, 1 if not.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError
from causal_onnx.cli.options import add_device_arguments, add_model_argument, add_trusted_argument

if TYPE_CHECKING:
    from causal_onnx.runtime import SelfTestReport

__all__ = ["EPILOG", "add_arguments", "run", "selftest_table"]

EPILOG = """\
example:
  causal-onnx selftest model.onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    add_device_arguments(parser)
    add_trusted_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Replay and print."""
    from causal_onnx.runtime import load

    model = load(args.model, device=args.device, threads=args.threads, trusted=args.trusted)
    report = model.selftest()
    if args.json:
        console.json({"path": str(args.model), **report.to_dict()})
    else:
        headers, rows = selftest_table(report)
        console.table(headers, rows, numbers=1)
    if not report.passed:
        failed = sum(not case.passed for case in report.cases)
        raise CommandError(
            f"{args.model} failed its self-test on {report.device}: {failed} of "
            f"{len(report.cases)} golden vectors, largest error {report.max_error:.1e}, "
            f"limit {report.tolerance:.0e}"
        )
    if not args.json:
        console.print(
            f"passed on {report.device}: largest error {report.max_error:.1e} of the output's "
            f"scale, limit {report.tolerance:.0e}"
        )
    return 0


def selftest_table(report: SelfTestReport) -> tuple[list[str], list[list[str]]]:
    """Headers and rows; the last column is a number."""
    rows = []
    for case in report.cases:
        shapes = ", ".join(
            f"{name} ({', '.join(str(size) for size in shape)})"
            for name, shape in case.shapes.items()
        )
        rows.append([shapes, "passed" if case.passed else "FAILED", f"{case.error:.1e}"])
    return ["inputs", "result", "error"], rows
