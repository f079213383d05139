"""The ways people write the attention itself: products, heads, layouts, library calls, outputs."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass

import einops
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from .entry import Family, Inputs, features, generator, seq_first, unbatched

attention = Family("attention")


def _hidden(n: int) -> Tensor:
    """(n, n), True where a key lies after its query."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


@attention.add(
    "attn_one_head_3d", inputs=features(16), origin="one head on (batch, seq, dim), no heads axis"
)
@attention.add(
    "attn_one_head_2d", inputs=unbatched(16), origin="one head on (seq, dim), no batch axis"
)
class OneHead(nn.Module):
    def __init__(self, dim=16, out=12):
        super().__init__()
        self.W_q = nn.Linear(dim, out, bias=False)
        self.W_k = nn.Linear(dim, out, bias=False)
        self.W_v = nn.Linear(dim, out, bias=False)

    def forward(self, x):
        omega = self.W_q(x) @ self.W_k(x).transpose(-2, -1)
        omega = omega.masked_fill(_hidden(x.shape[-2]), -torch.inf)
        return torch.softmax(omega / self.W_k.out_features**0.5, dim=-1) @ self.W_v(x)


@attention.add(
    "attn_either_rank", inputs=features(16), limit=24, origin="adds a batch axis if there is none"
)
@attention.add(
    "attn_either_rank_2d",
    inputs=unbatched(16),
    limit=24,
    origin="the same module, given one sentence",
)
class EitherRank(nn.Module):
    def __init__(self, dim=16, heads=4, ctx=24):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.register_buffer("mask", _hidden(ctx))

    def forward(self, x):
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(0)
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = q @ k.mT / q.size(-1) ** 0.5
        y = s.masked_fill(self.mask[:n, :n], -torch.inf).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, n, d)
        return y.squeeze(0) if single else y


@attention.add(
    "attn_bmm_folded_heads",
    inputs=features(18),
    origin="heads folded into the batch for torch.bmm, as in fairseq-style code",
)
class BmmFolded(nn.Module):
    def __init__(self, embed_dim=18, num_heads=3):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * embed_dim, embed_dim) / 4)
        self.in_proj_bias = nn.Parameter(torch.randn(3 * embed_dim) / 4)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        x = x.transpose(0, 1)
        tgt_len, bsz, embed_dim = x.size()
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q = q * self.head_dim**-0.5
        shape = (tgt_len, bsz * self.num_heads, self.head_dim)
        q, k, v = (t.contiguous().view(*shape).transpose(0, 1) for t in (q, k, v))
        attn_weights = torch.bmm(q, k.transpose(1, 2))
        future = torch.triu(torch.full_like(attn_weights[0], float("-inf")), 1)
        attn_weights = F.softmax((attn_weights + future.unsqueeze(0)).float(), dim=-1)
        attn = torch.bmm(attn_weights.type_as(v), v)
        attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        return self.out_proj(attn).transpose(0, 1)


@attention.add(
    "attn_baddbmm", inputs=features(16), origin="baddbmm with alpha and the mask as its input"
)
class Baddbmm(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.hd = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        b, n, d = x.shape
        fused = self.qkv(x).view(b, n, self.heads, 3 * self.hd)
        q, k, v = (
            t.transpose(1, 2).reshape(b * self.heads, n, self.hd) for t in fused.chunk(3, -1)
        )
        bias = torch.zeros(n, n).masked_fill(_hidden(n), torch.finfo(x.dtype).min)
        scores = torch.baddbmm(
            bias.expand(b * self.heads, n, n), q, k.transpose(1, 2), beta=1.0, alpha=self.hd**-0.5
        )
        ctx = torch.bmm(scores.softmax(-1), v).view(b, self.heads, n, self.hd)
        return ctx.permute(0, 2, 1, 3).reshape(b, n, d)


@attention.add("attn_einsum_bhqk", inputs=features(18), origin="einsum with one letter per axis")
class EinsumAttention(nn.Module):
    def __init__(self, dim=18, heads=3):
        super().__init__()
        self.wq = nn.Parameter(torch.randn(dim, heads, dim // heads) / 4)
        self.wk = nn.Parameter(torch.randn(dim, heads, dim // heads) / 4)
        self.wv = nn.Parameter(torch.randn(dim, heads, dim // heads) / 4)
        self.wo = nn.Parameter(torch.randn(heads, dim // heads, dim) / 4)

    def forward(self, x):
        q = torch.einsum("bqd,dhe->bqhe", x, self.wq)
        k = torch.einsum("bkd,dhe->bkhe", x, self.wk)
        v = torch.einsum("bkd,dhe->bkhe", x, self.wv)
        s = torch.einsum("bqhe,bkhe->bhqk", q, k) / self.wq.shape[-1] ** 0.5
        s = s.masked_fill(_hidden(x.shape[1]), float("-inf"))
        return torch.einsum("bhqk,bkhe,hed->bqd", s.softmax(-1), v, self.wo)


@attention.add("attn_einops_rearrange", inputs=features(16), origin="einops.rearrange and einsum")
class EinopsAttention(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, dim * 3, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x):
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in qkv)
        sim = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        i, j = sim.shape[-2:]
        causal_mask = torch.ones((i, j), dtype=torch.bool, device=x.device).triu(j - i + 1)
        sim = sim.masked_fill(causal_mask, -torch.finfo(sim.dtype).max)
        out = torch.einsum("b h i j, b h j d -> b h i d", sim.softmax(dim=-1), v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


@attention.add(
    "attn_einops_layers", inputs=features(16), origin="einops layers and einops.einsum/repeat"
)
class EinopsLayers(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.q = nn.Sequential(
            nn.Linear(dim, dim), Rearrange("b n (h d) -> b h n d", h=heads), nn.LayerNorm(4)
        )
        self.kv = nn.Linear(dim, 2 * dim // heads)
        self.heads = heads
        self.merge = Rearrange("b h n d -> b n (h d)")

    def forward(self, x):
        q = self.q(x)
        k, v = rearrange(self.kv(x), "b n (two d) -> two b n d", two=2)
        k = einops.repeat(k, "b n d -> b h n d", h=self.heads)
        s = einops.einsum(q, k, "b h i d, b h j d -> b h i j") / 2
        s = s.masked_fill(_hidden(s.shape[-1]), -torch.inf)
        return self.merge(einops.einsum(s.softmax(-1), v, "b h i j, b j d -> b h i d"))


@attention.add(
    "attn_heads_module_list",
    inputs=features(16),
    limit=24,
    origin="one small module per head in a ModuleList, outputs joined",
)
class ModuleListHeads(nn.Module):
    def __init__(self, dim=16, heads=3, size=6, ctx=24):
        super().__init__()
        self.heads = nn.ModuleList(OneHead(dim, size) for _ in range(heads))
        self.limit = nn.Parameter(torch.randn(1, ctx, dim) / 4)
        self.out_proj = nn.Linear(heads * size, dim)

    def forward(self, x):
        x = x + self.limit[:, : x.size(1)]
        return self.out_proj(torch.cat([head(x) for head in self.heads], dim=-1))


@attention.add(
    "attn_timm_qkv_unbind",
    inputs=features(18),
    origin="a vision block's fused qkv: reshape, permute(2, 0, 3, 1, 4), unbind",
)
class TimmStyle(nn.Module):
    def __init__(self, dim=18, num_heads=3):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.attn_drop, self.proj = nn.Dropout(0.1), nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.attn_drop((attn + torch.zeros_like(attn).fill_(-1e9).triu(1)).softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class SdpaBase(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def attend(self, q, k, v):
        raise NotImplementedError

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (
            t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(d, dim=-1)
        )
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, d))


@attention.add("attn_sdpa_is_causal", inputs=features(16), origin="SDPA with is_causal=True")
class SdpaIsCausal(SdpaBase):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@attention.add("attn_sdpa_bool_mask", inputs=features(16), origin="SDPA with a boolean attn_mask")
class SdpaBoolMask(SdpaBase):
    def attend(self, q, k, v):
        n = q.shape[-2]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.ones(n, n, dtype=torch.bool).tril(diagonal=0)
        )


@attention.add("attn_sdpa_float_mask", inputs=features(16), origin="SDPA with an additive mask")
class SdpaFloatMask(SdpaBase):
    def attend(self, q, k, v):
        n = q.shape[-2]
        mask = torch.full((1, 1, n, n), float("-inf"), dtype=q.dtype).triu(1)
        return F.scaled_dot_product_attention(q, k, v, mask)


@attention.add(
    "attn_sdpa_own_scale", inputs=features(16), origin="SDPA with a scale of its own and is_causal"
)
class SdpaScale(SdpaBase):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)


@attention.add(
    "attn_sdpa_math_backend",
    inputs=features(16),
    origin="SDPA under a with-statement that picks the math backend",
)
class SdpaMathBackend(SdpaBase):
    def attend(self, q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@attention.add(
    "attn_sdpa_is_causal_if_longer",
    inputs=features(16),
    tags=("guard",),
    origin="is_causal=T > 1, as library integrations write it",
)
class SdpaCausalIfLonger(SdpaBase):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, None, 0.0, is_causal=q.shape[2] > 1)


@attention.add(
    "attn_sdpa_causal_upper_left",
    inputs=features(16),
    origin="torch.nn.attention.bias.causal_upper_left",
)
class SdpaUpperLeft(SdpaBase):
    def attend(self, q, k, v):
        bias = causal_upper_left(q.size(-2), k.size(-2))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@attention.add(
    "attn_sdpa_causal_lower_right",
    inputs=features(16),
    origin="torch.nn.attention.bias.causal_lower_right",
)
class SdpaLowerRight(SdpaBase):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, causal_lower_right(q.size(-2), k.size(-2)))


@attention.add("attn_sdpa_3d", inputs=features(16), origin="SDPA on (batch, seq, dim), one head")
class Sdpa3d(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True)


@attention.add("attn_sdpa_2d", inputs=unbatched(16), origin="SDPA on one sentence, (seq, dim)")
class Sdpa2d(Sdpa3d):
    pass


@attention.add("attn_sdpa_gqa", 4, 2, inputs=features(16), origin="SDPA with enable_gqa, 4 and 2")
@attention.add("attn_sdpa_mqa", 4, 1, inputs=features(16), origin="SDPA with enable_gqa, 4 and 1")
@attention.add(
    "attn_sdpa_gqa_equal_heads", 4, 4, inputs=features(16), origin="enable_gqa with equal heads"
)
class SdpaGqa(nn.Module):
    def __init__(self, heads, kv_heads, dim=16, head_dim=6):
        super().__init__()
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, dim, bias=False)
        self.head_dim = head_dim

    def forward(self, x):
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (-1, 2 * self.head_dim)).transpose(1, 2).chunk(2, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


@attention.add("attn_mha_float_mask", "float", inputs=features(16), origin="nn.MultiheadAttention")
@attention.add(
    "attn_mha_bool_mask", "bool", inputs=features(16), origin="nn.MultiheadAttention, bool mask"
)
@attention.add(
    "attn_mha_is_causal_hint",
    "hint",
    inputs=features(16),
    origin="nn.MultiheadAttention with is_causal=True beside the mask",
)
@attention.add(
    "attn_mha_weights_averaged",
    "weights",
    inputs=features(16),
    origin="nn.MultiheadAttention returning averaged weights",
)
@attention.add(
    "attn_mha_weights_per_head",
    "per_head",
    inputs=features(16),
    origin="nn.MultiheadAttention returning the weights of every head",
)
class LibraryMha(nn.Module):
    def __init__(self, kind, dim=16, heads=2):
        super().__init__()
        self.kind = kind
        self.mha = nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)

    def forward(self, x):
        mask = _hidden(x.size(1))
        if self.kind == "float":
            mask = torch.zeros(mask.shape).masked_fill(mask, float("-inf"))
        y, w = self.mha(
            x,
            x,
            x,
            attn_mask=mask,
            need_weights=self.kind in ("weights", "per_head"),
            average_attn_weights=self.kind == "weights",
            is_causal=self.kind == "hint",
        )
        return y if w is None else (y, w)


@attention.add(
    "attn_mha_seq_first",
    inputs=seq_first(16),
    origin="nn.MultiheadAttention in its default (seq, batch, dim) layout",
)
class MhaSeqFirst(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mha = nn.MultiheadAttention(dim, 4)

    def forward(self, x):
        h = self.norm(x)
        return x + self.mha(h, h, h, attn_mask=_hidden(x.size(0)), need_weights=False)[0]


@attention.add(
    "attn_mha_unbatched",
    inputs=unbatched(16),
    origin="nn.MultiheadAttention on one sentence without a batch axis",
)
class MhaUnbatched(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, 2, bias=False)

    def forward(self, x):
        return self.mha(x, x, x, attn_mask=_hidden(x.size(0)), need_weights=False)[0]


@attention.add(
    "attn_mha_kdim_vdim",
    inputs=features(16),
    origin="nn.MultiheadAttention with keys and values of other widths",
)
class MhaKdim(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.keys, self.values = nn.Linear(dim, 10), nn.Linear(dim, 14)
        self.mha = nn.MultiheadAttention(dim, 2, kdim=10, vdim=14, batch_first=True)

    def forward(self, x):
        y, _ = self.mha(x, self.keys(x), self.values(x), attn_mask=_hidden(x.size(1)))
        return y


@attention.add(
    "attn_functional_mha",
    inputs=seq_first(16),
    origin="F.multi_head_attention_forward called directly",
)
class FunctionalMha(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.in_w = nn.Parameter(torch.randn(3 * dim, dim) / 4)
        self.in_b = nn.Parameter(torch.zeros(3 * dim))
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        y, _ = F.multi_head_attention_forward(
            x, x, x, x.size(-1), 4, self.in_w, self.in_b, None, None, False, 0.0,
            self.out.weight, self.out.bias,
            training=False, need_weights=False, attn_mask=_hidden(x.size(0)),
        )  # fmt: skip
        return y


@attention.add(
    "attn_encoder_layer",
    False,
    inputs=features(16),
    origin="nn.TransformerEncoderLayer with a causal src_mask",
)
@attention.add(
    "attn_encoder_layer_norm_first",
    True,
    inputs=features(16),
    origin="nn.TransformerEncoderLayer, norm first, with is_causal=True",
)
class EncoderLayer(nn.Module):
    def __init__(self, norm_first, dim=16):
        super().__init__()
        self.norm_first = norm_first
        self.layer = nn.TransformerEncoderLayer(
            dim, 2, 24, dropout=0.1, batch_first=True, norm_first=norm_first
        )

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.layer(x, src_mask=mask, is_causal=self.norm_first)


@attention.add(
    "attn_encoder_stack_seq_first",
    inputs=seq_first(16),
    origin="nn.TransformerEncoder of two layers, (seq, batch, dim), mask given",
)
class EncoderStack(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, 4, 24, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, src):
        return self.encoder(src, mask=_hidden(src.size(0)))


@attention.add(
    "attn_decoder_layer_memory",
    inputs=features(16),
    origin="nn.TransformerDecoderLayer with a learned memory of fixed length",
)
class DecoderLayer(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.memory = nn.Parameter(torch.randn(1, 5, dim) / 2)
        self.layer = nn.TransformerDecoderLayer(dim, 2, 24, batch_first=True)

    def forward(self, tgt):
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        return self.layer(tgt, self.memory.expand(tgt.size(0), -1, -1), tgt_mask=mask)


@attention.add(
    "attn_decoder_stack_own_memory",
    inputs=features(16),
    origin="nn.TransformerDecoder fed with its own input as memory, both masked",
)
class DecoderStack(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(dim, 2, 24, batch_first=True, norm_first=True), 2
        )

    def forward(self, x):
        mask = _hidden(x.size(1))
        return self.decoder(x, x, tgt_mask=mask, memory_mask=mask)


class GroupedHeads(nn.Module):
    def __init__(self, dim=16, heads=4, kv_heads=2):
        super().__init__()
        self.heads, self.kv_heads, self.hd = heads, kv_heads, dim // heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wkv = nn.Linear(dim, 2 * kv_heads * self.hd, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def project(self, x):
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.heads, self.hd).transpose(1, 2)
        k, v = self.wkv(x).view(b, n, 2, self.kv_heads, self.hd).permute(2, 0, 3, 1, 4)
        return q, k, v

    def weigh(self, s):
        return (s / self.hd**0.5).masked_fill(_hidden(s.size(-1)), -torch.inf).softmax(-1)


@attention.add("attn_gqa_expand", inputs=features(16), origin="grouped heads by expand and reshape")
class GqaExpand(GroupedHeads):
    def forward(self, x):
        q, k, v = self.project(x)
        b, h, n, d = k.shape
        g = self.heads // h
        k = k[:, :, None].expand(b, h, g, n, d).reshape(b, h * g, n, d)
        v = v[:, :, None].expand(b, h, g, n, d).reshape(b, h * g, n, d)
        y = self.weigh(q @ k.transpose(2, 3)) @ v
        return self.wo(y.transpose(1, 2).reshape(b, n, -1))


@attention.add("attn_gqa_repeat_interleave", inputs=features(16), origin="repeat_interleave")
class GqaRepeatInterleave(GroupedHeads):
    def forward(self, x):
        q, k, v = self.project(x)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        y = self.weigh(torch.matmul(q, k.mT)) @ v
        return self.wo(y.transpose(1, 2).flatten(-2))


@attention.add(
    "attn_gqa_tiled_repeat",
    inputs=features(16),
    origin="kv heads tiled with Tensor.repeat: head h reads h mod kv_heads",
)
class GqaTiled(GroupedHeads):
    def forward(self, x):
        q, k, v = self.project(x)
        k, v = (t.repeat(1, self.heads // self.kv_heads, 1, 1) for t in (k, v))
        return self.wo((self.weigh(q @ k.mT) @ v).transpose(1, 2).flatten(2))


@attention.add(
    "attn_gqa_grouped_einsum",
    inputs=features(16),
    origin="grouped einsum on (batch, kv_heads, group, seq, dim), nothing repeated",
)
class GqaEinsum(GroupedHeads):
    def forward(self, x):
        q, k, v = self.project(x)
        q = q.unflatten(1, (self.kv_heads, -1))
        p = self.weigh(torch.einsum("bhgid,bhjd->bhgij", q, k))
        y = torch.einsum("bhgij,bhjd->bhgid", p, v)
        return self.wo(rearrange(y, "b h g n d -> b n (h g d)"))


@attention.add(
    "attn_gqa_broadcast_matmul",
    inputs=features(16),
    origin="a five-axis matmul that broadcasts each kv head over its group",
)
class GqaBroadcast(GroupedHeads):
    def forward(self, x):
        q, k, v = self.project(x)
        b, _, n, d = q.shape
        q = q.view(b, self.kv_heads, -1, n, d)
        y = self.weigh(q @ k.unsqueeze(2).transpose(-1, -2)) @ v.unsqueeze(2)
        return self.wo(y.flatten(1, 2).transpose(1, 2).reshape(b, n, -1))


@attention.add("attn_mqa_broadcast", inputs=features(18), origin="multi-query: one key-value head")
class Mqa(nn.Module):
    def __init__(self, dim=18, heads=3):
        super().__init__()
        self.heads, self.hd = heads, dim // heads
        self.c_attn = nn.Linear(dim, dim + 2 * self.hd)

    def forward(self, x):
        b, n, d = x.shape
        q, kv = self.c_attn(x).split((d, 2 * self.hd), dim=2)
        k, v = kv.split(self.hd, dim=-1)
        # Multi-query trick: (batch, seq x heads, head_dim) against one (batch, seq, head_dim).
        q = q.reshape(b, n * self.heads, self.hd)
        s = torch.bmm(q, k.transpose(1, 2)).view(b, n, self.heads, n) * self.hd**-0.5
        visible = torch.ones(n, n, dtype=torch.bool).tril()[None, :, None, :]
        p = torch.where(visible, s, -1e30).softmax(-1)
        return torch.bmm(p.view(b, n * self.heads, n), v).view(b, n, d)


@attention.add(
    "attn_mla",
    False,
    inputs=features(24),
    tags=("position",),
    origin="latent attention: low-rank kv, a shared rotary key part",
)
@attention.add(
    "attn_mla_absorbed",
    True,
    inputs=features(24),
    tags=("position",),
    origin="latent attention with the up-projections absorbed into queries and outputs",
)
class LatentAttention(nn.Module):
    def __init__(self, absorb, *, dim=24, heads=3, rank=10, nope=6, rope=4):
        super().__init__()
        self.absorb, self.heads, self.nope, self.rope, self.rank = absorb, heads, nope, rope, rank
        self.wq = nn.Linear(dim, heads * (nope + rope), bias=False)
        self.wkv_a = nn.Linear(dim, rank + rope, bias=False)
        self.kv_norm = nn.RMSNorm(rank)
        self.wkv_b = nn.Linear(rank, heads * 2 * nope, bias=False)
        self.wo = nn.Linear(heads * nope, dim, bias=False)

    def rotate(self, x):
        t = torch.arange(x.size(1), dtype=x.dtype)[:, None] * 100.0 ** -torch.tensor([0.0, 0.5])
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.heads, -1)
        q_nope, q_pe = q[..., : self.nope], self.rotate(q[..., self.nope :])
        kv, k_pe = self.wkv_a(x).split((self.rank, self.rope), dim=-1)
        kv, k_pe = self.kv_norm(kv), self.rotate(k_pe.unsqueeze(2))
        scale = (self.nope + self.rope) ** -0.5
        if not self.absorb:
            up = self.wkv_b(kv).view(b, n, self.heads, 2 * self.nope)
            k = torch.cat((up[..., : self.nope], k_pe.expand(-1, -1, self.heads, -1)), dim=-1)
            s = torch.einsum("bshd,bthd->bsht", torch.cat((q_nope, q_pe), -1), k) * scale
        else:
            w = self.wkv_b.weight.view(self.heads, 2 * self.nope, self.rank)
            q_lat = torch.einsum("bshd,hdc->bshc", q_nope, w[:, : self.nope])
            s = torch.einsum("bshc,btc->bsht", q_lat, kv)
            s = (s + torch.einsum("bshr,btr->bsht", q_pe, k_pe.squeeze(2))) * scale
        s = s + torch.full((n, n), float("-inf")).triu_(1).unsqueeze(1)
        p = s.softmax(dim=-1, dtype=torch.float32).type_as(x)
        if not self.absorb:
            y = torch.einsum("bsht,bthd->bshd", p, up[..., self.nope :])
        else:
            y = torch.einsum("bsht,btc->bshc", p, kv)
            y = torch.einsum("bshc,hdc->bshd", y, w[:, self.nope :])
        return self.wo(y.flatten(2))


@attention.add(
    "attn_differential",
    inputs=features(16),
    origin="differential attention: one softmax minus lambda times another",
)
class Differential(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.hd = heads, dim // heads // 2
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.lq1, self.lk1, self.lq2, self.lk2 = (
            nn.Parameter(torch.randn(self.hd) * 0.1) for _ in range(4)
        )
        self.norm = nn.RMSNorm(2 * self.hd)

    def forward(self, x):
        b, n, d = x.shape
        q = self.q(x).view(b, n, 2 * self.heads, self.hd).transpose(1, 2)
        k = self.k(x).view(b, n, 2 * self.heads, self.hd).transpose(1, 2)
        v = self.v(x).view(b, n, self.heads, 2 * self.hd).transpose(1, 2)
        s = q @ k.mT * self.hd**-0.5
        s = s + torch.triu(torch.zeros(n, n).float().fill_(float("-inf")), 1)
        p = F.softmax(s, -1, dtype=torch.float32).view(b, self.heads, 2, n, n)
        lam = (self.lq1 * self.lk1).sum().exp() - (self.lq2 * self.lk2).sum().exp() + 0.2
        y = self.norm((p[:, :, 0] - lam * p[:, :, 1]) @ v) * 0.8
        return y.transpose(1, 2).reshape(b, n, d)


@attention.add(
    "attn_flex_block_mask",
    inputs=features(16),
    warns="flex_attention called without torch.compile",
    tags=("flex",),
    origin="flex_attention with a causal block mask made in forward",
)
class FlexBlockMask(SdpaBase):
    def attend(self, q, k, v):
        def causal(b, h, q_idx, kv_idx):
            return q_idx >= kv_idx

        n = q.shape[2]
        block_mask = create_block_mask(causal, None, None, n, n, device="cpu")
        return flex_attention(q, k, v, block_mask=block_mask)


@attention.add(
    "attn_flex_score_mod",
    inputs=features(16),
    warns="flex_attention called without torch.compile",
    tags=("flex", "position"),
    origin="flex_attention with a score_mod: relative bias and -inf for the future",
)
class FlexScoreMod(SdpaBase):
    def attend(self, q, k, v):
        def score_mod(score, b, h, q_idx, kv_idx):
            biased = score - (q_idx - kv_idx) * 0.1 * (h + 1)
            return torch.where(q_idx >= kv_idx, biased, -float("inf"))

        return flex_attention(q, k, v, score_mod=score_mod)


@attention.add(
    "attn_talking_heads",
    inputs=features(16),
    origin="talking heads: heads mixed before and after the softmax",
)
class TalkingHeads(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.pre, self.post = (nn.Linear(heads, heads, bias=False) for _ in range(2))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = self.pre((q @ k.mT / 2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        p = s.masked_fill(_hidden(n), -torch.inf).softmax(-1)
        p = torch.einsum("bhij,gh->bgij", p, self.post.weight)
        return (p @ v).transpose(1, 2).reshape(b, n, d)


@attention.add(
    "attn_returns_weights", inputs=features(16), origin="returns the context and the weights"
)
class ReturnsWeights(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        s = self.q(x).matmul(self.k(x).transpose(1, 2)).div(x.size(-1) ** 0.5)
        attn = s.masked_fill(_hidden(x.size(1)), float("-inf")).softmax(dim=-1)
        return attn.matmul(self.v(x)), attn


@attention.add(
    "attn_returns_dict",
    inputs=features(16),
    origin="a dict of hidden states, keys and values, some of them optional",
)
class ReturnsDict(SdpaBase):
    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.out(y.transpose(1, 2).reshape(b, n, d))
        return {"hidden": y, "residual": x + y, "norm": y.norm(dim=-1)}


@dataclass
class BlockOutput:
    hidden: Tensor
    logits: Tensor
    extras: tuple[Tensor, ...] = ()


@attention.add(
    "attn_returns_dataclass", inputs=features(16), origin="an output dataclass, as libraries define"
)
class ReturnsDataclass(SdpaIsCausal):
    def forward(self, x):
        h = super().forward(x)
        return BlockOutput(hidden=h, logits=F.linear(h, self.out.weight), extras=(h.relu(),))


Attended = namedtuple("Attended", ["output", "entropy"])


@attention.add(
    "attn_returns_namedtuple", inputs=features(16), origin="a named tuple with a per-row statistic"
)
class ReturnsNamedTuple(ReturnsWeights):
    def forward(self, x):
        y, p = super().forward(x)
        return Attended(y, -(p * (p + 1e-9).log()).sum(-1))


@attention.add(
    "attn_all_hidden_states",
    inputs=features(16),
    origin="a stack that returns the hidden states of every layer in a tuple",
)
class AllHiddenStates(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(SdpaIsCausal() for _ in range(layers))

    def forward(self, x):
        states = (x,)
        for layer in self.layers:
            states = (*states, states[-1] + layer(states[-1]))
        return states[-1], states


@attention.add(
    "attn_seq_first_manual",
    inputs=seq_first(16),
    origin="(seq, batch, dim) by hand, in the way of tensor-parallel training code",
)
class SeqFirstManual(nn.Module):
    def __init__(self, hidden=16, heads=4):
        super().__init__()
        self.heads, self.hn = heads, hidden // heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, hidden_states):
        sq, b, _ = hidden_states.shape
        mixed = self.query_key_value(hidden_states).view(sq, b, self.heads, 3 * self.hn)
        query, key, value = torch.split(mixed, self.hn, dim=-1)
        query = query.reshape(sq, b * self.heads, self.hn)
        key = key.reshape(sq, b * self.heads, self.hn)
        scores = torch.bmm(query.transpose(0, 1), key.transpose(0, 1).transpose(1, 2))
        scores = scores.view(b, self.heads, sq, sq) / math.sqrt(self.hn)
        scores = scores.masked_fill(_hidden(sq)[None, None], -10000.0)
        probs = scores.softmax(dim=-1).view(b * self.heads, sq, sq)
        value = value.reshape(sq, b * self.heads, self.hn).transpose(0, 1)
        context = torch.bmm(probs, value).view(b, self.heads, sq, self.hn)
        return self.dense(context.permute(2, 0, 1, 3).reshape(sq, b, -1))


@attention.add(
    "attn_conv1x1_projections",
    inputs=features(16),
    origin="channels-first projections by 1x1 convolutions, as in text-to-speech code",
)
class Conv1x1(nn.Module):
    def __init__(self, channels=16, heads=2):
        super().__init__()
        self.heads = heads
        self.conv_q, self.conv_k, self.conv_v, self.conv_o = (
            nn.Conv1d(channels, channels, 1) for _ in range(4)
        )

    def forward(self, x):
        x = x.transpose(1, 2)
        b, d, t = x.size()
        q, k, v = (
            conv(x).view(b, self.heads, d // self.heads, t).transpose(2, 3)
            for conv in (self.conv_q, self.conv_k, self.conv_v)
        )
        scores = torch.matmul(q / math.sqrt(d // self.heads), k.transpose(-2, -1))
        scores = scores.masked_fill(torch.tril(torch.ones(t, t)) == 0, -1e4)
        out = torch.matmul(F.softmax(scores, dim=-1), v)
        return self.conv_o(out.transpose(2, 3).contiguous().view(b, d, t)).transpose(1, 2)


@attention.add(
    "attn_gated_by_sigmoid",
    inputs=features(16),
    origin="a sigmoid gate on the output",
)
class Gated(SdpaIsCausal):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 4)

    def attend(self, q, k, v):
        y = super().attend(q, k, v)
        return y * torch.sigmoid(self.gate(q.transpose(1, 2).flatten(2)).mT).unsqueeze(-1)


@attention.add(
    "attn_tied_keys_values", inputs=features(16), origin="keys and values from one projection"
)
class TiedKeyValue(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        kv = self.kv(x)
        s = torch.tensordot(self.q(x), torch.eye(16), dims=1) @ kv.transpose(1, 2) / 4
        return s.masked_fill(_hidden(x.size(1)), -torch.inf).softmax(-1) @ kv


@attention.add(
    "attn_shared_kv_across_layers",
    inputs=features(16),
    origin="keys and values made once and read by every layer",
)
class SharedKv(nn.Module):
    def __init__(self, dim=16, layers=3, heads=2):
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.q = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, x):
        b, n, d = x.shape
        k, v = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        for proj in self.q:
            q = proj(x).view(b, n, self.heads, -1).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + y.transpose(1, 2).reshape(b, n, d)
        return x


@attention.add(
    "attn_vmap_over_batch", inputs=features(16), origin="a one-sentence function under torch.vmap"
)
class VmapBatch(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def one(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        s = (q @ k.T / 4).masked_fill(_hidden(x.size(0)), -torch.inf)
        return s.softmax(-1) @ v

    def forward(self, x):
        return torch.vmap(self.one)(x)


@attention.add(
    "attn_memory_tokens",
    inputs=features(16),
    origin="learned key-value pairs before the sequence, visible to every position",
)
class MemoryKeys(SdpaBase):
    def __init__(self, slots=3):
        super().__init__()
        self.mem_k, self.mem_v = (nn.Parameter(torch.randn(4, slots, 4)) for _ in range(2))

    def attend(self, q, k, v):
        b, _, n, _ = q.shape
        k = torch.cat((self.mem_k.expand(b, -1, -1, -1), k), dim=2)
        v = torch.cat((self.mem_v.expand(b, -1, -1, -1), v), dim=2)
        s = q @ k.mT / 2
        hidden = torch.ones(n, k.size(2), dtype=torch.bool).triu(k.size(2) - n + 1)
        return s.masked_fill(hidden, -torch.inf).softmax(-1) @ v


@attention.add(
    "attn_head_width_differs",
    inputs=features(16),
    origin="value heads wider than query heads, output width unlike the input's",
)
class WideValues(nn.Module):
    def __init__(self, dim=16, heads=2, dk=5, dv=9):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(dim, heads * dk), nn.Linear(dim, heads * dk)
        self.v = nn.Linear(dim, heads * dv)

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).movedim(-2, 1) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.movedim(1, -2).flatten(-2)


@attention.add(
    "attn_two_inputs_query_and_context",
    inputs=features(16, copies=2),
    origin="queries from one sequence, keys and values from another of the same length, masked",
)
class TwoInputs(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, query, context):
        k, v = self.kv(context).chunk(2, dim=-1)
        s = self.q(query) @ k.transpose(1, 2) / 4
        return s.masked_fill(_hidden(query.shape[1]), -torch.inf).softmax(-1) @ v


@attention.add(
    "attn_checkpointed",
    inputs=features(16),
    origin="activation checkpointing around the attention",
)
class Checkpointed(SdpaIsCausal):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@attention.add(
    "attn_axial_rows",
    inputs=Inputs(
        make=lambda batch, seq: (torch.randn(batch, 3, seq, 16, generator=generator(batch, seq)),),
        axes=({0: "batch", 2: "seq"},),
        roles=("tokens",),
    ),
    origin="attention along one axis of a (batch, 3, seq, dim) grid, other axes folded",
)
class AxialRows(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        b, r, n, d = x.shape
        q, k, v = self.qkv(x.reshape(b * r, n, d)).chunk(3, dim=-1)
        s = (q @ k.mT / d**0.5).masked_fill(_hidden(n), -torch.inf)
        return (s.softmax(-1) @ v).view(b, r, n, d)


@attention.add(
    "attn_channels_first_input",
    inputs=Inputs(
        make=lambda batch, seq: (torch.randn(batch, 16, seq, generator=generator(batch, seq)),),
        axes=({0: "batch", 2: "seq"},),
        roles=("tokens",),
    ),
    origin="(batch, channels, seq) in and out, as convolutional code has it",
)
class ChannelsFirst(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=1)
        w = torch.einsum("bct,bcs->bts", q * 0.5, k * 0.5)
        w = w.masked_fill(_hidden(x.shape[2]), -torch.inf).softmax(-1)
        return x + torch.einsum("bts,bcs->bct", w, v)


ENTRIES = tuple(attention.entries)
