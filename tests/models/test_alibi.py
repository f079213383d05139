from __future__ import annotations

import pytest
import torch

from causal_onnx.models.alibi import alibi_bias, alibi_slopes


def test_slopes_of_eight_heads_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 6, 8, 12, 20, 112])
def test_slopes_equal_those_of_transformers(num_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), num_heads, torch.float64)
    assert alibi_slopes(num_heads) == pytest.approx(bias[:, 0, 1].tolist(), rel=1e-6)


def test_bias_is_zero_at_home_and_falls_with_the_distance() -> None:
    bias = alibi_bias(4, 6, dtype=torch.float32, device=torch.device("cpu"))
    for head, slope in enumerate(alibi_slopes(4)):
        for i in range(6):
            for j in range(i + 1):
                assert float(bias[head, i, j]) == -slope * (i - j)
