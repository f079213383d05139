"""Round a weight so that the errors of its numbers cancel in what it is multiplied by.

A row's numbers are rounded one after another; what one loses is made up for by those to come, as
far as their inputs go together. The scale of a block is chosen when the block is reached: of some
shares of its largest number, the one of the least squared error, each number's weighed by what its
error costs once those behind it have been adjusted.
Source: Frantar et al. 2023 (GPTQ), https://arxiv.org/abs/2210.17323, algorithm 1, without a change
of order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causal_onnx.export.precision.grid import CODES, SMALLEST_SCALE, shortened

__all__ = ["Moment", "joined", "round_carrying"]

Floats = npt.NDArray[np.float32]
Moment = Tensor
"""(width, width), float32: the sum over positions of x x^T of the inputs x of a product."""

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: inputs that were seen too seldom tell nothing."""

SHARES = tuple(step / 40 for step in range(26, 43))
"""Of the largest number of a block, to be the one that its first code stands for: 0.65 to 1.05."""


def joined(uses: Sequence[Moment | None]) -> Moment | None:
    """One moment for all uses of a weight, each of the same weight; a look-up (None) is of every
    column alike. None: it is looked up only."""
    seen = [m / m.diagonal().mean().clamp(min=1e-30) for m in uses if m is not None]
    if not seen:
        return None
    total = torch.stack(seen).sum(0)
    if len(seen) < len(uses):
        total = total + torch.eye(len(total), dtype=total.dtype)
    return total


def round_carrying(matrix: Floats, moment: Moment | None, *, bits: int, block: int) -> Floats:
    """A matrix that `grid.code` loses nothing of, near `matrix` in its products.

    Args:
        matrix: (rows, width), finite.
        moment: (width, width), of what each row is multiplied by; None: of every column alike, so
            that only scales are chosen.
        bits: 8 or 4.
        block: Numbers that share a scale; the last block of a row may be shorter.
    """
    weights = torch.from_numpy(np.array(matrix, np.float64))
    width = weights.shape[1]
    factor = torch.eye(width, dtype=torch.float64) if moment is None else _factor(moment)
    rounded = torch.empty_like(weights)
    low, high = CODES[bits]
    for start in range(0, width, block):
        end = min(start + block, width)
        part = weights[:, start:end]
        scales, first = _scales(part, factor.diagonal()[start:end], bits)
        is_empty = scales.abs() < SMALLEST_SCALE
        scales = torch.where(is_empty, 1.0, scales)
        extreme = _extreme(part.gather(1, first[:, None])[:, 0], bits)
        losses = torch.zeros_like(part)
        for column in range(end - start):
            place = start + column
            codes = (part[:, column] / scales).round().clamp(low, high)
            # So that the scale can be told from the rounded numbers, as `grid.code` does.
            codes = torch.where(first == column, extreme, codes).where(~is_empty, 0.0)
            rounded[:, place] = codes * scales
            loss = (part[:, column] - rounded[:, place]) / factor[place, place]
            part[:, column:] -= loss[:, None] * factor[place, place:end]
            losses[:, column] = loss
        weights[:, end:] -= losses @ factor[start:end, end:]
    # A code of 0 and a negative scale would be -0.
    return np.asarray(rounded.numpy() + 0.0, np.float32)


def _factor(moment: Moment) -> Tensor:
    """Upper triangular U with U^T U = the inverse of the damped moment."""
    damped = moment.double().clone()
    diagonal = damped.diagonal()
    is_dead = diagonal <= 0
    diagonal[is_dead] = 1.0
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _scales(part: Tensor, factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Of each row the scale of this block, and the column of the number that tells it."""
    low, high = CODES[bits]
    first = part.abs().argmax(1)
    top = part.gather(1, first[:, None])[:, 0]
    largest = top.abs() / high if bits == 8 else top / low
    costs = 1 / factor.square()
    best, chosen = None, None
    for share in SHARES if bits == 4 else (1.0,):
        scales = _shortened(largest * share)
        rounded = (part / scales[:, None]).round().clamp(low, high) * scales[:, None]
        loss = ((part - rounded).square() * costs).sum(1)
        if best is None or chosen is None:
            best, chosen = loss, scales
        else:
            chosen = torch.where(loss < best, scales, chosen)
            best = torch.minimum(loss, best)
    assert chosen is not None
    return chosen, first


def _shortened(values: Tensor) -> Tensor:
    return torch.from_numpy(shortened(values.numpy()).astype(np.float64))


def _extreme(largest: Tensor, bits: int) -> Tensor:
    """The codes of the largest numbers of blocks."""
    low, high = (float(code) for code in CODES[bits])
    if bits == 4:
        return torch.full_like(largest, low)
    return torch.where(largest < 0, low, high).to(largest.dtype)
