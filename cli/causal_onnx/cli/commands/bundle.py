"""Write a model as a folder for other languages: contract, golden vectors, settings beside it.

Node, browsers, C, onnxruntime-genai and Triton run from that folder; docs/bundle.md says what is in
it. The golden vectors are replayed before it appears.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causal_onnx.cli.console import Console
from causal_onnx.cli.options import add_model_argument

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx bundle model.onnx -o model/
  causal-onnx bundle model.onnx -o model/ --tokenizer tokenizer.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer.json or a folder with one (default: the one beside the model)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="the Hugging Face folder that the model was made from: its tokenizer, chat template, "
        "generation settings and licence go along",
    )
    parser.add_argument("--replace", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--device", default="cpu", help="the device that replays the golden vectors (default: cpu)"
    )
    parser.add_argument("--json", action="store_true", help="print the files as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write and list."""
    from causal_onnx.cli.describe import file_rows
    from causal_onnx.runtime import write_bundle

    files = write_bundle(
        args.model,
        args.output,
        tokenizer=args.tokenizer,
        checkpoint=args.checkpoint,
        replace=args.replace,
        device=args.device,
    )
    sizes = {name: (args.output / name).stat().st_size for name in files}
    if args.json:
        console.json({"path": str(args.output), "files": sizes})
        return 0
    console.table(["file", "size"], file_rows(sizes), numbers=1)
    console.print(f"check it anywhere: causal-onnx verify-bundle {args.output}")
    return 0
