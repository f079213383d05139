"""How much of the activations' scale moves into the weights, channel by channel.

A row of activations has one scale, so that a channel a hundred times as large as the others leaves
these one or two codes. Divided by s, and the weights behind it multiplied by s, it does not:
s_j = max|x_j|^a / max|w_j|^(1 - a), here rounded to a power of two, so that no number loses a bit.
Of some a the one is taken with the least error of the products, and none where that helps little.
Source: Xiao et al. 2023 (SmoothQuant), https://arxiv.org/abs/2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causal_onnx.export.precision.fold import Exponents
from causal_onnx.export.precision.grid import Grid, round_to_grid

__all__ = [
    "SHARES",
    "Sample",
    "Smoothing",
    "choose_exponents",
    "exponents_of",
    "exponents_of_text",
    "text_of",
]

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Values of a that are tried."""

LEAST_GAIN = 0.9
"""Of the squared error, what must not remain more: a smaller gain is chance, of few rows."""

WIDEST_EXPONENT = 12

ROWS_LOOKED_AT = 256
"""Outputs of one weight whose error is measured."""

_ZERO = ord("m")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was seen of the inputs of a product."""

    rows: Tensor
    """(positions, width): some of them."""
    largest: Tensor
    """(width,): the largest magnitude of each channel, of all of them."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What was chosen for one place, and what it costs and cost."""

    exponents: Exponents | None
    """None: nothing is moved."""
    error: float
    """Of the products, squared, relative to their squares."""


def choose_exponents(
    sample: Sample, weights: Sequence[npt.NDArray[np.float32]], grid: Grid
) -> Smoothing:
    """Look for the exponents of the least error of all products together.

    Args:
        sample: Of what the products read.
        weights: Each (outputs, width), in fp32.
        grid: On which they are rounded.
    """
    parts = [matrix[:: -(-len(matrix) // ROWS_LOOKED_AT)] for matrix in weights]
    tops = np.max([np.abs(matrix).max(0) for matrix in weights], axis=0)
    plain = _error(sample.rows, parts, None, grid)
    best = Smoothing(exponents=None, error=plain)
    for share in SHARES:
        exponents = exponents_of(sample.largest.numpy(), tops, share)
        error = _error(sample.rows, parts, exponents, grid)
        if error < min(best.error, LEAST_GAIN * plain):
            best = Smoothing(exponents=exponents, error=error)
    return best


def exponents_of(
    largest: npt.NDArray[np.float32], tops: npt.NDArray[np.float32], share: float
) -> Exponents:
    """Of each channel, k of the power of two that is nearest to its scale.

    The scales of all channels together change nothing, and are made 1 in the middle.

    Args:
        largest: (channels,): of the activations.
        tops: (channels,): of the weights.
        share: a.
    """
    is_live = (largest > 0) & (tops > 0)
    found = np.zeros(len(largest))
    if is_live.any():
        exact = share * np.log2(largest[is_live], dtype=np.float64)
        exact -= (1 - share) * np.log2(tops[is_live], dtype=np.float64)
        found[is_live] = np.rint(exact - np.median(exact))
    return np.clip(found, -WIDEST_EXPONENT, WIDEST_EXPONENT).astype(np.int8)


def _error(
    rows: Tensor,
    weights: Sequence[npt.NDArray[np.float32]],
    exponents: Exponents | None,
    grid: Grid,
) -> float:
    """The squared error of products with rounded inputs, over their squares; the mean of all."""
    factors = torch.ones(rows.shape[1])
    if exponents is not None:
        factors = torch.from_numpy(np.exp2(exponents.astype(np.float32)))
    smoothed = rows / factors
    largest = smoothed.abs().amax(1, keepdim=True).clamp(min=1e-30)
    rounded = (smoothed / largest * 127).round() / 127 * largest
    errors = []
    for weight in weights:
        scaled = np.ascontiguousarray(weight * factors.numpy())
        block = grid.block(scaled.shape[1])
        assert block is not None
        coded = torch.from_numpy(round_to_grid(scaled, bits=grid.bits, block=block))
        exact = rows @ torch.from_numpy(np.ascontiguousarray(weight)).T
        squares = float(exact.square().sum())
        errors.append(float((rounded @ coded.T - exact).square().sum()) / max(squares, 1e-30))
    return float(np.mean(errors))


def text_of(exponents: Exponents) -> str:
    """A letter for each channel: "m" is 0, "n" 1."""
    return "".join(chr(_ZERO + int(k)) for k in exponents)


def exponents_of_text(text: str) -> Exponents:
    """What `text_of` wrote."""
    return (np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int16) - _ZERO).astype(np.int8)
