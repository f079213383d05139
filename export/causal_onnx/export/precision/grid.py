"""Numbers of few bits in blocks that share a scale: how a weight is rounded and coded.

A weight is rounded once, here, and every later step is exact: scales keep 16 significant bits, so
that code x scale has at most 24 and is a float32 without rounding, in every runtime, and so that
coding a rounded weight gives the same codes and scales again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK_SIZES",
    "CODES",
    "OLDEST_BLOCKS_OPSET",
    "SMALLEST_ELEMENTS",
    "SMALLEST_SCALE",
    "WIDEST_ROW",
    "Coded",
    "Grid",
    "code",
    "decode",
    "round_to_grid",
    "shortened",
]

Floats = npt.NDArray[np.float32]

OLDEST_BLOCKS_OPSET = 21
"""From here on DequantizeLinear has blocks, and ONNX has 4-bit integers."""

BLOCK_SIZES = (128, 64, 32, 16)
"""What onnxruntime's kernels take and multiply fast by: powers of 2; they refuse less than 16."""

WIDEST_ROW = 1 << 16
"""Sums of so many products of codes, 255 by 127 at most, stay below 2^31."""

SMALLEST_SCALE = 1e-30
"""Blocks of smaller numbers become zero: their products would be denormal."""


SMALLEST_ELEMENTS = 1 << 8
"""Weights of fewer elements stay: the nodes that unpack them are no smaller."""


_AT_ONCE = 1 << 22
"""Numbers of a matrix that are coded at once."""


CODES = {4: (-8, 7), 8: (-127, 127)}
"""Bits -> the smallest and the largest code."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How weights are rounded."""

    bits: int
    per_row: bool = False
    """One scale for a whole row: of what the operator set, or an integer product, takes no more."""
    block_size: int = 32
    """The most neighbours that share a scale; one of `BLOCK_SIZES`."""
    may_end_early: bool = False
    """A row's last block may hold fewer than the others."""
    widest: int | None = None
    """The longest row; None: any."""

    def block(self, width: int) -> int | None:
        """The numbers that share a scale in a row of `width`, or None: not rounded.

        `block_size`, or the largest of its halves down to 16 that divides the width. Where blocks
        may end early, 4 whole ones and a part of one are taken as well: what a short block wastes
        is then less than what its half would cost.
        """
        if self.per_row:
            return width if self.widest is None or width <= self.widest else None
        halves = [size for size in BLOCK_SIZES if size <= self.block_size]
        return next((size for size in halves if self._divides(size, width)), None)

    def _divides(self, block: int, width: int) -> bool:
        if width % block == 0:
            return True
        return self.may_end_early and width > 4 * block and width % BLOCK_SIZES[-1] == 0


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A matrix of `rows` x `width` as codes and scales: value = code x scale of its block."""

    codes: npt.NDArray[np.int8]
    """(rows, width), in [-2^(bits-1), 2^(bits-1) - 1]."""
    scales: Floats
    """(rows, blocks); may be negative."""
    bits: int
    block: int
    """Neighbours of one row that share a scale; the last of a row may be fewer."""

    @property
    def in_blocks(self) -> npt.NDArray[np.int8]:
        """(rows, blocks, block): the codes, and 0 behind the end of a row."""
        return _in_blocks(self.codes, self.block)


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
        block: Numbers that share a scale; the last block of a row may be shorter.

    Raises:
        ValueError: `bits` or `block` does not fit.
    """
    rows, width = matrix.shape
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    codes = np.empty((rows, width), np.int8)
    scales = np.empty((rows, -(-width // block)), np.float32)
    for part in _slices(matrix.shape):
        codes[part], scales[part] = _coded(matrix[part], bits, block)
    return Coded(codes=codes, scales=scales, bits=bits, block=block)


def _coded(matrix: Floats, bits: int, block: int) -> tuple[npt.NDArray[np.int8], Floats]:
    rows, width = matrix.shape
    parts = _in_blocks(np.ascontiguousarray(matrix, np.float32), block)
    if bits == 8:
        top = np.abs(parts).max(axis=-1)
        scales = shortened(top / np.float32(127))
    else:
        place = np.abs(parts).argmax(axis=-1)[..., None]
        top = np.take_along_axis(parts, place, axis=-1)[..., 0]
        scales = shortened(top / np.float32(-8))
    low, high = CODES[bits]
    is_empty = np.abs(scales) < SMALLEST_SCALE
    scales = np.where(is_empty, np.float32(1), scales)
    ratio = np.where(is_empty[..., None], np.float32(0), parts / scales[..., None])
    codes = np.clip(np.rint(ratio), low, high).astype(np.int8)
    return codes.reshape(rows, -1)[:, :width], scales


def decode(coded: Coded) -> Floats:
    """The matrix that the codes stand for; exact."""
    matrix = np.empty(coded.codes.shape, np.float32)
    for part in _slices(matrix.shape):
        parts: Floats = _in_blocks(coded.codes[part], coded.block).astype(np.float32)
        # A code of 0 and a negative scale would be -0.
        parts = parts * coded.scales[part][..., None] + np.float32(0)
        matrix[part] = parts.reshape(len(parts), -1)[:, : coded.codes.shape[1]]
    return matrix


def round_to_grid(matrix: Floats, *, bits: int, block: int) -> Floats:
    """The nearest matrix that `code` loses nothing of."""
    rounded = np.empty(matrix.shape, np.float32)
    for part in _slices(matrix.shape):
        rounded[part] = decode(code(matrix[part], bits=bits, block=block))
    return rounded


def _slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows that are computed at once: of a table of 400 million numbers, each step of the whole
    would take more memory than a layer."""
    rows, width = shape
    step = max(1, _AT_ONCE // max(width, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _in_blocks(matrix: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """(rows, blocks, block), with zeros behind the end of a row."""
    rows, width = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -width % block))) if width % block else matrix
    return padded.reshape(rows, -1, block)


def shortened(values: npt.NDArray[Any]) -> Floats:
    """The nearest float32 of 16 significant bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)
