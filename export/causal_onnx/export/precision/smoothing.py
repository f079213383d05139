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
    "choose_exponents",
    "error_of_product",
    "exponents_of",
    "exponents_of_text",
    "some_outputs",
    "text_of",
]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Values of a that are tried."""

LEAST_GAIN = 0.9
"""Of the squared error, what must not remain more: a smaller gain is chance, of few rows."""

WIDEST_EXPONENT = 12

OUTPUTS_LOOKED_AT = 256
"""Of one weight, those whose error is measured."""

_ZERO = ord("m")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was seen of the inputs of a product."""

    rows: Tensor
    """(positions, width): some of them."""
    largest: Tensor
    """(width,): the largest magnitude of each channel, of all of them."""


def choose_exponents(
    sample: Sample, weights: Sequence[Floats], grid: Grid, columns: Integers | None = None
) -> Exponents | None:
    """Look for the exponents of the least error of all products together; None: of none.

    Args:
        sample: Of what the products read.
        weights: Each (outputs, width), in fp32.
        grid: On which they are rounded.
        columns: Channels of the same number have one exponent; None: each its own.
    """
    parts = [some_outputs(matrix) for matrix in weights]
    tops = np.max([np.abs(matrix).max(0) for matrix in weights], axis=0)
    seen = sample.largest.numpy()
    if columns is not None:
        seen, tops = _shared(seen, columns), _shared(tops, columns)
    plain = _error(sample.rows, parts, None, grid)
    chosen, least = None, LEAST_GAIN * plain
    for share in SHARES:
        exponents = exponents_of(seen, tops, share)
        error = _error(sample.rows, parts, exponents, grid)
        if error < least:
            chosen, least = exponents, error
    return chosen


def _shared(values: Floats, columns: Integers) -> Floats:
    """For each channel, the largest value of those with the same number."""
    largest = np.zeros(columns.max() + 1, np.float32)
    np.maximum.at(largest, columns, values)
    return largest[columns]


def some_outputs(weight: Floats) -> Floats:
    """Rows of (outputs, width), evenly spaced: enough to judge the error of all."""
    return weight[:: -(-len(weight) // OUTPUTS_LOOKED_AT)]


def exponents_of(largest: Floats, tops: Floats, share: float) -> Exponents:
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
    weights: Sequence[Floats],
    exponents: Exponents | None,
    grid: Grid,
) -> float:
    """The squared error of products with rounded inputs, over their squares; the mean of all."""
    factors = _factors(exponents, rows.shape[1])
    errors = []
    for weight in weights:
        scaled = np.ascontiguousarray(weight * factors)
        block = grid.block(scaled.shape[1])
        assert block is not None
        coded = round_to_grid(scaled, bits=grid.bits, block=block)
        errors.append(error_of_product(rows, weight, coded / factors, exponents))
    return float(np.mean(errors))


def error_of_product(
    rows: Tensor, weight: Floats, rounded: Floats, exponents: Exponents | None
) -> float:
    """The squared error of a product of integers, over its squares.

    Args:
        rows: (positions, width): of its inputs, in fp32.
        weight: (outputs, width).
        rounded: The same, on a grid times `exponents`.
        exponents: By which the inputs are divided before they are rounded; None: they are not.
    """
    factors = torch.from_numpy(_factors(exponents, rows.shape[1]))
    smoothed = rows / factors
    largest = smoothed.abs().amax(1, keepdim=True).clamp(min=1e-30)
    coded = (smoothed / largest * 127).round() / 127 * largest * factors
    exact = rows @ torch.from_numpy(np.ascontiguousarray(weight)).T
    got = coded @ torch.from_numpy(np.ascontiguousarray(rounded)).T
    return float((got - exact).square().sum()) / max(float(exact.square().sum()), 1e-30)


def _factors(exponents: Exponents | None, width: int) -> Floats:
    if exponents is None:
        return np.ones(width, np.float32)
    return np.exp2(exponents.astype(np.float32))


def text_of(exponents: Exponents) -> str:
    """A letter for each channel: "m" is 0, "n" 1."""
    return "".join(chr(_ZERO + int(k)) for k in exponents)


def exponents_of_text(text: str) -> Exponents:
    """What `text_of` wrote."""
    return (np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int16) - _ZERO).astype(np.int8)
