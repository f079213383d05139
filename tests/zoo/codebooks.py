"""Several ids at a position, and logits of several: codebooks of a sound, heads that look ahead."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .entry import Family, Inputs, generator

codebooks = Family("codebooks")
DIM, HEADS, PLACES, BOOKS, VOCAB = 24, 3, 40, 3, 11


class Books(nn.Module):
    """One embedding and one head for each codebook, and blocks of attention between them."""

    sizes = (VOCAB,) * BOOKS
    """Ids of each; one more stands for none, and has no logit, as in MusicGen."""

    def __init__(self):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(size + 1, DIM) for size in self.sizes)
        self.place = nn.Embedding(PLACES, DIM)
        self.qkv = nn.ModuleList(nn.Linear(DIM, 3 * DIM) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(DIM, size) for size in self.sizes)

    def hidden(self, books):
        x = sum(embed(ids) for embed, ids in zip(self.embed, books, strict=False))
        x = x + self.place(torch.arange(x.shape[1]))
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(y.transpose(1, 2).flatten(2))
        return x


def grid(batch: int, seq: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, VOCAB - 2, (batch, BOOKS, seq), generator=generator(batch, seq)),)


def grid_last(batch: int, seq: int) -> tuple[Tensor, ...]:
    return (grid(batch, seq)[0].mT.contiguous(),)


def rows(batch: int, seq: int) -> tuple[Tensor, ...]:
    return tuple(row.contiguous() for row in grid(batch, seq)[0].unbind(1))


def row(batch: int, seq: int) -> tuple[Tensor, ...]:
    return rows(batch, seq)[:1]


SEQ = {0: "batch", 1: "seq"}


@codebooks.add(
    "codebooks_first",
    inputs=Inputs(make=grid, axes=({0: "batch", 2: "seq"},), roles=("tokens",)),
    origin="MusicGen: (batch, codebooks, seq) in, (batch, codebooks, seq, vocab) out",
    limit=PLACES,
)
class First(Books):
    def forward(self, codes):
        x = self.hidden(codes.unbind(1))
        return torch.stack([head(x) for head in self.heads], 1)


@codebooks.add(
    "codebooks_last",
    inputs=Inputs(make=grid_last, axes=(SEQ,), roles=("tokens",)),
    origin="RQ-transformers: (batch, seq, codebooks) in, (batch, seq, codebooks, vocab) out",
    limit=PLACES,
)
class Last(Books):
    def forward(self, codes):
        x = self.hidden(codes.unbind(2))
        return torch.stack([head(x) for head in self.heads], 2)


@codebooks.add(
    "codebooks_each",
    inputs=Inputs(make=rows, axes=(SEQ,) * BOOKS, roles=("tokens",) * BOOKS),
    origin="semantic and acoustic tokens as inputs and outputs of their own",
    limit=PLACES,
)
class Each(Books):
    sizes = (VOCAB, VOCAB - 2, VOCAB + 3)

    def forward(self, semantic, coarse, fine):
        x = self.hidden((semantic, coarse, fine))
        return tuple(head(x) for head in self.heads)


@codebooks.add(
    "heads_medusa",
    inputs=Inputs(make=row, axes=(SEQ,), roles=("tokens",)),
    origin="Medusa: logits, and those of the tokens after the next, heads in front",
    limit=PLACES,
)
class Medusa(Books):
    def forward(self, ids):
        x = self.hidden((ids,))
        logits, *further = (head(x) for head in self.heads)
        return logits, torch.stack(further)


ENTRIES = tuple(codebooks.entries)
