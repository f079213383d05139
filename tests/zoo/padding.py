"""Causal modules that are also told which positions are padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import (
    Family,
    Inputs,
    features,
    generator,
    ids,
    with_lengths,
    with_padding_mask,
)

padding = Family("padding")
VOCAB = 43


class Core(nn.Module):
    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x):
        b, n, _ = x.shape
        return self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

    def merge(self, y):
        return self.out(y.transpose(1, 2).flatten(2))


def future(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


@padding.add(
    "pad_right_bool",
    inputs=with_padding_mask(features(16), side="right", dtype=torch.bool),
    origin="causal and key padding joined by logical or, padding on the right",
)
class RightBool(Core):
    def forward(self, x, mask):
        q, k, v = self.split(x)
        s = q @ k.mT / q.size(-1) ** 0.5
        hidden = future(x.shape[1]) | ~mask[:, None, None, :]
        return self.merge(s.masked_fill(hidden, float("-inf")).softmax(-1) @ v)


@padding.add(
    "pad_left_finfo_min",
    inputs=with_padding_mask(ids(VOCAB), side="left"),
    fully_masked_rows=True,
    padded_rows_leak=True,
    origin="decoder-library eager masks: finfo.min added for the future and for padding",
)
class LeftFinfoMin(Core):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16)

    def forward(self, input_ids, attention_mask):
        b, n = input_ids.shape
        q, k, v = self.split(self.emb(input_ids))
        low = torch.finfo(torch.float32).min
        causal = torch.full((n, n), low).triu(1).expand(b, 1, n, n).clone()
        blocked = causal.eq(0) & attention_mask[:, None, None, :].eq(0)
        causal = causal.masked_fill(blocked, low)
        return self.merge(((q @ k.mT) * 0.35 + causal).softmax(-1) @ v)


@padding.add(
    "pad_left_sdpa_bool",
    inputs=with_padding_mask(features(16), side="left", dtype=torch.bool),
    fully_masked_rows=True,
    origin="SDPA with a boolean mask of causal and padding; padded rows see nothing and give 0",
)
class LeftSdpa(Core):
    def forward(self, x, mask):
        q, k, v = self.split(x)
        allowed = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril() & mask[:, None, None, :]
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


@padding.add(
    "pad_left_nan_to_num",
    inputs=with_padding_mask(features(16), side="left", dtype=torch.bool),
    fully_masked_rows=True,
    origin="-inf everywhere in padded rows, the NaNs of softmax turned to 0",
)
class LeftNanToNum(Core):
    def forward(self, x, keep):
        q, k, v = self.split(x)
        s = (q @ k.transpose(2, 3)).mul(q.size(-1) ** -0.5)
        s = s.masked_fill(future(x.shape[1]), float("-inf"))
        s = s.masked_fill(keep.logical_not()[:, None, None], float("-inf"))
        return self.merge(torch.nan_to_num(s.softmax(dim=-1)) @ v)


@padding.add(
    "pad_left_where_any",
    inputs=with_padding_mask(features(16), side="left", dtype=torch.bool),
    fully_masked_rows=True,
    origin="padded rows found with any() and set to 0 after the softmax",
)
class LeftWhereAny(Core):
    def forward(self, x, keep):
        q, k, v = self.split(x)
        allowed = keep[:, None, None, :] & ~future(x.shape[1])
        s = torch.where(allowed, q @ k.mT / 3, torch.finfo(q.dtype).min)
        p = s.softmax(-1) * allowed.any(-1, keepdim=True)
        return self.merge((p * allowed) @ v)


@padding.add(
    "pad_left_diagonal_kept",
    inputs=with_padding_mask(features(16), side="left", dtype=torch.bool),
    origin="padded queries keep their own diagonal, so that no row is empty",
)
class LeftDiagonalKept(Core):
    def forward(self, x, keep):
        q, k, v = self.split(x)
        n = x.shape[1]
        allowed = (~future(n) & keep[:, None, None, :]) | torch.eye(n, dtype=torch.bool)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


@padding.add(
    "pad_right_minus_1e4",
    inputs=with_padding_mask(features(16), side="right", dtype=torch.float32),
    origin="the extended attention mask of early libraries: (1 - mask) * -10000",
)
class ExtendedMask(Core):
    def forward(self, hidden_states, attention_mask):
        n = attention_mask.shape[1]
        ids_ = torch.arange(n)
        causal = ids_[None, None, :].repeat(hidden_states.shape[0], n, 1) <= ids_[None, :, None]
        extended = causal[:, None, :, :].to(attention_mask.dtype) * attention_mask[:, None, None, :]
        q, k, v = self.split(hidden_states)
        s = q @ k.transpose(-1, -2) / 8**0.5 + (1.0 - extended) * -10000.0
        return self.merge(F.softmax(s, dim=-1) @ v)


@padding.add(
    "pad_mha_key_padding",
    inputs=with_padding_mask(features(16), side="right", dtype=torch.bool),
    origin="nn.MultiheadAttention with attn_mask and key_padding_mask (True: ignore)",
)
class MhaKeyPadding(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, 4, batch_first=True)

    def forward(self, x, keep):
        y, _ = self.mha(
            x, x, x, key_padding_mask=~keep, attn_mask=future(x.size(1)), need_weights=False
        )
        return y


@padding.add(
    "pad_encoder_layer",
    inputs=with_padding_mask(features(16), side="right", dtype=torch.bool),
    origin="nn.TransformerEncoder with mask and src_key_padding_mask",
)
class PaddedEncoder(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, keep):
        return self.encoder(x, mask=future(x.size(1)), src_key_padding_mask=keep.logical_not())


@padding.add(
    "pad_lengths_vector",
    inputs=with_lengths(features(16)),
    origin="a vector of lengths compared with arange",
)
class LengthsVector(Core):
    def forward(self, x, lengths):
        q, k, v = self.split(x)
        n = x.size(1)
        valid = torch.arange(n)[None, :] < lengths[:, None]
        hidden = future(n)[None, None] | ~valid[:, None, None, :]
        y = (q @ k.mT / 3).masked_fill(hidden, -1e9).softmax(-1) @ v
        return self.merge(y) * valid.unsqueeze(-1)


@padding.add(
    "pad_lengths_max_item",
    inputs=with_lengths(features(16)),
    origin="the mask made for int(lengths.max().item()) positions",
    tags=("data_dependent",),
)
class LengthsMaxItem(Core):
    def forward(self, x, lengths):
        longest = int(lengths.max().item())
        q, k, v = self.split(x)
        valid = torch.arange(longest).expand(len(lengths), longest) < lengths.unsqueeze(1)
        allowed = valid[:, None, None, :] & torch.ones(longest, longest, dtype=torch.bool).tril()
        s = (q @ k.mT / 3).masked_fill(~allowed, float("-inf"))
        return self.merge(s.softmax(-1) @ v)


@padding.add(
    "pad_from_ids",
    inputs=ids(VOCAB),
    origin="padding found in the ids themselves (id 0), as in sequential recommenders",
)
class FromIds(Core):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16, padding_idx=0)

    def forward(self, item_seq):
        keep = item_seq > 0
        x = self.emb(item_seq) * keep.unsqueeze(-1)
        q, k, v = self.split(x)
        allowed = torch.tril(keep[:, None, None, :].expand(-1, -1, item_seq.size(-1), -1))
        bias = torch.where(allowed, 0.0, -10000.0)
        return self.merge((q @ k.mT / 3 + bias).softmax(-1) @ v)


@padding.add(
    "pad_values_zeroed",
    inputs=with_padding_mask(features(16), side="right"),
    origin="padded keys and values multiplied by 0, only the causal mask in the scores",
)
class ValuesZeroed(Core):
    def forward(self, x, mask):
        m = mask[:, None, :, None].to(x.dtype)
        q, k, v = self.split(x)
        y = F.scaled_dot_product_attention(q, k * m, v * m, is_causal=True)
        return self.merge(y) * mask.unsqueeze(-1)


@padding.add(
    "pad_packed_documents",
    inputs=Inputs(
        make=lambda batch, seq: (
            torch.randn(batch, seq, 16, generator=generator(batch, seq)),
            (torch.arange(seq)[None, :] // 3 + torch.arange(batch)[:, None]),
        ),
        axes=({0: "batch", 1: "seq"},) * 2,
        roles=("tokens", "mask"),
    ),
    footprint="other",
    origin="several documents packed in a row: causal and of the same document",
)
class PackedDocuments(Core):
    def forward(self, x, document_ids):
        q, k, v = self.split(x)
        same = document_ids.unsqueeze(-1) == document_ids.unsqueeze(-2)
        allowed = same & ~future(x.size(1))
        return self.merge(F.scaled_dot_product_attention(q, k, v, allowed.unsqueeze(1)))


@padding.add(
    "pad_mask_optional",
    inputs=features(16),
    origin="a padding mask that defaults to None and is not given",
)
class OptionalMask(Core):
    def forward(self, x, mask=None):
        q, k, v = self.split(x)
        s = (q @ k.mT / 3).masked_fill(future(x.size(1)), float("-inf"))
        if mask is not None:
            s = s.masked_fill(mask[:, None, None] == 0, float("-inf"))
        return self.merge(s.softmax(-1) @ v)


def _mask_4d(dim: int) -> Inputs:
    base = features(dim)

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        return (*base.make(batch, seq), (~future(seq)).expand(batch, 1, seq, seq).contiguous())

    return Inputs(
        make=make,
        axes=(*base.axes, {0: "batch", 2: "seq", 3: "seq"}),
        roles=(*base.roles, "given"),
    )


@padding.add(
    "pad_whole_mask_given",
    inputs=_mask_4d(16),
    cacheable=False,
    origin="a (batch, 1, seq, seq) mask made by the caller, nothing causal in the module",
)
class WholeMaskGiven(Core):
    def forward(self, x, attn_mask):
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask))


@padding.add(
    "pad_causal_and_mask_given",
    inputs=_mask_4d(16),
    cacheable=False,
    origin="a whole mask by the caller, joined with the module's own causal one",
)
class CausalAndMaskGiven(Core):
    def forward(self, x, attn_mask):
        q, k, v = self.split(x)
        s = (q @ k.mT / 3).masked_fill(future(x.size(1)) | ~attn_mask, -torch.inf)
        return self.merge(s.softmax(-1) @ v)


@padding.add(
    "pad_left_shifted_positions",
    inputs=with_padding_mask(features(16), side="left"),
    tags=("position",),
    origin="left padding with rotary positions counted from the first real token",
)
class LeftShiftedRotary(Core):
    def forward(self, x, attention_mask):
        q, k, v = self.split(x)
        at = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        angle = at[:, None, :, None] * 100.0 ** -(torch.arange(4.0) / 4)
        emb = torch.cat((angle, angle), dim=-1)
        q, k = (
            t * emb.cos() + torch.cat((-t[..., 4:], t[..., :4]), dim=-1) * emb.sin() for t in (q, k)
        )
        n = x.size(1)
        allowed = (attention_mask[:, None, None, :] > 0) & ~future(n)
        allowed = allowed | torch.eye(n, dtype=torch.bool)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


ENTRIES = tuple(padding.entries)
