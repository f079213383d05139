"""ALiBi: positions as a linear penalty on the distance.

Source: Press et al. 2022, https://arxiv.org/abs/2108.12409, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["alibi_bias", "alibi_slopes"]


def alibi_slopes(num_heads: int) -> list[float]:
    """Give each head its slope, a geometric sequence that starts at its own ratio.

    For a power of two n, head h has 2 ** (-8 (h + 1) / n). Otherwise the slopes of the next lower
    power of two are followed by every second slope of twice that many, as the authors' code does.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / whole) for head in range(whole)]
    extra = [2.0 ** (-4.0 * (head + 1) / whole) for head in range(0, 2 * whole, 2)]
    return slopes + extra[: num_heads - whole]


def alibi_bias(num_heads: int, seq: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the bias that ALiBi adds to the scores: -slope * (i - j).

    Returns:
        (num_heads, seq, seq). Entries with j > i are positive and mean nothing: mask them.
    """
    position = torch.arange(seq, device=device)
    # Negative to the left; exact in float32 up to 2**24 positions, so cast to `dtype` at the end.
    offset = (position[None, :] - position[:, None]).to(torch.float32)
    slopes = torch.tensor(alibi_slopes(num_heads), dtype=torch.float32, device=device)
    return (slopes[:, None, None] * offset).to(dtype)
