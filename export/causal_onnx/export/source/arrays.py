"""Tensors as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Array", "to_numpy"]

Array = npt.NDArray[Any]


def to_numpy(value: torch.Tensor, *, copies: bool = True) -> Array:
    """The numbers as numpy has them; bfloat16, which numpy lacks, is carried as float32.

    Args:
        value: On any device.
        copies: Else the array may lie where `value` does, with its strides.
    """
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        value = value.float()
    return np.array(value.numpy(), order="C") if copies else value.numpy()
