"""Weights that a loader read into memory, moved to a file that is mapped."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from causal_onnx.export.graph.weight_file import WeightFile

__all__ = ["move_to_file"]

_LARGE = 1 << 16
"""Bytes of a weight that is worth moving."""


def move_to_file(module: nn.Module, folder: Path) -> None:
    """Let the large parameters of `module` lie in a file in `folder`, which has no name.

    One by one, so that none is in memory twice. Left as they are: parameters that share memory, or
    whose numbers lie apart.

    Raises:
        OSError: There is no room.
    """
    moved = [
        value
        for value in module.parameters()
        if value.nbytes >= _LARGE and value.is_contiguous() and _is_alone(value)
    ]
    if not moved:
        return
    with WeightFile(folder, [value.nbytes for value in moved]) as file:
        for value in moved:
            held = file.hold(value.detach().view(-1).view(torch.uint8).numpy())
            value.data = torch.from_numpy(held).view(value.dtype).view(value.shape)


def _is_alone(value: nn.Parameter) -> bool:
    return (
        type(value) is nn.Parameter
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() == value.nbytes
    )
