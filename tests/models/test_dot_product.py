from __future__ import annotations

import pytest
import torch

from causal_onnx.models.alibi import alibi_bias
from causal_onnx.models.dot_product import attend_fused, attend_written_out
from causal_onnx.models.mask import causal_mask
from tests.models.reference import largest_error


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4], ids=["mqa", "gqa", "mha"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["no-bias", "alibi"])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("seq", [1, 2, 7, 17])
def test_fused_and_written_out_forms_agree(
    num_kv_heads: int, has_bias: bool, window: int | None, seq: int
) -> None:
    generator = torch.Generator().manual_seed(seq)
    q = torch.randn(2, 4, seq, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(2, num_kv_heads, seq, 8, generator=generator, dtype=torch.float64)
    v = torch.randn(2, num_kv_heads, seq, 8, generator=generator, dtype=torch.float64)
    bias = alibi_bias(4, seq, dtype=q.dtype, device=q.device) if has_bias else None
    mask = causal_mask(seq, window=window, device=q.device)
    written = attend_written_out(
        q, k, v, mask=mask, bias=bias, scale=0.7, softcap=None, dropout=0.0
    )
    fused = attend_fused(q, k, v, mask=mask, bias=bias, scale=0.7, dropout=0.0)
    # float64, sums of up to 17 products.
    assert largest_error(fused, written) < 1e-14
    if window is None and bias is None:
        plain = attend_fused(q, k, v, mask=None, bias=None, scale=0.7, dropout=0.0)
        assert largest_error(plain, written) < 1e-14


def test_bias_without_a_mask_is_refused_by_the_fused_form() -> None:
    q = torch.zeros(1, 2, 3, 4)
    bias = torch.zeros(2, 3, 3)
    with pytest.raises(ValueError, match="a bias needs a mask"):
        attend_fused(q, q, q, mask=None, bias=bias, scale=1.0, dropout=0.0)
