"""The feed-forward layer of a decoder block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.models.config import Activation

__all__ = ["FeedForward", "SwiGLU", "make_mlp"]


class FeedForward(nn.Module):
    """down(act(up(x))): two matrices with an activation between them."""

    def __init__(self, embed_dim: int, mlp_dim: int, *, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up_proj = nn.Linear(embed_dim, mlp_dim, bias=bias)
        self.down_proj = nn.Linear(mlp_dim, embed_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each position of (..., embed_dim)."""
        hidden = self.up_proj(x)  # (..., mlp_dim)
        if self.activation == "relu":
            hidden = functional.relu(hidden)
        else:
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            hidden = functional.gelu(hidden, approximate=approximate)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Source: Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, embed_dim: int, mlp_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, mlp_dim, bias=bias)
        self.up_proj = nn.Linear(embed_dim, mlp_dim, bias=bias)
        self.down_proj = nn.Linear(mlp_dim, embed_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each position of (..., embed_dim)."""
        hidden = functional.silu(self.gate_proj(x)) * self.up_proj(x)  # (..., mlp_dim)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


def make_mlp(embed_dim: int, mlp_dim: int, *, activation: Activation, bias: bool) -> nn.Module:
    """Make the feed-forward layer that `activation` names."""
    if activation == "swiglu":
        return SwiGLU(embed_dim, mlp_dim, bias=bias)
    return FeedForward(embed_dim, mlp_dim, activation=activation, bias=bias)
