from __future__ import annotations

import pytest
import torch

from causal_onnx.models.norm import make_norm


def test_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    norm = make_norm("rms", 4, eps=0.5)
    x = torch.tensor([1.0, -2.0, 3.0, 0.0])
    norm.get_parameter("weight").data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor([1.0, -4.0, 9.0, 0.0]) / (14 / 4 + 0.5) ** 0.5
    torch.testing.assert_close(norm(x), expected)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_centres_and_divides_by_the_deviation(bias: bool) -> None:
    norm = make_norm("layer", 4, eps=0.5, bias=bias)
    x = torch.tensor([1.0, -2.0, 3.0, 0.0])
    centred = x - 0.5
    expected = centred / (centred.square().mean() + 0.5).sqrt()
    if bias:
        norm.get_parameter("bias").data += 2.0
    torch.testing.assert_close(norm(x), expected + (2.0 if bias else 0.0))
    assert ("bias" in dict(norm.named_parameters())) == bias
