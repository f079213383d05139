"""Weights that a loader read into memory, moved to a file that is mapped."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

__all__ = ["are_mapped", "move_to_file"]

_LARGE = 1 << 16
"""Bytes of a weight that is worth moving."""


def are_mapped(folder: Path) -> bool:
    """Whether a loader maps the weights in `folder`: all are in fp32, in safetensors files.

    Others are read and converted, and so lie in the memory of the process.
    """
    files = sorted(folder.glob("*.safetensors"))
    return bool(files) and all(map(_is_in_fp32, files))


def _is_in_fp32(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as held:
            names = held.keys()
            return all(held.get_slice(name).get_dtype() == "F32" for name in names)
    except SafetensorError:  # no file that the weights came from
        return False


def move_to_file(module: nn.Module, folder: Path) -> None:
    """Let the large parameters of `module` lie in a file in `folder`, which has no name.

    One by one, so that none is in memory twice. The system drops parts of such a file from memory
    as it gets scarce, and reads them again; memory of the process it has to keep. Left as they are:
    parameters that share memory, or whose numbers lie apart.

    Raises:
        OSError: There is no room.
    """
    moved, end = [], 0
    for value in module.parameters():
        if value.nbytes >= _LARGE and value.is_contiguous() and _is_alone(value):
            moved.append((value, end))
            end += -(-value.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if not moved:
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        # One mapping for all: each holds a descriptor, of which a process has some hundreds.
        file.truncate(end)
        file.flush()
        whole = np.memmap(file, np.uint8, "r+", shape=(end,))
        for value, start in moved:
            raw = value.detach().view(-1).view(torch.uint8)
            file.seek(start)
            file.write(raw.numpy().data)
            file.flush()
            place = torch.from_numpy(whole[start : start + value.nbytes])
            value.data = place.view(value.dtype).view(value.shape)


def _is_alone(value: nn.Parameter) -> bool:
    return (
        type(value) is nn.Parameter
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() == value.nbytes
    )
