"""Causal mixing that is not softmax attention, and honest modules that look suspicious."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from .entry import Family, features, ids, seq_first

scans = Family("scan")


class Qkv(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def split(self, x):
        b, n, _ = x.shape
        return self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

    def merge(self, y):
        return self.out(y.transpose(1, 2).flatten(2))

    def softmax_attention(self, x):
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


@scans.add(
    "scan_linear_attention_cumsum",
    inputs=features(16),
    origin="linear attention: running sums of k v^T and of k, elu + 1",
)
class LinearCumsum(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bhnd,bhne->bhnde", k, v).cumsum(dim=2)
        z = 1 / (torch.einsum("bhnd,bhnd->bhn", q, k.cumsum(dim=2)) + 1e-6)
        return self.merge(torch.einsum("bhnd,bhnde,bhn->bhne", q, kv, z))


@scans.add(
    "scan_linear_attention_masked",
    inputs=features(16),
    footprint="other",
    origin="linear attention in its parallel form: scores times a triangle, no softmax",
)
class LinearMasked(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        s = F.relu(q) @ F.relu(k).mT
        s = s * torch.tril(torch.ones(x.size(1), x.size(1)))
        return self.merge((s / s.sum(-1, keepdim=True).clamp(min=1e-3)) @ v)


@scans.add(
    "scan_retention_parallel",
    inputs=features(16),
    footprint="other",
    origin="retention: q k^T times a matrix of decays",
)
class Retention(Qkv):
    def __init__(self):
        super().__init__()
        self.register_buffer("gamma", 1 - 2.0 ** (-2 - torch.arange(2.0)))

    def forward(self, x):
        q, k, v = self.split(x)
        n = torch.arange(x.size(1))
        power = (n[:, None] - n[None, :]).clamp(min=0)
        decay = torch.where(n[:, None] >= n[None, :], self.gamma[:, None, None] ** power, 0.0)
        y = (q @ k.mT * decay / 3) @ v
        return self.merge(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5))


@scans.add(
    "scan_retention_recurrent",
    inputs=features(16),
    origin="retention in its recurrent form, a loop over time",
)
class RetentionLoop(Retention):
    def forward(self, x):
        q, k, v = self.split(x)
        state = torch.zeros(x.size(0), 2, 8, 8)
        outs = []
        for t in range(x.size(1)):
            state = self.gamma.view(1, 2, 1, 1) * state
            state = state + k[:, :, t].unsqueeze(-1) * v[:, :, t].unsqueeze(-2)
            outs.append((q[:, :, t].unsqueeze(-2) @ state).squeeze(-2))
        return self.merge(torch.stack(outs, dim=2))


@scans.add(
    "scan_token_shift",
    inputs=features(16),
    origin="RWKV's token shift by nn.ZeroPad2d((0, 0, 1, -1)) around attention",
)
class TokenShift(Qkv):
    def __init__(self):
        super().__init__()
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.mix = nn.Parameter(torch.rand(1, 1, 16))

    def forward(self, x):
        return self.softmax_attention(x * self.mix + self.time_shift(x) * (1 - self.mix))


@scans.add(
    "scan_half_channels_shifted",
    inputs=features(16),
    origin="half of the features taken from the position before, by split, pad and cat",
)
class HalfShift(Qkv):
    def forward(self, x):
        keep, shift = x.chunk(2, dim=-1)
        shift = F.pad(shift, (0, 0, 1, 0))[:, :-1]
        return self.softmax_attention(torch.cat((keep, shift), dim=-1))


@scans.add(
    "scan_wkv_loop",
    inputs=features(16),
    origin="RWKV-4's wkv with its stable running maximum, a loop over time",
)
class WkvLoop(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.kvr = nn.Linear(dim, 3 * dim)
        self.decay, self.first = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x):
        k, v, r = self.kvr(x).chunk(3, dim=-1)
        w = -self.decay.exp()
        num, den = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0])
        peak = torch.full_like(num, -1e38)
        ys = []
        for t in range(x.shape[1]):
            top = torch.maximum(peak, self.first + k[:, t])
            a, b = (peak - top).exp(), (self.first + k[:, t] - top).exp()
            ys.append((a * num + b * v[:, t]) / (a * den + b))
            top = torch.maximum(peak + w, k[:, t])
            a, b = (peak + w - top).exp(), (k[:, t] - top).exp()
            num, den, peak = a * num + b * v[:, t], a * den + b, top
        return torch.sigmoid(r) * torch.stack(ys, dim=1)


@scans.add(
    "scan_aft_full",
    inputs=features(16),
    limit=24,
    footprint="other",
    origin="an attention-free transformer: exp(k) weighted by a learned [ctx, ctx] matrix",
)
class AftFull(nn.Module):
    def __init__(self, dim=16, ctx=24):
        super().__init__()
        self.qkv, self.w = nn.Linear(dim, 3 * dim), nn.Parameter(torch.randn(ctx, ctx) / 3)
        self.register_buffer("mask", torch.ones(ctx, ctx).tril())

    def forward(self, x):
        n = x.size(1)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        w = self.w[:n, :n].exp() * self.mask[:n, :n]
        ek = torch.exp(k)
        return torch.sigmoid(q) * (w @ (ek * v)) / (w @ ek)


@scans.add(
    "scan_spatial_gating",
    inputs=features(16),
    limit=24,
    footprint="other",
    origin="a causal gated MLP: a learned position matrix cut by tril",
)
class SpatialGating(nn.Module):
    def __init__(self, dim=16, ctx=24):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Parameter(torch.randn(ctx, ctx) / 5)
        self.bias = nn.Parameter(torch.ones(ctx))

    def forward(self, x):
        n = x.shape[1]
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        mixed = torch.einsum("bnd,mn->bmd", self.norm(v), self.weight[:n, :n].tril())
        return self.down(u * (mixed + self.bias[:n, None]))


@scans.add(
    "scan_conv_left_padded",
    inputs=features(16),
    origin="a depthwise convolution with F.pad on the left, before attention",
)
class ConvLeft(Qkv):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 4, groups=16)

    def forward(self, x):
        h = self.conv(F.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
        return self.softmax_attention(F.silu(h))


@scans.add(
    "scan_conv_padded_and_cut",
    inputs=features(16),
    origin="a convolution padded on both sides, its last outputs cut off (Mamba's conv1d)",
)
class ConvCut(Qkv):
    def __init__(self):
        super().__init__()
        self.conv1d = nn.Conv1d(16, 16, 3, padding=2, groups=16)

    def forward(self, x):
        n = x.shape[1]
        h = self.conv1d(x.transpose(1, 2))[..., :n].transpose(1, 2)
        return x + self.softmax_attention(F.silu(h))


@scans.add(
    "scan_conv_dilated_stack",
    inputs=features(8),
    origin="a temporal convolutional network: dilations 1, 2, 4 with a chomp",
)
class DilatedStack(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, 2, padding=d, dilation=d) for d in (1, 2, 4))

    def forward(self, x):
        h = x.transpose(1, 2)
        for conv in self.convs:
            h = h + torch.relu(conv(h)[:, :, : -conv.padding[0]].contiguous())
        return h.transpose(1, 2)


@scans.add(
    "scan_cumulative_mean",
    inputs=features(16),
    origin="the mean of the past: cumsum over a count",
)
class CumulativeMean(Qkv):
    def forward(self, x):
        count = torch.arange(1, x.size(1) + 1, dtype=x.dtype).view(1, -1, 1)
        return self.softmax_attention(x + x.cumsum(dim=1) / count)


@scans.add(
    "scan_tril_matmul_mean",
    inputs=features(16),
    footprint="other",
    origin="the lecture's first version: a normalised triangle times x",
)
class TrilMean(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.value = nn.Linear(dim, dim)

    def forward(self, x):
        n = x.size(1)
        wei = torch.tril(torch.ones(n, n))
        return (wei / wei.sum(1, keepdim=True)) @ self.value(x)


@scans.add(
    "scan_uniform_softmax",
    inputs=features(16),
    origin="the lecture's second version: softmax of a masked zero matrix",
)
class UniformSoftmax(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.value = nn.Linear(dim, dim)

    def forward(self, x):
        n = x.size(1)
        wei = torch.zeros((n, n)).masked_fill(torch.tril(torch.ones(n, n)) == 0, float("-inf"))
        return F.softmax(wei, dim=-1) @ self.value(x)


@scans.add(
    "scan_running_maximum",
    inputs=features(16),
    footprint="other",
    origin="cummax over time as a feature",
)
class RunningMaximum(Qkv):
    def forward(self, x):
        return self.softmax_attention(x - x.cummax(dim=1).values)


@scans.add(
    "scan_gru_then_attention",
    inputs=features(16),
    origin="a GRU under a causal attention layer",
)
class GruAttention(Qkv):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x):
        h, _ = self.gru(x)
        return self.softmax_attention(h)


@scans.add(
    "scan_lstm_seq_first",
    inputs=seq_first(12),
    origin="an LSTM language model's core, (seq, batch, dim)",
)
class LstmCore(nn.Module):
    def __init__(self, dim=12):
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers=2)
        self.head = nn.Linear(dim, 9)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@scans.add(
    "scan_toeplitz_kernel",
    inputs=features(8),
    footprint="other",
    origin="a diagonal state-space layer as a lower-triangular Toeplitz matrix",
)
class ToeplitzKernel(nn.Module):
    def __init__(self, dim=8, state=4):
        super().__init__()
        self.log_a = nn.Parameter(torch.rand(dim, state))
        self.c = nn.Parameter(torch.randn(dim, state) / 2)

    def forward(self, x):
        n = x.size(1)
        t = torch.arange(n)
        kernel = torch.einsum("ds,dsn->dn", self.c, (-self.log_a.exp()[..., None] * t).exp())
        lag = t[:, None] - t[None, :]
        matrix = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
        return torch.einsum("dij,bjd->bid", matrix, x)


@scans.add(
    "scan_fft_convolution",
    inputs=features(8),
    cacheable=False,
    causal_up_to=1e-5,
    expect="refused:the Fourier transform over time mixes all positions; it is causal only because "
    "of the padding to twice the length, and up to rounding",
    origin="a long convolution through the FFT, padded to twice the length",
)
class FftConvolution(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.rate = nn.Parameter(torch.rand(dim))

    def forward(self, x):
        n = x.size(1)
        kernel = torch.exp(-self.rate * torch.arange(n).unsqueeze(-1))
        spectrum = torch.fft.rfft(x, n=2 * n, dim=1) * torch.fft.rfft(kernel, n=2 * n, dim=0)
        return torch.fft.irfft(spectrum, n=2 * n, dim=1)[:, :n]


@scans.add(
    "scan_selective_loop",
    inputs=features(8),
    origin="a selective state-space scan written as a loop",
)
class SelectiveLoop(nn.Module):
    def __init__(self, dim=8, state=4):
        super().__init__()
        self.dt, self.bc = nn.Linear(dim, dim), nn.Linear(dim, 2 * state)
        self.a_log = nn.Parameter(torch.rand(dim, state))

    def forward(self, u):
        delta = F.softplus(self.dt(u))
        b, c = self.bc(u).chunk(2, dim=-1)
        x = u.new_zeros(u.size(0), *self.a_log.shape)
        ys = []
        for i in range(u.size(1)):
            decay = torch.exp(-delta[:, i, :, None] * self.a_log.exp())
            x = decay * x + (delta[:, i] * u[:, i]).unsqueeze(-1) * b[:, i].unsqueeze(1)
            ys.append((x * c[:, i].unsqueeze(1)).sum(-1))
        return torch.stack(ys, dim=1)


@scans.add(
    "scan_decay_by_cumsum",
    inputs=features(8),
    footprint="other",
    origin="gated linear attention: decays as differences of a running log sum",
)
class DecayByCumsum(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.qkv, self.gate = nn.Linear(dim, 3 * dim), nn.Linear(dim, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        log_decay = F.logsigmoid(self.gate(x)).squeeze(-1).cumsum(dim=1)
        gap = log_decay[:, :, None] - log_decay[:, None, :]
        weight = gap.masked_fill(torch.ones(x.size(1), x.size(1)).triu(1).bool(), -torch.inf).exp()
        return (q @ k.mT * weight) @ v


@scans.add(
    "scan_forgetting_attention",
    inputs=features(16),
    footprint="other",
    origin="softmax attention with a data-dependent forget bias from a running sum",
)
class ForgettingAttention(Qkv):
    def __init__(self):
        super().__init__()
        self.forget = nn.Linear(16, 2)

    def forward(self, x):
        q, k, v = self.split(x)
        c = F.logsigmoid(self.forget(x)).cumsum(1).transpose(1, 2)
        s = q @ k.mT / 3 + (c[..., :, None] - c[..., None, :])
        s = s.masked_fill(torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1), -torch.inf)
        return self.merge(s.softmax(-1) @ v)


@scans.add(
    "scan_stick_breaking",
    inputs=features(16),
    footprint="other",
    origin="stick-breaking attention: sigmoids and a reversed running sum along the keys",
)
class StickBreaking(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        n = x.size(1)
        z = q @ k.mT / 3
        visible = torch.ones(n, n, dtype=torch.bool).tril()
        log_beta = F.logsigmoid(z).masked_fill(~visible, -1e9)
        log_rest = torch.where(visible, F.logsigmoid(-z), 0.0)
        after = log_rest.flip(-1).cumsum(-1).flip(-1) - log_rest
        return self.merge((log_beta + after).exp() @ v)


@scans.add(
    "scan_sigmoid_attention",
    inputs=features(16),
    footprint="other",
    origin="sigmoid in the place of softmax, a bias of -log n by position",
)
class SigmoidAttention(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        i = torch.arange(1, x.size(1) + 1)
        s = q @ k.mT / 3 - i[:, None].log()
        return self.merge(torch.sigmoid(s).tril() @ v)


@scans.add(
    "scan_relu_squared_attention",
    inputs=features(16),
    footprint="other",
    origin="squared ReLU of the scores over the row's position",
)
class ReluSquared(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        n = x.size(1)
        count = torch.arange(1, n + 1, dtype=x.dtype)[:, None]
        a = F.relu(q @ k.mT / 3).square().tril() / count
        return self.merge(a @ v)


@scans.add(
    "scan_online_normaliser",
    inputs=features(16),
    footprint="other",
    origin="a causal standardisation: running mean and variance by cumsum",
)
class OnlineNorm(Qkv):
    def forward(self, x):
        count = torch.arange(1, x.size(1) + 1).view(1, -1, 1)
        mean = x.cumsum(1) / count
        var = (x * x).cumsum(1) / count - mean**2
        return self.softmax_attention((x - mean) * torch.rsqrt(var.clamp(min=0) + 0.1))


@scans.add(
    "scan_block_recurrent",
    inputs=features(16),
    footprint="other",
    origin="block-recurrent attention: blocks by split, learned states that each block rewrites",
)
class BlockRecurrent(Qkv):
    def __init__(self, dim=16, block=4, states=3):
        super().__init__()
        self.block = block
        self.first = nn.Parameter(torch.randn(states, dim))
        self.read, self.write = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        state = self.first.expand(x.size(0), -1, -1)
        outs = []
        for block in x.split(self.block, dim=1):
            seen = (self.read(block) @ state.mT / 4).softmax(-1) @ state
            outs.append(self.softmax_attention(block) + seen)
            new = (self.write(state) @ block.mT / 4).softmax(-1) @ block
            state = 0.7 * state + 0.3 * new
        return torch.cat(outs, dim=1)


@scans.add(
    "scan_queries_in_blocks",
    inputs=features(16),
    footprint="other",
    origin="memory-saving attention: a loop over blocks of queries, each against all keys",
)
class QueriesInBlocks(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        n, size = x.size(1), 4
        out = torch.zeros_like(q)
        for i in range(0, n, size):
            end = min(i + size, n)
            s = q[:, :, i:end] @ k.mT / 3
            hidden = torch.arange(i, end)[:, None] < torch.arange(n)
            out[:, :, i:end] = s.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return self.merge(out)


@scans.add(
    "scan_state_space_blocks",
    inputs=features(16),
    origin="a state-space layer in blocks: decays within each, a state from block to block",
)
class StateSpaceBlocks(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        state, outs = x.new_zeros(x.size(0), self.heads, 8, 8), []
        for qs, ks, vs in zip(q.split(4, 2), k.split(4, 2), v.split(4, 2), strict=True):
            n = torch.arange(qs.size(2))
            decay = torch.where(n[:, None] >= n, 0.9 ** (n[:, None] - n).clamp(min=0), 0.0)
            carried = 0.9 ** (n + 1)[:, None] * (qs @ state)
            outs.append((qs @ ks.mT * decay) @ vs + carried)
            left = 0.9 ** (qs.size(2) - 1 - n)[:, None]
            state = 0.9 ** qs.size(2) * state + (ks * left).mT @ vs
        return self.merge(torch.cat(outs, dim=2) / 3)


@scans.add(
    "scan_state_space_einsum",
    inputs=features(16),
    footprint="other",
    origin="Mamba-2's SSD with all factors in one einsum of four operands",
)
class StateSpaceEinsum(Qkv):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 2)

    def forward(self, x):
        q, k, v = self.split(x)
        total = F.logsigmoid(self.gate(x)).cumsum(1).transpose(1, 2)
        gap = total[..., :, None] - total[..., None, :]
        decay = gap.masked_fill(torch.ones(x.size(1), x.size(1)).triu(1).bool(), -torch.inf).exp()
        return self.merge(torch.einsum("bhln,bhsn,bhls,bhsp->bhlp", q, k, decay, v) / 3)


tricky = Family("tricky", "scan")


@tricky.add(
    "tricky_reversed_twice",
    inputs=features(16),
    cacheable=False,
    origin="time reversed, an anti-causal mask, reversed again",
)
class ReversedTwice(Qkv):
    def forward(self, x):
        q, k, v = self.split(x.flip(1))
        n = x.size(1)
        s = (q @ k.mT / 3).masked_fill(torch.ones(n, n).tril(-1).bool(), -torch.inf)
        return self.merge(s.softmax(-1) @ v).flip(1)


@tricky.add(
    "tricky_roll_by_one_zeroed",
    inputs=features(16),
    origin="torch.roll by +1 whose wrapped row is multiplied by 0",
)
class RollZeroed(Qkv):
    def forward(self, x):
        keep = (torch.arange(x.size(1)) > 0).to(x.dtype)[None, :, None]
        return self.softmax_attention(x + torch.roll(x, 1, dims=1) * keep)


@tricky.add(
    "tricky_sort_within_features",
    inputs=features(16),
    origin="features sorted inside each position",
)
class SortFeatures(Qkv):
    def forward(self, x):
        return self.softmax_attention(x.sort(dim=-1).values)


@tricky.add(
    "tricky_softmax_over_features",
    inputs=features(16),
    origin="softmax, max and top-k over the feature axis before attention",
)
class SoftmaxFeatures(Qkv):
    def forward(self, x):
        gate = x.softmax(-1) * 16
        top = x.topk(3, dim=-1).values.mean(-1, keepdim=True)
        return self.softmax_attention(x * gate + top - x.amax(dim=2, keepdim=True))


@tricky.add(
    "tricky_conv_over_features",
    inputs=features(16),
    origin="a symmetric convolution over features, positions folded into the batch",
)
class ConvFeatures(Qkv):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        b, n, d = x.shape
        return self.softmax_attention(self.conv(x.reshape(b * n, 1, d)).view(b, n, d))


@tricky.add(
    "tricky_flip_features",
    inputs=features(16),
    origin="features flipped and rolled, heads reversed",
)
class FlipFeatures(Qkv):
    def forward(self, x):
        q, k, v = self.split(torch.roll(x.flip(-1), -3, dims=-1))
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True).flip(1))


@tricky.add(
    "tricky_global_constants",
    inputs=features(16),
    limit=24,
    origin="statistics of parameters and of the position table only",
)
class GlobalConstants(Qkv):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(24, 16))

    def forward(self, x):
        pos = (self.pos - self.pos.mean(0)) / self.pos.std(0)
        scale = self.qkv.weight.abs().max()
        return self.softmax_attention(x / scale + pos[: x.size(1)])


@tricky.add(
    "tricky_chunks_with_past",
    inputs=features(16),
    footprint="causal",
    origin="queries in blocks of 4 by reshape, each against all keys, future masked",
)
class BlockQueries(Qkv):
    def forward(self, x):
        b, n, _ = x.shape
        pad = -n % 4
        q, k, v = self.split(F.pad(x, (0, 0, 0, pad)))
        total = n + pad
        q = q.reshape(b, self.heads, total // 4, 4, -1)
        s = torch.einsum("bhcid,bhjd->bhcij", q, k) / 3
        i = torch.arange(total).view(-1, 4)
        s = s.masked_fill(torch.arange(total) > i[:, :, None], -torch.inf)
        y = torch.einsum("bhcij,bhjd->bhcid", s.softmax(-1), v).reshape(b, self.heads, total, -1)
        return self.merge(y)[:, :n]


@tricky.add(
    "tricky_block_causal_to_fine",
    inputs=features(16),
    origin="a block-causal mask (whole blocks of the past) and a fine one, joined by and",
)
class BlockAndFine(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        i = torch.arange(x.size(1))
        coarse = (i[:, None] // 4) >= (i[None, :] // 4)
        return self.merge(F.scaled_dot_product_attention(q, k, v, coarse & (i[:, None] >= i)))


@tricky.add(
    "tricky_transposed_layernorm",
    inputs=features(16),
    origin="LayerNorm over features reached by two transposes",
)
class TransposedNorm(Qkv):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = x.transpose(1, 2)  # (batch, dim, seq)
        h = self.norm(h.permute(0, 2, 1)).permute(0, 2, 1)
        return self.softmax_attention(h.transpose(1, 2))


@tricky.add(
    "tricky_batchnorm_eval",
    inputs=features(16),
    origin="BatchNorm1d over channels with its running statistics",
    warm=lambda m: m(torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(3)) * 2 + 1),
)
class BatchNormEval(Qkv):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.softmax_attention(self.bn(x.transpose(1, 2)).transpose(1, 2))


@tricky.add(
    "tricky_nearest_upsample_shifted",
    inputs=features(16),
    origin="pairs pooled, repeated back and shifted by a whole pair, so nothing leaks",
)
class PooledShifted(Qkv):
    def forward(self, x):
        n = x.size(1)
        padded = F.pad(x, (0, 0, 0, n % 2))
        coarse = padded.unflatten(1, (-1, 2)).mean(dim=2).repeat_interleave(2, dim=1)
        return self.softmax_attention(x + F.pad(coarse, (0, 0, 2, 0))[:, :n])


@tricky.add(
    "tricky_strict_mask_with_first_row",
    inputs=features(16),
    footprint="other",
    origin="each position sees strictly earlier ones; the first sees itself",
)
class StrictPast(Qkv):
    def forward(self, x):
        q, k, v = self.split(x)
        i = torch.arange(x.size(1))
        allowed = (i[None, :] < i[:, None]) | ((i[None, :] == 0) & (i[:, None] == 0))
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


@tricky.add(
    "tricky_gather_identity",
    inputs=ids(37),
    origin="positions gathered by arange, masked_select and one-hot embeddings",
)
class GatherIdentity(Qkv):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(37, 16) / 2)

    def forward(self, idx):
        x = F.one_hot(idx, 37).to(self.table.dtype) @ self.table
        return self.softmax_attention(x.index_select(1, torch.arange(idx.size(1))))


@tricky.add(
    "tricky_next_token_in_training_only",
    inputs=features(16),
    origin="a look at the next token in a branch for training only",
)
class NextTokenTraining(Qkv):
    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.roll(x, -1, dims=1)
        return self.softmax_attention(x)


ENTRIES = (*scans.entries, *tricky.entries)
