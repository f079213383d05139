"""A model's folder: where the model lies in it."""

from __future__ import annotations

import os
from pathlib import Path

from causal_onnx.runtime.errors import ArtifactError

__all__ = ["MODEL", "model_file"]

MODEL = "model.onnx"
"""The model in a folder that `write_bundle` or an export to a folder wrote."""


def model_file(path: str | os.PathLike[str]) -> Path:
    """The .onnx file that `path` stands for: itself, or the one in a model's folder.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ArtifactError: It is a folder without a model.onnx, or no regular file.
    """
    place = Path(path)
    if place.is_dir():
        if not (place / MODEL).exists():
            raise ArtifactError(f"{place} is a folder without {MODEL}{_remedy(place)}")
        place = place / MODEL
    if not place.exists():
        raise FileNotFoundError(f"there is no file {place}")
    # Opening a named pipe would wait for its other end.
    if not place.is_file():
        raise ArtifactError(f"{place} is not a regular file: pass the .onnx file")
    return place


def _remedy(folder: Path) -> str:
    others = sorted([*folder.glob("*.onnx"), *(folder / "onnx").glob("*.onnx")], key=_last_named)
    if others:
        return f": name the file, such as {others[0]}"
    if (folder / "config.json").is_file():
        return (
            f": it looks like a checkpoint. Export it first: causal-onnx export {folder} -o model/"
        )
    return "; expected a folder that causal-onnx wrote, or an .onnx file"


def _last_named(path: Path) -> tuple[int, str]:
    """Sorts decoders of other exporters that hold a cache before those that only begin one."""
    known = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx")
    return known.index(path.name) if path.name in known else len(known), str(path)
