"""Attention of PyTorch in the forms that the exporter translates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.nn.attention import bias as attention_bias

from causal_onnx.export.outcome import handed_over

__all__ = ["replacements"]

_sdpa = F.scaled_dot_product_attention


def replacements(*, zero_masked_rows: bool) -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a function of PyTorch and ours; `patched` says what `zero_masked_rows` is for."""
    return [
        (_sdpa, _attention_zeroing_masked_rows if zero_masked_rows else _attention_by_rows),
        (attention_bias.causal_upper_left, _causal_upper_left),
        (attention_bias.causal_lower_right, _causal_lower_right),
    ]


def _attention(  # noqa: PLR0917 - the signature of what it replaces
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in the forms that the exporter translates."""
    if enable_gqa and query.shape[-3] == key.shape[-3]:
        enable_gqa = False  # "requires q_num_heads > kv_num_heads"
    if isinstance(attn_mask, _LazyCausalBias):
        attn_mask = attn_mask.mask(query.device)
    if query.ndim == 2:
        lead = attn_mask.unsqueeze(0) if attn_mask is not None else None
        q, k, v = (x.unsqueeze(0) for x in (query, key, value))
        return _attention(q, k, v, lead, dropout_p, is_causal, scale=scale).squeeze(0)
    if query.ndim > 4:
        heads, mask = query.shape[:-2], attn_mask
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(*heads, *mask.shape[-2:]).flatten(0, -4)
        q, k, v = (x.expand(*heads, *x.shape[-2:]).flatten(0, -4) for x in (query, key, value))
        out = _attention(q, k, v, mask, dropout_p, is_causal, scale=scale)
        return out.reshape(*heads, *out.shape[-2:])
    if not enable_gqa and query.ndim == 4 and key.shape[1] == 1 and query.shape[1] != 1:
        # One head of keys for all queries, by broadcasting; the translation wants equal heads.
        key = key.expand(-1, query.shape[1], -1, -1)
        value = value.expand(-1, query.shape[1], -1, -1)
    if query.ndim == 3:  # "only 4D query, key, and value are supported"
        mask = (
            attn_mask.unsqueeze(-3) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        )
        return _attention(
            query.unsqueeze(1),
            key.unsqueeze(1),
            value.unsqueeze(1),
            mask,
            dropout_p,
            is_causal,
            scale=scale,
        ).squeeze(1)
    if isinstance(is_causal, torch.SymBool):
        # "argument 'is_causal' must be bool, not SymBool": is_causal=length > 1.
        wanted = torch.sym_ite(is_causal, 1, 0)  # type: ignore[no-untyped-call]
        on = torch.full((1,), wanted, device=query.device) > 0
        lower = _tril(query.shape[-2], key.shape[-2], query.device)
        causal = lower | ~on
        if attn_mask is None:
            attn_mask = causal
        elif attn_mask.dtype == torch.bool:
            attn_mask = attn_mask & causal
        else:
            attn_mask = attn_mask.masked_fill(~causal, -math.inf)
        is_causal = False
    result: Tensor = handed_over(
        _sdpa,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return result


def _attention_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """Onnxruntime's `Attention` takes a mask with a row for each query, not one of keys alone."""
    if isinstance(attn_mask, Tensor) and attn_mask.ndim > 1:
        rows = attn_mask.shape[-2]
        # A size that may change is no question here: to ask would limit what is captured.
        if isinstance(rows, int) and rows == 1:
            attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], -1)
    return _attention(query, key, value, attn_mask, *rest, **named)


def _attention_zeroing_masked_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    out = _attention(query, key, value, attn_mask, *rest, **named)
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        out = torch.where(attn_mask.any(-1, keepdim=True), out, torch.zeros_like(out))
    return out


def _tril(rows: Any, columns: Any, device: torch.device, diagonal: Any = 0) -> Tensor:
    i = torch.arange(rows, device=device).unsqueeze(-1)
    j = torch.arange(columns, device=device).unsqueeze(0)
    lower: Tensor = j <= i + diagonal
    return lower


class _LazyCausalBias:
    """Stands for a `CausalBias`: "Creating a new Tensor subclass CausalBias ..."."""

    def __init__(self, rows: Any, columns: Any, lower_right: bool):
        self._rows, self._columns = rows, columns
        self._diagonal = columns - rows if lower_right else 0

    def mask(self, device: torch.device) -> Tensor:
        return _tril(self._rows, self._columns, device, self._diagonal)


def _causal_upper_left(rows: Any, columns: Any) -> _LazyCausalBias:
    return _LazyCausalBias(rows, columns, lower_right=False)


def _causal_lower_right(rows: Any, columns: Any) -> _LazyCausalBias:
    return _LazyCausalBias(rows, columns, lower_right=True)
