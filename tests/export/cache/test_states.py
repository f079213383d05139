"""The state of whatever mixes positions causally outside attention, and what is refused one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from causal_onnx.export import ExportError, ExportReport, export
from causal_onnx.export.cache import derive, states
from causal_onnx.export.cache.mixture import Labels
from causal_onnx.export.errors import CausalityError, RewriteError
from causal_onnx.export.graph.writer import Writer
from causal_onnx.runtime import Model, load, verify_bundle
from causal_onnx.runtime.stream.stream import Stream
from tests.export.modules import Head, future
from tests.export.quick import quick_export

WIDTH = 16
Mix = Callable[[Tensor, nn.Conv1d], Tensor]


class Made(nn.Module):
    """A linear layer after what a function makes of (batch, seq, width) and a convolution."""

    def __init__(self, mix: Mix, conv: nn.Conv1d | None = None):
        super().__init__()
        self.mix, self.conv = mix, conv or nn.Conv1d(WIDTH, WIDTH, 3)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x, self.conv))


def conv1d(kernel: int, *, dilation: int = 1, groups: int = 1, crop: bool = False) -> nn.Conv1d:
    padding = (kernel - 1) * dilation if crop else 0
    return nn.Conv1d(WIDTH, WIDTH, kernel, dilation=dilation, groups=groups, padding=padding)


def padded_left(x: Tensor, conv: nn.Conv1d) -> Tensor:
    before = conv.dilation[0] * (conv.kernel_size[0] - 1)
    return conv(F.pad(x.mT, (before, 0))).mT


def cropped(x: Tensor, conv: nn.Conv1d) -> Tensor:
    return conv(x.mT)[..., : x.shape[1]].mT


def shifted(x: Tensor, _: nn.Conv1d) -> Tensor:
    return 0.3 * x + 0.7 * F.pad(x, (0, 0, 2, 0))[:, : x.shape[1]]


def joined_shift(x: Tensor, _: nn.Conv1d) -> Tensor:
    return x - torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def pooled(x: Tensor, _: nn.Conv1d) -> Tensor:
    return F.avg_pool1d(F.pad(x.mT, (4, 0)), 5, 1).mT


def counted_mean(x: Tensor, _: nn.Conv1d) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(-1)


def by_triangle(x: Tensor, _: nn.Conv1d) -> Tensor:
    n = x.shape[1]
    allowed = torch.tril(torch.ones(n, n)).to(x)
    return (allowed / allowed.sum(-1, keepdim=True)) @ x


def picked_by_number(x: Tensor, _: nn.Conv1d) -> Tensor:
    return x.index_select(1, torch.arange(x.shape[1]))


class Recurrent(nn.Module):
    """A recurrent layer of PyTorch's; `first`: positions come before the batch."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.layer.batch_first else x.transpose(0, 1)
        found = self.layer(given)[0]
        return found if self.layer.batch_first else found.transpose(0, 1)


class Looped(nn.Module):
    """A selective state space, its step from position to position a loop in Python."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.gate, self.sides = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
        self.rate = nn.Parameter(torch.rand(WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        delta = F.softplus(self.gate(x))
        b, c = self.sides(x).chunk(2, -1)
        h = x.new_zeros(x.shape[0], WIDTH, 5)
        found, rows = torch.zeros_like(x), []
        for t in range(x.shape[1]):
            h = h * torch.exp(-delta[:, t, :, None] * self.rate.exp())
            h = h + (delta[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
            y = (h * c[:, t].unsqueeze(1)).sum(-1)
            found[:, t] = y
            rows.append(y)
        return found if self.writes else torch.stack(rows, dim=1)


class Normalised(nn.Module):
    """Two sums and their largest exponent, carried together: RWKV-4."""

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.decay = nn.Linear(WIDTH, 2 * WIDTH), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        above, below = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0])
        peak = torch.full_like(above, -1e38)
        rows = []
        for t in range(x.shape[1]):
            top = torch.maximum(peak - self.decay, k[:, t])
            old, new = (peak - self.decay - top).exp(), (k[:, t] - top).exp()
            above, below, peak = old * above + new * v[:, t], old * below + new, top
            rows.append((above / below).unsqueeze(1))
        return torch.cat(rows, dim=1)


def summed_in_logarithms(x: Tensor, _: nn.Conv1d) -> Tensor:
    return (3 * x).logcumsumexp(1)


def product(x: Tensor, _: nn.Conv1d) -> Tensor:
    return (x.sigmoid() + 0.5).cumprod(1)


def largest_and_least(x: Tensor, _: nn.Conv1d) -> Tensor:
    return torch.cummax(x, 1).values + torch.cummin(x, dim=1)[0]


def where_the_largest_is(x: Tensor, _: nn.Conv1d) -> Tensor:
    return torch.cummax(x.round(), 1).indices.to(x)


def talking_heads(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Attention whose weights are mixed over the heads: none that is recognised."""
    q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (x, x.cos(), x.sin()))
    weights = (q @ k.mT).masked_fill(future(x.shape[1]), -torch.inf).softmax(-1)
    mixed = torch.einsum("bhij,hg->bgij", weights, conv.weight[:4, :4, 0].to(x))
    return (mixed @ v).transpose(1, 2).flatten(2)


def biased_by_tokens(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Attention that forgets: the tokens between two positions decide a bias."""
    decay = x[..., 0].sigmoid().log().cumsum(1)
    bias = (decay.unsqueeze(2) - decay.unsqueeze(1)).masked_fill(future(x.shape[1]), -torch.inf)
    return F.scaled_dot_product_attention(x, x.cos(), x.sin(), attn_mask=bias)


def padding_in_the_data(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Attention that hides the tokens which say so, by a finite number, as keys."""
    keep = x[..., 0] > -1.0
    seen = torch.tril(keep[:, None, :].expand(-1, x.shape[1], -1))
    return (x @ x.cos().mT + torch.where(seen, 0.0, -1e4)).softmax(-1) @ x.sin()


class Counted(nn.Module):
    """Attention whose keys from a row's length on are hidden, and whose results are 0 there."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.shape[1])[None] < lengths[:, None]
        hidden = future(x.shape[1]) | ~valid[:, None]
        return (x @ x.cos().mT).masked_fill(hidden, -1e9).softmax(-1) @ x.sin() * valid[..., None]


COUNTED = Counted().eval()


class WithWeights(nn.Module):
    """Two layers of attention that return their weights: of each head, and averaged over them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = future(x.shape[1])
        y, averaged = self.first(x, x, x, attn_mask=hidden)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (y, y.cos(), y.sin()))
        weights = (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1)
        return joined_heads(weights @ v), weights, averaged


class OfItems(nn.Module):
    """A recommender's attention: the item 0 is padding, hidden as a key."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, WIDTH)

    def forward(self, item_ids: Tensor) -> Tensor:
        x = self.items(item_ids)
        hidden = future(x.shape[1]) | (item_ids == 0)[:, None]
        return (x @ x.cos().mT).masked_fill(hidden, -1e9).softmax(-1) @ x.sin()


def heads_of(x: Tensor) -> list[Tensor]:
    """Queries, keys and values of two heads."""
    return [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (x, x.cos(), (2 * x).sin())]


def joined_heads(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def retained(x: Tensor, _: nn.Conv1d) -> Tensor:
    (q, k, v), n = heads_of(x), x.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)
    gammas = torch.tensor([0.75, 0.98])[:, None, None]
    decay = torch.where(apart >= 0, gammas ** apart.clamp(0).to(x.dtype), 0.0)
    return joined_heads((q @ k.mT / 8 * decay) @ v)


def summed_by_triangle(x: Tensor, _: nn.Conv1d) -> Tensor:
    q, k, v = heads_of(x)
    return joined_heads(((q.sigmoid() @ k.sigmoid().mT).tril() @ v) / 32)


def normalised_by_triangle(x: Tensor, _: nn.Conv1d) -> Tensor:
    q, k, v = heads_of(x)
    weights = (q.sigmoid() @ k.sigmoid().mT) * torch.ones(x.shape[1], x.shape[1]).tril()
    return joined_heads((weights / (weights.sum(-1, keepdim=True) + 0.1)) @ v)


def segment_sums(a: Tensor) -> Tensor:
    n = a.shape[-1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    spread = a.unsqueeze(-1).expand(*a.shape, n).masked_fill(~seen.tril(-1), 0)
    return spread.cumsum(-2).masked_fill(~seen, -torch.inf)


def state_space_dual(x: Tensor, _: nn.Conv1d) -> Tensor:
    q, k, v = heads_of(x)
    step = F.softplus(x[..., :2]).transpose(1, 2)
    decay = segment_sums(-step * torch.tensor([[1.0], [0.25]]).to(x)).exp()
    return torch.einsum("bhin,bhjn,bhij,bhjp->bihp", q, k, decay, v * step[..., None]).flatten(2)


def decays_of_each_feature(x: Tensor, _: nn.Conv1d) -> Tensor:
    (q, k, v), n = heads_of(x), x.shape[1]
    total = F.logsigmoid(2 * x).unflatten(-1, (2, 8)).transpose(1, 2).cumsum(2)
    seen = torch.ones(n, n, dtype=torch.bool).tril()[..., None]
    apart = (total.unsqueeze(3) - total.unsqueeze(2)).masked_fill(~seen, -torch.inf)
    return joined_heads(torch.einsum("bhid,bhjd,bhijd->bhij", q, k, apart.exp()) @ v)


def within_a_window(x: Tensor, _: nn.Conv1d) -> Tensor:
    (q, k, v), n = heads_of(x), x.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)
    return joined_heads((q @ k.mT * ((apart >= 0) & (apart < 30))) @ v) / 8


def divided_by_the_row(x: Tensor, _: nn.Conv1d) -> Tensor:
    """RetNet's own mask: each row of decays divided by the root of its sum."""
    (q, k, v), n = heads_of(x), x.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)
    decay = torch.where(apart >= 0, 0.9 ** apart.clamp(0).to(x.dtype), 0.0)
    return joined_heads((q @ k.mT * decay / decay.sum(-1, keepdim=True).sqrt()) @ v)


def limited_decay(x: Tensor, _: nn.Conv1d) -> Tensor:
    """No product from a distance of two units on: the limit cuts in."""
    (q, k, v), total = heads_of(x), F.logsigmoid(x[..., 0]).cumsum(1)[:, None]
    apart = (total.unsqueeze(3) - total.unsqueeze(2)).clamp(min=-2.0)
    return joined_heads((q @ k.mT * apart.exp().tril()) @ v)


def curved(x: Tensor, _: nn.Conv1d) -> Tensor:
    q, k, v = heads_of(x)
    return joined_heads((F.silu(q @ k.mT).tril() @ v) / 8)


def symmetric(x: Tensor, conv: nn.Conv1d) -> Tensor:
    return conv(F.pad(x.mT, (1, 1))).mT


def reversed_sum(x: Tensor, _: nn.Conv1d) -> Tensor:
    return x.flip(1).cumsum(1).flip(1)


def mean_of_all(x: Tensor, _: nn.Conv1d) -> Tensor:
    return x - x.mean(1, keepdim=True)


def normalised_over_time(x: Tensor, _: nn.Conv1d) -> Tensor:
    return (x - x.mean(1, keepdim=True)) * (x.square().mean(1, keepdim=True) + 1e-3).rsqrt()


def share_of_the_length(x: Tensor, _: nn.Conv1d) -> Tensor:
    n = x.shape[1]
    return (torch.tril(torch.ones(n, n)) / n) @ x


class Placed(nn.Module):
    """Learned positions in front of a shift and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.conv = nn.Embedding(64, WIDTH), conv1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return padded_left(
            joined_shift(x + self.places(torch.arange(x.shape[1])), self.conv), self.conv
        )


class Hybrid(nn.Module):
    """A convolution on q, k and v, attention, and a shift behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.conv = nn.Conv1d(3 * WIDTH, 3 * WIDTH, 4, groups=3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(F.pad(self.qkv(x).mT, (3, 0))).mT
        q, k, v = mixed.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return y + F.pad(y, (0, 0, 1, -1))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int | None]]] = {
    "convolution": (
        lambda: Made(padded_left, conv1d(4)),
        {"past_state.0.window": 3},
    ),
    "depthwise, dilated": (
        lambda: Made(padded_left, conv1d(3, dilation=6, groups=WIDTH)),
        {"past_state.0.window": 12},
    ),
    "padded and cropped": (
        lambda: Made(cropped, conv1d(3, dilation=2, groups=4, crop=True)),
        {"past_state.0.window": 4},
    ),
    "shift": (lambda: Made(shifted), {"past_state.0.window": 2}),
    "shift by joining": (lambda: Made(joined_shift), {"past_state.0.window": 1}),
    "pool": (lambda: Made(pooled), {"past_state.0.window": 4}),
    "running mean": (lambda: Made(counted_mean), {"past_state.0.running": 1}),
    "LSTM": (
        lambda: Recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
        {"past_state.0.hidden": 1, "past_state.1.cell": 1},
    ),
    "GRU of two layers": (
        lambda: Recurrent(nn.GRU(WIDTH, WIDTH, num_layers=2)),
        {"past_state.0.hidden": 1, "past_state.1.hidden": 1},
    ),
    "plain RNN without biases": (
        lambda: Recurrent(nn.RNN(WIDTH, WIDTH, nonlinearity="relu", bias=False)),
        {"past_state.0.hidden": 1},
    ),
    "loop that appends": (lambda: Looped(writes=False), {"past_state.0.hidden": 1}),
    "loop that writes": (lambda: Looped(writes=True), {"past_state.0.hidden": 1}),
    "loop that carries three": (Normalised, {f"past_state.{i}.hidden": 1 for i in range(3)}),
    "sum of exponentials": (lambda: Made(summed_in_logarithms), {"past_state.0.running": 1}),
    "product": (lambda: Made(product), {"past_state.0.running": 1}),
    "extremes": (
        lambda: Made(largest_and_least),
        {"past_state.0.running": 1, "past_state.1.running": 1},
    ),
    "place of the largest": (lambda: Made(where_the_largest_is), {"past_state.0.inputs": None}),
    "talking heads": (
        lambda: Made(talking_heads),
        {f"past_state.{i}.inputs": None for i in range(3)},
    ),
    "biased by tokens": (
        lambda: Made(biased_by_tokens),
        {"past_state.0.running": 1, **{f"past_state.{i}.inputs": None for i in range(1, 5)}},
    ),
    "padding in the data": (
        lambda: Made(padding_in_the_data),
        {f"past_state.{i}.inputs": None for i in range(4)},
    ),
    "retention": (lambda: Made(retained), {"past_state.0.hidden": 1}),
    "linear attention": (lambda: Made(summed_by_triangle), {"past_state.0.hidden": 1}),
    "normalised linear attention": (
        lambda: Made(normalised_by_triangle),
        {"past_state.0.hidden": 1, "past_state.1.hidden": 1},
    ),
    "state space dual": (lambda: Made(state_space_dual), {"past_state.0.hidden": 1}),
    "decays of each feature": (
        lambda: Made(decays_of_each_feature),
        {"past_state.0.running": 1, "past_state.1.window": 1, "past_state.2.hidden": 1},
    ),
    "any causal function": (lambda: Made(by_triangle), {"past_state.0.inputs": None}),
    "picked by number, before attention": (
        lambda: nn.Sequential(Made(picked_by_number), Head(WIDTH, seed=0)),
        {"past_key_values.0.key": None, "past_key_values.0.value": None},
    ),
    "behind positions": (Placed, {"past_state.0.window": 1, "past_state.1.window": 3}),
    "around attention": (
        Hybrid,
        {
            "past_key_values.0.key": None,
            "past_key_values.0.value": None,
            "past_state.0.window": 3,
            "past_state.1.window": 1,
        },
    ),
}


SUMS = ("retention", "linear attention", "state space dual")


@cache
def made(name: str) -> nn.Module:
    """The module of a case: the same for all tests, so that it is captured once."""
    torch.manual_seed(0)
    return CASES[name][0]().eval()


def tokens(batch: int, seq: int) -> Tensor:
    return torch.randn(batch, seq, WIDTH, generator=torch.Generator().manual_seed(seq))


def wanted(module: nn.Module, x: Tensor) -> np.ndarray:
    """The module's output in float64."""
    with torch.no_grad():
        found: np.ndarray = module.double()(x.double()).numpy()
    module.float()
    return found


def fed(stream: Stream, x: np.ndarray, cuts: list[int]) -> np.ndarray:
    return np.concatenate([stream(x[:, a:b]) for a, b in pairwise(cuts)], 1)


def opened(name: str, folder: Path) -> tuple[nn.Module, Model]:
    module = made(name)
    return module, quick_export(module, folder / "m.onnx", example=tokens(2, 5), cache=True)


def checked(module: nn.Module, path: Path, **options: Any) -> ExportReport:
    """Export with a cache and all proofs, at the shapes that cost least."""
    given = {"example": tokens(2, 5)} | options
    return export(module.eval(), path, cache=True, effort="quick", **given)


def refuse_any_difference(module: nn.Module, model: Model) -> None:
    """However a sequence is fed, the outputs are those of the module in float64."""
    x = tokens(2, 45)
    expected = wanted(module, x)
    for cuts in ([0, 45], [*range(30), 45], [0, 7, 8, 40, 41, 45]):
        got = fed(model.stream(batch=2), x.numpy(), cuts)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    stream = model.stream(batch=2)
    fed(stream, x[:, :20].numpy(), [0, 20])
    twin = stream.fork()
    fed(stream, x[:, :9].numpy(), [0, 2, 9])  # what the other reads must not reach this one
    got = fed(twin, x[:, 20:].numpy(), [0, 1, 25])
    np.testing.assert_allclose(got, expected[:, 20:], rtol=0, atol=1e-5)
    stream = model.stream(batch=2)
    first = stream(x[:, :10].numpy(), lengths=[10, 1])
    second = stream(x[:, 1:16].numpy(), lengths=[0, 15])
    np.testing.assert_allclose(first[0], expected[0, :10], rtol=0, atol=1e-5)
    np.testing.assert_allclose(second[1], expected[1, 1:16], rtol=0, atol=1e-5)
    third = stream(torch.stack([x[0, 10:12], x[1, 16:18]]).numpy())
    both = np.stack([expected[0, 10:12], expected[1, 16:18]])
    np.testing.assert_allclose(third, both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_chunks_steps_ragged_rows_and_forks_equal_float64(name: str, tmp_path: Path) -> None:
    module, model = opened(name, tmp_path)
    assert {pair.past: pair.bounded for pair in model.contract.cache} == CASES[name][1]
    refuse_any_difference(module, model)


@pytest.mark.parametrize(
    "name",
    [
        "depthwise, dilated",
        "sum of exponentials",
        "any causal function",
        "LSTM",
        "pool",
        "loop that appends",
        "retention",
        "state space dual",
    ],
)
def test_the_file_is_proved_and_a_saved_stream_goes_on(name: str, tmp_path: Path) -> None:
    module = made(name)
    report = checked(module, tmp_path / "m.onnx")
    assert report.cache is not None
    assert report.cache.passed
    assert report.certificate is not None
    assert report.certificate.every_length
    model, x = load(tmp_path / "m.onnx", threads=1), tokens(1, 30)
    stream = model.stream()
    stream(x[:, :17].numpy())
    stream.save(tmp_path / "stream")
    again = model.restore(tmp_path / "stream")
    got = fed(again, x[:, 17:].numpy(), [0, 1, 13])
    np.testing.assert_allclose(got, wanted(module, x)[:, 17:], rtol=0, atol=1e-5)


def test_a_small_term_survives_a_large_one_that_comes_later(tmp_path: Path) -> None:
    module = Made(summed_in_logarithms).eval()
    model = quick_export(module, tmp_path / "m.onnx", example=tokens(2, 5))
    x = tokens(1, 300) - 40
    x[:, 290:] += 80
    np.testing.assert_allclose(model(x.numpy()), wanted(module, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["retention", "state space dual", "decays of each feature"])
def test_the_state_of_a_sum_has_one_slot_at_any_position(name: str, tmp_path: Path) -> None:
    _, model = opened(name, tmp_path)
    past, shapes = dict[str, np.ndarray](), []
    for seen in range(1, 30):
        mask = np.ones((1, seen), np.int64)
        found = model.run(x=tokens(1, 1).numpy(), attention_mask=mask, **past)
        past = {pair.past: found[pair.present] for pair in model.contract.cache}
        shapes.append({name: array.shape for name, array in past.items()})
    assert all(shape[2] == 1 for shape in shapes[0].values())
    assert all(later == shapes[0] for later in shapes)


@pytest.mark.parametrize("mix", [within_a_window, divided_by_the_row, limited_decay, curved])
def test_a_sum_whose_decays_do_not_multiply_keeps_its_inputs(mix: Mix, tmp_path: Path) -> None:
    module = Made(mix).eval()
    model = quick_export(module, tmp_path / "m.onnx", example=tokens(2, 5), cache=True)
    assert any(pair.past.endswith("inputs") for pair in model.contract.cache)
    x = tokens(1, 45)
    got = fed(model.stream(), x.numpy(), [0, 7, 8, 40, 45])
    np.testing.assert_allclose(got, wanted(module, x), rtol=0, atol=1e-5)


def test_a_recurrence_in_both_directions_is_refused(tmp_path: Path) -> None:
    module = Recurrent(nn.GRU(WIDTH, WIDTH, bidirectional=True)).eval()
    with pytest.raises(CausalityError, match="NOT causal"):
        checked(module, tmp_path / "m.onnx")


def test_what_needs_all_inputs_again_is_said(tmp_path: Path) -> None:
    report = checked(made("any causal function"), tmp_path / "m.onnx")
    (fallback,) = report.fallbacks
    assert fallback.form.startswith("the state of MatMul")
    assert "computed from them again in each call" in fallback.reason


def test_a_state_that_forgot_what_it_needs_is_not_rewound(tmp_path: Path) -> None:
    _, model = opened("running mean", tmp_path)
    stream = model.stream()
    stream(tokens(1, 5).numpy())
    with pytest.raises(ValueError, match=r"past_state\.0\.running.*fork\(\) the stream"):
        stream.rewind(3)


def test_padding_in_front_of_a_row_is_no_key_of_its_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, ids = OfItems(43).eval(), torch.randint(0, 43, (3, 30))
    ids[0, 0], ids[1, :4], ids[2, :1], ids[:, 9] = 3, 0, 0, 0
    report = checked(module, tmp_path / "m.onnx", example=ids[:2, :5])
    expected, model = module(ids).detach().numpy(), load(tmp_path / "m.onnx", threads=1)
    got = fed(model.stream(batch=3), ids.numpy(), [*range(12), 30])
    for row, first in enumerate((ids != 0).int().argmax(1)):
        np.testing.assert_allclose(got[row, first:], expected[row, first:], rtol=0, atol=1e-5)
    assert report.cache is not None
    assert any("later tokens move in PyTorch" in case.feeding for case in report.cache.cases)


WEIGHTS = ("output_1", "output_2")


@cache
def with_weights() -> nn.Module:
    torch.manual_seed(0)
    return WithWeights().eval()


def weights_in(folder: Path) -> tuple[Model, Tensor, dict[str, np.ndarray]]:
    """A model of `WithWeights`, an input, and what its full pass gives."""
    module, x = with_weights(), tokens(2, 30)
    model = quick_export(module, folder / "m.onnx", example=x[:, :5], cache=True)
    with torch.no_grad():
        found = [y.numpy() for y in module(x)]
    return model, x, dict(zip(("output", *WEIGHTS), found, strict=True))


def rows_equal(got: np.ndarray, whole: np.ndarray, start: int) -> None:
    """The rows of weights from position `start` on: a column for each position so far, 0 beyond."""
    count, columns = got.shape[-2:]
    rows = whole[..., start : start + count, :]
    np.testing.assert_allclose(got, rows[..., :columns], rtol=0, atol=1e-5)
    assert not rows[..., columns:].any()


def test_returned_weights_have_a_column_for_each_position_so_far(tmp_path: Path) -> None:
    model, x, expected = weights_in(tmp_path)
    axes = {spec.name: spec.axes for spec in model.contract.outputs}
    assert axes["output_1"] == ("batch", 2, "seq", "total_seq")
    assert axes["output_2"] == ("batch", "seq", "total_seq")
    for cuts in ([0, 30], [*range(15), 30], [0, 7, 8, 26, 30]):
        stream = model.stream(batch=2)
        for a, b in pairwise(cuts):
            got = stream.run(x[:, a:b].numpy())
            np.testing.assert_allclose(got["output"], expected["output"][:, a:b], atol=1e-5)
            for name in WEIGHTS:
                assert got[name].shape[-2:] == (b - a, b)
                rows_equal(got[name], expected[name], a)
            stream = stream.fork()


def test_columns_of_returned_weights_are_the_positions_of_the_row_itself(tmp_path: Path) -> None:
    model, x, expected = weights_in(tmp_path)
    stream = model.stream(batch=2)
    stream.run(x[:, :6].numpy(), lengths=[6, 2])
    mine = torch.stack([x[0, 6:9], x[1, 2:5]]).numpy()
    got = stream.run(mine)
    for name in WEIGHTS:
        assert got[name].shape[-2:] == (3, 9)
        rows_equal(got[name][0], expected[name][0], 6)
        rows_equal(got[name][1], expected[name][1], 2)


def test_a_folder_of_a_model_with_weights_is_streamed_by_its_check_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    checked(with_weights(), folder)
    report = verify_bundle(folder)
    assert (report.passed, bool(report.streams)) == (True, True)
    # Clients of other languages join chunks along `seq` alone.
    assert json.loads((folder / "goldens.json").read_text())["streams"] == []


def test_columns_shifted_by_one_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = states.SiteWriter.result

    def shifted_columns(self: states.SiteWriter) -> ir.Value:
        found, write, keys = made(self), self.write, self.site.keys
        if keys is None:
            return found
        ends = ((write.ints(-1), write.ints(1 << 40)), (write.ints(0), write.ints(-1)))
        parts = [write("Slice", found, *end, write.ints(keys)) for end in ends]
        return write("Concat", *parts, axis=keys)

    monkeypatch.setattr(states.SiteWriter, "result", shifted_columns)
    with pytest.raises(RewriteError, match="first at Concat"):
        checked(with_weights(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class WithScores(nn.Module):
    """Returns the scores in front of the softmax, -inf at later keys."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ x.cos().mT).masked_fill(future(x.shape[1]), -torch.inf)
        return scores.softmax(-1) @ x.sin(), scores


def test_pairs_that_are_not_0_at_later_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'output_1' .*Return the attention weights behind"):
        quick_export(WithScores().eval(), tmp_path / "m.onnx", example=tokens(2, 5), cache=True)


def test_positions_of_all_calls_are_compared_with_a_vector_of_lengths(tmp_path: Path) -> None:
    x, lengths = tokens(2, 30), np.array([30, 11])
    module = COUNTED
    checked(module, tmp_path / "m.onnx", example=(x[:, :5], torch.tensor([5, 3])))
    model = load(tmp_path / "m.onnx", threads=1)
    expected = module(x, torch.from_numpy(lengths)).numpy()
    assert all(spec.dtype != "bool" for spec in model.contract.inputs)  # nothing of the lengths
    for cuts in ([0, 30], [*range(20), 30], [0, 7, 8, 26, 30]):
        stream = model.stream(batch=2)
        got = [stream(x[:, a:b].numpy(), lengths) for a, b in pairwise(cuts)]
        np.testing.assert_allclose(np.concatenate(got, 1), expected, rtol=0, atol=1e-5)


def test_lengths_that_stay_are_given_once(tmp_path: Path) -> None:
    x, lengths = tokens(2, 30), torch.tensor([30, 11])
    module = COUNTED
    example = (x[:, :5], torch.tensor([5, 3]))
    model = quick_export(module, tmp_path / "m.onnx", example=example, cache=True)
    stream = model.stream(batch=2, inputs={"lengths": lengths.numpy()})
    got = fed(stream, x.numpy(), [0, 7, 8, 9, 30])
    np.testing.assert_allclose(got, module(x, lengths).numpy(), rtol=0, atol=1e-5)


class CountedToTheLongest(nn.Module):
    """A mask made for as many positions as the lengths hold at most."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max().item())
        valid = torch.arange(longest)[None] < lengths[:, None]
        hidden = future(longest) | ~valid[:, None]
        return (x @ x.cos().mT).masked_fill(hidden, -torch.inf).softmax(-1) @ x.sin()


def test_a_mask_of_as_many_positions_as_the_lengths_hold_is_refused(tmp_path: Path) -> None:
    example = (tokens(2, 5), torch.tensor([5, 3]))
    with pytest.raises(ExportError, match=r"depends on the data .* their shapes alone \(x.shape"):
        checked(CountedToTheLongest(), tmp_path / "m.onnx", example=example)


def test_lengths_compared_with_the_places_of_the_call_alone_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "write_new_positions", lambda *given, **_: given[2].value)
    example = (tokens(2, 5), torch.tensor([5, 3]))
    with pytest.raises(RewriteError, match=r"cache: .* is off"):
        checked(COUNTED, tmp_path / "m.onnx", example=example)
    assert list(tmp_path.iterdir()) == []


def the_write(monkeypatch: pytest.MonkeyPatch, part: str, change: Callable[..., object]) -> None:
    """Let `change` have the last word on what a part of the writing gives."""
    writer = states.SiteWriter if hasattr(states.SiteWriter, part) else states.SumWriter
    made = getattr(writer, part)
    monkeypatch.setattr(
        writer,
        part,
        lambda self, *given: change(self.write, made(self, *given), *given),
    )


def one_short(write: Writer, joined: ir.Value, *_: object) -> ir.Value:
    """The oldest position of the state is lost."""
    first = write("Slice", joined, write.ints(0), write.ints(1), write.ints(1))
    rest = write("Slice", joined, write.ints(1), write.ints(1 << 40), write.ints(1))
    return write("Concat", write("Mul", first, write.number(0.0, first)), rest, axis=1)


def one_late(write: Writer, new: ir.Value, *_: object) -> ir.Value:
    return write("Concat", *(write("Slice", new, *ends, write.ints(1)) for ends in (
        (write.ints(0), write.ints(1)), (write.ints(0), write.ints(-1)))), axis=1)  # fmt: skip


def reset(write: Writer, joined: ir.Value, state: states.State, new: ir.Value) -> ir.Value:
    gone = write("Mul", state.past, write.number(0.0, new))
    return write("Concat", write("Squeeze", gone, write.ints(1)), new, axis=1)


def decayed_twice(write: Writer, joined: ir.Value, *_: object) -> ir.Value:
    first = write("Slice", joined, write.ints(0), write.ints(1), write.ints(1))
    rest = write("Slice", joined, write.ints(1), write.ints(1 << 40), write.ints(1))
    return write("Concat", write("Mul", first, write.number(0.9, first)), rest, axis=1)


def padding_enters(write: Writer, joined: ir.Value, state: states.State, new: ir.Value) -> ir.Value:
    """New positions stand behind all slots, not right behind those that the row uses."""
    return write("Concat", write("Squeeze", state.past, write.ints(1)), new, axis=1)


def flag_one_late(write: Writer, joined: ir.Value, state: states.State, new: ir.Value) -> ir.Value:
    """Which tokens are padding is remembered of the one before each."""
    if state.past.dtype != ir.DataType.BOOL:
        return joined
    first = write("Slice", joined, write.ints(0), write.ints(1), write.ints(1))
    rest = write("Slice", joined, write.ints(0), write.ints(-1), write.ints(1))
    return write("Concat", first, rest, axis=1)


def forgotten(write: Writer, carried: ir.Value, begin: ir.Value, past: ir.Value) -> ir.Value:
    """Each call begins as the first one does."""
    return begin


def carried_twice_decayed(write: Writer, carried: ir.Value, *_: ir.Value) -> ir.Value:
    return write("Mul", carried, write.number(0.9, carried))


def faded_twice(
    write: Writer, found: tuple[ir.Value, Labels], *_: object
) -> tuple[ir.Value, Labels]:
    decays, labels = found
    return write("Mul", decays, decays), labels


def all_rows_as_long(write: Writer, ends: ir.Value) -> ir.Value:
    """Each row's sum is kept where the longest row ends."""
    last = write("ReduceMax", ends, write.ints(0))
    return write("Expand", last, write("Shape", ends))


@pytest.mark.parametrize(
    ("name", "part", "change"),
    [
        ("retention", "resumed", forgotten),
        ("retention", "to_end", faded_twice),
        ("linear attention", "ends", all_rows_as_long),
        ("state space dual", "decays", faded_twice),
        ("loop that appends", "resumed", forgotten),
        ("loop that carries three", "resumed", carried_twice_decayed),
        ("LSTM", "resumed", forgotten),
        ("convolution", "joined", one_short),
        ("convolution", "new_ones", one_late),
        ("running mean", "joined", reset),
        ("running mean", "joined", decayed_twice),
        ("shift", "joined", padding_enters),
        ("any causal function", "joined", reset),
        ("padding in the data", "joined", flag_one_late),
    ],
)
def test_a_wrong_state_is_found_before_a_file_appears(
    name: str,
    part: str,
    change: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    the_write(monkeypatch, part, change)
    # With target="ort" a sum is an operator's (test_linear_attention.py).
    target = "portable" if name in SUMS else "ort"
    with pytest.raises(RewriteError, match=r"cache: .* is off|causal"):
        checked(made(name), tmp_path / "m.onnx", target=target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (symmetric, "Conv"),
        (reversed_sum, "NOT causal"),
        (mean_of_all, "ReduceMean"),
        (normalised_over_time, "NOT causal.*ReduceMean"),
        (share_of_the_length, "MatMul .*changes with the total length"),
    ],
)
def test_what_looks_ahead_or_counts_the_length_is_refused(
    mix: Mix, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        checked(Made(mix), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
