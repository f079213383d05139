"""Attention that sees a part of the past only."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from .entry import Family, features, ids

windows = Family("window")


class Windowed(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def visible(self, n):
        """(n, n), True where the query of the row may attend to the key of the column."""
        raise NotImplementedError

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = (q @ k.mT) / q.size(-1) ** 0.5
        y = s.masked_fill(~self.visible(n), float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, d))


@windows.add(
    "win_tril_minus_tril",
    inputs=features(16),
    footprint="window:5",
    origin="a triangle minus a shifted triangle",
)
class TrilMinusTril(Windowed):
    def visible(self, n):
        ones = torch.ones(n, n)
        return (ones.tril() - ones.tril(-5)).bool()


@windows.add(
    "win_triu_of_tril",
    inputs=features(16),
    footprint="window:4",
    origin="Mistral's reference code: tril, then triu(-window), then log",
)
class TriuOfTril(Windowed):
    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        tensor = torch.full((n, n), dtype=x.dtype, fill_value=1, device=x.device)
        mask = torch.log(torch.triu(torch.tril(tensor, diagonal=0), diagonal=-3))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


@windows.add(
    "win_arange_difference",
    inputs=features(16),
    footprint="window:6",
    origin="0 <= i - j < window by broadcasting",
)
class ArangeDifference(Windowed):
    def visible(self, n):
        delta = torch.arange(n)[:, None] - torch.arange(n)
        return (delta >= 0) & (delta < 6)


@windows.add(
    "win_of_one",
    inputs=features(16),
    footprint="window:1",
    origin="the smallest window: every position sees itself alone",
    tags=("degenerate",),
)
class WindowOfOne(Windowed):
    def visible(self, n):
        return torch.eye(n, dtype=torch.bool)


@windows.add(
    "win_sdpa_bool",
    inputs=features(16),
    footprint="window:3",
    origin="SDPA with a boolean band",
)
class SdpaBand(Windowed):
    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        i = torch.arange(n)
        band = torch.logical_and(i[None] <= i[:, None], i[None] > i[:, None] - 3)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=band)
        return self.out(y.transpose(1, 2).flatten(2))


@windows.add(
    "win_buffer_sliced",
    inputs=features(16),
    limit=32,
    footprint="window:7",
    origin="GPT-Neo's local attention: bias XOR a shifted bias, as a buffer",
)
class BufferBand(Windowed):
    def __init__(self):
        super().__init__()
        bias = torch.tril(torch.ones((32, 32), dtype=torch.bool)).view(1, 1, 32, 32)
        bias = torch.bitwise_xor(bias, torch.tril(bias, -7))
        self.register_buffer("bias", bias, persistent=False)

    def visible(self, n):
        return self.bias[:, :, :n, :n]


@windows.add(
    "win_chunked",
    inputs=features(16),
    footprint="other",
    origin="Llama 4's chunked attention: the past within the same chunk of 4",
)
class Chunked(Windowed):
    def visible(self, n):
        i = torch.arange(n)
        same = torch.abs(i.unsqueeze(0) // 4 - i.unsqueeze(1) // 4) == 0
        return same & (i.unsqueeze(0) <= i.unsqueeze(1))


@windows.add(
    "win_block_local_reshape",
    inputs=features(16),
    footprint="other",
    origin="block-local attention: padded to blocks of 4, a reshape, causal inside each block",
)
class BlockLocal(Windowed):
    def forward(self, x):
        b, n, d = x.shape
        pad = -n % 4
        blocks = F.pad(x, (0, 0, 0, pad)).view(b, (n + pad) // 4, 4, d)
        q, k, v = self.qkv(blocks).chunk(3, dim=-1)
        s = torch.einsum("bwid,bwjd->bwij", q, k) / d**0.5
        s = s.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.finfo(s.dtype).max)
        y = torch.einsum("bwij,bwjd->bwid", s.softmax(-1), v)
        return self.out(y.reshape(b, n + pad, d)[:, :n])


@windows.add(
    "win_block_multiple_only",
    inputs=features(16),
    lengths=(4, 8, 12, 24),
    limit=24,
    beyond="raises",
    footprint="other",
    cacheable=False,
    origin="block-local attention without padding: lengths that are multiples of 4 only",
)
class BlockMultiple(Windowed):
    def forward(self, x):
        b, n, d = x.shape
        assert n % 4 == 0, f"sequence length {n} must be divisible by the block size 4"
        q, k, v = self.qkv(x.view(b, n // 4, 4, d)).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.reshape(b, n, d))


@windows.add(
    "win_look_back_one_block",
    inputs=features(16),
    footprint="other",
    origin="local attention: each block of 4 and the block before it, concatenated keys",
)
class LookBack(Windowed):
    def forward(self, x):
        _, n, d = x.shape
        w = 4
        padded = F.pad(x, (0, 0, 0, -n % w))
        q, k, v = (t.unflatten(1, (-1, w)) for t in self.qkv(padded).chunk(3, -1))
        k = torch.cat((F.pad(k, (0, 0, 0, 0, 1, 0))[:, :-1], k), dim=2)
        v = torch.cat((F.pad(v, (0, 0, 0, 0, 1, 0))[:, :-1], v), dim=2)
        at = torch.arange(padded.shape[1]).view(-1, w)
        key_at = torch.cat((F.pad(at, (0, 0, 1, 0), value=-1)[:-1], at), dim=1)
        bad = (at[:, :, None] < key_at[:, None, :]) | (key_at[:, None, :] < 0)
        s = (q @ k.mT / d**0.5).masked_fill(bad, -torch.finfo(x.dtype).max)
        return self.out((s.softmax(-1) @ v).flatten(1, 2)[:, :n])


@windows.add(
    "win_unfold_keys",
    inputs=features(16),
    footprint="window:5",
    origin="keys and values padded on the left and unfolded: scores are (batch, seq, window)",
)
class UnfoldKeys(Windowed):
    def forward(self, x):
        w = 5
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = F.pad(k, (0, 0, w - 1, 0)).unfold(1, w, 1)  # (batch, seq, dim, w)
        v = F.pad(v, (0, 0, w - 1, 0)).unfold(1, w, 1)
        s = torch.einsum("bnd,bndw->bnw", q, k) / 4
        i = torch.arange(x.size(1))[:, None] + torch.arange(w)[None, :] - (w - 1)
        p = s.masked_fill(i < 0, float("-inf")).softmax(-1)
        return self.out(torch.einsum("bnw,bndw->bnd", p, v))


@windows.add(
    "win_strided",
    inputs=features(16),
    footprint="other",
    origin="sparse-transformer stride: every third position of the past",
)
class Strided(Windowed):
    def visible(self, n):
        delta = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        return (delta >= 0) & (delta.remainder(3) == 0)


@windows.add(
    "win_dilated_with_local",
    inputs=features(16),
    footprint="other",
    origin="a local window and every fourth position beyond it",
)
class DilatedLocal(Windowed):
    def visible(self, n):
        i, j = torch.arange(n).view(-1, 1), torch.arange(n).view(1, -1)
        near = (i - j < 3) & (i >= j)
        far = ((j + 1) % 4 == 0) & (i >= j)
        return near | far


@windows.add(
    "win_sinks_and_window",
    inputs=features(16),
    footprint="other",
    origin="streaming attention: the first two tokens and a window of 4",
)
class SinksAndWindow(Windowed):
    def visible(self, n):
        i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
        return (j <= i) & ((i - j < 4) | (j < 2))


@windows.add(
    "win_per_head",
    inputs=features(16),
    footprint="other",
    origin="a window of its own for every head",
)
class PerHeadWindow(Windowed):
    def __init__(self):
        super().__init__()
        self.register_buffer("sizes", torch.tensor([3, 8]))

    def visible(self, n):
        delta = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        return (delta >= 0) & (delta < self.sizes[:, None, None])


@windows.add(
    "win_alternating_layers",
    inputs=ids(41),
    limit=32,
    footprint="causal / window:5",
    tags=("whole_model",),
    origin="a small model whose layers take turns: window, full, window, full",
)
class AlternatingLayers(nn.Module):
    def __init__(self, dim=16, layers=4, window=5):
        super().__init__()
        self.window = window
        self.emb, self.pos = nn.Embedding(41, dim), nn.Embedding(32, dim)
        self.layers = nn.ModuleList(Windowed(dim) for _ in range(layers))

    def forward(self, idx):
        n = idx.shape[1]
        x = self.emb(idx) + self.pos(torch.arange(n))
        full = torch.full((n, n), float("-inf")).triu(1)
        local = full + torch.full((n, n), float("-inf")).tril(-self.window)
        for i, layer in enumerate(self.layers):
            b, _, d = x.shape
            q, k, v = layer.qkv(x).view(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
            bias = local if i % 2 == 0 else full
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + layer.out(y.transpose(1, 2).reshape(b, n, d))
        return x @ self.emb.weight.T


@windows.add(
    "win_banded_multiplicative",
    inputs=features(16),
    footprint="window:4",
    origin="exp of the scores times a 0/1 band, divided by the row sum",
)
class BandedMultiplicative(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x):
        n = x.shape[1]
        band = torch.ones(n, n).tril() * torch.ones(n, n).triu(-3)
        w = torch.exp(self.q(x) @ self.k(x).transpose(1, 2) / 4) * band
        return (w / w.sum(-1, keepdim=True)) @ self.v(x)


ENTRIES = tuple(windows.entries)
