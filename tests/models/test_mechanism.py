from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.models import CausalMechanismV1
from tests.models.reference import largest_error

# float32, sums of up to 16 products: a few units in the last place (1.2e-7).
TOLERANCE = 2e-6


def make_mechanism(**options: float | bool) -> CausalMechanismV1:
    """Build one with large weights, so that attention is far from uniform."""
    mechanism = CausalMechanismV1(6, 4, 16, **options, seed=0).eval()
    with torch.no_grad():
        mechanism.q_proj.weight *= 4.0
    return mechanism


def reference(mechanism: CausalMechanismV1, x: Tensor) -> tuple[list[list[float]], Tensor]:
    """Compute one sequence's weights and output in float64 loops."""
    q, k, v = (
        [
            [
                math.fsum((row.double() * position.double()).tolist())
                + (float(layer.bias[index].detach()) if layer.bias is not None else 0.0)
                for index, row in enumerate(layer.weight)
            ]
            for position in x
        ]
        for layer in (mechanism.q_proj, mechanism.k_proj, mechanism.v_proj)
    )
    weights, output = [], []
    for i in range(len(x)):
        scores = [
            math.exp(math.fsum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(4))
            for j in range(i + 1)
        ]
        row = [score / math.fsum(scores) for score in scores] + [0.0] * (len(x) - i - 1)
        weights.append(row)
        output.append([math.fsum(row[j] * v[j][f] for j in range(i + 1)) for f in range(4)])
    return weights, torch.tensor(output, dtype=torch.float64)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("seq", [1, 2, 3, 7, 16])
def test_output_and_weights_equal_loops_in_float64(seq: int, qkv_bias: bool) -> None:
    mechanism = make_mechanism(qkv_bias=qkv_bias)
    x = mechanism.example_input(2, seq)
    for row in range(2):
        weights, output = reference(mechanism, x[row])
        assert largest_error(mechanism(x)[row], output) < TOLERANCE
        expected = torch.tensor(weights, dtype=torch.float64)
        assert largest_error(mechanism.attention_weights(x)[row], expected) < TOLERANCE


def test_comparison_with_loops_sees_an_uncaused_weight() -> None:
    mechanism = make_mechanism()
    x = mechanism.example_input(1, 7)
    full = torch.softmax(mechanism.q_proj(x) @ mechanism.k_proj(x).mT / 2.0, dim=-1)
    _, output = reference(mechanism, x[0])
    assert largest_error((full @ mechanism.v_proj(x))[0], output) > 1e-2


def test_one_sequence_equals_a_batch_of_one() -> None:
    mechanism = make_mechanism(qkv_bias=True)
    x = mechanism.example_input(1, 7)
    assert mechanism(x[0]).shape == (7, 4)
    assert largest_error(mechanism(x[0]), mechanism(x)[0].detach()) < TOLERANCE
    assert mechanism.attention_weights(x[0]).shape == (7, 7)


@pytest.mark.parametrize("seq", [1, 2, 5, 16])
def test_weights_sum_to_one_and_are_lower_triangular(seq: int) -> None:
    mechanism = make_mechanism()
    weights = mechanism.attention_weights(mechanism.example_input(3, seq))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, seq))
    assert torch.count_nonzero(weights.triu(diagonal=1)) == 0
    assert torch.count_nonzero(weights) == 3 * seq * (seq + 1) // 2


@pytest.mark.parametrize("cut", [1, 4, 15])
def test_future_positions_do_not_change_past_outputs(cut: int) -> None:
    mechanism = make_mechanism()
    x = mechanism.example_input(2, 16)
    y = mechanism(x)
    x[:, cut:] += 1.0
    changed = mechanism(x)
    assert torch.equal(changed[:, :cut], y[:, :cut])
    assert not torch.equal(changed[:, cut:], y[:, cut:])


def test_eval_mode_is_deterministic_and_training_drops() -> None:
    mechanism = make_mechanism(dropout=0.5)
    x = mechanism.example_input(2, 16)
    assert torch.equal(mechanism(x), mechanism(x))
    mechanism.train()
    assert not torch.equal(mechanism(x), mechanism(x))


def test_dropout_acts_on_the_weights_and_on_the_context() -> None:
    torch.manual_seed(0)
    mechanism = make_mechanism(dropout=0.5).train()
    x = torch.ones(400, 1, 6)
    # At position 0 the only weight is 1.0: dropped whole, or doubled.
    mechanism.context_dropout.eval()
    whole = (mechanism(x) == 0).all(dim=-1).double().mean()
    mechanism.context_dropout.train()
    mechanism.weights_dropout.eval()
    single = (mechanism(x) == 0).double().mean()
    assert 0.4 < float(whole) < 0.6
    assert 0.4 < float(single) < 0.6
    assert float((mechanism(x) == 0).all(dim=-1).double().mean()) < 0.2


def test_nothing_in_the_module_grows_with_the_context_length() -> None:
    short, long = CausalMechanismV1(6, 4, 8), CausalMechanismV1(6, 4, 1_000_000)
    assert list(long.buffers()) == []
    assert [p.shape for p in long.parameters()] == [p.shape for p in short.parameters()]


def test_seed_gives_what_manual_seed_gives_and_leaves_the_random_state() -> None:
    torch.manual_seed(7)
    expected = CausalMechanismV1(6, 4, 16, qkv_bias=True)
    state = torch.get_rng_state()
    got = CausalMechanismV1(6, 4, 16, qkv_bias=True, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name], value)


def test_projections_are_plain_linear_layers() -> None:
    torch.manual_seed(7)
    mechanism = CausalMechanismV1(6, 4, 16)
    torch.manual_seed(7)
    assert torch.equal(mechanism.q_proj.weight, nn.Linear(6, 4, bias=False).weight)
    assert mechanism.q_proj.bias is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(6), r"shape \(seq, 6\) or \(batch, seq, 6\), got \(6,\)"),
        (torch.zeros(1, 1, 3, 6), r"shape \(seq, 6\) or \(batch, seq, 6\), got \(1, 1, 3, 6\)"),
        (torch.zeros(3, 5), "expected 6 features in the last axis of x, got 5"),
        (torch.zeros(17, 6), "the sequence has 17 positions, this module takes up to 16"),
        (torch.zeros(2, 17, 6), "the sequence has 17 positions, this module takes up to 16"),
        (torch.zeros(2, 0, 6), "got batch 2 and seq 0"),
        (torch.zeros(3, 6, dtype=torch.int64), "floating-point dtype, got torch.int64"),
    ],
)
def test_wrong_input_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mechanism()(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4, 8), ValueError, "dim_in must be at least 1, got 0"),
        ((6, -1, 8), ValueError, "dim_out must be at least 1, got -1"),
        ((6, 4, 0), ValueError, "context_length must be at least 1, got 0"),
        ((6, 4, 8, 1.0), ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ((6.0, 4, 8), TypeError, "dim_in must be an int, got 6.0"),
    ],
)
def test_impossible_sizes_are_refused(
    arguments: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CausalMechanismV1(*arguments)


def test_example_input_is_the_same_every_time() -> None:
    mechanism = make_mechanism()
    x = mechanism.example_input(2, 5)
    assert x.shape == (2, 5, 6)
    assert torch.equal(x, mechanism.example_input(2, 5))
    assert mechanism.max_seq_len == 16
