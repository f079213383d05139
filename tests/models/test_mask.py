from __future__ import annotations

import pytest
import torch

from causal_onnx.models.mask import causal_mask


@pytest.mark.parametrize("seq", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9])
def test_mask_allows_the_window_up_to_the_diagonal(seq: int, window: int | None) -> None:
    mask = causal_mask(seq, window=window, device=torch.device("cpu"))
    for i in range(seq):
        allowed = [j for j in range(seq) if j <= i and j > i - (window or seq)]
        assert mask[i].nonzero().flatten().tolist() == allowed
