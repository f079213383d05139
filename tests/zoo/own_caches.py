"""Modules that take the keys and values of the past and give back the present ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from .entry import Family, Inputs, generator

own_caches = Family("cache")
HEADS, HEAD_DIM, DIM = 2, 8, 16


def _draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


def past_kv(
    *, heads: int = HEADS, layers: int = 1, layout: str = "bhsd", head_dim: int = HEAD_DIM
) -> Inputs:
    """x (batch, seq, 16), then past key and value per layer, in the axis order of `layout`."""
    axis = {"b": "batch", "s": "past_seq"}
    axes = {i: axis[letter] for i, letter in enumerate(layout) if letter in axis}

    def make(batch: int, seq: int, past: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq, past)
        size = {"b": batch, "h": heads, "s": past, "d": head_dim}
        shape = [size[letter] for letter in layout]
        kv = tuple(_draw(rng, *shape) for _ in range(2 * layers))
        return (_draw(rng, batch, seq, DIM), *kv)

    return Inputs(
        make=make,
        axes=({0: "batch", 1: "seq"}, *(axes,) * (2 * layers)),
        roles=("tokens", *("past",) * (2 * layers)),
    )


class Cached(nn.Module):
    def __init__(self, heads=HEADS, kv_heads=HEADS):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = nn.Linear(DIM, heads * HEAD_DIM)
        self.k_proj = nn.Linear(DIM, kv_heads * HEAD_DIM)
        self.v_proj = nn.Linear(DIM, kv_heads * HEAD_DIM)
        self.o_proj = nn.Linear(heads * HEAD_DIM, DIM)

    def split(self, x):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.kv_heads, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.kv_heads, HEAD_DIM).transpose(1, 2)
        return q, k, v

    def merge(self, y):
        return self.o_proj(y.transpose(1, 2).flatten(2))


@own_caches.add(
    "cache_sdpa_bool", inputs=past_kv(), origin="past joined by cat, a lower-right boolean mask"
)
class SdpaBool(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        n, total = q.shape[2], k.shape[2]
        mask = torch.ones(n, total, dtype=torch.bool).tril(diagonal=total - n)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), k, v


@own_caches.add(
    "cache_triu_offset", inputs=past_kv(), origin="triu with diagonal past + 1, scores by hand"
)
class TriuOffset(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        start_pos = past_key.size(2)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        mask = torch.full((x.size(1), k.size(2)), float("-inf")).triu(start_pos + 1)
        p = (q @ k.transpose(2, 3) / HEAD_DIM**0.5 + mask).softmax(-1)
        return self.merge(p @ v), (k, v)


@own_caches.add(
    "cache_hstack_zeros",
    inputs=past_kv(),
    origin="Llama's reference: a (seq, seq) triangle with zeros for the past to its left",
)
class HstackZeros(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        n = x.size(1)
        mask = torch.triu(torch.full((n, n), float("-inf")), diagonal=1)
        mask = torch.hstack([torch.zeros((n, past_key.size(2))), mask])
        return self.merge((q @ k.mT * HEAD_DIM**-0.5 + mask).softmax(-1) @ v), k, v


@own_caches.add(
    "cache_rotary_offset",
    inputs=past_kv(),
    tags=("position",),
    origin="rotary positions that start at the length of the past",
)
class RotaryOffset(Cached):
    def rotate(self, x, offset):
        t = torch.arange(offset, offset + x.size(2), dtype=torch.float32)
        freqs = t[:, None] * 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        emb = torch.cat((freqs, freqs), dim=-1)
        half = HEAD_DIM // 2
        return x * emb.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * emb.sin()

    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        offset = past_key.shape[2]
        k = torch.cat((past_key, self.rotate(k, offset)), dim=2)
        v = torch.cat((past_value, v), dim=2)
        i = torch.arange(x.size(1))[:, None] + offset
        mask = i >= torch.arange(k.size(2))[None, :]
        y = F.scaled_dot_product_attention(self.rotate(q, offset), k, v, attn_mask=mask)
        return {"hidden": self.merge(y), "present_key": k, "present_value": v}


@own_caches.add(
    "cache_buffer_slice",
    inputs=past_kv(),
    limit=24,
    origin="GPT-2's bias[:, :, total - n : total, :total], keys and values joined",
)
class BufferSlice(Cached):
    def __init__(self):
        super().__init__()
        self.register_buffer("bias", torch.ones(24, 24, dtype=torch.bool).tril().view(1, 1, 24, 24))

    def forward(self, x, past_key, past_value):
        query, key, value = self.split(x)
        key, value = torch.cat((past_key, key), -2), torch.cat((past_value, value), -2)
        w = torch.matmul(query, key.transpose(-1, -2)) / HEAD_DIM**0.5
        nd, ns = w.size(-2), w.size(-1)
        w = torch.where(self.bias[:, :, ns - nd : ns, :ns], w, torch.finfo(w.dtype).min)
        return self.merge(w.softmax(-1) @ value), (key, value)


@own_caches.add(
    "cache_learned_positions",
    inputs=past_kv(),
    limit=24,
    tags=("position",),
    origin="learned positions looked up at past + arange",
)
class LearnedPositions(SdpaBool):
    def __init__(self):
        super().__init__()
        self.wpe = nn.Embedding(24, DIM)

    def forward(self, x, past_key, past_value):
        at = torch.arange(past_key.size(-2), past_key.size(-2) + x.size(1))
        return super().forward(x + self.wpe(at), past_key, past_value)


@own_caches.add(
    "cache_grouped_heads",
    4,
    2,
    inputs=past_kv(heads=2),
    origin="a cache of the key-value heads only, expanded after the join",
)
class GroupedCache(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        groups = self.heads // self.kv_heads
        full_k, full_v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        n, total = x.size(1), k.size(2)
        s = q @ full_k.mT / HEAD_DIM**0.5
        s = s.masked_fill(torch.ones(n, total).triu(total - n + 1).bool(), float("-inf"))
        return self.merge(s.softmax(-1) @ full_v), k, v


@own_caches.add(
    "cache_is_causal_if_longer",
    inputs=past_kv(),
    tags=("guard",),
    origin="a decode shortcut: no mask for one query, a lower-right mask else",
)
class NoMaskForOne(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        mask = None
        if x.size(1) > 1:
            mask = torch.ones(x.size(1), k.size(2), dtype=torch.bool)
            mask = mask.tril(k.size(2) - x.size(1))
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), k, v


@own_caches.add(
    "cache_lower_right_bias", inputs=past_kv(), origin="causal_lower_right with a longer key axis"
)
class LowerRight(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        y = F.scaled_dot_product_attention(q, k, v, causal_lower_right(q.size(2), k.size(2)))
        return self.merge(y), k, v


@own_caches.add(
    "cache_seq_first_layout",
    inputs=past_kv(layout="sbhd"),
    origin="past as (past, batch, heads, head_dim), in the way of Megatron-style code",
)
class SeqFirstCache(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = (t.permute(2, 0, 1, 3) for t in self.split(x))
        k, v = torch.cat((past_key, k), dim=0), torch.cat((past_value, v), dim=0)
        s = torch.einsum("ibhd,jbhd->bhij", q, k) / HEAD_DIM**0.5
        n, total = q.size(0), k.size(0)
        hidden = torch.arange(total)[None, :] > torch.arange(n)[:, None] + (total - n)
        p = s.masked_fill(hidden, -10000.0).softmax(-1)
        return self.merge(torch.einsum("bhij,jbhd->bhid", p, v)), k, v


@own_caches.add(
    "cache_folded_heads_layout",
    inputs=past_kv(layout="bsd", head_dim=16),
    origin="past as (batch, past, dim), heads split after the join",
)
class FoldedCache(Cached):
    def forward(self, x, past_key, past_value):
        k = torch.cat((past_key, self.k_proj(x)), dim=1)
        v = torch.cat((past_value, self.v_proj(x)), dim=1)
        q, hk, hv = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.q_proj(x), k, v))
        n, total = x.size(1), k.size(1)
        bias = torch.zeros(n, total).masked_fill(
            torch.ones(n, total, dtype=torch.bool).triu(total - n + 1), float("-inf")
        )
        return self.merge(F.scaled_dot_product_attention(q, hk, hv, bias)), k, v


def _stacked() -> Inputs:
    def make(batch: int, seq: int, past: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq, past)
        return (
            _draw(rng, batch, seq, DIM),
            _draw(rng, 2, 2, batch, HEADS, past, HEAD_DIM),
        )

    return Inputs(
        make=make,
        axes=({0: "batch", 1: "seq"}, {2: "batch", 4: "past_seq"}),
        roles=("tokens", "past"),
    )


@own_caches.add(
    "cache_stacked_in_one_tensor",
    inputs=_stacked(),
    origin="one tensor (layers, 2, batch, heads, past, head_dim) in and out, two layers",
)
class StackedCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(SdpaBool() for _ in range(2))

    def forward(self, x, past):
        presents = []
        for i, layer in enumerate(self.layers):
            y, k, v = layer(x, past[i, 0], past[i, 1])
            x = x + y
            presents.append(torch.stack((k, v)))
        return x, torch.stack(presents)


@own_caches.add(
    "cache_two_layers_flat",
    inputs=past_kv(layers=2),
    origin="*past: key and value of every layer as separate arguments, the presents as a list",
)
class TwoLayersFlat(StackedCache):
    def forward(self, x, *past):
        presents = []
        for i, layer in enumerate(self.layers):
            y, k, v = layer(x, past[2 * i], past[2 * i + 1])
            x = x + y
            presents.append((k, v))
        return x, presents


def _with_total_mask() -> Inputs:
    base = past_kv()

    def make(batch: int, seq: int, past: int) -> tuple[Tensor, ...]:
        keep = torch.arange(past + seq) >= torch.arange(batch)[:, None] % max(past, 1)
        return (*base.make(batch, seq, past), keep.long())

    return Inputs(
        make=make,
        axes=(*base.axes, {0: "batch", 1: "total_seq"}),
        roles=(*base.roles, "mask"),
    )


@own_caches.add(
    "cache_with_total_mask",
    inputs=_with_total_mask(),
    tags=("padding",),
    origin="an attention mask over past and present, left padding inside the past",
)
class WithTotalMask(Cached):
    def forward(self, x, past_key, past_value, attention_mask):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        n, total = q.size(2), k.size(2)
        allowed = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        allowed = allowed & attention_mask[:, None, None, :].bool()
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)), k, v


@own_caches.add(
    "cache_window_cut",
    inputs=past_kv(),
    footprint="window:6",
    tags=("window",),
    origin="a window of 6: the mask hides older keys, the whole present is returned",
)
class WindowCut(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        i = torch.arange(x.size(1))[:, None] + past_key.size(2)
        j = torch.arange(k.size(2))[None, :]
        allowed = (j <= i) & (j > i - 6)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)), k, v


@own_caches.add(
    "cache_latent",
    inputs=Inputs(
        make=lambda batch, seq, past: (
            _draw(generator(batch, seq, past), batch, seq, DIM),
            _draw(generator(batch, seq, past, salt=1), batch, past, 6),
        ),
        axes=({0: "batch", 1: "seq"}, {0: "batch", 1: "past_seq"}),
        roles=("tokens", "past"),
    ),
    origin="latent attention: only the compressed vector is cached",
)
class LatentCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.down = nn.Linear(DIM, DIM), nn.Linear(DIM, 6)
        self.up = nn.Linear(6, 2 * DIM)

    def forward(self, x, past):
        latent = torch.cat((past, self.down(x)), dim=1)
        k, v = self.up(latent).chunk(2, dim=-1)
        n, total = x.size(1), latent.size(1)
        s = self.q(x) @ k.mT / 4
        s = s.masked_fill(torch.ones(n, total).triu(total - n + 1) == 1, float("-inf"))
        return s.softmax(-1) @ v, latent


@own_caches.add(
    "cache_optional_past_not_given",
    inputs=Inputs(
        make=lambda batch, seq: (_draw(generator(batch, seq), batch, seq, DIM),),
        axes=({0: "batch", 1: "seq"},),
        roles=("tokens",),
    ),
    origin="layer_past=None, use_cache=False: a module with a cache, called without",
)
class OptionalPast(Cached):
    def forward(self, x, layer_past=None, use_cache=False):
        q, k, v = self.split(x)
        if layer_past is not None:
            k, v = torch.cat((layer_past[0], k), 2), torch.cat((layer_past[1], v), 2)
        present = (k, v) if use_cache else None
        y = F.scaled_dot_product_attention(q, k, v, is_causal=layer_past is None)
        return (self.merge(y), present) if use_cache else self.merge(y)


def _static_slots(slots: int) -> Inputs:
    """x, whole buffers of `slots` keys and values, and the slot of every new token."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq)
        buffers = tuple(_draw(rng, batch, HEADS, slots, HEAD_DIM) for _ in range(2))
        return (_draw(rng, batch, seq, DIM), *buffers, torch.arange(3, 3 + seq))

    return Inputs(
        make=make,
        axes=({0: "batch", 1: "seq"}, {0: "batch"}, {0: "batch"}, {0: "seq"}),
        roles=("tokens", "past", "past", "positions"),
    )


@own_caches.add(
    "cache_static_index_copy",
    inputs=_static_slots(32),
    limit=29,
    origin="fixed buffers of 32 slots written at input_pos, the mask a row per slot",
    cacheable=False,
)
class StaticIndexCopy(Cached):
    def __init__(self):
        super().__init__()
        self.register_buffer("causal_mask", torch.ones(32, 32, dtype=torch.bool).tril())

    def forward(self, x, key_buffer, value_buffer, input_pos):
        q, k, v = self.split(x)
        k = key_buffer.index_copy(2, input_pos, k)
        v = value_buffer.index_copy(2, input_pos, v)
        mask = self.causal_mask[None, None, input_pos]
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), k, v


@own_caches.add(
    "cache_static_scatter",
    inputs=_static_slots(20),
    limit=17,
    origin="fixed buffers written by scatter, the mask from position comparison",
    cacheable=False,
)
class StaticScatter(Cached):
    def forward(self, x, key_buffer, value_buffer, input_pos):
        q, k, v = self.split(x)
        at = input_pos.view(1, 1, -1, 1).expand_as(k)
        k, v = key_buffer.scatter(2, at, k), value_buffer.scatter(2, at, v)
        allowed = torch.arange(k.size(2))[None, :] <= input_pos[:, None]
        s = (q @ k.mT / 3).masked_fill(~allowed, float("-inf"))
        return self.merge(s.softmax(-1) @ v), k, v


ENTRIES = tuple(own_caches.entries)
