"""Export a checkpoint or a PyTorch module to one proven ONNX file, or to a folder that is a model.

The file appears only after it was compared with the module over a grid of lengths and batches and
tested for causality. A folder also holds the tokenizer, the chat template and the generation
settings of the checkpoint. The current folder can be imported from, as with `python -m`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.estimate import Estimate, expected_seconds, size_of_checkpoint
from causal_onnx.cli.factory import importable, make_module, parse_arguments, split_target
from causal_onnx.cli.options import parse_axes, parse_inputs
from causal_onnx.cli.timings import StepTime, StepTimes, timings_table

if TYPE_CHECKING:
    from torch import nn

    from causal_onnx.cli.console import Progress
    from causal_onnx.export import CausalityError, ExportReport, ParityError

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx export ./checkpoint -o model/
  causal-onnx export ./checkpoint --adapter ./lora --precision int8 -o model/
  causal-onnx export ./checkpoint --precision int4 --block-size 128 --rounding gptq -o model/
  causal-onnx export ./checkpoint --adaptable ./lora --adaptable ./another-lora -o model/
  causal-onnx export out/ckpt.pt -o model/
  causal-onnx export mypackage.model:build -o model.onnx
  causal-onnx export train.py:GPT --arg bias=false --example 2,16:int64 -o gpt.onnx
  causal-onnx export layers.py:attention -o a.onnx --example 2,16,64 --axes 0=batch,1=seq
"""


CHECKPOINT_SUFFIXES = (".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt")
"""Of files that are checkpoints; .json is the index of several."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "target",
        metavar="CHECKPOINT | pkg.module:name",
        help="a checkpoint: a folder of Hugging Face or nanoGPT, a .safetensors or a .pt file; or "
        "a function or class that returns the module, or the module itself; also file.py:name",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="what to write: a path that ends in .onnx is a file, any other the folder of a model",
    )
    checkpoint = parser.add_argument_group("checkpoints")
    checkpoint.add_argument(
        "--adapter", type=Path, metavar="DIR", help="a PEFT adapter, to be merged (needs peft)"
    )
    checkpoint.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that the checkpoint's config.json names",
    )
    parser.add_argument(
        "--adaptable",
        action="append",
        default=[],
        metavar="PATTERN|DIR",
        help="linear layers that LoRA adapters may change in the file, row by row: by name, such "
        "as '*.q_proj', or those that a PEFT adapter changes (repeatable)",
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
        help="an input by shape, such as 2,16,64 or 2,16:int64, or as an .npy file; one per input; "
        "not needed if the module itself says what it takes",
    )
    parser.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="AXIS=NAME,...",
        help="which axes of an input are batch and seq, such as 0=batch,1=seq, or a name of your "
        "own for an axis of any other size, or fixed; one per input; guessed from rank and dtype "
        "where missing",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=KIND[:LOW:HIGH]",
        help="what an input stands for, if it cannot be found out: features, ids, values, "
        "flags, lengths, positions, keep_mask, hide_mask, causal_mask, causal_hide_mask, "
        "causal_bias or fixed, and its valid values, HIGH excluded (repeatable)",
    )
    parser.add_argument(
        "--causal",
        default="positions",
        metavar="HOW",
        help="positions (default), or 'blocks of N': an output may depend on its whole block",
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        help="derive a KV cache: the file takes past keys and values and returns present ones "
        "(default: for a checkpoint that is exported to a folder)",
    )
    parser.add_argument(
        "--target", dest="form", default="ort", help="ort (default), ort-1.32, portable or tiled"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32 (default), fp16, bf16, weights in int8 or int4, or w8a8: weights in 8 bits, "
        "multiplied in integers",
    )
    few = parser.add_argument_group("quantised weights")
    few.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="weights that share a scale: 32 (default), 64 or 128; larger is faster and coarser",
    )
    few.add_argument(
        "--rounding",
        default="nearest",
        help="nearest (default), or gptq: later weights compensate for the errors of earlier ones",
    )
    few.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN=PRECISION",
        help="weights to keep in fp32 (or, with int4, in int8), by name, such as "
        "'lm_head*=int8' (repeatable)",
    )
    parser.add_argument(
        "--max-drift",
        type=float,
        metavar="X",
        help="how far a lower precision may be from fp32: mean KL in nats for language models, "
        "else the relative error (default: by precision)",
    )
    parser.add_argument(
        "--same-bits",
        action="store_true",
        help="find the calls in which a sequence gets the same bits in any batch, and record them "
        "in the report and the file",
    )
    parser.add_argument(
        "--effort",
        default="normal",
        help="what the checks may compute: quick, normal (default) or full, which checks a large "
        "model at its maximum length too; what is left out is listed",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: by target)")
    parser.add_argument(
        "--max-seq-len",
        type=int,
        metavar="N",
        help="the longest sequence (default: what the "
        "model was trained on, if it says so, or else what it accepts)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace an existing folder of a model"
    )
    parser.add_argument(
        "--timings",
        action="store_true",
        help="also print the processor time, wall time and peak memory of each step",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, and print what was found."""
    named = None if _is_checkpoint(args) else split_target(args.target)
    arguments = parse_arguments(args.arg)
    try:
        import torch  # noqa: F401 - the package loads its parts, and with them PyTorch, when asked

        from causal_onnx.export import CausalityError, ParityError
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
    estimate = Estimate(_expected(args, size_of_checkpoint(Path(args.target))))
    times: StepTimes | None = None
    try:
        with console.progress(estimate) as shown:
            tell: Progress = shown
            if args.timings:
                tell = times = StepTimes(shown)
            if named is None:
                report = _export_checkpoint(args, tell)
            else:
                with importable(named[0]):
                    tell("import", 0.0)
                    module = make_module(*named, arguments)
                    estimate.expect(_expected(args, _size_of_module(module)))
                    report = _export_module(module, axes, args, tell)
    # Not before: what is printed while the progress bar is up mixes with it.
    except (ParityError, CausalityError) as error:
        _print_failure(error, console, as_json=args.json)
        # The table went to stdout; what is left for stderr is the verdict.
        raise CommandError(str(error).partition("\n")[0]) from error
    _print_report(report, () if times is None else times.finish(), console, as_json=args.json)
    return 0


def _expected(args: argparse.Namespace, size_bytes: int) -> dict[str, float]:
    is_folder = args.output.suffix != ".onnx"
    cache = (is_folder and _is_checkpoint(args)) if args.cache is None else args.cache
    drift = args.precision != "fp32"
    return expected_seconds(size_bytes, cache=cache, drift=drift, folder=is_folder)


def _size_of_module(module: nn.Module) -> int:
    tensors = {id(x): x for x in (*module.parameters(), *module.buffers())}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def _is_checkpoint(args: argparse.Namespace) -> bool:
    """Whether the target is one; else it names a module.

    Raises:
        UsageError: Options were given that do not go together with it.
        CommandError: There is no such checkpoint: said before PyTorch is imported.
    """
    path = Path(args.target)
    if not path.is_dir() and path.suffix not in CHECKPOINT_SUFFIXES:
        if args.adapter is not None or args.trust_remote_code:
            option = "--trust-remote-code" if args.adapter is None else "--adapter"
            raise UsageError(f"{option} is for a checkpoint, and {args.target} is none")
        return False
    for option in ("arg", "example", "axes", "input"):
        if getattr(args, option):
            raise UsageError(f"--{option} is for a module, and {args.target} is a checkpoint")
    if not path.exists():
        raise CommandError(f"there is no checkpoint {path}")
    if args.causal != "positions":
        raise UsageError(f"--causal is for a module, and {args.target} is a checkpoint")
    return True


class _Settings(TypedDict):
    """What the export of a checkpoint and that of a module have in common."""

    adaptable: list[str]
    target: str
    precision: str
    block_size: int | None
    rounding: str
    keep: dict[str, str]
    opset: int | None
    max_seq_len: int | None
    max_drift: float | None
    same_bits: bool
    effort: str
    replace: bool
    progress: Progress


def _settings(args: argparse.Namespace, tell: Progress) -> _Settings:
    return _Settings(
        adaptable=args.adaptable,
        target=args.form,
        precision=args.precision,
        block_size=args.block_size,
        rounding=args.rounding,
        keep=_kept(args.keep),
        opset=args.opset,
        max_seq_len=args.max_seq_len,
        max_drift=args.max_drift,
        same_bits=args.same_bits,
        effort=args.effort,
        replace=args.replace,
        progress=tell,
    )


def _export_checkpoint(args: argparse.Namespace, tell: Progress) -> ExportReport:
    from causal_onnx.export import export_checkpoint

    return export_checkpoint(
        args.target,
        args.output,
        adapter=args.adapter,
        trust_remote_code=args.trust_remote_code,
        cache=args.cache,
        **_settings(args, tell),
    )


def _export_module(
    module: nn.Module,
    axes: list[dict[int, str]] | None,
    args: argparse.Namespace,
    tell: Progress,
) -> ExportReport:
    from causal_onnx.cli.examples import make_example
    from causal_onnx.export import Input, export

    declared = parse_inputs(args.input)
    try:
        inputs = {
            name: Input(kind=kind, range=bounds)  # type: ignore[arg-type]  # checked by Input
            for name, (kind, bounds) in declared.items()
        }
    except ValueError as error:
        raise UsageError(f"--input: {error}") from error
    return export(
        module,
        args.output,
        example=make_example(args.example, module) if args.example else None,
        axes=axes,
        inputs=inputs or None,
        causal=args.causal,
        cache=bool(args.cache),
        **_settings(args, tell),
    )


def _kept(texts: list[str]) -> dict[str, str]:
    """Patterns of names, and the precision of each.

    Raises:
        UsageError: One has no precision, or stands there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        pattern, sign, precision = text.rpartition("=")
        if not sign or not pattern:
            raise UsageError(
                f"--keep takes PATTERN=PRECISION, such as 'lm_head*=int8', got {text!r}"
            )
        if pattern in found:
            raise UsageError(f"--keep names {pattern!r} twice")
        found[pattern] = precision
    return found


def _print_report(
    report: ExportReport, steps: Sequence[StepTime], console: Console, *, as_json: bool
) -> None:
    if as_json:
        timings = {"timings": [step.to_dict() for step in steps]} if steps else {}
        console.json(_document(report) | timings)
        return
    console.print(str(report))
    console.print()
    console.print("error relative to the output's scale, by length and batch:")
    console.print(report.parity.to_table())
    if steps:
        console.print()
        console.table(*timings_table(steps), numbers=3)


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
