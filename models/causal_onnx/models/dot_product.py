"""Scaled dot-product attention: through PyTorch's fused kernels, and written out.

Both compute softmax(cap(scale q k^T) + bias + mask) v; the fused form has no softcap and keeps no
weights. Query head h reads key-value head h // (num_heads / num_kv_heads).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["attend_fused", "attend_written_out", "attention_weights"]


def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attend through `scaled_dot_product_attention`.

    Args:
        q: (batch, num_heads, seq, head_dim).
        k: (batch, num_kv_heads, seq, head_dim).
        v: Same shape as `k`.
        mask: (seq, seq), bool, True where attention is allowed; None: plain causal.
        bias: (num_heads, seq, seq), added to the scaled scores, or None; needs `mask`.
        scale: Factor on q k^T.
        dropout: Probability that a weight is dropped; 0 outside training.

    Returns:
        (batch, num_heads, seq, head_dim), in the dtype of `q`.

    Raises:
        ValueError: There is a bias without a mask.
    """
    blend = mask
    if bias is not None:
        if mask is None:
            raise ValueError("a bias needs a mask: SDPA takes one or the other as attn_mask")
        blend = bias.masked_fill(~mask, float("-inf"))
    return functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=blend,
        dropout_p=dropout,
        is_causal=blend is None,
        scale=scale,
        # Only where it changes something: the exporter refuses it for equal head counts.
        enable_gqa=q.shape[1] != k.shape[1],
    )


def attend_written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend by matmul, mask, softmax and matmul; arguments as for `attend_fused`."""
    weights = attention_weights(q, k, mask=mask, bias=bias, scale=scale, softcap=softcap)
    weights = functional.dropout(weights, p=dropout, training=dropout > 0.0)
    return weights @ _repeat_heads(v, q.shape[1])


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    mask: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute the attention weights, without dropout.

    Args:
        q: (batch, num_heads, seq, head_dim).
        k: (batch, num_kv_heads, seq, head_dim).
        mask: (seq, seq), bool, True where attention is allowed.
        bias: (num_heads, seq, seq), or None.
        scale: Factor on q k^T.
        softcap: Bound of the scores, or None.

    Returns:
        (batch, num_heads, seq, seq), in the dtype of `q`; each row sums to 1.
    """
    scores = q @ _repeat_heads(k, q.shape[1]).transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    batch, num_kv_heads, seq, head_dim = x.shape
    if num_kv_heads == num_heads:
        return x
    groups = num_heads // num_kv_heads
    shared = x[:, :, None].expand(batch, num_kv_heads, groups, seq, head_dim)
    return shared.reshape(batch, num_heads, seq, head_dim)
