from __future__ import annotations

import numpy as np

from causal_onnx.runtime.session.bfloat16 import from_bits, to_bits


def test_every_bfloat16_survives_the_round_trip() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = from_bits(bits)
    back = to_bits(values)
    nan = np.isnan(values)
    assert np.array_equal(back[~nan], bits[~nan])
    assert np.isnan(from_bits(back[nan])).all()


def test_rounding_is_to_the_nearest_and_to_even_on_a_tie() -> None:
    step = 2.0**-7  # between bfloat16 values from 1 to 2
    values = np.array([1 + step * k / 4 for k in range(9)], np.float32)
    expected = [1, 1, 1, 1 + step, 1 + step, 1 + step, 1 + 2 * step, 1 + 2 * step, 1 + 2 * step]
    assert from_bits(to_bits(values)).tolist() == expected


def test_no_value_is_nearer_than_the_one_chosen() -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    bits = to_bits(values)
    error = np.abs(from_bits(bits) - values)
    for neighbour in (bits - 1, bits + 1):
        assert (error <= np.abs(from_bits(neighbour.astype(np.uint16)) - values)).all()


def test_values_beyond_the_range_become_infinite_and_keep_their_sign() -> None:
    largest = np.finfo(np.float32).max
    assert from_bits(to_bits(np.array([largest, -largest, np.inf], np.float32))).tolist() == [
        np.inf,
        -np.inf,
        np.inf,
    ]
