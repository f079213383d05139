"""One head of causal self-attention, written out step by step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from causal_onnx.models.inputs import check_features, draw_features
from causal_onnx.models.seeding import seeded
from causal_onnx.models.validate import check_probability, check_size

__all__ = ["CausalMechanismV1"]


class CausalMechanismV1(nn.Module):
    """Single-head causal self-attention: mask, scale, softmax, dropout, weighted sum of values.

    The mask is made from the length of the input, so nothing in the module grows with
    `context_length`. Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        """Build the mechanism with PyTorch's default initialisation of `nn.Linear`.

        Args:
            dim_in: Features of the input.
            dim_out: Features of queries, keys, values and the output.
            context_length: Longest sequence accepted.
            dropout: On the attention weights and on the output, in training only.
            qkv_bias: The three projections have a bias.
            seed: The same seed gives the same weights and leaves the caller's random state alone;
                None: drawn from that state, as PyTorch's own modules do.

        Raises:
            TypeError: A size is not an int.
            ValueError: A size is below 1, or `dropout` is not in [0, 1).
        """
        super().__init__()
        sizes = {"dim_in": dim_in, "dim_out": dim_out, "context_length": context_length}
        for name, size in sizes.items():
            check_size(name, size)
        check_probability("dropout", dropout)
        self.dim_in, self.dim_out, self.context_length = dim_in, dim_out, context_length
        with seeded(seed):
            self.q_proj = nn.Linear(dim_in, dim_out, bias=qkv_bias)
            self.k_proj = nn.Linear(dim_in, dim_out, bias=qkv_bias)
            self.v_proj = nn.Linear(dim_in, dim_out, bias=qkv_bias)
        self.weights_dropout = nn.Dropout(dropout)
        self.context_dropout = nn.Dropout(dropout)

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence accepted: `context_length`."""
        return self.context_length

    def forward(self, x: Tensor) -> Tensor:
        """Compute the context vectors.

        Args:
            x: (seq, dim_in) or (batch, seq, dim_in).

        Returns:
            (seq, dim_out) or (batch, seq, dim_out), in the dtype of `x`.

        Raises:
            ValueError: `x` has the wrong rank or width, is empty, or is longer than
                `context_length`.
        """
        weights = self.weights_dropout(self.attention_weights(x))
        return self.context_dropout(weights @ self.v_proj(x))  # type: ignore[no-any-return]

    def attention_weights(self, x: Tensor) -> Tensor:
        """Compute the attention weights, without dropout.

        Args:
            x: (seq, dim_in) or (batch, seq, dim_in).

        Returns:
            (seq, seq) or (batch, seq, seq); each row sums to 1, entries above the diagonal are 0.

        Raises:
            ValueError: As for `forward`.
        """
        check_features(x, width=self.dim_in, max_seq_len=self.context_length, ranks=(2, 3))
        q, k = self.q_proj(x), self.k_proj(x)
        scores = q @ k.transpose(-2, -1)  # (..., seq, seq)
        seq = x.shape[-2]
        future = torch.triu(torch.ones(seq, seq, dtype=torch.bool, device=x.device), diagonal=1)
        scores = scores.masked_fill(future, float("-inf"))
        return torch.softmax(scores / math.sqrt(self.dim_out), dim=-1)

    def example_input(self, batch: int, seq: int) -> Tensor:
        """Draw an input (batch, seq, dim_in), the same at every call."""
        return draw_features(
            batch=batch,
            seq=seq,
            width=self.dim_in,
            max_seq_len=self.context_length,
            like=self.q_proj.weight,
        )

    def extra_repr(self) -> str:
        """Returns the sizes that `repr` shows."""
        return f"dim_in={self.dim_in}, dim_out={self.dim_out}, context_length={self.context_length}"
