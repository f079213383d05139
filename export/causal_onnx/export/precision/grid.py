"""Numbers of few bits in blocks that share a scale: how a weight is rounded and coded.

A weight is rounded once, here, and every later step is exact: scales keep 16 significant bits, so
that code x scale has at most 24 and is a float32 without rounding, in every runtime, and so that
coding a rounded weight gives the same codes and scales again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "OLDEST_BLOCKS_OPSET",
    "SMALLEST_ELEMENTS",
    "Coded",
    "Grid",
    "code",
    "decode",
    "round_to_grid",
]

Floats = npt.NDArray[np.float32]

OLDEST_BLOCKS_OPSET = 21
"""From here on DequantizeLinear has blocks, and ONNX has 4-bit integers."""

SMALLEST_SCALE = 1e-30
"""Blocks of smaller numbers become zero: their products would be denormal."""


SMALLEST_ELEMENTS = 1 << 8
"""Weights of fewer elements stay: the nodes that unpack them are no smaller."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How weights are rounded."""

    bits: int
    per_row: bool = False
    """One scale for a whole row, where the operator set knows no blocks."""

    def block(self, width: int) -> int | None:
        """The numbers that share a scale in a row of `width`, or None: not rounded.

        32, or 16 where 32 does not divide the width: less than 16, or blocks that end early, are
        refused by onnxruntime's kernels.
        """
        if self.per_row:
            return width
        return next((block for block in (32, 16) if width % block == 0), None)


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A matrix of `rows` x `width` as codes and scales: value = code x scale of its block."""

    codes: npt.NDArray[np.int8]
    """(rows, width), in [-2^(bits-1), 2^(bits-1) - 1]."""
    scales: Floats
    """(rows, blocks); may be negative."""
    bits: int

    @property
    def block(self) -> int:
        """Neighbours of one row that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])


def code(matrix: Floats, *, bits: int, block: int) -> Coded:
    """Round each block of a row to the nearest multiples of one scale.

    8 bits: codes -127 to 127, scale = largest magnitude / 127. 4 bits: codes -8 to 7, scale =
    (the number of the largest magnitude) / -8, so that all 16 codes are used: the scale's sign is
    the opposite of that number's. Source: the symmetric round-to-nearest of
    https://arxiv.org/abs/2004.09602, section 3.1.2, and llama.cpp's format Q4_0,
    https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c.

    Args:
        matrix: (rows, width), finite.
        bits: 8 or 4.
        block: Divides `width`.

    Raises:
        ValueError: `bits` or `block` does not fit.
    """
    rows, width = matrix.shape
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if block < 1 or width % block:
        raise ValueError(f"block ({block}) must divide the width of the matrix ({width})")
    parts = np.ascontiguousarray(matrix, np.float32).reshape(rows, width // block, block)
    if bits == 8:
        top = np.abs(parts).max(axis=-1)
        scales = _shortened(top / np.float32(127))
        low, high = -127, 127
    else:
        place = np.abs(parts).argmax(axis=-1)[..., None]
        top = np.take_along_axis(parts, place, axis=-1)[..., 0]
        scales = _shortened(top / np.float32(-8))
        low, high = -8, 7
    is_empty = np.abs(scales) < SMALLEST_SCALE
    scales = np.where(is_empty, np.float32(1), scales)
    ratio = np.where(is_empty[..., None], np.float32(0), parts / scales[..., None])
    codes = np.clip(np.rint(ratio), low, high).astype(np.int8)
    return Coded(codes=codes.reshape(rows, width), scales=scales, bits=bits)


def decode(coded: Coded) -> Floats:
    """The matrix that the codes stand for; exact."""
    rows, width = coded.codes.shape
    parts = coded.codes.reshape(rows, -1, coded.block).astype(np.float32)
    # A code of 0 and a negative scale would be -0.
    return (parts * coded.scales[..., None] + np.float32(0)).reshape(rows, width)


def round_to_grid(matrix: Floats, *, bits: int, block: int) -> Floats:
    """The nearest matrix that `code` loses nothing of."""
    return decode(code(matrix, bits=bits, block=block))


def _shortened(values: npt.NDArray[Any]) -> Floats:
    """The nearest float32 of 16 significant bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)
