"""The ways people write a causal mask."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from .entry import Family, features, unbatched

masks = Family("mask")


@masks.add(
    "mask_tril_float_buffer",
    18,
    3,
    24,
    inputs=features(18),
    limit=24,
    origin="nanoGPT-style block without flash attention",
)
class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd
        self.register_buffer(
            "bias",
            torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size),
        )

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


@masks.add(
    "mask_triu_float_buffer_inplace",
    16,
    20,
    24,
    inputs=features(16),
    limit=24,
    origin="a from-scratch book's causal attention class",
)
class CausalAttentionBook(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout=0.1, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1)
        )

    def forward(self, x):
        _, num_tokens, _ = x.shape
        keys, queries, values = self.W_key(x), self.W_query(x), self.W_value(x)
        attn_scores = queries @ keys.transpose(1, 2)
        attn_scores.masked_fill_(self.mask.bool()[:num_tokens, :num_tokens], -torch.inf)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return self.dropout(attn_weights) @ values


@masks.add(
    "mask_triu_bool_buffer",
    torch.bool,
    inputs=features(16),
    limit=32,
    origin="a teaching multi-head module, boolean mask",
)
@masks.add(
    "mask_triu_uint8_buffer",
    torch.uint8,
    inputs=features(16),
    limit=32,
    origin="older code from before torch.bool, a byte mask",
)
@masks.add(
    "mask_triu_int64_buffer",
    torch.int64,
    inputs=features(16),
    limit=32,
    origin="a mask left in the integer dtype it was made in",
)
class TriuBuffer(nn.Module):
    def __init__(self, dtype, dim=16, heads=2, ctx=32):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.out = nn.Linear(dim, dim)
        self.register_buffer("future", torch.ones(ctx, ctx).triu(1).to(dtype), persistent=False)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (
            t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)
        )
        dots = torch.matmul(q, k.transpose(-1, -2)) * (d // self.heads) ** -0.5
        dots = dots.masked_fill(self.future[:n, :n] == 1, float("-inf"))
        y = dots.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, d))


@masks.add(
    "mask_made_in_forward_triu",
    inputs=features(16),
    origin="a blog's minimal block: torch.triu made on every call",
)
class MadeInForward(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        T = x.size(1)
        w = self.q(x) @ self.k(x).mT / math.sqrt(x.size(-1))
        mask = torch.triu(torch.ones(T, T, device=x.device), diagonal=1).bool()
        return torch.softmax(w.masked_fill(mask, float("-inf")), -1) @ self.v(x)


@masks.add(
    "mask_full_neg_inf_triu_added",
    inputs=features(24),
    origin="Llama's reference code: a matrix of -inf, cut by triu, added",
)
class FullNegInf(nn.Module):
    def __init__(self, dim=24, n_heads=4):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim).transpose(1, 2)
        xk = self.wk(x).view(bsz, seqlen, self.n_heads, self.head_dim).transpose(1, 2)
        xv = self.wv(x).view(bsz, seqlen, self.n_heads, self.head_dim).transpose(1, 2)
        mask = torch.full((seqlen, seqlen), float("-inf"), device=x.device)
        mask = torch.triu(mask, diagonal=1)
        scores = torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = F.softmax((scores + mask).float(), dim=-1).type_as(xq)
        out = torch.matmul(scores, xv).transpose(1, 2).contiguous().view(bsz, seqlen, -1)
        return self.wo(out)


@masks.add(
    "mask_finfo_min_added",
    inputs=features(16),
    limit=24,
    origin="Hugging Face-style eager attention: finfo.min added above the diagonal",
)
class FinfoMinAdded(nn.Module):
    def __init__(self, hidden=16, ctx=24):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        keep = torch.ones(ctx, ctx).tril()
        self.register_buffer("mask", (1.0 - keep) * torch.finfo(torch.float32).min)

    def forward(self, hidden_states):
        n = hidden_states.shape[-2]
        scores = self.query(hidden_states) @ self.key(hidden_states).transpose(-1, -2)
        scores = scores / hidden_states.shape[-1] ** 0.5 + self.mask[:n, :n]
        return scores.softmax(dim=-1) @ self.value(hidden_states)


@masks.add(
    "mask_minus_1e9_fill",
    inputs=features(16),
    origin="the annotated-transformer function: masked_fill(mask == 0, -1e9)",
)
class Annotated(nn.Module):
    def __init__(self, d_model=16, h=4):
        super().__init__()
        self.d_k, self.h = d_model // h, h
        self.linears = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(4))

    @staticmethod
    def subsequent_mask(size):
        return torch.triu(torch.ones(1, size, size), diagonal=1).type(torch.uint8) == 0

    def attention(self, query, key, value, mask):
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
        p_attn = scores.masked_fill(mask == 0, -1e9).softmax(dim=-1)
        return torch.matmul(p_attn, value)

    def forward(self, x):
        nbatches = x.size(0)
        mask = self.subsequent_mask(x.size(1)).unsqueeze(1)
        q, k, v = (
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2) for lin in self.linears[:3]
        )
        y = self.attention(q, k, v, mask)
        return self.linears[-1](y.transpose(1, 2).reshape(nbatches, -1, self.h * self.d_k))


@masks.add(
    "mask_blend_minus_1e4",
    inputs=features(20),
    limit=24,
    origin="the first GPT-2 ports: w * b - 1e4 * (1 - b)",
)
class BlendMinus1e4(nn.Module):
    def __init__(self, nx=20, n_ctx=24, n_head=2):
        super().__init__()
        self.register_buffer("b", torch.tril(torch.ones(n_ctx, n_ctx)).view(1, 1, n_ctx, n_ctx))
        self.n_head = n_head
        self.weight = nn.Parameter(torch.randn(nx, 3 * nx) * 0.2)
        self.proj = nn.Linear(nx, nx)

    def split_heads(self, x, k=False):
        x = x.view(*x.size()[:-1], self.n_head, x.size(-1) // self.n_head)
        return x.permute(0, 2, 3, 1) if k else x.permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = torch.matmul(x, self.weight).split(x.size(-1), dim=2)
        q, k, v = self.split_heads(q), self.split_heads(k, k=True), self.split_heads(v)
        w = torch.matmul(q, k) / math.sqrt(v.size(-1))
        nd, ns = w.size(-2), w.size(-1)
        b = self.b[:, :, ns - nd : ns, :ns]
        w = w * b - 1e4 * (1 - b)
        a = torch.matmul(nn.Softmax(dim=-1)(w), v).permute(0, 2, 1, 3).contiguous()
        return self.proj(a.view(*a.size()[:-2], -1))


@masks.add(
    "mask_where_scalar",
    inputs=features(16),
    limit=24,
    origin="GPT-2 in a large model library: torch.where with a scalar mask tensor",
)
class WhereScalar(nn.Module):
    def __init__(self, hidden=16, max_positions=24):
        super().__init__()
        self.c_attn = nn.Linear(hidden, hidden * 3)
        self.register_buffer(
            "bias", torch.tril(torch.ones((max_positions, max_positions), dtype=torch.bool))
        )

    def forward(self, x):
        query, key, value = self.c_attn(x).split(x.shape[-1], dim=-1)
        attn_weights = torch.matmul(query, key.transpose(-1, -2))
        attn_weights = attn_weights / torch.full(
            [], value.size(-1) ** 0.5, dtype=attn_weights.dtype, device=attn_weights.device
        )
        query_length, key_length = query.size(-2), key.size(-2)
        causal_mask = self.bias[key_length - query_length : key_length, :key_length]
        mask_value = torch.full([], torch.finfo(attn_weights.dtype).min, dtype=attn_weights.dtype)
        attn_weights = torch.where(causal_mask, attn_weights, mask_value)
        return nn.functional.softmax(attn_weights, dim=-1) @ value


@masks.add(
    "mask_arange_compare",
    inputs=features(16),
    origin="positions compared by broadcasting, no triangle function",
)
class ArangeCompare(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.to_qk = nn.Linear(width, 2 * width)
        self.to_v = nn.Linear(width, width)

    def forward(self, x):
        q, k = self.to_qk(x).chunk(2, -1)
        pos = torch.arange(x.shape[1], device=x.device)
        allowed = pos[:, None] >= pos[None, :]
        sim = torch.einsum("bid,bjd->bij", q, k) * q.shape[-1] ** -0.5
        sim = torch.where(allowed, sim, torch.tensor(float("-inf")))
        return torch.einsum("bij,bjd->bid", sim.softmax(-1), self.to_v(x))


@masks.add(
    "mask_arange_expanded_less_than",
    inputs=features(16),
    origin="range_row < range_col masks in the manner of a JAX port",
)
class RangeRowCol(nn.Module):
    def __init__(self, features=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)

    def forward(self, inputs):
        b, t, f = inputs.shape
        q, k, v = self.qkv(inputs).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.swapaxes(-1, -2) / (f // self.heads) ** 0.5
        row = torch.arange(t).view(t, 1).expand(t, t)
        col = torch.arange(t).view(1, t).expand(t, t)
        big_negative = -0.7 * torch.finfo(logits.dtype).max
        logits = logits + torch.less(row, col).to(logits.dtype) * big_negative
        out = logits.softmax(-1) @ v
        return out.permute(0, 2, 1, 3).flatten(2)


@masks.add(
    "mask_cumsum_of_ones",
    inputs=features(16),
    origin="an index trick: two running sums of ones compared",
)
class CumsumOfOnes(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.proj = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.proj(x).tensor_split(3, -1)
        ones = torch.ones(x.size(1), x.size(1), dtype=torch.long, device=x.device)
        visible = ones.cumsum(0) >= ones.cumsum(1)
        a = (q @ k.transpose(1, 2) / 4.0).masked_fill(~visible, -torch.inf)
        return a.softmax(2) @ v


@masks.add(
    "mask_log_of_tril_added",
    inputs=features(16),
    origin="log of a 0/1 triangle added to the scores",
)
class LogOfTril(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.Wq, self.Wk, self.Wv = (nn.Parameter(torch.randn(dim, dim) / 4) for _ in range(3))

    def forward(self, X):
        n = X.shape[-2]
        M = X.new_ones(n, n).tril().log()
        A = torch.softmax((X @ self.Wq) @ (X @ self.Wk).mT / math.sqrt(X.shape[-1]) + M, dim=-1)
        return A @ (X @ self.Wv)


@masks.add(
    "mask_relu_ramp_added",
    inputs=features(16),
    origin="arithmetic only: relu(j - i) times a large negative number",
)
class ReluRamp(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qk = nn.Linear(dim, dim, bias=False)
        self.val = nn.Linear(dim, dim)

    def forward(self, x):
        t = torch.arange(x.size(1), dtype=x.dtype, device=x.device)
        distance = F.relu(t.unsqueeze(0) - t.unsqueeze(1))
        s = torch.bmm(self.qk(x), x.transpose(1, 2)) - 1e8 * distance
        return torch.bmm(F.softmax(s, -1), self.val(x))


@masks.add(
    "mask_multiplicative_renormalised",
    inputs=features(16),
    limit=24,
    origin="softmax first, then a 0/1 triangle and division by the row sum",
    causal_up_to=1e-6,
)
class Renormalised(nn.Module):
    def __init__(self, d=16, context_length=24):
        super().__init__()
        self.W_q, self.W_k, self.W_v = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.register_buffer("simple_mask", torch.tril(torch.ones(context_length, context_length)))

    def forward(self, x):
        T = x.shape[1]
        weights = torch.softmax(self.W_q(x) @ self.W_k(x).transpose(1, 2) / 4, dim=-1)
        masked = weights * self.simple_mask[:T, :T]
        row_sums = masked.sum(dim=-1, keepdim=True)
        return (masked / row_sums) @ self.W_v(x)


@masks.add(
    "mask_exp_times_tril",
    inputs=features(16),
    origin="softmax written out: exp, times the triangle, over its sum",
)
class ExpTimesTril(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d, bias=False) for _ in range(3))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / math.sqrt(x.shape[-1])
        e = torch.exp(scores) * torch.tril(torch.ones_like(scores))
        return (e / e.sum(-1, keepdim=True)) @ self.v(x)


@masks.add(
    "mask_tril_indices",
    inputs=features(16),
    origin="a mask filled through tril_indices",
)
class TrilIndices(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.lin = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.lin(x).chunk(3, dim=2)
        n = x.shape[1]
        rows, cols = torch.tril_indices(n, n)
        bias = torch.full((n, n), -torch.inf)
        bias[rows, cols] = 0.0
        return F.softmax(q @ k.mT * 0.25 + bias, dim=-1) @ v


@masks.add(
    "mask_index_put",
    inputs=features(16),
    origin="boolean indexing: scores[:, mask] = -inf",
)
class IndexPut(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        n = x.shape[1]
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / x.shape[-1] ** 0.5
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        scores[:, mask] = -float("inf")
        return scores.softmax(-1) @ self.v(x)


@masks.add(
    "mask_index_put_of_buffer",
    inputs=features(16),
    limit=24,
    origin="boolean indexing with a logical_not of a sliced buffer",
)
class IndexPutBuffer(nn.Module):
    def __init__(self, dim=16, ctx=24, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.register_buffer("visible", torch.ones(ctx, ctx).tril() > 0)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        s = q @ k.transpose(-2, -1) / 3.0
        s[..., self.visible[:n, :n].logical_not()] = torch.finfo(s.dtype).min
        return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)


@masks.add(
    "mask_numpy",
    inputs=features(16),
    origin="older tutorials: np.triu(np.ones(...)), then torch.from_numpy",
)
class NumpyMask(nn.Module):
    def __init__(self, d_model=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d_model, d_model) for _ in range(3))

    def forward(self, x):
        n = x.shape[1]
        np_mask = np.triu(np.ones((1, n, n)), k=1).astype("uint8")
        mask = torch.from_numpy(np_mask) == 0
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) / math.sqrt(x.shape[-1])
        return torch.bmm(F.softmax(scores.masked_fill(~mask, -1e9), dim=-1), self.v(x))


@masks.add(
    "mask_numpy_buffer",
    inputs=features(16),
    limit=24,
    origin="a mask made with numpy once, in the constructor",
)
class NumpyBuffer(nn.Module):
    def __init__(self, d_model=16, ctx=24):
        super().__init__()
        self.kqv = nn.Linear(d_model, 3 * d_model)
        self.register_buffer("mask", torch.tensor(np.tril(np.ones((ctx, ctx), dtype=np.float32))))

    def forward(self, x):
        t = x.size(1)
        k, q, v = self.kqv(x).split(x.size(2), 2)
        scores = q @ k.transpose(1, 2) / 4.0
        return scores.masked_fill(self.mask[:t, :t] < 0.5, -1e10).softmax(2) @ v


@masks.add(
    "mask_lazily_grown_cold",
    inputs=features(16),
    tags=("lazy",),
    origin="a mask cache on self that grows on demand, never yet called",
)
@masks.add(
    "mask_lazily_grown_warm",
    inputs=features(16),
    tags=("lazy",),
    warm=lambda m: m(torch.zeros(1, 11, 16)),
    origin="the same cache after a call at length 11",
)
class LazilyGrown(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self._mask = None

    def causal_mask(self, n):
        if self._mask is None or self._mask.shape[-1] < n:
            self._mask = torch.triu(torch.full((n, n), float("-inf")), 1)
        return self._mask[:n, :n]

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return ((q @ k.mT) / 4 + self.causal_mask(x.shape[1])).softmax(-1) @ v


@masks.add(
    "mask_lazy_register_buffer_cold",
    inputs=features(16),
    tags=("lazy",),
    origin="register_buffer inside forward, as several research blocks do; never yet called",
)
@masks.add(
    "mask_lazy_register_buffer_warm",
    inputs=features(16),
    tags=("lazy",),
    warm=lambda m: m(torch.zeros(1, 13, 16)),
    origin="register_buffer inside forward, after a call at length 13",
)
class LazyRegisterBuffer(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, dim * 3, bias=False)
        self.register_buffer("mask", None, persistent=False)

    def get_mask(self, n, device):
        if self.mask is not None and self.mask.shape[-1] >= n:
            return self.mask[:n, :n]
        mask = torch.ones((n, n), device=device, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        return mask

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        sim = q @ k.transpose(-1, -2) * self.scale
        sim = sim.masked_fill(self.get_mask(n, x.device), -torch.finfo(sim.dtype).max)
        return (sim.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d)


@masks.add(
    "mask_dict_by_length_cold",
    inputs=features(16),
    tags=("lazy",),
    origin="a dict of masks keyed by length, empty",
)
@masks.add(
    "mask_dict_by_length_warm",
    inputs=features(16),
    tags=("lazy",),
    warm=lambda m: (m(torch.zeros(1, 5, 16)), m(torch.zeros(1, 7, 16))),
    origin="a dict of masks keyed by length, holding 5 and 7",
)
class DictByLength(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.cache = {}

    def forward(self, x):
        n = x.size(1)
        if n not in self.cache:
            self.cache[n] = torch.ones(n, n, dtype=torch.bool).tril()
        s = torch.matmul(self.q(x), self.k(x).transpose(-1, -2)) / 4
        return s.masked_fill(~self.cache[n], float("-inf")).softmax(-1) @ self.v(x)


@masks.add(
    "mask_of_fixed_context",
    inputs=features(16),
    limit=24,
    lengths=(24,),
    cacheable=False,
    origin="a [context, context] mask that is never sliced: one length only",
)
class FixedContext(nn.Module):
    def __init__(self, dim=16, ctx=24):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.register_buffer("mask", torch.triu(torch.full((ctx, ctx), float("-inf")), 1))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.softmax(q @ k.transpose(1, 2) / 4 + self.mask, dim=-1) @ v


@masks.add(
    "mask_generate_square_subsequent",
    inputs=features(16),
    origin="the static helper of nn.Transformer",
)
class SquareSubsequent(nn.Module):
    def __init__(self, ninp=16):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(ninp, ninp) for _ in range(3))

    def forward(self, src):
        src_mask = nn.Transformer.generate_square_subsequent_mask(src.size(1))
        logits = torch.baddbmm(
            src_mask.expand(src.size(0), -1, -1), self.wq(src), self.wk(src).mT, alpha=0.25
        )
        return torch.bmm(logits.softmax(2), self.wv(src))


@masks.add(
    "mask_scale_before",
    "before",
    inputs=features(16),
    origin="queries scaled before the product",
)
@masks.add(
    "mask_scale_after_mask",
    "after",
    inputs=features(16),
    origin="scores scaled after they were masked",
)
@masks.add(
    "mask_scale_both_by_fourth_root",
    "both",
    inputs=features(16),
    origin="queries and keys each scaled by the fourth root, for half precision",
)
@masks.add(
    "mask_scale_none",
    "none",
    inputs=features(16),
    origin="no scale at all, as in T5",
)
class ScalePlace(nn.Module):
    def __init__(self, where, dim=16, heads=2):
        super().__init__()
        self.where, self.heads = where, heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, x):
        b, n, _ = x.shape
        k, v = self.kv(x).view(b, n, self.heads, 2, -1).permute(3, 0, 2, 1, 4)
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        scale = q.size(-1) ** -0.5
        if self.where == "before":
            q = q * scale
        elif self.where == "both":
            q, k = q * scale**0.5, k * scale**0.5
        s = q @ k.transpose(2, 3)
        s = s.masked_fill(torch.ones(n, n).triu(1) == 1, float("-inf"))
        if self.where == "after":
            s = s * scale
        return (s.softmax(3) @ v).transpose(1, 2).flatten(2)


@masks.add(
    "mask_flipped_lower",
    inputs=features(16),
    origin="the triangle made by flipping an upper one along both axes",
)
class FlippedLower(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, dim * 3)

    def forward(self, x):
        q, k, v = torch.split(self.qkv(x), x.shape[-1], dim=-1)
        upper = torch.ones(x.shape[1], x.shape[1]).triu()
        lower = upper.flip(0).flip(1)
        s = (q @ k.transpose(-1, -2) / 4).masked_fill(lower.eq(0), -1e38)
        return torch.softmax(s, dim=-1) @ v


@masks.add(
    "mask_repeated_per_batch_and_head",
    inputs=features(18),
    origin="a mask repeated to (batch * heads, n, n) before bmm",
)
class RepeatedMask(nn.Module):
    def __init__(self, emb=18, heads=3):
        super().__init__()
        self.emb, self.heads = emb, heads
        self.tokeys = nn.Linear(emb, emb, bias=False)
        self.toqueries = nn.Linear(emb, emb, bias=False)
        self.tovalues = nn.Linear(emb, emb, bias=False)
        self.unifyheads = nn.Linear(emb, emb)

    def forward(self, x):
        b, t, e = x.size()
        h, s = self.heads, e // self.heads
        keys = self.tokeys(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        queries = self.toqueries(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        values = self.tovalues(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        dot = torch.bmm(queries, keys.transpose(1, 2)) / s**0.5
        mask = torch.tril(torch.ones(t, t)).repeat(b * h, 1, 1)
        dot = dot.masked_fill(mask == 0, float("-inf"))
        out = torch.bmm(F.softmax(dot, dim=2), values).view(b, h, t, s)
        return self.unifyheads(out.transpose(1, 2).contiguous().view(b, t, s * h))


@masks.add(
    "mask_transposed_scores",
    inputs=features(16),
    origin="K Q^T with a softmax over the first of the two position axes",
)
class TransposedScores(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        n = x.size(1)
        s = self.k(x) @ self.q(x).transpose(1, 2) / 4  # (batch, key, query)
        s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).tril(-1), -torch.inf)
        return s.softmax(dim=1).transpose(1, 2) @ self.v(x)


@masks.add(
    "mask_softcap",
    inputs=features(16),
    origin="Gemma 2-style tanh cap before the mask",
)
class Softcap(nn.Module):
    def __init__(self, dim=16, cap=2.0):
        super().__init__()
        self.qkv, self.cap = nn.Linear(dim, 3 * dim), cap

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        s = self.cap * torch.tanh(q @ k.mT / 4 / self.cap)
        s = s + torch.full((x.size(1), x.size(1)), torch.finfo(s.dtype).min).triu(1)
        return s.softmax(-1) @ v


@masks.add(
    "mask_sink_logits",
    inputs=features(16),
    origin="a learned sink logit per head, joined to the scores and dropped after softmax",
)
class SinkLogits(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.sinks = nn.Parameter(torch.randn(heads))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = q @ k.transpose(-2, -1) / 2 + torch.full((n, n), -torch.inf).triu(1)
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(b, -1, n, -1)
        s = torch.cat([s, sinks], dim=-1)
        s = s - s.max(dim=-1, keepdim=True).values
        p = s.softmax(dim=-1)[..., :-1]
        return (p @ v).transpose(1, 2).reshape(b, n, d)


@masks.add(
    "mask_softmax_one",
    inputs=features(16),
    origin="softmax with a one added to the denominator",
)
class SoftmaxOne(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        s = self.q(x) @ self.k(x).mT / 4
        s = s.masked_fill(~torch.ones_like(s, dtype=torch.bool).tril(), -torch.inf)
        m = s.amax(-1, keepdim=True).clamp(min=0)
        e = (s - m).exp()
        return e @ self.v(x) / (e.sum(-1, keepdim=True) + (-m).exp())


@masks.add(
    "mask_qk_norm",
    inputs=features(16),
    origin="RMS-normalised queries and keys with a learned temperature",
)
class QKNorm(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.qn, self.kn = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        s = self.qn(q) @ self.kn(k).transpose(-1, -2) * self.temperature
        i = torch.arange(n)
        s = torch.where(i[:, None] < i[None, :], s.new_full((), -torch.inf), s)
        return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)


@masks.add(
    "mask_cosine_similarity",
    inputs=features(16),
    origin="cosine scores with an exponent of a learned scale",
)
class CosineSimilarity(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        q, k = F.normalize(self.q(x), dim=-1), F.normalize(self.k(x), dim=-1)
        s = (q @ k.transpose(1, 2)) * self.logit_scale.exp().clamp(max=100)
        s.masked_fill_(torch.ones_like(s[0]).triu_(1).bool(), float("-inf"))
        return s.softmax(-1) @ self.v(x)


@masks.add(
    "mask_max_subtracted_by_hand",
    inputs=features(16),
    origin="a stable softmax written by hand",
)
class ManualStableSoftmax(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.w = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.w(x).split(16, -1)
        logits = torch.einsum("...id,...jd->...ij", q, k) * 0.25
        logits = logits - 1e12 * (1 - torch.ones_like(logits).tril())
        z = logits - logits.max(-1, keepdim=True)[0]
        num = z.exp()
        return torch.einsum("...ij,...jd->...id", num / num.sum(-1, keepdim=True), v)


@masks.add(
    "mask_log_softmax_exp",
    inputs=features(16),
    origin="log_softmax followed by exp",
)
class LogSoftmaxExp(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.w = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.w(x).chunk(3, -1)
        n = x.shape[1]
        hidden = torch.ones(n, n, dtype=torch.bool).tril().logical_not()
        logp = (q @ k.mT / 4).masked_fill(hidden, -torch.inf).log_softmax(-1)
        return logp.exp() @ v


@masks.add(
    "mask_logsumexp",
    inputs=features(16),
    origin="exp(scores - logsumexp(scores))",
)
class LogSumExp(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.w = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.w(x).chunk(3, -1)
        s = (q @ k.mT / 4) + torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


@masks.add(
    "mask_meshgrid",
    inputs=features(16),
    origin="row and column indices from meshgrid",
)
class Meshgrid(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        r = torch.arange(x.shape[1], device=x.device)
        row, col = torch.meshgrid(r, r, indexing="ij")
        bias = torch.zeros_like(row, dtype=x.dtype).masked_fill(col > row, float("-inf"))
        return F.softmax(q @ k.transpose(-2, -1) / 4 + bias, dim=-1) @ v


@masks.add(
    "mask_row_filled_in_loop",
    inputs=features(16),
    expect="refused:a python loop over positions fills the mask row by row",
    origin="a beginner's mask: a for loop that fills each row",
)
class RowLoop(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mask = torch.zeros(x.shape[1], x.shape[1])
        for i in range(x.shape[1]):
            mask[i, i + 1 :] = float("-inf")
        return F.softmax(q @ k.transpose(-2, -1) / 4 + mask, dim=-1) @ v


@masks.add(
    "mask_loop_over_positions",
    inputs=features(16),
    expect="refused:a python loop over positions computes one query at a time",
    origin="a teaching version: each position attends to the prefix in a loop",
)
class PositionLoop(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        outputs = []
        for t in range(x.shape[1]):
            w = torch.softmax(q[:, t : t + 1] @ k[:, : t + 1].transpose(1, 2) / 4, dim=-1)
            outputs.append(w @ v[:, : t + 1])
        return torch.cat(outputs, dim=1)


@masks.add(
    "mask_unbatched_tril",
    inputs=unbatched(16),
    limit=24,
    origin="a teaching one-head module on a single (seq, dim) sentence",
)
class OneSentence(nn.Module):
    def __init__(self, d_in=16, d_out=12, ctx=24):
        super().__init__()
        self.W_q = nn.Parameter(torch.rand(d_in, d_out))
        self.W_k = nn.Parameter(torch.rand(d_in, d_out))
        self.W_v = nn.Parameter(torch.rand(d_in, d_out))
        self.register_buffer("tril", torch.tril(torch.ones(ctx, ctx)))

    def forward(self, x):
        T, _ = x.shape
        q, k, v = x @ self.W_q, x @ self.W_k, x @ self.W_v
        wei = q @ k.T / math.sqrt(k.shape[-1])
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return F.softmax(wei, dim=-1) @ v


@masks.add(
    "mask_gathered_from_table",
    inputs=features(16),
    limit=24,
    origin="mask rows looked up with index_select, for decoding one row later",
)
class GatheredMask(nn.Module):
    def __init__(self, dim=16, ctx=24):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.register_buffer("table", torch.tril(torch.ones(ctx, ctx, dtype=torch.bool)))

    def forward(self, x):
        n = x.shape[1]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        rows = self.table.index_select(0, torch.arange(n)).narrow(1, 0, n)
        s = torch.where(rows, q @ k.mT / 4, -torch.inf)
        return s.softmax(-1) @ v


@masks.add(
    "mask_per_head_weights_loop",
    inputs=features(16),
    origin="a python loop over heads that masks each head by itself",
)
class PerHeadLoop(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.hd = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        tri = torch.ones(x.shape[1], x.shape[1]).tril()
        outs = []
        for i in range(self.heads):
            cut = slice(i * self.hd, (i + 1) * self.hd)
            s = q[..., cut] @ k[..., cut].transpose(1, 2) / self.hd**0.5
            outs.append(s.masked_fill(tri == 0, -1e9).softmax(-1) @ v[..., cut])
        return torch.cat(outs, -1)


ENTRIES = tuple(masks.entries)
