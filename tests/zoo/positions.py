"""The ways people tell a model where a token stands."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import Family, Inputs, features, generator, ids, with_padding_mask

positions = Family("position")
VOCAB = 47


class Plain(nn.Module):
    """Causal attention over (batch, heads, seq, head_dim), for the position schemes to build on."""

    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, self.head_dim)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def merge(self, y):
        return self.out(y.transpose(1, 2).flatten(2))

    def attend(self, q, k, v, bias=None):
        n = q.shape[-2]
        s = q @ k.transpose(-2, -1) / self.head_dim**0.5
        if bias is not None:
            s = s + bias
        s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        return self.merge(s.softmax(-1) @ v)


@positions.add(
    "pos_none", inputs=ids(VOCAB), origin="no positions at all: the causal mask alone tells order"
)
class NoPositions(Plain):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16)

    def forward(self, idx):
        return self.attend(*self.split(self.emb(idx)))


@positions.add(
    "pos_learned_slice",
    inputs=ids(VOCAB),
    limit=24,
    origin="a parameter of (1, context, dim), sliced",
)
class LearnedSlice(NoPositions):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(1, 24, 16) / 3)

    def forward(self, idx):
        return self.attend(*self.split(self.emb(idx) + self.pos[:, : idx.size(1), :]))


@positions.add(
    "pos_learned_arange_gather",
    inputs=ids(VOCAB),
    limit=24,
    origin="nn.Embedding looked up with arange expanded to the batch",
)
class LearnedGather(NoPositions):
    def __init__(self):
        super().__init__()
        self.pos = nn.Embedding(24, 16)

    def forward(self, idx):
        at = torch.arange(idx.size(1), device=idx.device).unsqueeze(0).expand_as(idx)
        return self.attend(*self.split(self.emb(idx) + self.pos(at)))


@positions.add(
    "pos_learned_buffer_ids",
    inputs=ids(VOCAB),
    limit=24,
    origin="a position_ids buffer of (1, context), sliced, then looked up",
)
class LearnedBufferIds(LearnedGather):
    def __init__(self):
        super().__init__()
        self.register_buffer("position_ids", torch.arange(24).expand((1, -1)), persistent=False)

    def forward(self, idx):
        at = self.position_ids[:, : idx.shape[1]]
        return self.attend(*self.split(self.emb(idx) + self.pos(at)))


@positions.add(
    "pos_learned_offset_by_two",
    inputs=ids(VOCAB),
    limit=24,
    origin="OPT-style: cumsum over ones minus one, looked up with an offset of two",
)
class LearnedOffset(NoPositions):
    def __init__(self):
        super().__init__()
        self.pos = nn.Embedding(26, 16)

    def forward(self, idx):
        mask = torch.ones_like(idx)
        at = (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() - 1
        return self.attend(*self.split(self.emb(idx) + self.pos(at + 2)))


@positions.add(
    "pos_learned_from_mask",
    inputs=with_padding_mask(ids(VOCAB), side="left"),
    limit=24,
    tags=("padding",),
    origin="position ids from the running sum of the attention mask, left padding",
)
class LearnedFromMask(LearnedGather):
    def forward(self, idx, attention_mask):
        at = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        q, k, v = self.split(self.emb(idx) + self.pos(at))
        bias = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        return self.attend(q, k, v, bias)


def _with_position_ids(vocab: int, limit: int) -> Inputs:
    base = ids(vocab)

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        at = torch.arange(seq).expand(batch, -1) + torch.arange(batch)[:, None] % max(
            limit - seq + 1, 1
        )
        return (*base.make(batch, seq), at.contiguous())

    return Inputs(
        make=make,
        axes=({0: "batch", 1: "seq"},) * 2,
        roles=("tokens", "positions"),
    )


@positions.add(
    "pos_learned_ids_given",
    inputs=_with_position_ids(VOCAB, 24),
    limit=24,
    origin="position ids handed in by the caller",
)
class LearnedGiven(LearnedGather):
    def forward(self, idx, position_ids):
        return self.attend(*self.split(self.emb(idx) + self.pos(position_ids)))


@positions.add(
    "pos_sinusoid_buffer",
    inputs=ids(VOCAB),
    limit=40,
    origin="the paper's sinusoids in a (1, max_len, dim) buffer",
)
class SinusoidBuffer(NoPositions):
    def __init__(self, max_len=40):
        super().__init__()
        position = torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, 16, 2).float() * (-math.log(10000.0) / 16))
        pe = torch.zeros(max_len, 16)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, idx):
        x = self.emb(idx) * math.sqrt(16)
        return self.attend(*self.split(x + self.pe[:, : x.size(1)].requires_grad_(False)))


@positions.add(
    "pos_sinusoid_computed",
    inputs=ids(VOCAB),
    origin="sinusoids computed on every call by an outer product",
)
class SinusoidComputed(NoPositions):
    def forward(self, idx):
        inv_freq = 1.0 / (1000 ** (torch.arange(0.0, 16.0, 2.0) / 16))
        angles = torch.outer(torch.arange(idx.size(1), dtype=torch.float), inv_freq)
        pos_emb = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.attend(*self.split(self.emb(idx) + pos_emb[None]))


@positions.add(
    "pos_scalar_feature",
    inputs=features(6),
    limit=24,
    origin="the position as one more input feature, divided by the context length",
)
class ScalarFeature(Plain):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(7, 16)

    def forward(self, x):
        at = torch.linspace(0, 1, 24)[: x.size(1)].view(1, -1, 1).expand(x.size(0), x.size(1), 1)
        return self.attend(*self.split(self.inp(torch.cat((x, at), dim=-1))))


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def inverse_frequencies(dim: int, base: float = 10000.0) -> Tensor:
    return 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)


@positions.add(
    "pos_rotary_half", inputs=features(16), origin="rotary on split halves, computed in forward"
)
class RotaryHalf(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(self.head_dim), persistent=False)

    def angles(self, n):
        freqs = torch.einsum("i,j->ij", torch.arange(n).float(), self.inv_freq)
        return torch.cat((freqs, freqs), dim=-1)

    def forward(self, x):
        q, k, v = self.split(x)
        emb = self.angles(x.shape[1])
        cos, sin = emb.cos()[None, None], emb.sin()[None, None]
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_rotary_position_ids",
    inputs=_with_position_ids(VOCAB, 24),
    limit=None,
    origin="rotary with position ids given: inv_freq[None, :, None] @ ids[:, None, :]",
)
class RotaryGivenIds(RotaryHalf):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16)

    def forward(self, idx, position_ids):
        q, k, v = self.split(self.emb(idx))
        inv = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        freqs = (inv @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos().unsqueeze(1), emb.sin().unsqueeze(1)
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_rotary_interleaved", inputs=features(16), origin="rotary on even and odd features"
)
class RotaryInterleaved(Plain):
    def rotate(self, x):
        t = torch.arange(x.size(-2), device=x.device, dtype=x.dtype)
        angle = t[:, None] * inverse_frequencies(x.size(-1))
        sin, cos = (f.repeat_interleave(2, dim=-1) for f in (angle.sin(), angle.cos()))
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).reshape_as(x)
        return x * cos + turned * sin

    def forward(self, x):
        q, k, v = self.split(x)
        return self.attend(self.rotate(q), self.rotate(k), v)


@positions.add(
    "pos_rotary_complex",
    inputs=features(16),
    limit=32,
    origin="rotary by complex multiplication with a table of unit numbers",
)
class RotaryComplex(Plain):
    def __init__(self, max_len=32):
        super().__init__()
        freqs = torch.outer(torch.arange(max_len).float(), inverse_frequencies(self.head_dim))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(freqs), freqs))

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.freqs_cis[: x.size(-2)]).flatten(-2).type_as(x)

    def forward(self, x):
        q, k, v = self.split(x)
        return self.attend(self.rotate(q), self.rotate(k), v)


@positions.add(
    "pos_rotary_complex_exp",
    inputs=features(16),
    origin="rotary by torch.exp(1j * angle), no table",
)
class RotaryComplexExp(Plain):
    def forward(self, x):
        q, k, v = self.split(x)
        angle = torch.arange(x.size(1))[:, None] * inverse_frequencies(self.head_dim)
        turn = torch.exp(1j * angle)
        q, k = (
            torch.view_as_real(torch.complex(t[..., ::2], t[..., 1::2]) * turn).flatten(-2)
            for t in (q, k)
        )
        return self.attend(q, k, v)


@positions.add(
    "pos_rotary_partial", inputs=features(24), origin="rotary on a quarter of each head's features"
)
class RotaryPartial(Plain):
    def __init__(self):
        super().__init__(24, 2)
        self.rotary_ndims = 4

    def forward(self, x):
        q, k, v = self.split(x)
        t = torch.arange(x.size(1)).float()
        freqs = t[:, None] * inverse_frequencies(self.rotary_ndims)[None, :]
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos(), emb.sin()
        turned = []
        for h in (q, k):
            rot, rest = h[..., : self.rotary_ndims], h[..., self.rotary_ndims :]
            turned.append(torch.cat((rot * cos + rotate_half(rot) * sin, rest), dim=-1))
        return self.attend(*turned, v)


@positions.add(
    "pos_rotary_cached_tables",
    inputs=features(16),
    limit=32,
    origin="cos and sin tables for the whole context, sliced",
)
class RotaryTables(Plain):
    def __init__(self, ctx=32):
        super().__init__()
        freqs = torch.outer(torch.arange(ctx).float(), inverse_frequencies(self.head_dim))
        emb = torch.cat((freqs, freqs), -1)
        self.register_buffer("cos_cached", emb.cos()[None, None], persistent=False)
        self.register_buffer("sin_cached", emb.sin()[None, None], persistent=False)

    def forward(self, x):
        q, k, v = self.split(x)
        n = x.size(1)
        cos, sin = self.cos_cached[:, :, :n, :], self.sin_cached[:, :, :n, :]
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_rotary_table_of_pairs",
    inputs=features(16),
    limit=24,
    origin="a (context, half, 2) table stacked from cos and sin, as in fast inference code",
)
class RotaryPairs(Plain):
    def __init__(self, ctx=24):
        super().__init__()
        angle = torch.outer(torch.arange(ctx).float(), inverse_frequencies(self.head_dim, 500.0))
        self.register_buffer("freqs", torch.stack((angle.cos(), angle.sin()), dim=-1))

    def rotate(self, x, freqs):
        pairs = x.float().reshape(*x.shape[:-1], -1, 2)
        a, b, c, s = pairs[..., 0], pairs[..., 1], freqs[..., 0], freqs[..., 1]
        return torch.stack([a * c - b * s, b * c + a * s], -1).flatten(3).type_as(x)

    def forward(self, x):
        q, k, v = self.split(x)
        input_pos = torch.arange(0, x.shape[1], device=x.device)
        freqs = self.freqs[input_pos]
        return self.attend(self.rotate(q, freqs), self.rotate(k, freqs), v)


@positions.add(
    "pos_rotary_lazy_cold",
    inputs=features(16),
    tags=("lazy",),
    origin="cos and sin kept on self and grown on demand, never yet called",
)
@positions.add(
    "pos_rotary_lazy_warm",
    inputs=features(16),
    tags=("lazy",),
    warm=lambda m: m(torch.zeros(1, 9, 16)),
    origin="cos and sin kept on self and grown on demand, after a call at length 9",
)
class RotaryLazy(Plain):
    def __init__(self):
        super().__init__()
        self.seq_len_cached, self.cos_cached, self.sin_cached = 0, None, None

    def grow(self, n):
        if n > self.seq_len_cached:
            self.seq_len_cached = n
            freqs = torch.outer(torch.arange(n).float(), inverse_frequencies(self.head_dim))
            emb = torch.cat((freqs, freqs), dim=-1)
            self.cos_cached, self.sin_cached = emb.cos(), emb.sin()
        return self.cos_cached[:n], self.sin_cached[:n]

    def forward(self, x):
        q, k, v = self.split(x)
        cos, sin = self.grow(x.shape[1])
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_rotary_linear_scaling", "linear", inputs=features(16), origin="positions over a factor"
)
@positions.add(
    "pos_rotary_ntk_scaling", "ntk", inputs=features(16), origin="a larger base (NTK-aware)"
)
@positions.add(
    "pos_rotary_yarn", "yarn", inputs=features(16), origin="YaRN: a ramp between two frequencies"
)
@positions.add(
    "pos_rotary_llama3_scaling", "llama3", inputs=features(16), origin="Llama 3.1's smoothing"
)
@positions.add(
    "pos_rotary_dynamic_ntk",
    "dynamic",
    inputs=features(16),
    expect="not_causal:the rotary base depends on the length, so earlier outputs change when the "
    "sequence grows",
    prefix_up_to=1.0,
    cacheable=False,
    tags=("length_dependent",),
    origin="dynamic NTK: the base grows with the length of the input",
)
class RotaryScaled(Plain):
    def __init__(self, kind, factor=4.0, original=4):
        super().__init__()
        self.kind, self.factor, self.original = kind, factor, original

    def frequencies(self, n):
        d = self.head_dim
        inv = inverse_frequencies(d, 100.0)
        if self.kind == "linear":
            return inv / self.factor
        if self.kind == "ntk":
            return inverse_frequencies(d, 100.0 * self.factor ** (d / (d - 2)))
        if self.kind == "dynamic":
            longest = max(n, self.original)
            grown = (self.factor * longest / self.original) - (self.factor - 1)
            return inverse_frequencies(d, 100.0 * grown ** (d / (d - 2)))
        if self.kind == "yarn":
            ramp = ((torch.arange(d // 2) - 0.5) / 2).clamp(0, 1)
            return inv / self.factor * ramp + inv * (1 - ramp)
        wavelen = 2 * math.pi / inv
        smooth = (self.original / wavelen - 1.0) / (4.0 - 1.0)
        smoothed = (1 - smooth) * inv / self.factor + smooth * inv
        scaled = torch.where(wavelen > self.original, inv / self.factor, inv)
        medium = (wavelen <= self.original) & (wavelen >= self.original / 4.0)
        return torch.where(medium, smoothed, scaled)

    def forward(self, x):
        q, k, v = self.split(x)
        freqs = torch.arange(x.shape[1])[:, None] * self.frequencies(x.shape[1])
        emb = torch.cat((freqs, freqs), dim=-1)
        factor = 0.1 * math.log(self.factor) + 1.0 if self.kind == "yarn" else 1.0
        cos, sin = emb.cos() * factor, emb.sin() * factor
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_rotary_xpos",
    inputs=features(16),
    origin="xPos: rotary with a decay centred on the middle of the sequence, which cancels",
    prefix_up_to=1e-4,
    cacheable=False,
)
class XPos(Plain):
    def forward(self, x):
        q, k, v = self.split(x)
        n = x.shape[1]
        t = torch.arange(n).float()
        freqs = torch.cat((t[:, None] * inverse_frequencies(self.head_dim),) * 2, dim=-1)
        base = (torch.arange(0, self.head_dim, 2) + 0.4 * self.head_dim) / (1.4 * self.head_dim)
        power = (t - n // 2) / 32
        scale = torch.cat((base ** power[:, None],) * 2, dim=-1)
        q = (q * freqs.cos() + rotate_half(q) * freqs.sin()) * scale
        k = (k * freqs.cos() + rotate_half(k) * freqs.sin()) / scale
        return self.attend(q, k, v)


@positions.add(
    "pos_rotary_matrix",
    inputs=features(16),
    origin="rotary as a matrix product with 2 x 2 rotations built per position",
)
class RotaryMatrix(Plain):
    def forward(self, x):
        q, k, v = self.split(x)
        a = torch.arange(x.size(1))[:, None] * inverse_frequencies(self.head_dim)
        rot = torch.stack((a.cos(), -a.sin(), a.sin(), a.cos()), dim=-1).unflatten(-1, (2, 2))
        q, k = (
            torch.einsum("npij,bhnpj->bhnpi", rot, t.unflatten(-1, (-1, 2))).flatten(-2)
            for t in (q, k)
        )
        return self.attend(q, k, v)


def get_slopes(heads: int) -> Tensor:
    start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
    return torch.tensor([start * start**i for i in range(heads)])


@positions.add(
    "pos_alibi_relative",
    inputs=features(16),
    origin="ALiBi from a matrix of distances made in forward",
)
class AlibiRelative(Plain):
    def __init__(self):
        super().__init__(16, 4)
        self.register_buffer("slopes", get_slopes(4))

    def forward(self, x):
        t = torch.arange(x.size(1), device=x.device)
        distance = (t[None, :] - t[:, None]).abs()
        return self.attend(*self.split(x), -self.slopes[:, None, None] * distance)


@positions.add(
    "pos_alibi_key_positions",
    inputs=features(16),
    origin="BLOOM-style ALiBi: slopes times key positions only, the row constant cancels",
)
class AlibiKeys(AlibiRelative):
    def forward(self, x):
        at = torch.ones(x.shape[:2]).cumsum(dim=-1) - 1
        alibi = self.slopes[..., None] * at[:, None, :]  # (batch, heads, seq)
        return self.attend(*self.split(x), alibi[:, :, None, :])


@positions.add(
    "pos_alibi_buffer",
    inputs=features(16),
    limit=24,
    origin="MPT-style ALiBi buffer of the whole context, its last columns taken",
)
class AlibiBuffer(AlibiRelative):
    def __init__(self, ctx=24):
        super().__init__()
        self.register_buffer("alibi", self.slopes.view(4, 1, 1) * torch.arange(1 - ctx, 1).float())

    def forward(self, x):
        n = x.size(1)
        if n > self.alibi.size(-1):
            raise ValueError(f"sequence of {n} is longer than the context {self.alibi.size(-1)}")
        return self.attend(*self.split(x), self.alibi[:, :, -n:])


@positions.add(
    "pos_kerple_log", inputs=features(16), origin="a learned logarithmic distance bias per head"
)
class Kerple(Plain):
    def __init__(self):
        super().__init__()
        self.p, self.a = nn.Parameter(torch.rand(2, 1, 1)), nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x):
        t = torch.arange(x.size(1))
        diff = torch.tril(t.view(-1, 1) - t.view(1, -1)).to(x.dtype)
        bias = -self.p.clamp(min=1e-2) * torch.log(1 + self.a.clamp(min=1e-2) * diff)
        return self.attend(*self.split(x), bias)


@positions.add(
    "pos_t5_buckets", inputs=features(16), origin="T5's logarithmic buckets, one-sided, by where"
)
class T5Buckets(Plain):
    def __init__(self, buckets=8, max_distance=20):
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.relative_attention_bias = nn.Embedding(buckets, self.heads)

    def bucket(self, relative_position):
        n = -torch.min(relative_position, torch.zeros_like(relative_position))
        max_exact = self.buckets // 2
        log_ratio = torch.log(n.float() / max_exact) / math.log(self.max_distance / max_exact)
        large = max_exact + (log_ratio * (self.buckets - max_exact)).to(torch.long)
        large = torch.min(large, torch.full_like(large, self.buckets - 1))
        return torch.where(n < max_exact, n, large)

    def forward(self, x):
        t = torch.arange(x.size(1), dtype=torch.long)
        values = self.relative_attention_bias(self.bucket(t[None, :] - t[:, None]))
        return self.attend(*self.split(x), values.permute([2, 0, 1]).unsqueeze(0))


@positions.add(
    "pos_relative_skew",
    inputs=features(16),
    limit=24,
    origin="Music Transformer: relative logits by pad, reshape and slice",
)
class RelativeSkew(Plain):
    def __init__(self, ctx=24):
        super().__init__()
        self.ctx = ctx
        self.Er = nn.Parameter(torch.randn(ctx, self.head_dim) / 3)

    def skew(self, qer):
        padded = F.pad(qer, (1, 0))
        b, h, rows, cols = padded.shape
        return padded.reshape(b, h, cols, rows)[:, :, 1:, :]

    def forward(self, x):
        n = x.size(1)
        if n > self.ctx:
            raise ValueError("sequence length exceeds model capacity")
        q, k, v = self.split(x)
        return self.attend(q, k, v, self.skew(q @ self.Er[self.ctx - n :].t()) / 3)


@positions.add(
    "pos_relative_gather",
    inputs=features(16),
    origin="relative vectors for clipped distances, looked up for every pair",
)
class RelativeGather(Plain):
    def __init__(self, clip=6):
        super().__init__()
        self.clip = clip
        self.rel_k, self.rel_v = (nn.Embedding(2 * clip + 1, self.head_dim) for _ in range(2))

    def forward(self, x):
        q, k, v = self.split(x)
        t = torch.arange(x.size(1))
        rel = (t[None, :] - t[:, None]).clamp(-self.clip, self.clip) + self.clip
        s = (q @ k.mT + torch.einsum("bhid,ijd->bhij", q, self.rel_k(rel))) / self.head_dim**0.5
        p = s.masked_fill(t[None, :] > t[:, None], -torch.inf).softmax(-1)
        return self.merge(p @ v + torch.einsum("bhij,ijd->bhid", p, self.rel_v(rel)))


@positions.add(
    "pos_transformer_xl",
    inputs=features(16),
    origin="Transformer-XL's content and position biases u and v with a shifted product",
)
class TransformerXL(Plain):
    def __init__(self):
        super().__init__()
        self.r = nn.Linear(16, 16, bias=False)
        self.u, self.w = (nn.Parameter(torch.randn(2, 1, 8) / 3) for _ in range(2))

    def forward(self, x):
        q, k, v = self.split(x)
        n = x.size(1)
        at = torch.arange(n - 1, -1, -1.0)
        angle = torch.outer(at, 1 / (10000 ** (torch.arange(0.0, 16, 2.0) / 16)))
        r = self.r(torch.cat([angle.sin(), angle.cos()], dim=-1))
        r = r.view(n, self.heads, -1).transpose(0, 1)
        bd = (q + self.w) @ r.transpose(1, 2)
        b, h = bd.shape[:2]
        zero = torch.zeros(b, h, n, 1)
        bd = torch.cat([zero, bd], dim=-1).view(b, h, n + 1, n)[:, :, 1:].reshape(b, h, n, n)
        return self.attend(q + self.u, k, v, bd / self.head_dim**0.5)


@positions.add(
    "pos_length_scaled_queries",
    inputs=features(16),
    origin="queries multiplied by the log of their own position (log-n scaling)",
)
class LogNScaling(Plain):
    def forward(self, x):
        q, k, v = self.split(x)
        i = torch.arange(1, x.size(1) + 1, dtype=x.dtype)
        scale = torch.where(i > 4, i.log() / math.log(4), 1.0)
        return self.attend(q * scale[:, None], k, v)


@positions.add(
    "pos_temperature_by_position",
    inputs=features(16),
    origin="Llama 4-style attention temperature from floor((position + 1) / scale)",
)
class TemperatureTuning(Plain):
    def forward(self, x):
        q, k, v = self.split(x)
        at = torch.arange(x.size(1), dtype=torch.float32)
        temper = torch.log1p(torch.floor((at + 1.0) / 4.0)) * 0.5 + 1.0
        return self.attend(q * temper.view(1, 1, -1, 1).to(q.dtype), k, v)


@positions.add(
    "pos_convolutional",
    inputs=features(16),
    origin="a causal depthwise convolution as position embedding, left padding",
    tags=("scan",),
)
class ConvPositions(Plain):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 3, groups=16)

    def forward(self, x):
        h = x + self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        return self.attend(*self.split(h))


@positions.add(
    "pos_multidimensional_rotary",
    inputs=Inputs(
        make=lambda batch, seq: (
            torch.randn(batch, seq, 16, generator=generator(batch, seq)),
            torch.stack([torch.arange(seq), torch.arange(seq) // 3, torch.arange(seq) % 3])
            .unsqueeze(1)
            .expand(3, batch, seq)
            .contiguous(),
        ),
        axes=({0: "batch", 1: "seq"}, {1: "batch", 2: "seq"}),
        roles=("tokens", "positions"),
    ),
    origin="rotary over three position ids (time, height, width), sections joined",
)
class MultiRotary(Plain):
    def forward(self, x, position_ids):
        q, k, v = self.split(x)
        inv = inverse_frequencies(self.head_dim)
        freqs = position_ids[..., None].float() * inv  # (3, batch, seq, half)
        sections = freqs.split([2, 1, 1], dim=-1)
        mixed = torch.cat([part[i] for i, part in enumerate(sections)], dim=-1)
        emb = torch.cat((mixed, mixed), dim=-1).unsqueeze(1)
        cos, sin = emb.cos(), emb.sin()
        return self.attend(q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin, v)


@positions.add(
    "pos_fourier_features_in_bias",
    inputs=features(16),
    origin="a small network over relative distances gives the bias (a dynamic position bias)",
)
class MlpBias(Plain):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, self.heads))

    def forward(self, x):
        n = x.shape[-2]
        rel = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        pos = torch.arange(-n + 1, n, dtype=x.dtype).unsqueeze(-1) / 8
        bias = self.mlp(pos)[rel + (n - 1)].permute(2, 0, 1)
        return self.attend(*self.split(x), bias)


ENTRIES = tuple(positions.entries)
