"""Decoders of several codebooks, in the layouts in which people write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

BOOKS, VOCAB, DIM, HEADS, PLACES = 3, 11, 24, 3, 40


class Attention(nn.Module):
    """Causal attention of a few heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class BooksFirst(nn.Module):
    """ids (batch, codebooks, seq) -> logits (batch, codebooks, seq, vocab)."""

    axes: Any = ({0: "batch", 2: "seq"},)
    sizes = (VOCAB,) * BOOKS

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.ModuleList(nn.Embedding(size + 1, DIM) for size in self.sizes)
        self.place = nn.Embedding(PLACES, DIM)
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(DIM, size) for size in self.sizes)
        for head in self.heads:
            head.weight.data *= 6  # or all ids are about equally likely

    @property
    def fill(self) -> list[int]:
        """For each codebook, the id that stands for none: as in MusicGen, it has no logit."""
        return list(self.sizes)

    def each(self, books: tuple[Tensor, ...]) -> list[Tensor]:
        """The logits (batch, seq, vocab) of each codebook, from its ids (batch, seq)."""
        x = sum(embed(ids) for embed, ids in zip(self.embed, books, strict=True))
        x = x + self.place(torch.arange(x.shape[1]))
        for layer in self.layers:
            x = x + layer(x)
        return [head(x) for head in self.heads]

    def forward(self, codes: Tensor) -> Any:
        return torch.stack(self.each(codes.unbind(1)), dim=1)


class BooksLast(BooksFirst):
    """ids (batch, seq, codebooks) -> logits (batch, seq, codebooks, vocab)."""

    axes: Any = ({0: "batch", 1: "seq"},)

    def forward(self, codes: Tensor) -> Any:
        return torch.stack(self.each(codes.unbind(2)), dim=2)


class ListOfLogits(BooksFirst):
    """ids (batch, codebooks, seq) -> an output (batch, seq, vocab) for each codebook."""

    def forward(self, codes: Tensor) -> Any:
        return tuple(self.each(codes.unbind(1)))


class OneInputEach(BooksFirst):
    """An input (batch, seq) and an output (batch, seq, vocab) for each, of different sizes."""

    axes: Any = ({0: "batch", 1: "seq"},) * 3
    sizes = (VOCAB, VOCAB - 2, VOCAB + 3)

    def forward(self, semantic: Tensor, coarse: Tensor, fine: Tensor) -> Any:
        return tuple(self.each((semantic, coarse, fine)))


def example(module: BooksFirst) -> tuple[Tensor, ...]:
    """Inputs for an export."""
    ids = torch.arange(2 * BOOKS * 5).reshape(2, BOOKS, 5) % 9
    return given(module, ids)


def given(module: BooksFirst, ids: Tensor) -> tuple[Tensor, ...]:
    """The module's inputs, from ids (batch, codebooks, seq)."""
    if isinstance(module, OneInputEach):
        return ids.unbind(1)
    return (ids.mT,) if isinstance(module, BooksLast) else (ids,)


def logits(module: BooksFirst, ids: Tensor) -> list[Tensor]:
    """The logits of each codebook (batch, seq, vocab), from ids (batch, codebooks, seq)."""
    with torch.no_grad():
        found = module(*given(module, ids))
    if isinstance(found, tuple):
        return list(found)
    return list(found.unbind(2 if isinstance(module, BooksLast) else 1))
