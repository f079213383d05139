"""Judge whether any ONNX file is causal: a proof from its graph, and a check by running it.

Exit code 0: causal. 1: not causal, as a run showed. 2: undecided, or wrong usage. 3: an error,
which says nothing about the file. With --strict, 1 also for what is causal but not proved for every
length, or not prefix-stable.
"""

from __future__ import annotations

import argparse

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.options import add_model_argument, parse_axes, parse_lengths

__all__ = ["EPILOG", "FAILED", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx attest model.onnx
  causal-onnx attest other.onnx --axes x:0=batch,1=seq --lengths 1,2,7,16
"""

FAILED = 3
"""An error is no verdict."""

EXIT_CODES = {"causal": 0, "not_causal": 1, "undecided": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser, "an .onnx file of any origin, or the folder of a model")
    parser.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="INPUT:AXIS=NAME,...",
        help="what the axes of an input are: batch, seq, past_seq, total_seq (repeatable; taken "
        "from the file where it says so)",
    )
    parser.add_argument(
        "--lengths", metavar="N,N,...", help="sequence lengths to follow every element at"
    )
    parser.add_argument(
        "--static", action="store_true", help="leave out the check by running the file"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail (exit code 1) also where the proof is not for every length, or where early "
        "outputs change as the sequence grows",
    )
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Attest, and print the certificate."""
    axes = dict(_input_axes(text) for text in args.axes)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    if not args.model.exists():
        raise CommandError(f"there is no file {args.model}")
    try:
        from causal_onnx.export.attestation import attest
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("causal_onnx"):
            raise
        raise CommandError(
            f"attest needs onnx, onnx-ir and onnxruntime ({error.name} is missing): "
            "pip install 'causal-onnx[attest]'"
        ) from error
    with console.progress() as tell:
        certificate = attest(
            args.model,
            axes=axes or None,
            lengths=lengths,
            dynamic=not args.static,
            progress=lambda stage, done, total: tell(stage, done / max(total, 1)),
        )
    if args.json:
        console.json(certificate.to_dict())
    else:
        console.print(str(certificate))
    if args.strict and certificate.is_causal and certificate.shortcomings:
        for text in certificate.shortcomings:
            console.note(f"strict: {text}")
        return 1
    return EXIT_CODES[certificate.verdict]


def _input_axes(text: str) -> tuple[str, dict[int, str]]:
    name, colon, axes = text.partition(":")
    if not colon or not name:
        raise UsageError(f"--axes takes INPUT:0=batch,1=seq here, got {text!r}")
    return name, parse_axes(axes)
