from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from causal_onnx.models import (
    AttentionConfig,
    DecoderConfig,
    DecoderLM,
    tiny_gpt2_config,
    tiny_llama_config,
)
from tests.models.reference import largest_error

ALIBI = DecoderConfig(
    vocab_size=50,
    num_layers=3,
    attention=AttentionConfig(embed_dim=24, num_heads=3, max_seq_len=32, alibi=True),
    mlp_dim=40,
    activation="relu",
    norm_bias=False,
    tied_head=False,
)

CONFIGS = {"gpt2": tiny_gpt2_config(), "llama": tiny_llama_config(), "alibi": ALIBI}

all_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@all_configs
def test_logits_score_the_vocabulary_at_every_position(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    for batch, seq in ((1, 1), (2, 7), (1, 32)):
        logits = model(model.example_input(batch, seq))
        assert logits.shape == (batch, seq, config.vocab_size)
        assert bool(logits.isfinite().all())


@all_configs
def test_future_tokens_do_not_change_past_logits(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = model.example_input(2, 9)
    y = model(ids)
    ids[:, 5:] = (ids[:, 5:] + 1) % config.vocab_size
    changed = model(ids)
    assert torch.equal(changed[:, :5], y[:, :5])
    assert not torch.equal(changed[:, 5:], y[:, 5:])


@all_configs
def test_order_of_earlier_tokens_matters(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = torch.tensor([[3, 7, 5, 9]])
    swapped = torch.tensor([[7, 3, 5, 9]])
    # Attention without positions sees a set: only positions tell the two apart at the end.
    assert largest_error(model(swapped)[:, -1], model(ids)[:, -1].detach()) > 1e-5


def test_without_positions_the_order_of_earlier_tokens_is_lost() -> None:
    model = DecoderLM(replace(ALIBI, attention=replace(ALIBI.attention, alibi=False), num_layers=1))
    model.eval()
    first, second = torch.tensor([[3, 7, 5, 9]]), torch.tensor([[7, 3, 5, 9]])
    assert largest_error(model(second)[:, -1], model(first)[:, -1].detach()) < 2e-6


@all_configs
def test_attention_weights_of_every_layer_and_head(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = model.example_input(2, 9)
    weights = model.attention_weights(ids)
    assert weights.shape == (config.num_layers, 2, config.attention.num_heads, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert torch.count_nonzero(weights.triu(diagonal=1)) == 0


@all_configs
def test_attention_weights_are_those_of_the_forward_pass(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = model.example_input(2, 9)
    seen = []
    handles = [
        block.attention.register_forward_hook(
            lambda layer, inputs, _: seen.append(layer.attention_weights(*inputs))
        )
        for block in model.blocks
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    assert torch.equal(model.attention_weights(ids), torch.stack(seen))


def test_head_shares_the_embedding_only_if_tied() -> None:
    tied, untied = DecoderLM(tiny_llama_config(), seed=0), DecoderLM(ALIBI, seed=0)
    assert tied.head is None
    assert "head.weight" not in tied.state_dict()
    assert isinstance(untied.head, nn.Linear)
    assert untied.head.weight.shape == untied.token_embedding.weight.shape
    assert untied.head.bias is None


@all_configs
def test_seed_fixes_the_weights_and_leaves_the_callers_random_state(config: DecoderConfig) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = DecoderLM(config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = DecoderLM(config, seed=1), DecoderLM(config, seed=2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def test_initial_weights_are_gpt2s() -> None:
    config = replace(
        tiny_gpt2_config(),
        num_layers=8,
        attention=replace(tiny_gpt2_config().attention, embed_dim=128),
        mlp_dim=512,
    )
    model = DecoderLM(config, seed=0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif name.endswith("bias"):
            assert torch.count_nonzero(parameter) == 0
        else:
            into_stream = name.endswith(("out_proj.weight", "down_proj.weight"))
            # At least 8192 draws: the sample's deviation is within 5 % by more than 6 sigma.
            assert float(parameter.detach().std()) == pytest.approx(
                0.02 / 4.0 if into_stream else 0.02, rel=0.05
            )


def test_a_fresh_model_is_close_to_uniform() -> None:
    model = DecoderLM(tiny_gpt2_config(), seed=0).eval()
    ids = model.example_input(4, 32)
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(5.545, abs=0.1)  # ln 256


@all_configs
def test_training_learns_a_short_text_by_heart(config: DecoderConfig) -> None:
    model = DecoderLM(replace(config, dropout=0.05), seed=0)
    ids = model.example_input(1, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(120):
        logits = model(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(model.eval()(ids[:, :-1]).argmax(-1), ids[:, 1:])


@all_configs
def test_state_dict_and_deepcopy_carry_the_whole_model(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = model.example_input(2, 7)
    restored = DecoderLM(config, seed=1).eval()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(ids), model(ids))
    assert torch.equal(copy.deepcopy(model)(ids), model(ids))


def test_dropout_acts_in_training_only() -> None:
    model = DecoderLM(replace(tiny_llama_config(), dropout=0.5), seed=0)
    ids = model.example_input(2, 7)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_int32_ids_score_as_int64_ids() -> None:
    model = DecoderLM(tiny_gpt2_config(), seed=0).eval()
    ids = model.example_input(2, 7)
    assert torch.equal(model(ids.int()), model(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"input_ids of shape \(batch, seq\), got \(5,\)"),
        (torch.zeros(1, 5), "dtype int64 or int32, got torch.float32"),
        (torch.zeros(1, 65, dtype=torch.int64), "65 positions, this module takes up to 64"),
        (torch.zeros(1, 0, dtype=torch.int64), "got batch 1 and seq 0"),
        (torch.zeros(0, 5, dtype=torch.int64), "got batch 0 and seq 5"),
    ],
)
def test_wrong_ids_are_refused(ids: torch.Tensor, message: str) -> None:
    model = DecoderLM(tiny_llama_config(), seed=0)
    with pytest.raises(ValueError, match=message):
        model(ids)
    with pytest.raises(ValueError, match=message):
        model.attention_weights(ids)


def test_example_input_draws_from_the_whole_vocabulary() -> None:
    model = DecoderLM(tiny_gpt2_config(), seed=0)
    ids = model.example_input(40, 64)
    assert ids.dtype == torch.int64
    assert sorted(ids.unique().tolist()) == list(range(256))
    assert torch.equal(ids, model.example_input(40, 64))
    with pytest.raises(ValueError, match="65 positions, this module takes up to 64"):
        model.example_input(1, 65)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@all_configs
def test_cuda_gives_what_the_cpu_gives(config: DecoderConfig) -> None:
    model = DecoderLM(config, seed=0).eval()
    ids = model.example_input(2, 9)
    y = model(ids).detach()
    model.to("cuda")
    assert largest_error(model(ids.cuda()).cpu(), y) < 1e-4
