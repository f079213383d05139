"""Check what a module is called with, and draw example inputs.

The checks read shapes and dtypes only, so that they hold in traced code too: under `torch.export`
with dynamic sizes the length check becomes an upper bound of the sequence axis, nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_features", "check_ids", "draw_features", "draw_ids"]


def check_features(
    x: Tensor, *, width: int, max_seq_len: int | None, ranks: tuple[int, ...] = (3,)
) -> None:
    """Refuse an input that is not (batch, seq, width), or (seq, width) where rank 2 is allowed.

    Raises:
        ValueError: Wrong rank, width or dtype, an empty axis, or a sequence over `max_seq_len`.
    """
    if x.dim() not in ranks:
        names = {2: f"(seq, {width})", 3: f"(batch, seq, {width})"}
        expected = " or ".join(names[rank] for rank in ranks)
        raise ValueError(f"expected x of shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected x of a floating-point dtype, got {x.dtype}")
    if x.shape[-1] != width:
        raise ValueError(f"expected {width} features in the last axis of x, got {x.shape[-1]}")
    _check_axes(x.shape[0] if x.dim() == 3 else 1, x.shape[-2], max_seq_len)


def check_ids(input_ids: Tensor, *, max_seq_len: int | None) -> None:
    """Refuse ids that are not integers of shape (batch, seq).

    Raises:
        ValueError: Wrong rank or dtype, an empty axis, or a sequence over `max_seq_len`.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"expected input_ids of shape (batch, seq), got {tuple(input_ids.shape)}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"expected input_ids of dtype int64 or int32, got {input_ids.dtype}")
    _check_axes(input_ids.shape[0], input_ids.shape[1], max_seq_len)


def draw_features(
    *, batch: int, seq: int, width: int, max_seq_len: int | None, like: Tensor
) -> Tensor:
    """Draw standard normal features (batch, seq, width), the same at every call.

    Returns:
        A tensor of the dtype and on the device of `like`.
    """
    _check_axes(batch, seq, max_seq_len)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, seq, width, generator=generator, device="cpu", dtype=torch.float32)
    return x.to(device=like.device, dtype=like.dtype)


def draw_ids(
    *, batch: int, seq: int, vocab_size: int, max_seq_len: int | None, like: Tensor
) -> Tensor:
    """Draw int64 ids (batch, seq) from the whole vocabulary, the same at every call."""
    _check_axes(batch, seq, max_seq_len)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (batch, seq), generator=generator, device="cpu")
    return ids.to(like.device)


def _check_axes(batch: int, seq: int, max_seq_len: int | None) -> None:
    if batch < 1 or seq < 1:
        raise ValueError(f"batch and seq must be at least 1, got batch {batch} and seq {seq}")
    if max_seq_len is not None and seq > max_seq_len:
        raise ValueError(f"the sequence has {seq} positions, this module takes up to {max_seq_len}")
