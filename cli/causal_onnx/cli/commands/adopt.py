"""Turn a decoder that another exporter wrote into a folder that is a model.

Takes the .onnx file or folder of optimum, onnxruntime-genai, transformers.js or mobius, proves that
it is causal, tries its cache, and writes a folder that every command here takes (docs/adopt.md).
Nothing is compared with PyTorch, and the folder says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx adopt their-folder/ -o model/
  causal-onnx adopt their-folder/onnx/model_fp16.onnx -o model/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "source", type=Path, metavar="FILE_OR_FOLDER", help="the decoder, or the folder with it"
    )
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
        "--undecided-ok",
        action="store_true",
        help="adopt a file whose causality is undecided; the certificate says so",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace an existing folder of a model"
    )
    parser.add_argument(
        "--device", default="cpu", help="the device that runs the file (default: cpu)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Adopt, and list what was written."""
    from causal_onnx.cli.describe import file_rows

    try:
        from causal_onnx.export.adoption import adopt
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("causal_onnx"):
            raise
        raise CommandError(
            f"adopt needs onnx, onnx-ir and onnxruntime ({error.name} is missing): "
            "pip install 'causal-onnx[attest]'"
        ) from error
    with console.progress() as tell:
        found = adopt(
            args.source,
            args.output,
            tokenizer=args.tokenizer,
            undecided_ok=args.undecided_ok,
            replace_existing=args.replace,
            device=args.device,
            progress=lambda stage, done, total: tell(stage, done / max(total, 1)),
        )
    sizes = {name: (args.output / name).stat().st_size for name in found.files}
    certificate = found.certificate
    if args.json:
        console.json(
            {
                "path": str(args.output),
                "source": str(found.source),
                "verdict": certificate.verdict,
                "scope": certificate.scope,
                "changes": list(found.changes),
                "files": sizes,
            }
        )
        return 0
    console.table(["file", "size"], file_rows(sizes), numbers=1)
    console.print(
        f"{found.source}: {certificate.verdict} for {certificate.scope}; not compared with PyTorch"
    )
    for change in found.changes:
        console.print(f"changed: {change}")
    return 0
