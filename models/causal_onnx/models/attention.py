"""Causal self-attention with several heads: multi-head, grouped-query and multi-query."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.models.alibi import alibi_bias
from causal_onnx.models.config import AttentionConfig
from causal_onnx.models.dot_product import attend_fused, attend_written_out, attention_weights
from causal_onnx.models.inputs import check_features, draw_features
from causal_onnx.models.mask import causal_mask
from causal_onnx.models.norm import make_norm
from causal_onnx.models.rotary import Rotary
from causal_onnx.models.seeding import seeded

__all__ = ["GroupedQueryAttention", "MultiHeadAttention"]


class GroupedQueryAttention(nn.Module):
    """Causal self-attention whose key-value heads may each serve several query heads.

    From multi-query attention (`num_kv_heads=1`) to multi-head attention (None).
    Source: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, config: AttentionConfig, *, seed: int | None = None) -> None:
        """Build the layer.

        Args:
            config: Sizes and options.
            seed: The same seed gives the same weights and leaves the caller's random state alone;
                None: drawn from that state, as PyTorch's own modules do.
        """
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.num_kv_heads = config.resolved_num_kv_heads
        self.head_dim = config.resolved_head_dim
        q_dim = self.num_heads * self.head_dim
        kv_dim = self.num_kv_heads * self.head_dim
        with seeded(seed):
            self.q_proj = nn.Linear(config.embed_dim, q_dim, bias=config.qkv_bias)
            self.k_proj = nn.Linear(config.embed_dim, kv_dim, bias=config.qkv_bias)
            self.v_proj = nn.Linear(config.embed_dim, kv_dim, bias=config.qkv_bias)
            self.out_proj = nn.Linear(q_dim, config.embed_dim, bias=config.out_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = make_norm("rms", self.head_dim, eps=config.norm_eps)
            self.k_norm = make_norm("rms", self.head_dim, eps=config.norm_eps)
        self.rotary = None
        if config.rotary is not None:
            self.rotary = Rotary(
                self.head_dim,
                base=config.rope_base,
                style=config.rotary,
                scaling=config.rope_scaling,
            )

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence accepted; None: no limit."""
        return self.config.max_seq_len

    def forward(self, x: Tensor) -> Tensor:
        """Attend from each position to itself and the ones before it.

        Args:
            x: (batch, seq, embed_dim).

        Returns:
            (batch, seq, embed_dim), in the dtype of `x`.

        Raises:
            ValueError: `x` has the wrong rank or width, is empty, or is longer than `max_seq_len`.
        """
        q, k, v = self._project(x)
        config, seq = self.config, x.shape[1]
        dropout = config.dropout if self.training else 0.0
        bias = self._bias(q)
        if config.softcap is None:
            plain = config.window is None and bias is None
            mask = None if plain else causal_mask(seq, window=config.window, device=x.device)
            context = attend_fused(
                q, k, v, mask=mask, bias=bias, scale=config.resolved_scale, dropout=dropout
            )
        else:
            context = attend_written_out(
                q,
                k,
                v,
                mask=causal_mask(seq, window=config.window, device=x.device),
                bias=bias,
                scale=config.resolved_scale,
                softcap=config.softcap,
                dropout=dropout,
            )
        merged = context.transpose(1, 2).flatten(2)  # (batch, seq, num_heads * head_dim)
        return functional.dropout(self.out_proj(merged), p=dropout, training=self.training)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Compute the weights that `forward` uses, without dropout.

        Returns:
            (batch, num_heads, seq, seq); each row sums to 1, entries above the diagonal are 0.

        Raises:
            ValueError: As for `forward`.
        """
        q, k, _ = self._project(x)
        return attention_weights(
            q,
            k,
            mask=causal_mask(x.shape[1], window=self.config.window, device=x.device),
            bias=self._bias(q),
            scale=self.config.resolved_scale,
            softcap=self.config.softcap,
        )

    def example_input(self, batch: int, seq: int) -> Tensor:
        """Draw an input (batch, seq, embed_dim), the same at every call."""
        return draw_features(
            batch=batch,
            seq=seq,
            width=self.config.embed_dim,
            max_seq_len=self.max_seq_len,
            like=self.q_proj.weight,
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_features(x, width=self.config.embed_dim, max_seq_len=self.max_seq_len)
        q = self._split_heads(self.q_proj(x), self.num_heads)
        k = self._split_heads(self.k_proj(x), self.num_kv_heads)
        v = self._split_heads(self.v_proj(x), self.num_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, k)
        return q, k, v

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        batch, seq, _ = x.shape
        return x.reshape(batch, seq, heads, self.head_dim).transpose(1, 2)

    def _bias(self, q: Tensor) -> Tensor | None:
        if not self.config.alibi:
            return None
        return alibi_bias(self.num_heads, q.shape[2], dtype=q.dtype, device=q.device)


class MultiHeadAttention(GroupedQueryAttention):
    """Causal self-attention in which every query head has a key-value head of its own."""

    def __init__(self, config: AttentionConfig, *, seed: int | None = None) -> None:
        """Build the layer; arguments as for `GroupedQueryAttention`.

        Raises:
            ValueError: The config shares key-value heads between query heads.
        """
        if config.resolved_num_kv_heads != config.num_heads:
            raise ValueError(
                f"MultiHeadAttention has one key-value head per query head, got num_heads "
                f"{config.num_heads} and num_kv_heads {config.num_kv_heads}; use "
                "GroupedQueryAttention"
            )
        super().__init__(config, seed=seed)
