from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from causal_onnx.models import AttentionConfig, GroupedQueryAttention, MultiHeadAttention
from tests.models.reference import largest_error, reference_attention, weights_of

BASE = AttentionConfig(embed_dim=24, num_heads=4, max_seq_len=16)

OPTIONS = {
    "plain": BASE,
    "gqa": replace(BASE, num_kv_heads=2),
    "mqa": replace(BASE, num_kv_heads=1),
    "wide-heads": replace(BASE, head_dim=8, num_kv_heads=2),
    "rotary-half": replace(BASE, num_kv_heads=2, rotary="half"),
    "rotary-interleaved": replace(BASE, num_kv_heads=2, rotary="interleaved", rope_base=100.0),
    "alibi": replace(BASE, num_kv_heads=2, alibi=True),
    "window": replace(BASE, window=3),
    "window-of-one": replace(BASE, window=1),
    "window-alibi": replace(BASE, window=4, alibi=True),
    "softcap": replace(BASE, num_kv_heads=2, softcap=0.3),
    "softcap-alibi-window": replace(BASE, num_kv_heads=2, softcap=0.3, alibi=True, window=4),
    "qk-norm": replace(BASE, num_kv_heads=2, qk_norm=True, rotary="half"),
    "bias": replace(BASE, qkv_bias=True, out_bias=True),
    "scale": replace(BASE, scale=0.8),
}

all_options = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS.keys())

# float32, sums of up to 24 products: a few units in the last place (1.2e-7). Measured: 5e-7.
TOLERANCE = 3e-6


def make_layer(config: AttentionConfig, *, seed: int = 0) -> GroupedQueryAttention:
    """Build a layer with large weights, so that attention is far from uniform."""
    layer = GroupedQueryAttention(config, seed=seed).eval()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            generator = torch.Generator().manual_seed(index)
            spread = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.3 * spread if parameter.dim() == 1 else 0.4 * spread)
    return layer


@all_options
def test_output_and_weights_equal_loops_in_float64(config: AttentionConfig) -> None:
    layer = make_layer(config)
    x = layer.example_input(2, 9)
    output, weights = reference_attention(x.double().numpy(), weights_of(layer), config)
    assert largest_error(layer(x), output) < TOLERANCE
    assert largest_error(layer.attention_weights(x), weights) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (OPTIONS["window"], {"window": 4}),
        (OPTIONS["window"], {"window": None}),
        (OPTIONS["plain"], {"window": 8}),
        (OPTIONS["alibi"], {"alibi": False}),
        (OPTIONS["rotary-half"], {"rotary": None}),
        (OPTIONS["rotary-half"], {"rotary": "interleaved"}),
        (OPTIONS["rotary-half"], {"rope_base": 100.0}),
        (OPTIONS["softcap"], {"softcap": 0.4}),
        (OPTIONS["qk-norm"], {"qk_norm": False}),
        (OPTIONS["scale"], {"scale": None}),
    ],
)
def test_comparison_with_loops_sees_a_wrong_option(
    config: AttentionConfig, wrong: dict[str, object]
) -> None:
    layer = make_layer(config)
    x = layer.example_input(1, 9)
    output, _ = reference_attention(x.double().numpy(), weights_of(layer), replace(config, **wrong))
    assert largest_error(layer(x), output) > 1e-3


@all_options
@pytest.mark.parametrize("cut", [1, 5, 8])
def test_future_positions_do_not_change_past_outputs(config: AttentionConfig, cut: int) -> None:
    layer = make_layer(config)
    x = layer.example_input(2, 9)
    y = layer(x)
    x[:, cut:] += 1.0
    changed = layer(x)
    assert torch.equal(changed[:, :cut], y[:, :cut])
    assert not torch.equal(changed[:, cut:], y[:, cut:])


@all_options
def test_rows_of_a_batch_do_not_meet(config: AttentionConfig) -> None:
    layer = make_layer(config)
    x = layer.example_input(3, 6)
    y = layer(x)
    x[1] += 1.0
    changed = layer(x)
    assert torch.equal(changed[[0, 2]], y[[0, 2]])
    assert not torch.equal(changed[1], y[1])


@all_options
def test_prefix_of_a_longer_sequence_gives_the_same_outputs(config: AttentionConfig) -> None:
    layer = make_layer(config)
    x = layer.example_input(2, 16)
    whole = layer(x)
    for seq in (1, 2, 3, 7, 16):
        assert largest_error(layer(x[:, :seq]), whole[:, :seq].detach()) < TOLERANCE


@all_options
def test_gradient_of_an_output_reaches_no_later_position(config: AttentionConfig) -> None:
    layer = make_layer(config)
    x = layer.example_input(1, 7).requires_grad_()
    layer(x)[:, 3].square().sum().backward()
    assert x.grad is not None
    assert torch.count_nonzero(x.grad[:, 4:]) == 0
    assert torch.count_nonzero(x.grad[:, 3]) > 0


@all_options
def test_weights_sum_to_one_and_see_only_the_window(config: AttentionConfig) -> None:
    layer = make_layer(config)
    weights = layer.attention_weights(layer.example_input(2, 9))
    assert weights.shape == (2, config.num_heads, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, config.num_heads, 9))
    for i in range(9):
        for j in range(9):
            visible = j <= i and (config.window is None or i - j < config.window)
            assert bool((weights[:, :, i, j] > 0).any()) == visible


def test_permuting_heads_with_their_weights_changes_nothing() -> None:
    layer = make_layer(BASE)
    permuted = copy.deepcopy(layer)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for projection in (permuted.q_proj, permuted.k_proj, permuted.v_proj):
            projection.weight.copy_(projection.weight.view(4, 6, 24)[order].flatten(0, 1))
        out = permuted.out_proj.weight
        out.copy_(out.view(24, 4, 6)[:, order].flatten(1))
    x = layer.example_input(2, 7)
    assert largest_error(permuted(x), layer(x).detach()) < TOLERANCE
    assert torch.equal(permuted.attention_weights(x), layer.attention_weights(x)[:, order])


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_shared_heads_equal_copied_heads(num_kv_heads: int) -> None:
    shared = make_layer(replace(BASE, num_kv_heads=num_kv_heads))
    full = make_layer(BASE)
    groups = 4 // num_kv_heads
    with torch.no_grad():
        for name in ("q_proj", "out_proj"):
            full.get_submodule(name).load_state_dict(shared.get_submodule(name).state_dict())
        for name in ("k_proj", "v_proj"):
            weight = shared.get_parameter(f"{name}.weight").view(num_kv_heads, 6, 24)
            copied = weight.repeat_interleave(groups, dim=0).flatten(0, 1)
            full.get_parameter(f"{name}.weight").copy_(copied)
    x = shared.example_input(2, 7)
    assert largest_error(shared(x), full(x).detach()) < TOLERANCE


def test_window_as_long_as_the_sequence_changes_nothing() -> None:
    plain = make_layer(BASE)
    windowed = make_layer(replace(BASE, window=9))
    x = plain.example_input(2, 9)
    assert largest_error(windowed(x), plain(x).detach()) < TOLERANCE


def test_softcap_bounds_what_a_score_can_do() -> None:
    layer = make_layer(replace(BASE, softcap=0.1, scale=100.0))
    weights = layer.attention_weights(layer.example_input(2, 9)).detach()
    last = weights[:, :, 8]  # scores within +-0.1: weights of a row within exp(0.2)
    assert float((last.amax(-1) / last.amin(-1)).max()) <= 1.2215


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["fused", "written-out"])
def test_dropout_acts_in_training_only(softcap: float | None) -> None:
    layer = make_layer(replace(BASE, dropout=0.5, softcap=softcap))
    x = layer.example_input(2, 9)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    torch.manual_seed(0)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.manual_seed(0)
    assert torch.equal(first, layer(x))
    weights = layer.attention_weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["fused", "written-out"])
def test_dropout_drops_weights_besides_outputs(softcap: float | None) -> None:
    layer = make_layer(replace(BASE, embed_dim=32, dropout=0.5, softcap=softcap))
    layer.train()
    nn.init.eye_(layer.out_proj.weight)
    torch.manual_seed(0)
    # At position 0 a head has one weight, 1.0: dropped or doubled, then the outputs the same.
    heads = layer(layer.example_input(200, 1)).view(200, 4, 8)
    dropped_whole = (heads == 0).all(dim=-1).double().mean()
    assert 0.4 < float(dropped_whole) < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rotary-half", "alibi", "softcap-alibi-window", "qk-norm"])
def test_other_precisions_keep_their_dtype_and_meaning(name: str, dtype: torch.dtype) -> None:
    layer = make_layer(OPTIONS[name])
    x = layer.example_input(2, 9)
    y = layer(x).detach()
    layer.to(dtype)
    converted = layer(layer.example_input(2, 9))
    assert converted.dtype == dtype
    bound = {torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert largest_error(converted, y) < bound


def test_seed_fixes_the_weights_and_leaves_the_callers_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = GroupedQueryAttention(BASE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = GroupedQueryAttention(BASE, seed=1), GroupedQueryAttention(BASE, seed=2)
    assert torch.equal(first.q_proj.weight, again.q_proj.weight)
    assert torch.equal(first.out_proj.weight, again.out_proj.weight)
    assert not torch.equal(first.q_proj.weight, other.q_proj.weight)


def test_without_a_seed_the_callers_random_state_decides() -> None:
    torch.manual_seed(3)
    first, second = GroupedQueryAttention(BASE), GroupedQueryAttention(BASE)
    torch.manual_seed(3)
    assert torch.equal(first.q_proj.weight, GroupedQueryAttention(BASE).q_proj.weight)
    assert not torch.equal(first.q_proj.weight, second.q_proj.weight)


def test_multi_head_attention_is_the_case_without_sharing() -> None:
    config = replace(BASE, num_kv_heads=4)
    x = torch.randn(2, 5, 24)
    expected = GroupedQueryAttention(config, seed=4)(x)
    assert torch.equal(MultiHeadAttention(config, seed=4)(x), expected)
    assert torch.equal(MultiHeadAttention(BASE, seed=4)(x), expected)


def test_multi_head_attention_refuses_shared_heads() -> None:
    with pytest.raises(ValueError, match="num_heads 4 and num_kv_heads 2; use GroupedQuery"):
        MultiHeadAttention(replace(BASE, num_kv_heads=2))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(5, 24), r"shape \(batch, seq, 24\), got \(5, 24\)"),
        (torch.zeros(1, 1, 5, 24), r"shape \(batch, seq, 24\), got \(1, 1, 5, 24\)"),
        (torch.zeros(1, 5, 23), "expected 24 features in the last axis of x, got 23"),
        (torch.zeros(1, 17, 24), "the sequence has 17 positions, this module takes up to 16"),
        (torch.zeros(1, 0, 24), "got batch 1 and seq 0"),
        (torch.zeros(0, 5, 24), "got batch 0 and seq 5"),
        (torch.zeros(1, 5, 24, dtype=torch.int64), "floating-point dtype, got torch.int64"),
    ],
)
def test_wrong_input_is_refused(x: torch.Tensor, message: str) -> None:
    layer = GroupedQueryAttention(BASE)
    with pytest.raises(ValueError, match=message):
        layer(x)
    with pytest.raises(ValueError, match=message):
        layer.attention_weights(x)


def test_without_a_limit_any_length_is_taken() -> None:
    layer = GroupedQueryAttention(replace(BASE, max_seq_len=None, rotary="half"), seed=0)
    assert layer.max_seq_len is None
    assert layer(layer.example_input(1, 301)).shape == (1, 301, 24)


def test_example_input_is_the_same_every_time_and_fits_the_weights() -> None:
    layer = GroupedQueryAttention(BASE, seed=0).double()
    x = layer.example_input(2, 5)
    assert x.shape == (2, 5, 24)
    assert x.dtype == torch.float64
    assert torch.equal(x, layer.example_input(2, 5))
    with pytest.raises(ValueError, match="17 positions, this module takes up to 16"):
        layer.example_input(1, 17)
    with pytest.raises(ValueError, match="got batch 0 and seq 3"):
        layer.example_input(0, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@all_options
def test_cuda_gives_what_the_cpu_gives(config: AttentionConfig) -> None:
    layer = make_layer(config)
    x = layer.example_input(2, 9)
    y = layer(x).detach()
    layer.to("cuda")
    assert layer.example_input(2, 9).device.type == "cuda"
    assert largest_error(layer(x.cuda()).cpu(), y) < 1e-4
