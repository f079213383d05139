from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from causal_onnx.models import DecoderBlock, DecoderConfig, tiny_gpt2_config, tiny_llama_config

CONFIGS = pytest.mark.parametrize(
    "config", [tiny_gpt2_config(), tiny_llama_config()], ids=["gpt2", "llama"]
)


@CONFIGS
def test_block_adds_attention_and_then_mlp_to_the_stream(config: DecoderConfig) -> None:
    block = DecoderBlock(config, seed=0).eval()
    x = block.example_input(2, 7)
    middle = x + block.attention(block.attention_norm(x))
    assert torch.equal(block(x), middle + block.mlp(block.mlp_norm(middle)))
    assert torch.equal(
        block.attention_weights(x), block.attention.attention_weights(block.attention_norm(x))
    )


@CONFIGS
def test_future_positions_do_not_change_past_outputs(config: DecoderConfig) -> None:
    block = DecoderBlock(config, seed=0).eval()
    x = block.example_input(2, 9)
    y = block(x)
    x[:, 5:] += 1.0
    assert torch.equal(block(x)[:, :5], y[:, :5])


def test_dropout_acts_on_the_mlp_in_training_only() -> None:
    block = DecoderBlock(replace(tiny_llama_config(), dropout=0.5), seed=0)
    x = block.example_input(1, 5)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_seed_fixes_the_weights_and_leaves_the_callers_random_state() -> None:
    state = torch.get_rng_state()
    first, second = (DecoderBlock(tiny_llama_config(), seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_wrong_input_is_refused() -> None:
    block = DecoderBlock(tiny_llama_config(), seed=0)
    with pytest.raises(ValueError, match=r"shape \(batch, seq, 32\), got \(5, 32\)"):
        block(torch.zeros(5, 32))
    with pytest.raises(ValueError, match="expected 32 features in the last axis of x, got 31"):
        block.attention_weights(torch.zeros(1, 5, 31))
    with pytest.raises(ValueError, match="the sequence has 65 positions, this module takes up to"):
        block(torch.zeros(1, 65, 32))
