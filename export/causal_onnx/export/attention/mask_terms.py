"""What the position-only terms of a core do to its scores, at one choice of sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.attributes import UnsupportedError
from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Known
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.attention.core import AttentionCore, MaskTerm
from causal_onnx.export.attention.operands import tensor_of

__all__ = ["Masked", "mask_at", "spread"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Masked:
    """The keys that are left and what is added to their scores; both broadcast to (batch, heads,
    seq, total)."""

    keys: npt.NDArray[np.bool_]
    bias: Array


def mask_at(core: AttentionCore, run: Run) -> Masked:
    """The effect of all terms that positions alone decide, in the order they are applied.

    Raises:
        UnsupportedError: They do more than to mask keys and add to scores.
    """
    rows, columns = run.sizes.seq, run.sizes.total_seq
    keys = np.ones((1, 1, rows, columns), np.bool_)
    if core.is_causal:
        keys &= np.arange(columns)[None, :] <= np.arange(rows)[:, None] + run.sizes.past_seq
    bias: Array = np.zeros((1, 1, 1, 1))
    factors = []
    for term in core.terms:
        found = tensor_of(run, term.value)
        if not term.known:
            continue
        if not isinstance(found, Known):
            raise UnsupportedError(f"the mask {term.value.name} is not known at {run.sizes}")
        value = spread(core, term, found.value, run)
        if term.kind == "where":
            if term.fill is None or not term.fill <= VERY_NEGATIVE:
                raise UnsupportedError(f"scores that are masked become {term.fill}")
            keys = keys & (value.astype(np.bool_) == term.keep)
        elif term.kind == "add":
            added = value if term.factor == 1.0 else value * term.factor
            some = added > VERY_NEGATIVE
            keys = keys & some
            bias = bias + np.where(some, added, 0)
        elif term.kind == "multiply":
            factors.append(value)
        elif term.kind == "after":
            if not ((value == 0) | (value == 1)).all():
                raise UnsupportedError("the weights are multiplied by other than 0 and 1")
            keys = keys & (value != 0)
    for value in factors:
        if not (
            np.broadcast_to(value == 1, np.broadcast_shapes(value.shape, keys.shape)) | ~keys
        ).all():
            raise UnsupportedError("the scores are multiplied by a matrix")
    return Masked(keys, bias)


def spread(core: AttentionCore, term: MaskTerm, mask: Array, run: Run) -> Array:
    """The value of a term, which broadcasts to the scores, as (batch, heads, seq, total); 1 where
    it is the same along an axis.

    Raises:
        UnsupportedError: It does not broadcast to the scores.
    """
    layout = term.scores
    if layout is None or mask.ndim > len(layout.axes):
        raise UnsupportedError(f"the mask {term.value.name} is not laid out like the scores")
    sizes = layout.sizes(
        batch=run.sizes.batch if core.has_batch else 1,
        seq=run.sizes.seq,
        width=run.sizes.total_seq,
    )
    mask = mask.reshape((1,) * (len(layout.axes) - mask.ndim) + mask.shape)
    shape: list[int] = []
    order: list[str] = []
    for size, letters in zip(mask.shape, layout.axes, strict=True):
        if size == 1:
            continue
        if size != math.prod(sizes[letter] for letter in letters):
            raise UnsupportedError(f"the mask {term.value.name} has an axis of size {size}")
        shape += [sizes[letter] for letter in letters]
        order += letters
    present = [letter for letter in "bghsd" if letter in order]
    mask = mask.reshape(shape).transpose([order.index(letter) for letter in present])
    if ("g" in present) != ("h" in present) and layout.groups > 1:
        raise UnsupportedError(f"the mask {term.value.name} differs between groups of heads alone")
    batch, groups, heads, rows, columns = (
        sizes[letter] if letter in present else 1 for letter in "bghsd"
    )
    mask = mask.reshape(batch, groups * heads, rows, columns)
    return mask[:, list(layout.picks)] if layout.picks and "h" in present else mask
