"""Causal mixing with a state: windows of the past, running reductions, recurrences, scores of one's
own. One module takes a function of (batch, seq, width); the list below says which."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import Family, features, seq_first, unbatched

states = Family("scan")

DIM = 16


class Mixed(nn.Module):
    """Linear, what mixes positions, linear; beside the input itself."""

    def __init__(self, mix: Callable[[Mixed, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.mix = mix
        self.into, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.mix(self, self.into(x)))


class Attended(Mixed):
    """The same on queries, keys and values of attention."""

    def __init__(self, mix: Callable[[Mixed, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__(mix, **parts)
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.mix(self, part).unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


def _conv(
    kernel: int, *, dilation: int = 1, groups: int = 1, crop: bool = False
) -> Callable[[], dict[str, nn.Module]]:
    padding = dilation * (kernel - 1) if crop else 0
    options = {"dilation": dilation, "groups": groups, "padding": padding}
    return lambda: {"conv": nn.Conv1d(DIM, DIM, kernel, **options)}


def padded(m: Mixed, x: Tensor) -> Tensor:
    before = m.conv.dilation[0] * (m.conv.kernel_size[0] - 1)
    return F.silu(m.conv(F.pad(x.mT, (before, 0))).mT)


def cropped(m: Mixed, x: Tensor) -> Tensor:
    return m.conv(x.mT)[..., : x.shape[1]].mT


def convolved_in_two_axes(m: Mixed, x: Tensor) -> Tensor:
    return m.conv(F.pad(x.unsqueeze(1), (1, 1, 2, 0))).squeeze(1)


def shift(m: Mixed, x: Tensor) -> Tensor:
    return 0.4 * x + 0.6 * F.pad(x, (0, 0, 1, -1))


def shift_of_half(m: Mixed, x: Tensor) -> Tensor:
    old, new = x.chunk(2, -1)
    return torch.cat((F.pad(old, (0, 0, 2, 0))[:, : x.shape[1]], new), -1)


def shift_by_joining(m: Mixed, x: Tensor) -> Tensor:
    return x - torch.cat((x.new_zeros(x.shape[0], 1, DIM), x[:, :-1]), 1)


def rolled_and_zeroed(m: Mixed, x: Tensor) -> Tensor:
    first = torch.arange(x.shape[1]) < 3
    return torch.roll(x, 3, 1).masked_fill(first[:, None], 0.0)


def averaged(m: Mixed, x: Tensor) -> Tensor:
    return F.avg_pool1d(F.pad(x.mT, (3, 0)), 4, 1).mT


def largest_of_some(m: Mixed, x: Tensor) -> Tensor:
    return F.max_pool1d(F.pad(x.mT, (3, 0), value=-1e4), 4, 1).mT


def unfolded(m: Mixed, x: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, 5)
    return F.pad(x, (0, 0, 4, 0)).unfold(1, 5, 1) @ weights


def running_sum(m: Mixed, x: Tensor) -> Tensor:
    return x.cumsum(1) / 8


def running_mean(m: Mixed, x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def running_variance(m: Mixed, x: Tensor) -> Tensor:
    count = torch.arange(1, x.shape[1] + 1)[:, None]
    mean = x.cumsum(1) / count
    return (x - mean) * (x.square().cumsum(1) / count - mean.square() + 1.0).clamp(0.1).rsqrt()


def running_count(m: Mixed, x: Tensor) -> Tensor:
    return x / (1 + (x > 0).to(torch.int64).cumsum(1))


def running_product(m: Mixed, x: Tensor) -> Tensor:
    return (x.tanh() * 0.2 + 1).cumprod(1)


def running_maximum(m: Mixed, x: Tensor) -> Tensor:
    return torch.cummax(x, dim=1).values - torch.cummin(x, dim=1).values


def running_logsumexp(m: Mixed, x: Tensor) -> Tensor:
    return x - x.logcumsumexp(1)


def min_gru(m: Mixed, x: Tensor) -> Tensor:
    """h = (1 - z) h + z v, in logarithms, all positions at once."""
    z = m.gate(x)
    keep, take = -F.softplus(z).cumsum(1), -F.softplus(-z)
    value = torch.where(x >= 0, (x.clamp(0) + 0.5).log(), -F.softplus(-x))
    return (keep + (take + value - keep).logcumsumexp(1)).exp()


def linear_attention(m: Mixed, x: Tensor) -> Tensor:
    q, k = F.elu(x) + 1, F.elu(m.gate(x)) + 1
    sums = (k.unsqueeze(-1) * x.unsqueeze(-2)).cumsum(1)
    return torch.einsum("bnd,bnde->bne", q, sums) / (q * k.cumsum(1)).sum(-1, keepdim=True)


def _decay(n: int, x: Tensor) -> Tensor:
    apart = torch.arange(n)[:, None] - torch.arange(n)
    return torch.where(apart >= 0, 0.8 ** apart.clamp(0).to(x.dtype), 0.0)


def retention(m: Mixed, x: Tensor) -> Tensor:
    return (x @ m.gate(x).mT * _decay(x.shape[1], x)) @ x / 4


def decay_by_matrix(m: Mixed, x: Tensor) -> Tensor:
    return 0.2 * (_decay(x.shape[1], x) @ x)


def gated_decay(m: Mixed, x: Tensor) -> Tensor:
    total = F.logsigmoid(m.gate(x)).cumsum(1)
    apart = (total.unsqueeze(2) - total.unsqueeze(1)).clamp(max=0).exp()
    n = x.shape[1]
    seen = torch.tril(torch.ones(n, n, dtype=torch.bool))
    return (apart * seen[..., None] * x.unsqueeze(1)).sum(2)


def _heads(m: Mixed, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.unflatten(-1, (2, -1)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))


def retention_of_heads(m: Mixed, x: Tensor) -> Tensor:
    (q, k, v), n = _heads(m, x), x.shape[1]
    gammas = 1 - torch.exp2(-5.0 - torch.arange(2.0))
    apart = (torch.arange(n)[:, None] - torch.arange(n)).to(x.dtype)
    decay = torch.where(apart >= 0, gammas[:, None, None] ** apart.clamp(0), 0.0)
    y = F.rms_norm((q @ k.mT * 8**-0.5 * decay) @ v, (8,))
    return F.silu(m.gate(x)) * y.transpose(1, 2).flatten(2)


def linear_attention_by_triangle(m: Mixed, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    return (weights @ v).transpose(1, 2).flatten(2) / 16


def linear_attention_by_normalised_triangle(m: Mixed, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    return ((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)


def _segsum(x: Tensor) -> Tensor:
    n = x.shape[-1]
    x = x.unsqueeze(-1).expand(*x.shape, n)
    x = x.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(-1), 0)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    return x.cumsum(-2).masked_fill(~seen, float("-inf"))


def state_space_dual(m: Mixed, x: Tensor) -> Tensor:
    c, b, v = _heads(m, x)
    step = F.softplus(m.gate(x)[..., :2]).transpose(1, 2)
    decays = torch.exp(_segsum(step * torch.tensor([[-1.0], [-0.25]])))
    y = torch.einsum("bhin,bhjn,bhij,bhjp->bihp", c, b, decays, v * step.unsqueeze(-1))
    return y.flatten(2) / 4


def gated_linear_attention(m: Mixed, x: Tensor) -> Tensor:
    (q, k, v), n = _heads(m, x), x.shape[1]
    total = F.logsigmoid(m.gate(x)).unflatten(-1, (2, -1)).transpose(1, 2).cumsum(2)
    seen = torch.ones(n, n, dtype=torch.bool).tril()[..., None]
    apart = (total.unsqueeze(3) - total.unsqueeze(2)).masked_fill(~seen, float("-inf"))
    weights = torch.einsum("bhid,bhjd,bhijd->bhij", q, k, apart.exp())
    return (weights @ v).transpose(1, 2).flatten(2) / 4


def recurrent(m: Mixed, x: Tensor) -> Tensor:
    return m.layer(x)[0]


def recurrent_from_a_learned_state(m: Mixed, x: Tensor) -> Tensor:
    first = m.gate.weight[:1].expand(1, x.shape[0], DIM).contiguous()
    return m.layer(x, first)[0]


def _scores(m: Mixed, x: Tensor) -> Tensor:
    n = x.shape[1]
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    return (x @ m.gate(x).mT / 4).masked_fill(hidden, float("-inf"))


def forgetting(m: Mixed, x: Tensor) -> Tensor:
    total = F.logsigmoid(m.gate(x)[..., :1]).cumsum(1)
    return (_scores(m, x) + total - total.mT).softmax(-1) @ x


def contextual_bias(m: Mixed, x: Tensor) -> Tensor:
    return (_scores(m, x) + (m.gate(x).tanh().sum(-1, keepdim=True)).mT).softmax(-1) @ x


def pointwise(m: Mixed, x: Tensor) -> Tensor:
    n = x.shape[1]
    return (F.silu(x @ m.gate(x).mT / 4) * torch.tril(torch.ones(n, n))) @ x / n**0


def learned_memory(m: Mixed, x: Tensor) -> Tensor:
    memory = m.gate.weight[:2].expand(x.shape[0], 2, DIM)
    scores = torch.cat((x @ memory.mT / 4, _scores(m, x)), -1)
    return scores.softmax(-1) @ torch.cat((memory, x), 1)


def block_local(m: Mixed, x: Tensor) -> Tensor:
    n = x.shape[1]
    block = torch.arange(n) // 4
    other = block[:, None] != block
    return _scores(m, x).masked_fill(other, float("-inf")).softmax(-1) @ x


def _gate() -> dict[str, nn.Module]:
    return {"gate": nn.Linear(DIM, DIM)}


def _projected() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(DIM, 3 * DIM), **_gate()}


def _layer(make: Callable[..., nn.Module], **options: object) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"layer": make(DIM, DIM, batch_first=True, **options), **_gate()}


Parts = Callable[[], dict[str, nn.Module]]

_MODULES: dict[str, tuple[Callable[[Mixed, Tensor], Tensor], Parts, str]] = {
    "conv_2": (padded, _conv(2), "a causal convolution of two taps"),
    "conv_4_depthwise": (padded, _conv(4, groups=DIM), "Mamba's short convolution"),
    "conv_3_grouped": (padded, _conv(3, groups=4), "a grouped causal convolution"),
    "conv_3_dilated": (padded, _conv(3, dilation=5), "a layer of WaveNet"),
    "conv_cropped": (cropped, _conv(4, crop=True), "padded on both sides, the end cut off"),
    "conv_cropped_dilated": (cropped, _conv(2, dilation=4, crop=True), "the same, dilated"),
    "conv_two_axes": (
        convolved_in_two_axes,
        lambda: {"conv": nn.Conv2d(1, 1, 3)},
        "an image of positions by features, causal along the first",
    ),
    "shift": (shift, dict, "RWKV's token shift"),
    "shift_half": (shift_of_half, dict, "half of the features from two positions before"),
    "shift_joined": (shift_by_joining, dict, "a zero in front, the last one cut off"),
    "shift_rolled": (rolled_and_zeroed, dict, "rolled by three, what came around zeroed"),
    "pool_mean": (averaged, dict, "the mean of the last four"),
    "pool_max": (largest_of_some, dict, "the largest of the last four"),
    "unfold": (unfolded, dict, "windows as an axis of their own"),
    "running_sum": (running_sum, dict, "a cumulative sum"),
    "running_mean": (running_mean, dict, "a cumulative mean"),
    "running_variance": (running_variance, dict, "normalised by what came before"),
    "running_count": (running_count, dict, "how many were positive so far"),
    "running_product": (running_product, dict, "a cumulative product"),
    "running_maximum": (running_maximum, dict, "the range of what came before"),
    "running_logsumexp": (running_logsumexp, dict, "a running log of a sum of exponentials"),
    "min_gru": (min_gru, _gate, "minGRU in its parallel form"),
    "linear_attention": (linear_attention, _gate, "linear attention by cumulative sums"),
    "retention": (retention, _gate, "RetNet's parallel form"),
    "decay_by_matrix": (decay_by_matrix, dict, "an exponential moving average as a product"),
    "gated_decay": (gated_decay, _gate, "decays that tokens decide, position by position"),
    "retention_of_heads": (retention_of_heads, _projected, "RetNet: a decay for each head"),
    "linear_attention_by_triangle": (
        linear_attention_by_triangle,
        _projected,
        "linear attention as a masked product, not normalised",
    ),
    "linear_attention_by_normalised_triangle": (
        linear_attention_by_normalised_triangle,
        _projected,
        "the same, each row divided by its sum",
    ),
    "state_space_dual": (state_space_dual, _projected, "Mamba-2's SSD as one masked product"),
    "gated_linear_attention": (
        gated_linear_attention,
        _projected,
        "GLA: a decay for each feature",
    ),
    "rnn": (recurrent, _layer(nn.RNN), "nn.RNN"),
    "rnn_relu": (recurrent, _layer(nn.RNN, nonlinearity="relu", bias=False), "nn.RNN with relu"),
    "gru": (recurrent, _layer(nn.GRU, num_layers=2), "nn.GRU of two layers"),
    "lstm": (recurrent, _layer(nn.LSTM), "nn.LSTM"),
    "gru_learned_start": (
        recurrent_from_a_learned_state,
        _layer(nn.GRU),
        "nn.GRU from a learned state",
    ),
    "forgetting": (forgetting, _gate, "the forgetting transformer: decays on the scores"),
    "contextual_bias": (contextual_bias, _gate, "a bias of keys that tokens decide"),
    "pointwise": (pointwise, _gate, "HSTU: silu in the place of the softmax"),
    "learned_memory": (learned_memory, _gate, "two learned tokens in front"),
    "block_local": (block_local, _gate, "attention within blocks of four"),
}

_FOOTPRINTS = {
    "conv_2": "window:2",
    "conv_4_depthwise": "window:4",
    "conv_3_grouped": "window:3",
    "conv_3_dilated": "other",
    "conv_cropped": "window:4",
    "conv_cropped_dilated": "other",
    "conv_two_axes": "window:3",
    "shift": "window:2",
    "shift_half": "other",
    "shift_joined": "window:2",
    "shift_rolled": "other",
    "pool_mean": "window:4",
    "pool_max": "window:4",
    "unfold": "other",
    "block_local": "other",
}
"""Of those that do not see all positions up to their own."""


def _declared(name: str) -> dict[str, str]:
    return {"footprint": _FOOTPRINTS.get(name, "causal")}


for _name, (_mix, _parts, _origin) in _MODULES.items():
    states.add(f"state_{_name}", inputs=features(DIM), origin=_origin, **_declared(_name))(
        lambda mix=_mix, parts=_parts: Mixed(mix, **parts())
    )

for _name in ("conv_4_depthwise", "conv_cropped", "shift", "running_mean", "gru"):
    _mix, _parts, _origin = _MODULES[_name]
    states.add(
        f"state_attended_{_name}",
        inputs=features(DIM),
        origin=f"{_origin}, on queries, keys and values",
    )(lambda mix=_mix, parts=_parts: Attended(mix, **parts()))


class Turned(nn.Module):
    """A module of (batch, seq, width) on (seq, batch, width), or on (seq, width)."""

    def __init__(self, mix: Callable[[Mixed, Tensor], Tensor], parts: Parts) -> None:
        super().__init__()
        self.inner = Mixed(mix, **parts())

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.inner(x.unsqueeze(0)).squeeze(0)
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


for _name in ("conv_4_depthwise", "shift", "running_sum", "lstm", "retention"):
    _mix, _parts, _origin = _MODULES[_name]
    for _kind, _inputs in (("seq_first", seq_first(DIM)), ("unbatched", unbatched(DIM))):
        states.add(
            f"state_{_kind}_{_name}",
            inputs=_inputs,
            origin=f"{_origin}, {_kind}",
            **_declared(_name),
        )(lambda mix=_mix, parts=_parts: Turned(mix, parts))

ENTRIES = tuple(states.entries)
