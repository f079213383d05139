"""What the position-only part of a core's mask lets each position see, in the canonical form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.signature import Sizes
from causal_onnx.export.attention import footprint as seen_footprint
from causal_onnx.export.attention.core import AttentionCore
from causal_onnx.export.attention.footprint import BoolMatrix, Seen
from causal_onnx.export.attention.mask_terms import Masked, mask_at

__all__ = ["Footprint", "footprint_of"]

LONGEST_EVALUATED = 4200
"""Masks are evaluated on all pairs up to here: 18 million entries."""

USUAL_LENGTHS = (11, 67)


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


UNTOLD = Footprint("other", has_bias=True, is_causal=False)


def footprint_of(analysis: Analysis, core: AttentionCore) -> Footprint:
    """The footprint of what positions alone decide in the mask of `core`.

    A window of 4096 looks causal at length 64; so besides small lengths, the mask is evaluated just
    beyond every whole number that it is computed with. Where that is too long to evaluate, the
    answer is "other", and the mask stays as it is written.

    Raises:
        UnsupportedError: The mask does more than to hide keys and to add to scores.
    """
    lengths = _lengths(analysis, core)
    if lengths is None:
        return UNTOLD
    found: list[Seen] = []
    has_bias, leaks = False, False
    batch = analysis.runs[0].sizes.batch
    for length in sorted(lengths):
        run = analysis.blank(Sizes(batch=batch, seq=length))
        if run is None:
            return UNTOLD
        masked = mask_at(core, run)
        later = np.triu(np.ones((length, length), np.bool_), 1)
        leaks |= bool((masked.keys & later).any())
        has_bias |= bool((np.where(masked.keys, masked.bias, 0) != 0).any())
        found.append(Seen(_pairs(masked), 0))
    if any(seen.keys.shape[0] != 1 for seen in found):  # rows or heads see different keys
        return Footprint("other", has_bias=True, is_causal=not leaks)
    told = seen_footprint.footprint_of(found)
    kind = told.kind if told.kind in ("full", "causal", "window") else "other"
    if kind == "full" and all(one.keys.size == 1 for one in found):
        return UNTOLD
    return Footprint(
        kind,
        window=told.size if kind == "window" else None,
        has_bias=has_bias or kind == "other",
        is_causal=not leaks and kind != "full",
    )


def _lengths(analysis: Analysis, core: AttentionCore) -> set[int] | None:
    """Lengths at which the mask shows all that it does; None where one is too long."""
    fixed, limit = analysis.signature.fixed_seq, analysis.signature.max_seq_len
    if fixed is not None:
        return {fixed}
    lengths = {n if limit is None else min(n, limit) for n in USUAL_LENGTHS}
    for length in _turning_points(analysis, core):
        wanted = length if limit is None else min(length, limit)
        if wanted > LONGEST_EVALUATED:
            return None
        lengths.add(wanted)
    return lengths


def _turning_points(analysis: Analysis, core: AttentionCore) -> Iterator[int]:
    limit = analysis.signature.max_seq_len
    terms = [term.value for term in core.terms if term.known]
    for number in analysis.numbers_behind(terms, widths=True):
        length = number + 3
        if length >= 8 and (limit is None or length <= limit + 3):
            yield length


def _pairs(masked: Masked) -> BoolMatrix:
    """The keys as (lead, query, key); lead is 1 where all batch rows and heads see the same."""
    keys = masked.keys
    if (keys == keys[:1, :1]).all():
        return keys[0, :1]
    return keys.reshape(-1, *keys.shape[2:])
