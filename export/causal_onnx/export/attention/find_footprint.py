"""The footprint of a core: of all that is done to its scores, or of what positions alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError
from causal_onnx.export.analysis.elements import Elements, Known, restructure
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Sizes
from causal_onnx.export.attention.core import AttentionCore
from causal_onnx.export.attention.footprint import (
    UNKNOWN,
    BoolMatrix,
    Footprint,
    Seen,
    footprint_of,
    position_bias,
    seen_keys,
)
from causal_onnx.export.attention.mask_terms import Masked, mask_at, spread
from causal_onnx.export.attention.operands import tensor_of

__all__ = ["footprint_by_positions", "with_footprint"]

MAX_MASK = 1 << 25
"""Largest mask, in elements, that is evaluated to tell the footprint at a large length."""

LONGEST_EVALUATED = 4200
"""Up to here what positions alone decide is evaluated on all pairs: 18 million entries."""

USUAL_LENGTHS = (11, 67)


def with_footprint(analysis: Analysis, core: AttentionCore) -> AttentionCore:
    """The core, with what it sees at the sizes that were run and at one past its masks' numbers."""
    # A core inside a branch is computed by some of the runs alone.
    own = [(run, seen) for run in analysis.runs if (seen := _seen_in(core, run)) is not None]
    if not own:
        return core
    found = [seen for _, seen in own]
    for sizes in _large_sizes(analysis, core, [run.sizes for run, _ in own]):
        run = analysis.blank(sizes)
        seen = None if run is None else _seen_by_terms(core, run)
        if seen is not None:
            found.append(seen)
    bias = _bias(core, *max(own, key=lambda item: item[0].sizes.seq))
    return replace(core, footprint=footprint_of(found), bias=bias)


def _seen_in(core: AttentionCore, run: Run) -> Seen | None:
    """From the scores themselves."""
    if core.kind == "fused":
        scores = run.context.scores.get(core.node)
        if scores is None:
            return None
    else:
        tensor = tensor_of(run, core.node.inputs[0])
        if not isinstance(tensor, Elements):
            return None
        scores = tensor
        assert core.score_axes is not None
        scores = _last_axes(scores, core.score_axes)
    if 0 in scores.shape:
        return None  # no keys at these sizes, such as an encoder that gave nothing
    keys = seen_keys(scores)
    if core.sink is not None:
        end = keys.shape[-1] - core.sink_columns
        keys = keys[..., core.sink_columns :] if core.sink_first else keys[..., :end]
    for term in core.terms:
        mask = tensor_of(run, term.value)
        if term.kind == "after" and isinstance(mask, Known) and term.scores is not None:
            keys = keys & _flat(spread(core, term, mask.value != 0, run), run)
    return Seen(keys, keys.shape[-1] - keys.shape[-2])


def _last_axes(tensor: Elements, axes: tuple[int, int]) -> Elements:
    """The same scores with queries and keys as the last two axes."""
    rank = len(tensor.shape)
    if tuple(axes) == (rank - 2, rank - 1):
        return tensor
    order = [i for i in range(rank) if i not in axes] + list(axes)
    return restructure(tensor, lambda array, _: array.transpose(order))


def _flat(mask: npt.NDArray[Any], run: Run) -> npt.NDArray[Any]:
    """(batch, heads, seq, total) as (lead, seq, total); lead is 1 where all are the same."""
    shape = (*mask.shape[:2], run.sizes.seq, run.sizes.total_seq)
    full = np.broadcast_to(mask, shape).reshape(-1, *shape[2:])
    return full[:1] if (full == full[:1]).all() else full


def _seen_by_terms(core: AttentionCore, run: Run) -> Seen | None:
    """From the position-only terms, at a size where the scores themselves are not followed."""
    if core.node.outputs[0] not in run.values:
        return None  # it stands in a branch that is not entered there
    if core.kind == "fused" and (core.node.op_type != "Attention" or core.node.domain):
        return None
    try:
        masked = mask_at(core, run)
    except UnsupportedError:
        return None
    return Seen(_flat(masked.keys, run), run.sizes.total_seq - run.sizes.seq)


def _large_sizes(analysis: Analysis, core: AttentionCore, followed: Sequence[Sizes]) -> list[Sizes]:
    """A length beyond each number that the mask is computed with: windows show only there."""
    if analysis.signature.fixed_seq is not None:
        return []
    base = max(followed, key=lambda s: s.seq)
    limit = analysis.signature.max_seq_len
    terms = [term.value for term in core.terms if term.known]
    numbers = sorted(set(analysis.numbers_behind(terms)))
    wanted = [n + 2 for n in numbers if n + 2 > base.seq and (n + 2) ** 2 <= MAX_MASK]
    if limit is not None:
        wanted = [min(n, limit) for n in wanted]
    sizes = []
    for n in sorted(set(wanted))[:4]:
        sizes.append(Sizes(batch=base.batch, seq=n, past_seq=0, other=base.other))
    return sizes


def _bias(core: AttentionCore, run: Run, seen: Seen) -> str:
    """Name what the known additive terms do to the scores that are seen."""
    rows, columns = seen.keys.shape[-2:]
    total = np.zeros((1, rows, columns))
    for term in core.terms:
        mask = tensor_of(run, term.value)
        if term.kind != "add" or not isinstance(mask, Known):
            continue
        value = mask.value.astype(np.float64) * term.factor
        try:
            total = total + _flat(spread(core, term, value, run), run)
        except UnsupportedError:
            continue
    return position_bias(total, seen.keys[0], seen.past)


def footprint_by_positions(analysis: Analysis, core: AttentionCore) -> tuple[Footprint, bool]:
    """What positions alone decide in the mask of `core`, and whether they change allowed scores.

    A window of 4096 looks causal at length 64; so besides small lengths, the mask is evaluated just
    beyond every whole number that it is computed with. Where that is too long to evaluate, the
    answer is "other", and the mask stays as it is written.

    Returns:
        The footprint, and whether position changes scores that count (ALiBi and the like), which is
        also assumed of a footprint that the canonical form has no attribute for.

    Raises:
        UnsupportedError: The mask does more than to hide keys and to add to scores.
    """
    unknown = UNKNOWN, True
    lengths = _telling_lengths(analysis, core)
    if lengths is None:
        return unknown
    found: list[Seen] = []
    has_bias = False
    base = analysis.runs[0].sizes
    for length in sorted(lengths):
        run = analysis.blank(Sizes(batch=base.batch, seq=length, other=base.other))
        if run is None:
            return unknown
        masked = mask_at(core, run)
        has_bias |= bool((np.where(masked.keys, masked.bias, 0) != 0).any())
        found.append(Seen(_pairs(masked), 0))
    footprint = footprint_of(found)
    if footprint.kind == "full" and all(one.keys.size == 1 for one in found):
        return unknown
    return footprint, has_bias or not footprint.is_plain


def _telling_lengths(analysis: Analysis, core: AttentionCore) -> set[int] | None:
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
