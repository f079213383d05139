"""One layer of a decoder: attention and a feed-forward layer, each with a norm and a residual."""

from __future__ import annotations

from torch import Tensor, nn

from causal_onnx.models.attention import GroupedQueryAttention
from causal_onnx.models.config import DecoderConfig
from causal_onnx.models.inputs import check_features
from causal_onnx.models.mlp import make_mlp
from causal_onnx.models.norm import make_norm
from causal_onnx.models.seeding import seeded

__all__ = ["DecoderBlock"]


class DecoderBlock(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, *, seed: int | None = None) -> None:
        """Build the block.

        Args:
            config: Sizes and options; of the decoder as a whole, of which the block reads its own.
            seed: As for `GroupedQueryAttention`.
        """
        super().__init__()
        self.config = config
        width, eps, bias = config.embed_dim, config.norm_eps, config.norm_bias
        with seeded(seed):
            self.attention_norm = make_norm(config.norm, width, eps=eps, bias=bias)
            self.attention = GroupedQueryAttention(config.attention)
            self.mlp_norm = make_norm(config.norm, width, eps=eps, bias=bias)
            self.mlp = make_mlp(
                width, config.mlp_dim, activation=config.activation, bias=config.mlp_bias
            )
            self.mlp_dropout = nn.Dropout(config.dropout)

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence accepted; None: no limit."""
        return self.config.max_seq_len

    def forward(self, x: Tensor) -> Tensor:
        """Transform (batch, seq, embed_dim) into the same shape.

        Raises:
            ValueError: `x` has the wrong rank or width, is empty, or is longer than `max_seq_len`.
        """
        check_features(x, width=self.config.embed_dim, max_seq_len=self.max_seq_len)
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def attention_weights(self, x: Tensor) -> Tensor:
        """Compute the attention weights (batch, num_heads, seq, seq), without dropout.

        Raises:
            ValueError: As for `forward`.
        """
        check_features(x, width=self.config.embed_dim, max_seq_len=self.max_seq_len)
        return self.attention.attention_weights(self.attention_norm(x))

    def example_input(self, batch: int, seq: int) -> Tensor:
        """Draw an input (batch, seq, embed_dim), the same at every call."""
        return self.attention.example_input(batch, seq)
