from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from causal_onnx.models import LinearRopeScaling, Llama3RopeScaling
from causal_onnx.models.config import RotaryStyle
from causal_onnx.models.rotary import Rotary, rotary_frequencies

STYLES: list[RotaryStyle] = ["half", "interleaved"]


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("style", STYLES)
def test_scores_depend_on_the_distance_only(style: RotaryStyle) -> None:
    q, k = random(1, 1, 1, 8).expand(1, 1, 12, 8), random(1, 1, 2, 8)[:, :, 1:].expand(1, 1, 12, 8)
    turned_q, turned_k = Rotary(8, base=100.0, style=style)(q, k)
    scores = (turned_q @ turned_k.transpose(-2, -1))[0, 0]  # (12, 12)
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert float((scores[0, 0] - scores[0, 5]).abs()) > 1e-2


@pytest.mark.parametrize("style", STYLES)
def test_lengths_are_kept_and_position_zero_is_not_turned(style: RotaryStyle) -> None:
    x = random(2, 3, 7, 8)
    turned, _ = Rotary(8, style=style)(x, x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.equal(turned[:, :, 1], x[:, :, 1])


def test_styles_are_the_same_up_to_the_order_of_features() -> None:
    x = random(1, 1, 7, 8)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    half, _ = Rotary(8, style="half")(x, x)
    interleaved, _ = Rotary(8, style="interleaved")(x[..., order], x)
    torch.testing.assert_close(interleaved, half[..., order])


def test_angles_stay_in_float32_when_the_module_is_halved() -> None:
    rotary = Rotary(64).half()
    x = torch.zeros(1, 1, 2000, 64, dtype=torch.float16)
    x[..., :32] = 1.0  # turned, the first half is the cosine of the angle
    turned, _ = rotary(x, x)
    frequency = 10_000.0 ** (-2 / 64)
    assert float(turned[0, 0, 1999, 1]) == pytest.approx(math.cos(1999 * frequency), abs=2e-3)


@pytest.mark.parametrize("head_dim", [2, 8, 64, 96])
@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        (None, {"rope_type": "default"}),
        (LinearRopeScaling(factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Llama3RopeScaling(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64
            ),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=["default", "linear", "llama3"],
)
def test_frequencies_equal_those_of_transformers(
    head_dim: int,
    scaling: LinearRopeScaling | Llama3RopeScaling | None,
    parameters: dict[str, object],
) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        rope_parameters={"rope_theta": 500.0, **parameters},
    )
    expected = LlamaRotaryEmbedding(config).inv_freq
    got = rotary_frequencies(head_dim, base=500.0, scaling=scaling)
    torch.testing.assert_close(got, expected, rtol=3e-7, atol=0.0)
    if scaling is None:
        assert torch.equal(got, expected)


def test_llama3_scaling_keeps_fast_rotations_and_slows_the_slow_ones() -> None:
    scaling = Llama3RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64
    )
    plain = rotary_frequencies(64, base=500.0)
    ratio = rotary_frequencies(64, base=500.0, scaling=scaling) / plain
    turns = 64 * plain / (2 * math.pi)
    torch.testing.assert_close(ratio[turns > 4.0], torch.ones(int((turns > 4.0).sum())))
    torch.testing.assert_close(ratio[turns < 1.0], torch.full((int((turns < 1.0).sum()),), 1 / 8))
    between = ratio[(turns > 1.0) & (turns < 4.0)]
    assert between.numel() > 2
    assert bool(((between > 1 / 8) & (between < 1.0)).all())
