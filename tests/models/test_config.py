from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from causal_onnx.models import (
    AttentionConfig,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
)

ATTENTION = AttentionConfig(embed_dim=24, num_heads=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_heads": 5}, r"embed_dim \(24\) must be a multiple of num_heads \(5\), or head_dim"),
        ({"num_kv_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"num_kv_heads": 8}, r"num_heads \(4\) must be a multiple of num_kv_heads \(8\)"),
        ({"num_kv_heads": 0}, "num_kv_heads must be at least 1, got 0"),
        ({"head_dim": -4}, "head_dim must be at least 1, got -4"),
        ({"max_seq_len": 0}, "max_seq_len must be at least 1, got 0"),
        ({"rotary": "spiral"}, "rotary must be one of half, interleaved, got 'spiral'"),
        ({"rotary": "half", "head_dim": 7}, "head_dim must be even, got 7"),
        ({"rotary": "half", "alibi": True}, "rotary and alibi are both set"),
        ({"rope_scaling": LinearRopeScaling(factor=2.0)}, "rope_scaling is set, but rotary is"),
        ({"rope_base": 0.0}, "rope_base must be positive and finite, got 0.0"),
        ({"rope_base": float("inf")}, "rope_base must be positive and finite, got inf"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"softcap": -1.0}, "softcap must be positive and finite, got -1.0"),
        ({"scale": float("nan")}, "scale must be positive and finite, got nan"),
        ({"norm_eps": 0.0}, "norm_eps must be positive and finite, got 0.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_attention_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**{"embed_dim": 24, "num_heads": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"mlp_dim": -1}, "mlp_dim must be at least 1, got -1"),
        ({"activation": "gelu_new"}, "activation must be one of gelu, gelu_tanh, relu, swiglu"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"norm_eps": -1e-5}, "norm_eps must be positive and finite, got -1e-05"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\), got 2.0"),
        ({"learned_positions": True}, "learned_positions needs attention.max_seq_len"),
    ],
)
def test_impossible_decoder_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(
            **{"vocab_size": 9, "num_layers": 1, "attention": ATTENTION, "mlp_dim": 8, **options}
        )


def test_impossible_rope_scaling_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"factor must be finite and at least 1.0, got 0.5"):
        LinearRopeScaling(factor=0.5)
    good = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(ValueError, match=r"high_freq_factor \(1.0\) must be greater than low_"):
        Llama3RopeScaling(**{**good, "high_freq_factor": 1.0}, original_max_seq_len=8)
    with pytest.raises(ValueError, match="original_max_seq_len must be at least 1, got 0"):
        Llama3RopeScaling(**good, original_max_seq_len=0)
    with pytest.raises(ValueError, match=r"low_freq_factor must be positive and finite, got 0.0"):
        Llama3RopeScaling(**{**good, "low_freq_factor": 0.0}, original_max_seq_len=8)


@pytest.mark.parametrize("value", [4.0, True, "4"])
def test_a_size_that_is_no_int_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="num_heads must be an int, got"):
        AttentionConfig(embed_dim=24, num_heads=value)


def test_what_follows_from_the_choices() -> None:
    assert ATTENTION.resolved_num_kv_heads == 4
    assert ATTENTION.resolved_head_dim == 6
    assert ATTENTION.resolved_scale == pytest.approx(6**-0.5)
    chosen = AttentionConfig(embed_dim=24, num_heads=5, num_kv_heads=1, head_dim=16, scale=0.5)
    assert chosen.resolved_num_kv_heads == 1
    assert chosen.resolved_head_dim == 16
    assert chosen.resolved_scale == 0.5


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ATTENTION.embed_dim = 48  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        AttentionConfig(24, 4)  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword argument 'heads'"):
        AttentionConfig(embed_dim=24, num_heads=4, heads=4)  # type: ignore[call-arg]
    assert AttentionConfig(embed_dim=24, num_heads=4) == ATTENTION
