"""Export a PyTorch module to one proven ONNX file.

The file appears only after it was compared with the module over a grid of lengths and batches and
tested for causality. The current folder can be imported from, as with `python -m`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.factory import importable, make_module, parse_arguments, split_target
from causal_onnx.cli.options import parse_axes

if TYPE_CHECKING:
    from causal_onnx.export import CausalityError, ExportReport, ParityError

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx export mypackage.model:build -o model.onnx
  causal-onnx export train.py:GPT --arg bias=false --example 2,16:int64 -o gpt.onnx
  causal-onnx export layers.py:attention -o a.onnx --example 2,16,64 --axes 0=batch,1=seq
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "target",
        metavar="pkg.module:name",
        help="a function or class that gives the module, or the module itself; also file.py:name",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument for the function or class; the value is JSON, else text (repeatable)",
    )
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an input by shape, such as 2,16,64 or 2,16:int64, or as a .npy file; one per input; "
        "not needed where the module says itself what it takes",
    )
    parser.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="AXIS=NAME,...",
        help="which axes of an input are batch and seq, such as 0=batch,1=seq, or fixed; one per "
        "input; guessed from rank and dtype where missing",
    )
    parser.add_argument(
        "--cache",
        action="store_true",
        help="derive a KV cache: the file takes past keys and values and gives present ones",
    )
    parser.add_argument(
        "--target", dest="form", default="ort", help="ort (default), portable or tiled"
    )
    parser.add_argument(
        "--precision", default="fp32", help="fp32 (default), fp16, bf16, or weights in int8 or int4"
    )
    parser.add_argument(
        "--max-drift",
        type=float,
        metavar="X",
        help="how far a lower precision may be from fp32: mean KL in nats for language models, "
        "else the relative error (default: by precision)",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: by target)")
    parser.add_argument(
        "--max-seq-len", type=int, metavar="N", help="a limit lower than the module's own"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, and print what was found."""
    place, name = split_target(args.target)
    arguments = parse_arguments(args.arg)
    try:
        from causal_onnx.cli.examples import make_example
        from causal_onnx.export import CausalityError, ParityError, export
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("causal_onnx"):
            raise
        raise CommandError(
            f"export needs PyTorch and onnx ({error.name} is missing): "
            "pip install 'causal-onnx[export]'"
        ) from error
    axes = [parse_axes(text) for text in args.axes] or None
    if axes is not None and args.example and len(axes) != len(args.example):
        raise UsageError(
            f"{len(axes)} --axes for {len(args.example)} --example; give one per input, "
            "`fixed` for an input without batch and seq"
        )
    failure: ParityError | CausalityError | None = None
    with importable(place), console.progress() as tell:
        tell("import", 0.0)
        module = make_module(place, name, arguments)
        try:
            report = export(
                module,
                args.output,
                example=make_example(args.example, module) if args.example else None,
                axes=axes,
                cache=args.cache,
                target=args.form,
                precision=args.precision,
                opset=args.opset,
                max_seq_len=args.max_seq_len,
                max_drift=args.max_drift,
                progress=tell,
            )
        except (ParityError, CausalityError) as error:
            failure = error
    # Not before: what is printed while the progress bar is up mixes with it.
    if failure is None:
        _print_report(report, console, as_json=args.json)
        return 0
    _print_failure(failure, console, as_json=args.json)
    # The table went to stdout; what is left for stderr is the verdict.
    raise CommandError(str(failure).partition("\n")[0]) from failure


def _print_report(report: ExportReport, console: Console, *, as_json: bool) -> None:
    if as_json:
        console.json(_document(report))
        return
    console.print(str(report))
    console.print()
    console.print("error relative to the output's scale, by length and batch:")
    console.print(report.parity.to_table())


def _document(report: ExportReport) -> dict[str, Any]:
    document = report.to_dict()
    if isinstance(document["contract"], str):
        document["contract"] = json.loads(document["contract"])
    return document


def _print_failure(error: ParityError | CausalityError, console: Console, *, as_json: bool) -> None:
    """Print what speaks against the module: a finding is a result."""
    from causal_onnx.export import DriftError

    if as_json:
        document = {"failed": type(error).__name__, "report": error.report.to_dict()}
        if isinstance(error, DriftError):
            document["drift"] = error.drift.to_dict()
        console.json(document)
    elif hasattr(error.report, "to_table"):
        console.print(error.report.to_table())
