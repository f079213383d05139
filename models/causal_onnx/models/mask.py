"""Which positions may attend to which, made from the length at hand."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_mask"]


def causal_mask(seq: int, *, window: int | None = None, device: torch.device) -> Tensor:
    """Make the causal mask of a sequence.

    Args:
        seq: Length of the sequence; a symbolic size when traced, so the mask follows the input.
        window: Position i sees the `window` positions i - window + 1 ... i; None: all up to i.
        device: Where to make it.

    Returns:
        (seq, seq), bool; True where row i may attend to column j.
    """
    position = torch.arange(seq, device=device)
    distance = position[:, None] - position[None, :]  # (seq, seq), i - j
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)
