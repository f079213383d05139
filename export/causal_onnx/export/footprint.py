"""What a mask lets each position see: told from its values at lengths that would show more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from causal_onnx.export.cores import MASKED, Bias
from causal_onnx.export.layout import Layouts
from causal_onnx.export.region import Array, PositionRegion

__all__ = ["Footprint", "footprint_of"]

LONGEST_EVALUATED = 4200
"""Masks are evaluated on all pairs up to here: 18 million entries."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Which keys a query may attend to, where only positions decide."""

    kind: str
    """"full", "causal", "window" (causal, itself and `window` - 1 before), or "other"."""
    window: int | None = None
    has_bias: bool = False
    """Allowed scores are changed by position (ALiBi and the like)."""
    is_causal: bool = True
    """No query may attend to a later key."""


_OTHER = Footprint("other", has_bias=True)


def footprint_of(layouts: Layouts, biases: list[Bias], max_seq_len: int | None) -> Footprint:
    """The footprint of position-only biases.

    A window of 4096 looks causal at length 64; so besides small lengths, the mask is evaluated just
    beyond every integer constant that it is computed with. Where that is too long to evaluate, the
    answer is "other", and the mask stays as it is written.
    """
    regions = [PositionRegion(layouts, bias.value) for bias in biases]
    lengths = {11, 67} if max_seq_len is None else {min(n, max_seq_len) for n in (11, 67)}
    for region in regions:
        for number in region.integers():
            length = abs(number) + 3
            if length < 8 or (max_seq_len is not None and length > max_seq_len + 3):
                continue
            if length > LONGEST_EVALUATED:
                if max_seq_len is None or max_seq_len > LONGEST_EVALUATED:
                    return Footprint("other", has_bias=True, is_causal=False)
                length = max_seq_len
            lengths.add(length if max_seq_len is None else min(length, max_seq_len))
    found = {_at(regions, biases, length) for length in sorted(lengths)}
    # At a length within the window a window is plain causality.
    windows = {f for f in found if f.kind == "window"}
    if windows and all(f.kind == "causal" for f in found - windows) and len(windows) == 1:
        window = next(iter(windows))
        assert window.window is not None
        return window if _longer_than(window.window, lengths, found) else _OTHER
    if len(found) == 1:
        return found.pop()
    return Footprint("other", has_bias=True, is_causal=all(f.is_causal for f in found))


def _longer_than(window: int, lengths: set[int], found: set[Footprint]) -> bool:
    return max(lengths) > window and len(found) <= 2


def _at(regions: list[PositionRegion], biases: list[Bias], length: int) -> Footprint:
    allowed = np.ones((length, length), np.bool_)
    has_bias = False
    for region, bias in zip(regions, biases, strict=True):
        value = region.evaluate(1, length)
        if bias.allowed_where is not None:
            may = value if bias.allowed_where else ~value
        else:
            added = value.astype(np.float64) * bias.factor
            may = added > MASKED
            has_bias |= bool((np.where(may, added, 0.0) != 0.0).any())
        pairs = _pairs(may, length)
        if pairs is None:
            later = np.triu(np.ones((length, length), np.bool_), 1)
            causal = may.ndim >= 2 and not (np.broadcast_to(may, _whole(may, length)) & later).any()
            return Footprint("other", has_bias=True, is_causal=bool(causal))
        allowed &= pairs
    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    if length > 1 and allowed.all():
        return Footprint("full", has_bias=has_bias, is_causal=False)
    if np.array_equal(allowed, j <= i):
        return Footprint("causal", has_bias=has_bias)
    window = int(allowed[-1].sum())
    if np.array_equal(allowed, (j <= i) & (j > i - window)):
        return Footprint("window", window, has_bias)
    return Footprint("other", has_bias=True, is_causal=not (allowed & (j > i)).any())


def _whole(may: Array, length: int) -> tuple[int, ...]:
    return (*may.shape[:-2], length, length)


def _pairs(may: Array, length: int) -> Array | None:
    """`may` as (query, key), if it is the same for every batch row and head."""
    if may.ndim < 2:
        may = may.reshape((1, *may.shape) if may.ndim else (1, 1))
    flat = may.reshape(-1, *may.shape[-2:])
    if flat.shape[-2] not in (1, length) or flat.shape[-1] not in (1, length):
        return None
    if not (flat == flat[:1]).all():
        return None
    return np.broadcast_to(flat[0], (length, length))
