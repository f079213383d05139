"""The normalisation layers a decoder chooses from."""

from __future__ import annotations

from torch import nn

from causal_onnx.models.config import NormKind

__all__ = ["make_norm"]


def make_norm(kind: NormKind, width: int, *, eps: float, bias: bool = True) -> nn.Module:
    """Make a LayerNorm or RMSNorm over the last axis.

    Args:
        kind: "layer" or "rms".
        width: Size of the last axis.
        eps: Added to the variance (LayerNorm) or the mean square (RMSNorm).
        bias: For LayerNorm only.
    """
    if kind == "rms":
        return nn.RMSNorm(width, eps=eps)
    return nn.LayerNorm(width, eps=eps, bias=bias)
