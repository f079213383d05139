"""Show the proof that a file carries, with a fresh self-test and timing on this machine.

With -o, as one HTML page that needs nothing else; without, as text. Exit code 1 if the self-test
fails or the file states that it is not causal or not equal to its source.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.commands.selftest import selftest_table
from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.options import (
    add_device_arguments,
    add_model_argument,
    add_trusted_argument,
    parse_lengths,
)

if TYPE_CHECKING:
    from causal_onnx.cli.proof import Proof

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx report model.onnx
  causal-onnx report model.onnx -o report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write an .html page")
    parser.add_argument(
        "--lengths",
        metavar="N,N,...",
        help="sequence lengths to time (default: 1, 4, 16, ... up to the limit)",
    )
    add_device_arguments(parser)
    add_trusted_argument(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Gather the proof and write it."""
    from causal_onnx.cli.proof import gather

    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    if args.output is not None and args.output.suffix not in (".html", ".htm"):
        raise UsageError(f"-o takes an .html file, got {str(args.output)!r}")
    with console.progress() as tell:
        proof = gather(
            args.model,
            device=args.device,
            threads=args.threads,
            trusted=args.trusted,
            lengths=lengths,
            tell=tell,
        )
    if args.output is not None:
        from causal_onnx.cli.arrays import replacing
        from causal_onnx.cli.page import render

        with replacing(args.output) as file:
            file.write(render(proof).encode())
    if args.json:
        console.json(proof.to_dict())
    elif args.output is not None:
        console.print(f"wrote {args.output}")
    else:
        _print(proof, console)
    complaints = _complaints(proof)
    if complaints:
        raise CommandError(f"{args.model}: {'; '.join(complaints)}")
    return 0


def _complaints(proof: Proof) -> list[str]:
    certificate = proof.certificate
    complaints = []
    if certificate is not None and certificate.is_causal is False:
        complaints.append(f"its certificate says not causal: {certificate.verdict_text}")
    if certificate is not None and certificate.is_equal is False:
        complaints.append("its certificate says that it is not equal to its source")
    if certificate is not None and certificate.cache is not None and not certificate.cache.passed:
        complaints.append(f"its certificate says {certificate.cache.summary}")
    if proof.selftest is not None and not proof.selftest.passed:
        complaints.append(
            f"the self-test failed here, error {proof.selftest.max_error:.1e}, limit "
            f"{proof.selftest.tolerance:.0e}"
        )
    return complaints


def _print(proof: Proof, console: Console) -> None:
    from causal_onnx.cli import describe

    certificate = proof.certificate
    console.print(proof.artifact.name)
    console.pairs(describe.file_pairs(proof.artifact))
    console.heading("contract")
    console.pairs(describe.contract_pairs(proof.contract))
    if proof.artifact.source:
        console.heading("source")
        console.pairs(describe.source_pairs(proof.artifact.source))
    console.heading("recorded by the exporter: causality")
    console.print(f"  {certificate.verdict_text if certificate else 'not stated'}")
    if certificate is not None and certificate.proof is not None:
        console.pairs([("attention", core) for core in certificate.proof.cores])
        console.pairs([("assumed", text) for text in certificate.proof.assumptions])
    console.heading("recorded by the exporter: equality with PyTorch")
    if certificate is None or certificate.is_equal is None:
        console.print("  not stated")
    else:
        console.print(f"  {describe.parity_summary(certificate)}")
        headers, rows = describe.parity_table(certificate)
        console.table(headers, rows, numbers=len(headers))
        for reason in certificate.skipped:
            console.print(f"  not run: {reason}")
    if certificate is not None and certificate.precision:
        console.heading("recorded by the exporter: precision")
        console.pairs(certificate.precision)
    if certificate is not None and certificate.cache is not None:
        console.heading("recorded by the exporter: KV cache")
        console.print(f"  {certificate.cache.summary}")
        headers, rows = describe.cache_table(certificate.cache)
        console.table(headers, rows, numbers=2)
    console.heading(f"measured here ({proof.machine}): self-test on {proof.device}")
    if proof.selftest is None:
        console.print("  the file has no golden vectors to replay")
    else:
        headers, rows = selftest_table(proof.selftest)
        console.table(headers, rows, numbers=1)
    console.heading("measured here: time of one call, batch 1")
    if proof.timings:
        console.table(
            ["seq", "median ms", "fastest ms", "positions/s", "calls"],
            [
                [
                    str(timing.seq),
                    f"{timing.median_ms:.3f}",
                    f"{timing.fastest_ms:.3f}",
                    f"{timing.seq / timing.median_ms * 1e3:,.0f}",
                    str(timing.runs),
                ]
                for timing in proof.timings
            ],
            numbers=5,
        )
    for reason in proof.left_out:
        console.print(f"  not timed: {reason}")
