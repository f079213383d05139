"""A checkpoint of 16-bit weights as one of 32-bit weights, which a loader can map."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from causal_onnx.export.capture.isolation import trim_memory
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json_object

__all__ = ["widened"]

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Where transformers looks for weights, here first and there next."""

WIDE = "F32"
NARROW = frozenset({"BF16", "F16"})
"""What becomes fp32 without rounding."""

_SMALL = 32 << 20
"""Bytes of weights that are worth a file of their own."""
_MOST_FILES = 256
"""About as many are written, as a loader holds all of them open."""


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    file: Path
    kind: str
    wide_bytes: int


@contextlib.contextmanager
def widened(folder: Path, scratch: Path) -> Iterator[tuple[Path, bool]]:
    """A folder with the same checkpoint in fp32, so that a loader maps it and converts nothing.

    The weights go one after another into files, which end with the context; what has been mapped
    of them stays. Where there is nothing to widen, or the weights are of other types or in other
    files, it is `folder` itself.

    Yields:
        The folder, and whether a loader maps its weights. Otherwise it reads and converts them, and
        they lie in the memory of the process.

    Args:
        folder: Of Hugging Face's layout.
        scratch: An existing folder with room for 4 bytes a weight.

    Raises:
        OSError: There is no room.
    """
    weights = _weights_of(folder)
    kinds = {one.kind for one in weights}
    if not kinds & NARROW or kinds - NARROW - {WIDE}:
        yield folder, kinds == {WIDE}
        return
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        # transformers keeps code that a checkpoint brings by the name of its folder.
        target = Path(made) / folder.resolve().name
        target.mkdir()
        for path in folder.resolve().iterdir():
            if path.suffix != ".safetensors" and path.name != INDEX:
                (target / path.name).symlink_to(path)
        _write(weights, target)
        trim_memory()
        yield target, True


def _weights_of(folder: Path) -> list[_Weight]:
    """Those that transformers would read; none where they are not all in safetensors files."""
    found = []
    try:
        for file in _files_of(folder):
            with safe_open(file, framework="pt") as held:
                for name in held.keys():  # noqa: SIM118 - it is no dict
                    part = held.get_slice(name)
                    size = 4 * math.prod(part.get_shape())
                    found.append(_Weight(name, file, part.get_dtype(), size))
    except (SafetensorError, OSError):  # what is wrong with them, the loader says
        return []
    return found


def _files_of(folder: Path) -> list[Path]:
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    try:
        listed = read_json_object(folder / INDEX).get("weight_map")
    except (ArtifactError, OSError):
        return []
    return sorted({folder / str(name) for name in dict(listed or {}).values()})


def _write(weights: Sequence[_Weight], folder: Path) -> None:
    total = sum(one.wide_bytes for one in weights)
    listed: dict[str, str] = {}
    for number, group in enumerate(_groups(weights, max(_SMALL, total // _MOST_FILES))):
        name = f"model-{number:05}.safetensors"
        held: dict[str, torch.Tensor] = {}
        for one in group:
            with safe_open(one.file, framework="pt") as file:
                held[one.name] = file.get_tensor(one.name).to(torch.float32)
            listed[one.name] = name
        save_file(held, folder / name, metadata={"format": "pt"})
    content = {"metadata": {"total_size": total}, "weight_map": listed}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def _groups(weights: Sequence[_Weight], most: int) -> Iterator[list[_Weight]]:
    """In their order, of at most so many bytes where they are more than one."""
    group: list[_Weight] = []
    held = 0
    for one in weights:
        if group and held + one.wide_bytes > most:
            yield group
            group, held = [], 0
        group.append(one)
        held += one.wide_bytes
    if group:
        yield group
