"""A folder that is a model, made of an export: the file first, then all that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime

from causal_onnx.export.report import ExportReport, Progress
from causal_onnx.runtime import write_bundle
from causal_onnx.runtime.artifact.drafts import check_target, draft_folder
from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.bundle.write import check_bundle_target
from causal_onnx.runtime.errors import DeviceError

__all__ = ["FILE_SUFFIX", "check_folder", "device_of", "export_into"]

FILE_SUFFIX = ".onnx"
"""Whatever path has it names a file; any other names a folder."""


def check_folder(folder: Path, *, replaces: bool) -> None:
    """Find out whether a model's folder can be written, before hours of work for it.

    Raises:
        OSError: It cannot be written there, or something is in the way.
    """
    check_bundle_target(folder, replaces)
    check_target(folder)


def export_into(
    folder: Path,
    write: Callable[[Path], ExportReport],
    *,
    tokenizer: Path | None = None,
    checkpoint: Path | None = None,
    replaces: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ExportReport:
    """Let `write` export to a file that nobody sees yet, and make a model's folder of it.

    Args:
        folder: As `write_bundle` makes it; whole or not at all.
        write: Exports to the path that it is given.
        tokenizer: As for `write_bundle`.
        checkpoint: As for `write_bundle`.
        replaces: As `replace` of `write_bundle`.
        device: As for `write_bundle`.
        progress: Called with ("folder", fraction done), once the file is exported.

    Returns:
        The report of `write`, with the path of the model in the folder.
    """
    check_folder(folder, replaces=replaces)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(folder) as draft:
        # Not in the draft itself, which is locked: whoever writes a file locks its folder.
        file = draft / "file" / MODEL
        report = write(file)
        tell = progress or (lambda step, fraction: None)
        tell("folder", 0.0)
        write_bundle(
            file,
            folder,
            tokenizer=tokenizer,
            checkpoint=checkpoint,
            replace=replaces,
            device=device,
        )
        tell("folder", 1.0)
    return replace(report, path=folder / MODEL)


def device_of(precision: str) -> str:
    """Where the golden vectors of a folder in this precision are replayed.

    Raises:
        DeviceError: There is no such device here.
    """
    if precision != "bf16":
        return "cpu"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError(
            "a model's folder is written only after its golden vectors were replayed, and bfloat16 "
            "runs on CUDA only. Export to a file, path='model.onnx', and write the folder on a "
            "machine with a GPU: write_bundle('model.onnx', 'model', device='cuda')"
        )
    return "cuda"
