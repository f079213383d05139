"""Rounding that carries errors on: nearer in its products, and nothing lost when it is coded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causal_onnx.export.precision.carry import joined, round_carrying
from causal_onnx.export.precision.grid import code, decode, round_to_grid

ROWS, WIDTH = 24, 96


def weights(scale: float = 1.0) -> np.ndarray:
    matrix = np.random.default_rng(0).standard_normal((ROWS, WIDTH)) * scale
    return matrix.astype(np.float32)


def inputs(count: int = 512) -> torch.Tensor:
    """Features that go together, as those of a model do."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(12, WIDTH, generator=generator)
    parts = torch.randn(count, 12 + WIDTH, generator=generator)
    return parts[:, :12] @ mixed + 0.3 * parts[:, 12:]


def moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x


@pytest.mark.parametrize("block", [16, 64, 96])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4])
def test_what_it_gives_is_coded_without_loss(bits: int, block: int, scale: float) -> None:
    rounded = round_carrying(weights(scale), moment(inputs()), bits=bits, block=block)
    again = code(rounded, bits=bits, block=block)
    np.testing.assert_array_equal(decode(again), rounded)


@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_nearer_than_by_rounding_to_the_nearest(bits: int) -> None:
    matrix, x = weights(), inputs(2048)

    def error(rounded: np.ndarray) -> float:
        return float((x[512:] @ torch.from_numpy(rounded - matrix).T).square().mean())

    nearest = round_to_grid(matrix, bits=bits, block=32)
    carried = round_carrying(matrix, moment(x[:512]), bits=bits, block=32)
    assert error(carried) < 0.67 * error(nearest)


def test_without_a_product_the_numbers_themselves_are_nearer() -> None:
    matrix = weights()
    nearest = round_to_grid(matrix, bits=4, block=32)
    chosen = round_carrying(matrix, None, bits=4, block=32)
    assert np.square(chosen - matrix).sum() < 0.97 * np.square(nearest - matrix).sum()


def test_zeros_stay_and_inputs_that_never_come_do_no_harm() -> None:
    matrix, x = weights(), inputs()
    matrix[3], matrix[:, :40] = 0.0, 0.0
    x[:, 40:50] = 0.0
    rounded = round_carrying(matrix, moment(x), bits=4, block=32)
    assert np.isfinite(rounded).all()
    assert not rounded[3].any()
    assert not np.signbit(rounded[rounded == 0]).any()


def test_uses_of_one_weight_weigh_the_same() -> None:
    x = moment(inputs())
    once, twice, looked_up = joined([x]), joined([x, 100 * x]), joined([x, None])
    assert once is not None
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(looked_up, once + torch.eye(WIDTH))
    assert joined([None]) is None
