"""Rounding to few bits: the nearest code, and nothing lost after that."""

from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.export.precision import grid
from causal_onnx.export.precision.grid import Grid, code, decode, round_to_grid


def weights(rows: int = 24, width: int = 96, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32) * scale


@pytest.mark.parametrize("block", [16, 32, 96])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4])
def test_a_rounded_weight_is_coded_without_loss(bits: int, block: int, scale: float) -> None:
    rounded = round_to_grid(weights(scale=np.float32(scale)), bits=bits, block=block)
    again = code(rounded, bits=bits, block=block)
    assert again.block == block
    np.testing.assert_array_equal(decode(again), rounded)
    exact = again.codes.reshape(24, -1, block) * again.scales[..., None].astype(np.float64)
    np.testing.assert_array_equal(exact.reshape(24, 96), rounded)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_number_goes_to_the_nearest_code(bits: int) -> None:
    matrix = weights()
    coded = code(matrix, bits=bits, block=32)
    allowed = range(-8, 8) if bits == 4 else range(-127, 128)
    for row in range(len(matrix)):
        for column, number in enumerate(matrix[row].astype(np.float64)):
            step = float(coded.scales[row, column // 32])
            nearest = min(abs(number - q * step) for q in allowed)
            assert abs(number - coded.codes[row, column] * step) <= nearest + 1e-7


def test_the_largest_number_of_a_block_keeps_its_value() -> None:
    matrix = weights()
    for bits in (4, 8):
        rounded = round_to_grid(matrix, bits=bits, block=32)
        for place in (np.abs(matrix[:, :32]).argmax(1),):
            rows = np.arange(len(matrix))
            np.testing.assert_allclose(rounded[rows, place], matrix[rows, place], rtol=1e-4)


def test_blocks_of_zeros_and_of_denormals_are_zero() -> None:
    matrix = weights()
    matrix[3], matrix[5] = 0.0, 1e-39
    for bits in (4, 8):
        rounded = round_to_grid(matrix, bits=bits, block=32)
        assert not rounded[[3, 5]].any()
        assert not np.signbit(rounded[rounded == 0]).any()


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 96), (8, 40)])
def test_rows_are_coded_alike_whatever_is_coded_at_once(
    bits: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = code(weights(), bits=bits, block=block)
    monkeypatch.setattr(grid, "_AT_ONCE", 7 * 96)
    parts = code(weights(), bits=bits, block=block)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_array_equal(parts.scales, whole.scales)
    np.testing.assert_array_equal(decode(parts), round_to_grid(weights(), bits=bits, block=block))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        code(weights(width=40), bits=4, block=0)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        code(weights(), bits=3, block=32)


def test_the_block_follows_from_the_width() -> None:
    widths = {64: 32, 48: 16, 24: None}
    assert {width: Grid(bits=4).block(width) for width in widths} == widths
    assert Grid(bits=8, per_row=True).block(24) == 24
