from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.models import DecoderLM, tiny_llama_config
from examples.demo.attention import check_maps, choose_passage, draw_maps

PROSE = b"Every module in this text is described by a sentence of plain words only."


def causal_weights(*, seq: int) -> np.ndarray:
    weights = np.tril(np.random.default_rng(0).random((2, 3, seq, seq))).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_maps_of_a_decoder_pass_their_checks() -> None:
    maps = draw_maps(DecoderLM(tiny_llama_config(), seed=0).eval(), PROSE, length=32)
    assert PROSE.startswith(maps.passage.encode())
    assert maps.weights.shape == (2, 4, len(maps.passage), len(maps.passage))
    assert maps.checks.passed
    assert maps.checks.rows == 2 * 4 * 64


def test_a_glimpse_of_the_future_is_found() -> None:
    weights = causal_weights(seq=6)
    weights[1, 2, 3, 4] = 1e-30
    checks = check_maps(weights)
    assert not checks.passed
    assert checks.nonzero_above_diagonal == 1
    assert "1 of 90 entries above the diagonal differ from 0" in checks.summary()


@pytest.mark.parametrize("value", [0.999, float("nan")])
def test_a_row_that_does_not_sum_to_one_is_found(value: float) -> None:
    weights = causal_weights(seq=6)
    weights[0, 0, 0, 0] = value
    assert check_maps(causal_weights(seq=6)).passed
    assert not check_maps(weights).passed


def test_the_mean_distance_counts_bytes_back() -> None:
    maps = draw_maps(DecoderLM(tiny_llama_config(), seed=0).eval(), PROSE, length=32)
    seq = len(maps.passage)
    expected = np.zeros((2, 4))
    for row in range(seq):
        for column in range(row + 1):
            expected += maps.weights[:, :, row, column] * (row - column) / seq
    np.testing.assert_allclose(maps.mean_distance(), expected, rtol=1e-4)


def test_the_passage_is_prose_cut_behind_a_word() -> None:
    text = b"code = [1, 2, 3, 4, 5, 6]\n\nshort\n\n" + PROSE
    assert choose_passage(text, length=20) == b"Every module in"


def test_a_text_without_prose_is_refused() -> None:
    with pytest.raises(ValueError, match="no paragraph of 40 bytes of plain prose"):
        choose_passage(b"x = 1\n\n" * 20, length=40)
