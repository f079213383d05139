"""Rotary positions: queries and keys turned by an angle that grows with the position.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from causal_onnx.models.config import (
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
    RotaryStyle,
)

__all__ = ["Rotary", "rotary_frequencies"]


class Rotary(nn.Module):
    """Turn each pair of features at position t by t * frequency."""

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        style: RotaryStyle = "half",
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self.style = style
        # Not a buffer: `module.half()` would round it, and angles need float32 at every precision.
        self.frequencies = rotary_frequencies(head_dim, base=base, scaling=scaling)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys.

        Args:
            q: (batch, num_heads, seq, head_dim), position 0 first.
            k: (batch, num_kv_heads, seq, head_dim).

        Returns:
            Both, rotated, in their shapes and dtypes.
        """
        # float64 stays float64; below float32 the angles would lose whole turns.
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        position = torch.arange(q.shape[-2], device=q.device).to(exact)
        frequencies = self.frequencies.to(device=q.device, dtype=exact)
        angle = position[:, None] * frequencies[None, :]  # (seq, head_dim / 2)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.style == "half":
            first, second = x.chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        first, second = x[..., 0::2], x[..., 1::2]
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.stack(turned, dim=-1).flatten(-2)

    def extra_repr(self) -> str:
        """Returns the sizes that `repr` shows."""
        return f"head_dim={2 * self.frequencies.numel()}, style={self.style!r}"


def rotary_frequencies(head_dim: int, *, base: float, scaling: RopeScaling | None = None) -> Tensor:
    """Compute the angle per position of each pair of features: base ** (-2 i / head_dim).

    In float32, operation by operation as the models in use were trained: at position 2000 a last
    bit here moves an angle by 1e-4.

    Returns:
        (head_dim / 2,), float32, on the CPU.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / (base**exponent)
    if isinstance(scaling, LinearRopeScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3RopeScaling):
        return _scale_llama3(frequencies, scaling)
    return frequencies


def _scale_llama3(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 where a rotation is slow (all of it divided by the factor), 1 where it is fast (kept).
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
