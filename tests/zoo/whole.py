"""Whole language models, written the way their authors publish them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import Family, Inputs, features, generator, ids

whole = Family("whole_model")
VOCAB = 53


@dataclass
class GPTConfig:
    block_size: int = 24
    vocab_size: int = VOCAB
    n_layer: int = 2
    n_head: int = 3
    n_embd: int = 18
    dropout: float = 0.1
    bias: bool = True


class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class GPTAttention(nn.Module):
    def __init__(self, config, flash):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.n_embd, self.dropout = config.n_head, config.n_embd, config.dropout
        self.flash = flash
        if not self.flash:
            size = config.block_size
            self.register_buffer("bias", torch.tril(torch.ones(size, size)).view(1, 1, size, size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if self.flash:
            p = self.dropout if self.training else 0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class GPTBlock(nn.Module):
    def __init__(self, config, flash):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = GPTAttention(config, flash)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias),
            nn.Dropout(config.dropout),
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@whole.add(
    "lm_nanogpt_flash",
    True,
    inputs=ids(VOCAB),
    limit=24,
    origin="nanoGPT-style language model, SDPA, logits of every position",
)
@whole.add(
    "lm_nanogpt_manual",
    False,
    inputs=ids(VOCAB),
    limit=24,
    origin="nanoGPT-style language model, attention by hand",
)
@whole.add(
    "lm_nanogpt_no_bias",
    True,
    GPTConfig(bias=False, n_embd=20, n_head=2),
    inputs=ids(VOCAB),
    limit=24,
    origin="nanoGPT-style language model without biases, norms included",
)
class NanoGPT(nn.Module):
    def __init__(self, flash, config=None):
        super().__init__()
        config = config or GPTConfig()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([GPTBlock(config, flash) for _ in range(config.n_layer)]),
                "ln_f": LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx):
        _, t = idx.size()
        assert t <= self.config.block_size, (
            f"Cannot forward sequence of length {t}, block size is only {self.config.block_size}"
        )
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        tok_emb = self.transformer.wte(idx)
        x = self.transformer.drop(tok_emb + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


@whole.add(
    "lm_logits_and_optional_loss",
    inputs=ids(VOCAB),
    limit=24,
    origin="a model whose forward(idx, targets=None) returns (logits, None)",
)
class LogitsAndLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt = NanoGPT(True, GPTConfig(n_layer=1, n_embd=16, n_head=2))

    def forward(self, idx, targets=None):
        logits = self.gpt(idx)
        if targets is None:
            loss = None
        else:
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


class Head(nn.Module):
    def __init__(self, n_embd, head_size, block_size, dropout=0.2):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        _, T, _ = x.shape
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = self.dropout(F.softmax(wei, dim=-1))
        return wei @ self.value(x)


class MultiHead(nn.Module):
    def __init__(self, n_embd, num_heads, block_size):
        super().__init__()
        size = n_embd // num_heads
        self.heads = nn.ModuleList([Head(n_embd, size, block_size) for _ in range(num_heads)])
        self.proj = nn.Linear(size * num_heads, n_embd)

    def forward(self, x):
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))


class LectureBlock(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.sa = MultiHead(n_embd, n_head, block_size)
        self.ffwd = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd)
        )
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


@whole.add(
    "lm_lecture_gpt",
    inputs=ids(VOCAB),
    limit=24,
    origin="a video lecture's GPT: one module per head, nn.Sequential of blocks",
)
class LectureGPT(nn.Module):
    def __init__(self, n_embd=16, n_head=4, n_layer=2, block_size=24):
        super().__init__()
        self.token_embedding_table = nn.Embedding(VOCAB, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(
            *[LectureBlock(n_embd, n_head, block_size) for _ in range(n_layer)]
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, VOCAB)

    def forward(self, idx):
        _, T = idx.shape
        pos_emb = self.position_embedding_table(torch.arange(T, device=idx.device))
        x = self.blocks(self.token_embedding_table(idx) + pos_emb)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


def precompute_freqs_cis(dim, end, theta=10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    freqs = torch.outer(torch.arange(end), freqs).float()
    return torch.polar(torch.ones_like(freqs), freqs)


def apply_rotary_emb(xq, xk, freqs_cis):
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis[None, :, None, :]
    xq_out = torch.view_as_real(xq_ * freqs_cis).flatten(3)
    xk_out = torch.view_as_real(xk_ * freqs_cis).flatten(3)
    return xq_out.type_as(xq), xk_out.type_as(xk)


def repeat_kv(x, n_rep):
    bs, slen, n_kv_heads, head_dim = x.shape
    if n_rep == 1:
        return x
    x = x[:, :, :, None, :].expand(bs, slen, n_kv_heads, n_rep, head_dim)
    return x.reshape(bs, slen, n_kv_heads * n_rep, head_dim)


class LlamaBlock(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, hidden):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)

    def attention(self, x, freqs_cis, mask):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xk = self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xv = self.wv(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)
        keys = repeat_kv(xk, self.n_heads // self.n_kv_heads).transpose(1, 2)
        values = repeat_kv(xv, self.n_heads // self.n_kv_heads).transpose(1, 2)
        scores = torch.matmul(xq.transpose(1, 2), keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, values)
        return self.wo(output.transpose(1, 2).contiguous().view(bsz, seqlen, -1))

    def forward(self, x, freqs_cis, mask):
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        z = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(z)) * self.w3(z))


@whole.add(
    "lm_llama_reference",
    inputs=ids(VOCAB),
    limit=32,
    tags=("guard", "position"),
    origin="Llama's reference code: complex rotary table, mask only if seqlen > 1",
)
class Llama(nn.Module):
    def __init__(self, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=32):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, dim)
        self.layers = nn.ModuleList(
            LlamaBlock(dim, n_heads, n_kv_heads, 44) for _ in range(n_layers)
        )
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, VOCAB, bias=False)
        self.freqs_cis = precompute_freqs_cis(dim // n_heads, max_seq_len)

    def forward(self, tokens):
        _, seqlen = tokens.shape
        h = self.tok_embeddings(tokens)
        freqs_cis = self.freqs_cis.to(h.device)[:seqlen]
        mask = None
        if seqlen > 1:
            mask = torch.full((seqlen, seqlen), float("-inf"), device=tokens.device)
            mask = torch.triu(mask, diagonal=1).type_as(h)
        for layer in self.layers:
            h = layer(h, freqs_cis, mask)
        return self.output(self.norm(h)).float()


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class SdpaLlamaLayer(nn.Module):
    def __init__(self, hidden, heads, kv_heads, head_dim):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * 40, bias=False)
        self.down = nn.Linear(40, hidden, bias=False)
        self.input_norm, self.post_norm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)

    def forward(self, x, cos, sin):
        b, n, _ = x.shape
        h = self.input_norm(x)
        q = self.q_proj(h).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, n, -1))
        gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


@whole.add(
    "lm_llama_sdpa_gqa",
    inputs=ids(VOCAB),
    tags=("position",),
    origin="a modern Llama-style model: SDPA with grouped heads, rotary computed on the fly",
)
class SdpaLlama(nn.Module):
    def __init__(self, hidden=24, layers=2, heads=4, kv_heads=2, head_dim=10):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, hidden)
        self.layers = nn.ModuleList(
            SdpaLlamaLayer(hidden, heads, kv_heads, head_dim) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(hidden)
        inv_freq = 10000 ** -(torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, input_ids):
        t = torch.arange(input_ids.shape[1], device=input_ids.device)
        freqs = t[:, None].float() * self.inv_freq[None, :]
        emb = torch.cat((freqs, freqs), dim=-1)
        x = self.embed(input_ids) * self.embed.embedding_dim**0.5
        for layer in self.layers:
            x = layer(x, emb.cos(), emb.sin())
        return self.norm(x) @ self.embed.weight.T


class SinusoidEncoding(nn.Module):
    def __init__(self, d_model, max_len, dropout=0.1):
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, 1, d_model)
        pe[:, 0, 0::2] = torch.sin(position * div_term)
        pe[:, 0, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return self.dropout(x + self.pe[: x.size(0)])


@whole.add(
    "lm_transformer_tutorial",
    inputs=ids(VOCAB, transposed=True),
    limit=40,
    origin="the word-language-model tutorial on nn.TransformerEncoder, sequence first",
)
class TutorialLM(nn.Module):
    def __init__(self, d_model=16, nhead=2, d_hid=20, nlayers=2):
        super().__init__()
        self.d_model = d_model
        self.pos_encoder = SinusoidEncoding(d_model, 40)
        layer = nn.TransformerEncoderLayer(d_model, nhead, d_hid, dropout=0.1)
        self.transformer_encoder = nn.TransformerEncoder(layer, nlayers, enable_nested_tensor=False)
        self.embedding = nn.Embedding(VOCAB, d_model)
        self.linear = nn.Linear(d_model, VOCAB)

    def forward(self, src, src_mask=None):
        src = self.pos_encoder(self.embedding(src) * math.sqrt(self.d_model))
        if src_mask is None:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src)).to(src.device)
        return self.linear(self.transformer_encoder(src, src_mask))


class ParallelBlock(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.fused = nn.Linear(dim, 3 * dim + 48, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.ff_out = nn.Linear(24, dim, bias=False)

    def forward(self, x, slopes):
        b, n, d = x.shape
        q, k, v, ff = self.fused(self.norm(x)).split((d, d, d, 48), dim=-1)
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        pos = torch.arange(n)
        bias = slopes.view(-1, 1, 1) * (pos[None, None, :] - pos[None, :, None])
        s = q @ k.mT / q.shape[-1] ** 0.5 + bias
        s = s.masked_fill(pos[None, :] > pos[:, None], float("-inf"))
        y = (s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
        ff, gate = ff.chunk(2, dim=-1)
        return x + self.attn_out(y) + self.ff_out(F.silu(gate) * ff)


@whole.add(
    "lm_parallel_blocks_alibi",
    inputs=ids(VOCAB),
    tags=("position",),
    origin="parallel attention and feed-forward from one projection, with ALiBi",
)
class ParallelAlibiLM(nn.Module):
    def __init__(self, dim=16, depth=2):
        super().__init__()
        self.token_emb = nn.Embedding(VOCAB, dim)
        self.layers = nn.ModuleList([ParallelBlock(dim) for _ in range(depth)])
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, VOCAB, bias=False))
        self.register_buffer("slopes", torch.tensor([0.25, 0.0625]))

    def forward(self, tokens):
        x = self.token_emb(tokens)
        for block in self.layers:
            x = block(x, self.slopes)
        return self.to_logits(x)


class DenseMoE(nn.Module):
    """Every expert computes every token; the router's weights do the rest."""

    def __init__(self, dim=16, experts=4, top_k=2):
        super().__init__()
        self.gate = nn.Linear(dim, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, dim, 20) / 4)
        self.down = nn.Parameter(torch.randn(experts, 20, dim) / 4)
        self.top_k = top_k

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        route = torch.zeros(*x.shape[:-1], self.up.shape[0]).scatter(-1, chosen, weights)
        h = F.silu(torch.einsum("bnd,edf->bnef", x, self.up))
        return torch.einsum("bnef,efd,bne->bnd", h, self.down, route)


class LoopMoE(nn.Module):
    """A loop over experts, each taking the tokens routed to it."""

    def __init__(self, dim=16, experts=3):
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 24), nn.ReLU(), nn.Linear(24, dim)) for _ in range(experts)
        )

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, picked = torch.topk(self.gate(flat).softmax(-1), 2)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, nth = torch.where(picked == i)
            out.index_add_(0, token, weights[token, nth, None] * expert(flat[token]))
        return out.view_as(x)


@whole.add(
    "lm_moe_dense",
    DenseMoE,
    inputs=ids(VOCAB),
    limit=24,
    tags=("moe",),
    origin="a mixture of experts in which all experts run and the router weighs them",
)
@whole.add(
    "lm_moe_routed_loop",
    LoopMoE,
    inputs=ids(VOCAB),
    limit=24,
    tags=("moe",),
    origin="a mixture of experts with torch.where and index_add_ per expert",
    causal_up_to=1e-6,  # the experts' matmuls have as many rows as tokens were routed to them
)
class MoELM(nn.Module):
    def __init__(self, moe, dim=16, ctx=24):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCAB, dim), nn.Embedding(ctx, dim)
        self.attn = GPTAttention(GPTConfig(n_embd=dim, n_head=2, block_size=ctx), True)
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.moe, self.head = moe(), nn.Linear(dim, VOCAB, bias=False)

    def forward(self, idx):
        x = self.emb(idx) + self.pos(torch.arange(idx.shape[1]))
        x = x + self.attn(self.n1(x))
        return self.head(x + self.moe(self.n2(x)))


@whole.add(
    "lm_shared_layers",
    inputs=ids(VOCAB),
    limit=24,
    origin="one block applied three times with a step embedding (a universal transformer)",
)
class SharedLayers(nn.Module):
    def __init__(self, dim=16, steps=3, ctx=24):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCAB, dim), nn.Parameter(torch.randn(ctx, dim) / 4)
        self.step = nn.Parameter(torch.randn(steps, 1, dim) / 4)
        self.block = GPTBlock(GPTConfig(n_embd=dim, n_head=2, block_size=ctx), True)

    def forward(self, idx):
        x = self.emb(idx) + self.pos[: idx.size(1)]
        for s in self.step:
            x = self.block(x + s)
        return F.linear(x, self.emb.weight)


@whole.add(
    "lm_last_position_only",
    inputs=ids(VOCAB),
    limit=24,
    tags=("last_position",),
    origin="logits of the last position only, as for sampling",
    cacheable=False,
)
class LastPositionOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt = NanoGPT(True, GPTConfig(n_layer=1, n_embd=16, n_head=2))

    def forward(self, idx):
        g = self.gpt.transformer
        x = g.wte(idx) + g.wpe(torch.arange(idx.shape[1]))
        for block in g.h:
            x = block(x)
        return self.gpt.lm_head(g.ln_f(x)[:, [-1], :])


def _trajectories() -> Inputs:
    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq)
        return (
            torch.randn(batch, seq, 1, generator=rng),
            torch.randn(batch, seq, 5, generator=rng),
            torch.randn(batch, seq, 3, generator=rng),
        )

    return Inputs(make=make, axes=({0: "batch", 1: "seq"},) * 3, roles=("tokens",) * 3)


@whole.add(
    "lm_interleaved_modalities",
    inputs=_trajectories(),
    limit=10,
    origin="a decision transformer: return, state and action interleaved into one sequence",
)
class InterleavedModalities(nn.Module):
    def __init__(self, dim=16, max_len=10):
        super().__init__()
        self.ret, self.state, self.act = nn.Linear(1, dim), nn.Linear(5, dim), nn.Linear(3, dim)
        self.time = nn.Embedding(max_len, dim)
        self.block = GPTBlock(GPTConfig(n_embd=dim, n_head=2, block_size=3 * max_len), True)
        self.predict = nn.Linear(dim, 3)

    def forward(self, returns, states, actions):
        b, n, _ = states.shape
        at = self.time(torch.arange(n))
        tokens = torch.stack(
            (self.ret(returns) + at, self.state(states) + at, self.act(actions) + at), dim=1
        )
        x = tokens.permute(0, 2, 1, 3).reshape(b, 3 * n, -1)
        x = self.block(x).reshape(b, n, 3, -1).permute(0, 2, 1, 3)
        return torch.tanh(self.predict(x[:, 2]))


@whole.add(
    "lm_t5_style_decoder",
    inputs=ids(VOCAB),
    tags=("position",),
    origin="a T5-style decoder stack without cross-attention: bias shared by all layers, no scale",
)
class T5StyleDecoder(nn.Module):
    def __init__(self, dim=16, heads=2, layers=2):
        super().__init__()
        self.heads = heads
        self.shared = nn.Embedding(VOCAB, dim)
        self.relative = nn.Embedding(8, heads)
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(layers))
        self.o = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(layers))
        self.final = RMSNorm(dim)

    def forward(self, input_ids):
        b, n = input_ids.shape
        x = self.shared(input_ids)
        t = torch.arange(n)
        bias = self.relative((t[:, None] - t[None, :]).clamp(0, 7)).permute(2, 0, 1)[None]
        bias = bias + (t[None, :] > t[:, None]) * torch.finfo(x.dtype).min
        for qkv, o, norm in zip(self.qkv, self.o, self.norms, strict=True):
            q, k, v = qkv(norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            p = (q @ k.transpose(3, 2) + bias).softmax(-1)
            x = x + o((p @ v).transpose(1, 2).reshape(b, n, -1))
        return self.final(x) @ self.shared.weight.t() * x.shape[-1] ** -0.5


@whole.add(
    "lm_continuous_regression",
    inputs=features(6),
    limit=24,
    origin="a causal transformer over time series: features in, next features out",
)
class TimeSeries(nn.Module):
    def __init__(self, features=6, dim=16, ctx=24):
        super().__init__()
        self.inp, self.out = nn.Linear(features, dim), nn.Linear(dim, features)
        self.pos = nn.Parameter(torch.zeros(1, ctx, dim).normal_(std=0.3))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 24, batch_first=True, norm_first=True, activation="gelu"
        )
        self.enc = nn.TransformerEncoder(layer, 2, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, x):
        n = x.shape[1]
        h = self.inp(x) + self.pos[:, :n]
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
        return x + self.out(self.enc(h, mask=mask, is_causal=True))


@whole.add(
    "lm_two_heads_out",
    inputs=ids(VOCAB),
    limit=24,
    origin="policy logits and a value per position from one causal trunk",
)
class TwoHeadsOut(nn.Module):
    def __init__(self, dim=16, ctx=24):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCAB, dim), nn.Embedding(ctx, dim)
        self.trunk = GPTBlock(GPTConfig(n_embd=dim, n_head=2, block_size=ctx), False)
        self.policy, self.value = nn.Linear(dim, 7), nn.Linear(dim, 1)

    def forward(self, obs):
        h = self.trunk(self.emb(obs) + self.pos.weight[: obs.shape[1]])
        return {"logits": self.policy(h), "value": self.value(h).squeeze(-1)}


@whole.add(
    "lm_post_norm_gated",
    inputs=ids(VOCAB),
    limit=24,
    origin="post-norm blocks with a sigmoid gate on attention and a squared-ReLU MLP",
)
class PostNormGated(nn.Module):
    def __init__(self, dim=16, ctx=24, layers=2):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCAB, dim), nn.Embedding(ctx, dim)
        self.att = nn.ModuleList(
            nn.MultiheadAttention(dim, 2, batch_first=True) for _ in range(layers)
        )
        self.gate = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.mlp = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.ln = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))

    def forward(self, idx):
        n = idx.shape[1]
        x = self.emb(idx) + self.pos(torch.arange(n).unsqueeze(0))
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        for att, gate, mlp, ln in zip(self.att, self.gate, self.mlp, self.ln, strict=True):
            y, _ = att(x, x, x, attn_mask=mask, need_weights=False)
            x = ln(x + torch.sigmoid(gate(x)) * y)
            x = ln(x + F.relu(mlp(x)).square())
        return x @ self.emb.weight.mT


@whole.add(
    "lm_value_residual_skips",
    inputs=ids(VOCAB),
    origin="speed-run style: values mixed with the first layer's, U-shaped skips, logits capped",
)
class ValueResidual(nn.Module):
    def __init__(self, dim=16, heads=2, layers=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(VOCAB, dim)
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(layers))
        self.lambdas = nn.Parameter(torch.rand(layers, 2))
        self.skip = nn.Parameter(torch.ones(layers // 2))

    def forward(self, idx):
        b, n = idx.shape
        x0 = x = F.rms_norm(self.embed(idx), (self.embed.embedding_dim,))
        first, stack = None, []
        for i, (qkv, proj) in enumerate(zip(self.qkv, self.proj, strict=True)):
            if i >= len(self.qkv) // 2:
                x = x + self.skip[i - len(self.qkv) // 2] * stack.pop()
            x = self.lambdas[i, 0] * x + self.lambdas[i, 1] * x0
            q, k, v = qkv(x).view(b, n, 3 * self.heads, -1).chunk(3, dim=2)
            first = v if first is None else first
            v = 0.5 * v + 0.5 * first.view_as(v)
            q, k = F.rms_norm(q, (q.size(-1),)), F.rms_norm(k, (k.size(-1),))
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=0.3
            )
            x = x + proj(y.transpose(1, 2).contiguous().view(b, n, -1))
            if i < len(self.qkv) // 2:
                stack.append(x)
        return 15 * torch.tanh(F.linear(x, self.embed.weight) / 15)


ENTRIES = tuple(whole.entries)
