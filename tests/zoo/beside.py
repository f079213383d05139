"""Inputs beside the tokens: labels, times, flags, masks of the caller, memories of any length.

Each kind is written once and built with several ways of attending, as people write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import Family, Inputs, generator

beside = Family("beside")
DIM, HEADS, PLACES, LABELS = 16, 2, 40, 7
ROW, SEQ, PAIRS = {0: "batch"}, {0: "batch", 1: "seq"}, {0: "seq", 1: "seq"}
MEMORY = {0: "batch", 1: "memory"}


class Fused(nn.Module):
    """Heads by view and transpose, and the fused operator."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x, mask=None, memory=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        if memory is not None:
            _, k, v = self.qkv(memory).chunk(3, -1)
        q, k, v = (y.view(*y.shape[:2], HEADS, -1).transpose(1, 2) for y in (q, k, v))
        causal = mask is None and memory is None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Written(Fused):
    """The formula, with the mask added to the scores."""

    def forward(self, x, mask=None, memory=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        if memory is not None:
            _, k, v = self.qkv(memory).chunk(3, -1)
        scores = q @ k.mT / math.sqrt(DIM)
        if mask is None and memory is None:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        elif mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        return self.out(scores.softmax(-1) @ v)


class Ready(nn.Module):
    """PyTorch's nn.MultiheadAttention; its boolean masks hide where they are True."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x, mask=None, memory=None):
        if mask is None and memory is None:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask
        memory = x if memory is None else memory
        return self.attention(x, memory, memory, attn_mask=mask, need_weights=False)[0]


STYLES: Mapping[str, type[nn.Module]] = {"fused": Fused, "written": Written, "ready": Ready}


class Beside(nn.Module):
    """A block, and something beside its tokens."""

    def __init__(self, style):
        super().__init__()
        self.attend, self.cross = style(), style()
        self.norm, self.project = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.labels, self.places = nn.Embedding(LABELS, DIM), nn.Embedding(PLACES, DIM)
        self.register_buffer("table", torch.randn(LABELS, DIM))


class Label(Beside):
    """Added to every position; fewer labels than positions."""

    def forward(self, x, label):
        places = self.places(torch.arange(x.shape[1]))
        return x + self.attend(self.norm(x + self.labels(label)[:, None] + places))


class LabelOfBuffer(Beside):
    """A row of a buffer scales every position."""

    def forward(self, x, label):
        return self.attend(x * self.table[label][:, None])


class LabelOneHot(Beside):
    """A one-hot code through a linear layer."""

    def forward(self, x, label):
        code = F.one_hot(label, DIM).to(x.dtype)
        return self.attend(x + self.project(code)[:, None])


class SpeakerAndLanguage(Beside):
    """Two labels, of two tables."""

    def forward(self, x, speaker, language):
        return self.attend(x + (self.labels(speaker) + self.table[language])[:, None])


class Step(Beside):
    """The step of a diffusion as sines: a number, not an id."""

    def forward(self, x, step):
        angle = step[:, None].float() * torch.exp(-torch.arange(DIM // 2) / 2.0)
        return self.attend(x + self.project(torch.cat([angle.sin(), angle.cos()], -1))[:, None])


class Times(Beside):
    """Times of events, whole numbers of any size."""

    def forward(self, x, times):
        return self.attend(self.norm(x) + times[..., None].float().log1p())


class Flags(Beside):
    """Where a flag is raised, another vector is added; none is in the example."""

    def forward(self, x, raised):
        return self.attend(x + raised[..., None] * self.table[0])


class Masked(Beside):
    """The caller gives the mask."""

    def forward(self, x, mask):
        return x + self.attend(self.norm(x), mask)


class Remembering(Beside):
    """Causal attention, then cross attention to a memory."""

    def forward(self, x, memory):
        x = x + self.attend(self.norm(x))
        return x + self.cross(x, memory=memory)


class Averaged(Beside):
    """A memory through its mean alone."""

    def forward(self, x, memory):
        return self.attend(x + self.project(memory.mean(1, keepdim=True)))


class Doubled(Beside):
    """Classifier-free guidance: the batch twice, and apart again by chunk."""

    def forward(self, x):
        with_it, without = self.attend(torch.cat([x + self.table[0], x])).chunk(2)
        return without + 2 * (with_it - without)


def given(*beside: Callable[..., Tensor], axes: Sequence[Mapping[int, str]]) -> Inputs:
    """(batch, seq, DIM) tokens, and what the functions of (batch, seq, generator) make."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq, salt=5)
        return (torch.randn(batch, seq, DIM, generator=rng), *(f(batch, seq, rng) for f in beside))

    roles = tuple("tokens" if dict(a) == SEQ else "given" for a in axes)
    return Inputs(make=make, axes=(SEQ, *axes), roles=("tokens", *roles))


def label(batch: int, seq: int, rng: torch.Generator) -> Tensor:
    return torch.randint(LABELS, (batch,), generator=rng)


def later(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def bias(batch: int, seq: int, rng: torch.Generator) -> Tensor:
    return torch.zeros(seq, seq).masked_fill(later(seq), -torch.inf)


def seen(batch: int, seq: int, rng: torch.Generator) -> Tensor:
    return ~later(seq)


def memory(batch: int, seq: int, rng: torch.Generator) -> Tensor:
    return torch.randn(batch, 2 + seq % 5, DIM, generator=rng)


STEPS = given(lambda b, n, rng: torch.randint(1000, (b,), generator=rng) + 50, axes=[ROW])
TIMES = given(lambda b, n, rng: torch.randint(9000 * n, (b, n), generator=rng), axes=[SEQ])
FLAGS = given(lambda b, n, rng: torch.zeros(b, n), axes=[SEQ])
FOUR = given(
    lambda b, n, rng: bias(b, n, rng).expand(b, 1, n, n).clone(),
    axes=[{0: "batch", 2: "seq", 3: "seq"}],
)

NO_CACHE: dict[str, object] = {"cacheable": False}

KINDS: Sequence[tuple[str, type[Beside], Inputs, str, dict[str, object]]] = (
    ("label", Label, given(label, axes=[ROW]), "class-conditional decoders", {"limit": PLACES}),
    ("label_buffer", LabelOfBuffer, given(label, axes=[ROW]), "FiLM by a table", {}),
    ("label_one_hot", LabelOneHot, given(label, axes=[ROW]), "one-hot conditioning", {}),
    ("labels_two", SpeakerAndLanguage, given(label, label, axes=[ROW, ROW]), "speech", {}),
    ("step", Step, STEPS, "diffusion transformers", {}),
    ("times", Times, TIMES, "event sequences, recommenders", {}),
    ("flags", Flags, FLAGS, "resets, special positions", {}),
    ("mask_additive", Masked, given(bias, axes=[PAIRS]), "the caller's mask", NO_CACHE),
    ("mask_bool", Masked, given(seen, axes=[PAIRS]), "the caller's mask", NO_CACHE),
    (
        "memory",
        Remembering,
        given(memory, axes=[MEMORY]),
        "encoder-decoders",
        {"footprint": "causal / full"},
    ),
    ("memory_mean", Averaged, given(memory, axes=[MEMORY]), "pooled conditioning", {}),
    ("doubled", Doubled, given(axes=[]), "classifier-free guidance", NO_CACHE),
)

for _kind, _make, _inputs, _origin, _rest in KINDS:
    for _style, _attention in STYLES.items():
        beside.add(f"beside_{_kind}_{_style}", _attention, inputs=_inputs, origin=_origin, **_rest)(
            _make
        )

beside.add(
    "beside_mask_four_axes",
    Fused,
    inputs=FOUR,
    origin="4-D masks of transformers",
    cacheable=False,
)(Masked)


@beside.add(
    "beside_encoder_mask",
    inputs=given(bias, axes=[PAIRS]),
    origin="nn.TransformerEncoder(mask=...)",
    cacheable=False,
)
class EncoderWithMask(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, mask):
        return self.layers(x, mask=mask)


def padded(batch: int, seq: int, rng: torch.Generator) -> Tensor:
    size = 2 + seq % 5
    return torch.arange(size) >= torch.tensor([size - i % 2 for i in range(batch)])[:, None]


@beside.add(
    "beside_decoder_memory",
    inputs=given(memory, axes=[MEMORY]),
    origin="nn.TransformerDecoder",
    footprint="causal / full",
)
@beside.add(
    "beside_decoder_memory_padding",
    inputs=given(memory, padded, axes=[MEMORY, MEMORY]),
    origin="nn.TransformerDecoder with memory_key_padding_mask",
    footprint="causal / full",
)
class DecoderWithMemory(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(DIM, HEADS, 32, batch_first=True)
        self.layers = nn.TransformerDecoder(layer, 2)

    def forward(self, x, memory, pad=None):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(
            x, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=pad
        )


@beside.add(
    "beside_memory_rows_of_tokens",
    inputs=given(memory, axes=[MEMORY]),
    origin="cross attention that splits the memory's heads by the batch of the tokens",
    footprint="causal / full",
)
class RowsOfTokens(Beside):
    def __init__(self):
        super().__init__(Fused)
        self.query, self.of_memory = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, x, memory):
        rows = x.shape[0]
        x = x + self.attend(x)
        q = self.query(x).view(rows, x.shape[1], HEADS, -1).transpose(1, 2)
        k, v = (
            part.view(rows, memory.shape[1], HEADS, -1).transpose(1, 2)
            for part in self.of_memory(memory).chunk(2, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + seen.transpose(1, 2).reshape(x.shape)


@beside.add(
    "beside_two_memories",
    inputs=given(
        memory,
        lambda batch, seq, rng: torch.randn(batch, 3 + seq % 4, DIM, generator=rng),
        axes=[MEMORY, {0: "batch", 1: "patches"}],
    ),
    origin="text and image beside what is written",
    footprint="causal / full",
)
class TwoMemories(Beside):
    def __init__(self):
        super().__init__(Fused)

    def forward(self, x, memory, patches):
        x = x + self.attend(x)
        return x + self.cross(x, memory=memory) + self.cross(x, memory=self.project(patches))


@beside.add(
    "beside_scale_and_shift",
    inputs=given(lambda batch, seq, rng: torch.randn(batch, 7, generator=rng), axes=[ROW]),
    origin="adaptive norms: what a network makes of a condition scales and shifts",
)
class ScaleAndShift(Beside):
    def __init__(self):
        super().__init__(Fused)
        self.made = nn.Sequential(nn.Linear(7, 20), nn.SiLU(), nn.Linear(20, 2 * DIM))

    def forward(self, x, condition):
        scale, shift = self.made(condition)[:, None].chunk(2, -1)
        return x + self.attend(self.norm(x) * (1 + scale) + shift)


@beside.add(
    "beside_translator",
    inputs=given(memory, axes=[MEMORY]),
    origin="nn.Transformer, encoder and decoder",
    footprint="causal / full",
)
class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Transformer(DIM, HEADS, 1, 1, 32, batch_first=True)

    def forward(self, x, source):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.both(source, x, tgt_mask=mask, tgt_is_causal=True)


ENTRIES = tuple(beside.entries)
