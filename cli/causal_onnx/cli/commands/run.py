"""Run a file on numpy arrays; needs no PyTorch.

Inputs are .npy files in the order of the file's contract, or .npz files that hold them by name.
Every input is checked against the contract first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.options import (
    add_device_arguments,
    add_model_argument,
    add_prepared_argument,
    add_trusted_argument,
)

if TYPE_CHECKING:
    from causal_onnx.runtime import Model

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx run model.onnx x.npy -o y.npy
  causal-onnx run model.onnx --input input_ids=ids.npy -o outputs.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument(
        "inputs", type=Path, nargs="*", metavar="INPUT", help=".npy files in order, or an .npz file"
    )
    parser.add_argument(
        "--input",
        dest="named",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the .npy file of one input by its name (repeatable)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npy for the one output, .npz for all of them by name, a KV cache's included",
    )
    parser.add_argument(
        "--cast",
        action="store_true",
        help="convert inputs of another dtype, such as float64, if no value is lost",
    )
    add_device_arguments(parser)
    add_prepared_argument(parser)
    add_trusted_argument(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the model once and write its outputs."""
    from causal_onnx.cli.arrays import write_arrays
    from causal_onnx.runtime import load

    _check_output(args.output, [args.model, *args.inputs])
    positional, named = _read_inputs(args.inputs, args.named)
    model = load(
        args.model,
        device=args.device,
        threads=args.threads,
        cast=args.cast,
        trusted=args.trusted,
        prepared=args.prepared,
    )
    # The cache's outputs are for a next call; a .npz file keeps them, a .npy file does without.
    present = model.contract.present_names
    names = [spec.name for spec in model.contract.outputs if spec.name not in present]
    if args.output.suffix == ".npy" and len(names) > 1:
        raise CommandError(
            f"{args.model} has {len(names)} outputs ({', '.join(names)}), an .npy file holds one; "
            f"write them all: -o {args.output.with_suffix('.npz')}"
        )
    _check_names(named, model)
    started = time.perf_counter()
    outputs = model.run(*positional, **named)
    run_ms = (time.perf_counter() - started) * 1e3
    if args.output.suffix == ".npy":
        outputs = {name: outputs[name] for name in names}
    write_arrays(args.output, outputs)
    if args.json:
        console.json(
            {
                "path": str(args.output),
                "outputs": {
                    name: {"dtype": str(value.dtype), "shape": list(value.shape)}
                    for name, value in outputs.items()
                },
                "device": model.device,
                "run_ms": run_ms,
            }
        )
        return 0
    for name, value in outputs.items():
        shape = ", ".join(str(size) for size in value.shape)
        console.print(f"{name}: {value.dtype} ({shape}) -> {args.output}")
    console.print(f"{run_ms:.2f} ms on {model.device}, the first call")
    return 0


def _check_output(output: Path, sources: list[Path]) -> None:
    if output.suffix not in (".npy", ".npz"):
        raise UsageError(f"-o takes an .npy or .npz file, got {str(output)!r}")
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise UsageError(f"-o {output} would overwrite what is read from it")


def _read_inputs(files: list[Path], texts: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """The inputs given by position and by name."""
    from causal_onnx.cli.arrays import read_arrays, read_named

    positional: list[Any] = []
    named: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if name in named:
            raise UsageError(f"input {name!r} was given twice")
        named[name] = value

    for path in files:
        value = read_arrays(path)
        if isinstance(value, dict):
            for name, array in value.items():
                add(name, array)
        else:
            positional.append(value)
    for text in texts:
        add(*read_named(text))
    return positional, named


def _check_names(named: dict[str, Any], model: Model) -> None:
    """Names in a .npz file are not always the contract's; say which ones it has."""
    known = [spec.name for spec in model.contract.inputs]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise CommandError(
            f"there is no input {', '.join(unknown)}; the inputs are "
            + "; ".join(spec.describe() for spec in model.contract.inputs)
        )
