"""Export a checkpoint: to a file, or to a folder with its tokenizer, chat template and settings."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from causal_onnx.export.arguments import check_file, read_options
from causal_onnx.export.checkpoint.adapter import base_of, merge_adapter
from causal_onnx.export.checkpoint.huggingface import (
    CONFIG,
    TOKENIZER,
    open_huggingface,
    open_tokenizer,
    quiet_transformers,
    read_config,
)
from causal_onnx.export.checkpoint.mapped import move_to_file
from causal_onnx.export.checkpoint.widened import widened
from causal_onnx.export.errors import ExportError
from causal_onnx.export.folder import FILE_SUFFIX, check_folder, device_of, export_into
from causal_onnx.export.pipeline import export
from causal_onnx.export.report import ExportReport, Progress
from causal_onnx.export.source.budget import NORMAL
from causal_onnx.models import load_checkpoint
from causal_onnx.runtime.artifact.adapter import is_adapter

__all__ = ["export_checkpoint"]


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    adaptable: Collection[str | Path] = (),
    trust_remote_code: bool = False,
    cache: bool | None = None,
    target: str = "ort",
    precision: str = "fp32",
    block_size: int | None = None,
    rounding: str = "nearest",
    keep: Mapping[str, str] | None = None,
    opset: int | None = None,
    max_seq_len: int | None = None,
    max_drift: float | None = None,
    same_bits: bool = False,
    effort: str = NORMAL,
    replace: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the language model in a checkpoint, verified before anything appears.

    That is a decoder, or an encoder with a decoder: T5, BART, Marian and their relatives, which
    take a source text as ids, and Whisper, which takes `input_features`. One file holds both.

    Args:
        checkpoint: A folder in Hugging Face's layout (config.json and safetensors files; needs the
            extra `hf`), a folder with a PEFT adapter of such a model, or whatever
            `causal_onnx.models.load_checkpoint` reads: nanoGPT's folder, a .safetensors or .pt
            file. It is loaded in fp32; nothing is downloaded. Weights that cannot be mapped as they
            are lie in files beside `path` meanwhile, 4 bytes each, and 8 with an adapter.
        path: A path that ends in .onnx is the file to write. Any other path is a folder for the
            model with its tokenizer, chat template, generation settings, licence, certificate and
            golden vectors (docs/bundle.md), which `load(path)` takes. Either is written whole or
            not at all.
        adapter: A folder with a PEFT adapter, which is merged into the weights (needs peft).
        adaptable: As for `export`: layers that adapters may change in the file, unlike `adapter`,
            which is in it for good.
        trust_remote_code: Run the Python files that the checkpoint's config.json names.
        cache: As for `export`. None: True for a folder, which is for generating text.
        target: As for `export`.
        precision: As for `export`.
        block_size: As for `export`.
        rounding: As for `export`.
        keep: As for `export`.
        opset: As for `export`.
        max_seq_len: As for `export`.
        max_drift: As for `export`.
        same_bits: As for `export`.
        effort: As for `export`.
        replace: Replace an existing folder of a model.
        progress: Called with (step, fraction done).

    Returns:
        A report of what was written and what was found; its `path` is that of the .onnx file.

    Raises:
        FileNotFoundError: There is no such checkpoint, or one of its files is missing.
        FileExistsError: The folder exists, and is neither empty nor a model's folder to replace.
        ImportError: transformers or peft is needed and not installed.
        ExportError, ValueError: It is not a checkpoint of such a language model; or as for
            `export`.
        ParityError, DriftError, CausalityError: As for `export`.
        OSError: As for `export`, or there is no room for the weights.
    """
    place, goal = Path(checkpoint), Path(path)
    is_folder = goal.suffix != FILE_SUFFIX
    cache = is_folder if cache is None else cache
    device = "cpu"
    # All of this before the weights are loaded, which takes minutes of a large model.
    read_options(
        causal="positions",
        cache=cache,
        target=target,
        precision=precision,
        block_size=block_size,
        rounding=rounding,
        keep=keep,
        opset=opset,
        max_seq_len=max_seq_len,
        max_drift=max_drift,
        same_bits=same_bits,
        effort=effort,
    )
    if not is_folder:
        check_file(goal)
    else:
        check_folder(goal, replaces=replace)
        device = device_of(precision)
    if progress is not None:
        progress("load", 0.0)
    opened = _open(
        place,
        adapter=None if adapter is None else Path(adapter),
        trust_remote_code=trust_remote_code,
        scratch=next(one for one in goal.absolute().parents if one.is_dir()),
    )

    if not opened.is_mapped:
        goal.parent.mkdir(parents=True, exist_ok=True)
        move_to_file(opened.module, goal.parent)

    def write(file: Path) -> ExportReport:
        with quiet_transformers() if opened.is_huggingface else contextlib.nullcontext():
            report = export(
                opened.module,
                file,
                adaptable=adaptable,
                cache=cache,
                target=target,
                precision=precision,
                block_size=block_size,
                rounding=rounding,
                keep=keep,
                opset=opset,
                max_seq_len=max_seq_len,
                max_drift=max_drift,
                same_bits=same_bits,
                effort=effort,
                progress=progress,
            )
        return _warned(report, opened.warnings)

    if not is_folder:
        return write(goal)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = None
        if opened.folder is not None:
            tokenizer, told = open_tokenizer(opened.tokenizer or opened.folder, Path(scratch))
            opened.warnings.extend(told)
        return export_into(
            goal,
            write,
            tokenizer=tokenizer,
            checkpoint=opened.folder,
            replaces=replace,
            device=device,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A checkpoint that is loaded."""

    module: nn.Module
    folder: Path | None = None
    """What goes with it lies here; None: it is a file, of which nothing more is known."""
    tokenizer: Path | None = None
    """Where its tokenizer lies, if not there."""
    is_huggingface: bool = False
    """Loaded by transformers."""
    is_mapped: bool = False
    """Its weights lie in its files, not in memory."""
    warnings: list[str] = field(default_factory=list)


def _open(place: Path, *, adapter: Path | None, trust_remote_code: bool, scratch: Path) -> _Opened:
    if not place.exists():
        raise FileNotFoundError(f"there is no checkpoint {place}")
    if is_adapter(place):
        if adapter is not None:
            raise ValueError(
                f"{place} is an adapter itself, and adapter={str(adapter)!r} is another; pass one"
            )
        place, adapter = base_of(place), place
    if not _is_huggingface(place):
        if adapter is not None:
            raise ExportError(f"an adapter is merged into a Hugging Face folder; {place} is none")
        return _Opened(module=load_checkpoint(place), folder=place if place.is_dir() else None)
    with widened(place, scratch) as (source, is_mapped):
        module, warnings = open_huggingface(
            place, trust_remote_code=trust_remote_code, source=source
        )
    if adapter is None:
        return _Opened(
            module=module,
            folder=place,
            warnings=warnings,
            is_huggingface=True,
            is_mapped=is_mapped,
        )
    return _Opened(
        module=merge_adapter(module, adapter),
        folder=place,
        tokenizer=adapter if (adapter / TOKENIZER).is_file() else None,
        is_huggingface=True,
        warnings=warnings,
    )


def _is_huggingface(place: Path) -> bool:
    """Whether transformers is to load it: nanoGPT's settings have no `model_type`."""
    return (place / CONFIG).is_file() and "model_type" in read_config(place / CONFIG)


def _warned(report: ExportReport, warnings: list[str]) -> ExportReport:
    return dataclasses.replace(report, warnings=(*warnings, *report.warnings))
