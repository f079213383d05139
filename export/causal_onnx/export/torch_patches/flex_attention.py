"""`flex_attention` of PyTorch, written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causal_onnx.export.outcome import handed_over

try:  # moved once already between PyTorch versions
    from torch.nn.attention import flex_attention as flex
except ImportError:  # pragma: no cover
    flex = None  # type: ignore[assignment]

__all__ = ["replacements"]


def replacements() -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a function of PyTorch and ours; none where PyTorch has no `flex_attention`."""
    if flex is None:
        return []
    return [
        (flex.flex_attention, _flex_attention),
        (flex.create_block_mask, _create_block_mask),
    ]


class _LazyBlockMask:
    """Stands for a `BlockMask`: keeps the rule, not the blocks."""

    def __init__(self, mask_mod: Callable[..., Tensor], rows: Any, columns: Any):
        self.mask_mod = mask_mod
        self.seq_lengths = (rows, columns)


def _create_block_mask(  # noqa: PLR0917 - the signature of what it replaces
    mask_mod: Callable[..., Tensor],
    B: Any,  # noqa: N803 - as the replaced function spells them
    H: Any,  # noqa: N803
    Q_LEN: Any,  # noqa: N803
    KV_LEN: Any,  # noqa: N803
    device: Any = None,
    BLOCK_SIZE: Any = 128,  # noqa: N803
    _compile: bool = False,
    **_: Any,
) -> _LazyBlockMask:
    return _LazyBlockMask(mask_mod, Q_LEN, KV_LEN)


def _flex_attention(  # noqa: PLR0917 - the signature of what it replaces
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    **_: Any,
) -> Any:
    """`flex_attention` by broadcasting: "ConversionError ... aten.sort.stable"."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * scale
    device = query.device
    b = torch.arange(query.shape[0], device=device).view(-1, 1, 1, 1)
    h = torch.arange(query.shape[1], device=device).view(1, -1, 1, 1)
    i = torch.arange(query.shape[2], device=device).view(1, 1, -1, 1)
    j = torch.arange(key.shape[2], device=device).view(1, 1, 1, -1)
    if score_mod is not None:
        scores = handed_over(score_mod, scores, b, h, i, j)
    rule = getattr(block_mask, "mask_mod", None)
    if rule is not None:
        allowed = handed_over(rule, b, h, i, j)
        scores = torch.where(allowed, scores, torch.full_like(scores, -math.inf))
        weights = scores.softmax(-1)
        weights = torch.where(allowed.any(-1, keepdim=True), weights, torch.zeros_like(weights))
    else:
        weights = scores.softmax(-1)
    out = (weights @ value).to(query.dtype)
    return (out, torch.logsumexp(scores, -1)) if return_lse else out
