"""Modules in other number formats, or in several at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from .entry import Family, Inputs, features, ids
from .whole import VOCAB, GPTConfig, NanoGPT, SdpaLlama

dtypes = Family("dtype")


class Attention(nn.Module):
    def __init__(self, dtype, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.to(dtype)

    def split(self, x):
        b, n, _ = x.shape
        return self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

    def merge(self, y):
        return self.out(y.transpose(1, 2).flatten(2))


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return Inputs(
        make=lambda batch, seq: tuple(t.to(dtype) for t in inputs.make(batch, seq)),
        axes=inputs.axes,
        roles=inputs.roles,
    )


HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64


@dtypes.add("fp16_sdpa_is_causal", HALF, inputs=features(16, dtype=HALF), origin="SDPA in fp16")
@dtypes.add("bf16_sdpa_is_causal", BRAIN, inputs=features(16, dtype=BRAIN), origin="SDPA in bf16")
@dtypes.add(
    "fp64_sdpa_is_causal", DOUBLE, inputs=_cast(features(16), DOUBLE), origin="SDPA in fp64"
)
class Sdpa(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


@dtypes.add(
    "fp16_manual", HALF, inputs=features(16, dtype=HALF), origin="scores and softmax in fp16"
)
@dtypes.add(
    "bf16_manual", BRAIN, inputs=features(16, dtype=BRAIN), origin="scores and softmax in bf16"
)
@dtypes.add(
    "fp64_manual",
    DOUBLE,
    inputs=_cast(features(16), DOUBLE),
    origin="scores and softmax in fp64, as in numerical checks",
)
class Manual(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        n = x.shape[1]
        s = q @ k.mT * (1.0 / math.sqrt(q.size(-1)))
        s = s + torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        return self.merge(s.softmax(-1) @ v)


@dtypes.add(
    "fp16_softmax_in_fp32",
    HALF,
    inputs=features(16, dtype=HALF),
    origin="fp16 weights, scores upcast for the softmax and cast back",
)
@dtypes.add(
    "bf16_softmax_in_fp32",
    BRAIN,
    inputs=features(16, dtype=BRAIN),
    origin="bf16 weights, softmax(dtype=float32).to(query.dtype)",
)
class Upcast(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        n = x.shape[1]
        s = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.size(-1))
        s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), torch.finfo(s.dtype).min)
        p = F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)
        return self.merge(torch.matmul(p, v))


@dtypes.add(
    "fp16_minus_1e4_mask",
    HALF,
    inputs=features(16, dtype=HALF),
    origin="a mask of -10000, chosen because it fits fp16",
)
class Minus1e4(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        mask = torch.ones(x.size(1), x.size(1), dtype=x.dtype).tril()
        s = (q * 0.35) @ k.mT
        return self.merge((s * mask - 1e4 * (1 - mask)).softmax(-1) @ v)


@dtypes.add(
    "bf16_llama",
    inputs=ids(VOCAB),
    tags=("whole_model", "position"),
    origin="a Llama-style model cast to bf16, rotary in fp32",
)
def bf16_llama() -> nn.Module:
    model = SdpaLlama()
    inv_freq = model.inv_freq
    model = model.to(BRAIN)
    model.inv_freq = inv_freq

    class InBf16(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            m = self.model
            t = torch.arange(input_ids.shape[1])
            freqs = t[:, None].float() * m.inv_freq
            emb = torch.cat((freqs, freqs), dim=-1)
            cos, sin = emb.cos().to(BRAIN), emb.sin().to(BRAIN)
            x = m.embed(input_ids)
            for layer in m.layers:
                x = layer(x, cos, sin)
            return m.norm(x) @ m.embed.weight.T

    return InBf16()


@dtypes.add(
    "fp16_nanogpt",
    inputs=ids(VOCAB),
    limit=24,
    tags=("whole_model",),
    origin="a nanoGPT-style model after .half()",
)
def fp16_nanogpt() -> nn.Module:
    return NanoGPT(True, GPTConfig(n_layer=1, n_embd=16, n_head=2)).half()


@dtypes.add(
    "mixed_fp32_norms_fp16_matmuls",
    inputs=features(16),
    origin="fp32 in and out, norms in fp32, attention in fp16",
)
class MixedNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attn = Sdpa(HALF)

    def forward(self, x):
        return x + self.attn(self.norm(x).half()).float()


@dtypes.add(
    "mixed_autocast_bf16",
    inputs=features(16),
    origin="autocast to bf16 inside forward",
)
class AutocastInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Upcast(torch.float32)

    def forward(self, x):
        with torch.autocast("cpu", dtype=BRAIN):
            y = self.attn(x)
        return y.float()


@dtypes.add(
    "mixed_int8_weights_dequantised",
    inputs=features(16),
    origin="int8 weights with a scale per row, multiplied out in forward",
)
class Int8Weights(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        w = torch.randn(3 * dim, dim) / 4
        scale = w.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", torch.round(w / scale).to(torch.int8))
        self.register_buffer("scales", scale)

    def forward(self, x):
        q, k, v = F.linear(x, self.weight.to(x.dtype) * self.scales).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@dtypes.add(
    "mixed_int32_ids",
    inputs=ids(VOCAB, dtype=torch.int32),
    limit=24,
    tags=("whole_model",),
    origin="token ids in int32",
)
class Int32Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt = NanoGPT(False, GPTConfig(n_layer=1, n_embd=16, n_head=2))

    def forward(self, idx):
        return self.gpt(idx)


@dtypes.add(
    "mixed_uint8_bytes",
    inputs=ids(250, dtype=torch.uint8),
    limit=24,
    origin="raw bytes in uint8, cast to long for the embedding",
)
class ByteInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.pos = nn.Embedding(256, 16), nn.Embedding(24, 16)
        self.attn = Manual(torch.float32)

    def forward(self, raw):
        return self.attn(self.emb(raw.long()) + self.pos(torch.arange(raw.shape[1])))


@dtypes.add(
    "mixed_complex_weights_rotary_fp16",
    inputs=features(16, dtype=HALF),
    tags=("position",),
    origin="fp16 attention with a rotary table in complex64",
)
class ComplexRotaryHalf(Attention):
    def __init__(self):
        super().__init__(HALF)
        angle = torch.outer(torch.arange(64.0), 100.0 ** -(torch.arange(4) / 4))
        self.freqs_cis = torch.polar(torch.ones_like(angle), angle)

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.freqs_cis[: x.size(2)]).flatten(3).type_as(x)

    def forward(self, x):
        q, k, v = self.split(x)
        q, k = self.rotate(q), self.rotate(k)
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


@dtypes.add(
    "mixed_default_fp64_constants",
    inputs=features(16),
    origin="python floats and fp64 position tables that promote, cast back at the end",
)
class Fp64Tables(Attention):
    def __init__(self):
        super().__init__(torch.float32)

    def forward(self, x):
        t = torch.arange(x.size(1), dtype=DOUBLE)[:, None] * torch.tensor([1.0, 0.1], dtype=DOUBLE)
        pos = torch.cat((t.sin(), t.cos()), dim=-1).repeat(1, 4)
        q, k, v = self.split((x + pos).float())
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


ENTRIES = tuple(dtypes.entries)
