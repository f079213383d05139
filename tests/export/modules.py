"""Small modules for the tests of the exporter: one honest head, and what people do to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the spelling that the modules below would use
from torch import Tensor, nn

DIM = 16
VOCAB = 31


def example(batch: int = 2, seq: int = 6, dim: int = DIM) -> Tensor:
    return torch.randn(batch, seq, dim, generator=torch.Generator().manual_seed(3))


def token_ids(batch: int = 2, seq: int = 6, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (batch, seq), generator=torch.Generator().manual_seed(3))


def future(seq: int) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool).triu(1)


class Head(nn.Module):
    """One head, written out; takes both ranks."""

    def __init__(self, dim: int = DIM, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def scores(self, x: Tensor) -> Tensor:
        return self.q(x) @ self.k(x).transpose(-2, -1) / math.sqrt(x.shape[-1])

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(future(scores.shape[-1]), -math.inf)

    def core(self, x: Tensor) -> Tensor:
        return self.masked(self.scores(x)).softmax(-1) @ self.v(x)

    def forward(self, x: Tensor) -> Any:
        return self.core(x)


class Sdpa(Head):
    """The same through `scaled_dot_product_attention`, with heads of 8."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, seq, dim = x.shape
        q, k, v = (
            f(x).view(batch, seq, dim // 8, 8).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def joined(self, out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2)


class Padded(Sdpa):
    """SDPA with a boolean mask that joins the causal one and the caller's; rows may be empty."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        allowed = ~future(x.shape[1]) & (attention_mask != 0)[:, None, None, :]
        return self.joined(F.scaled_dot_product_attention(*self.heads(x), attn_mask=allowed))


class PaddedByHand(Head):
    """The same written out, with the most negative number in place of -inf."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = future(x.shape[1]) | (attention_mask == 0)[:, None, :]
        scores = self.scores(x).masked_fill(hidden, torch.finfo(x.dtype).min)
        return scores.softmax(-1) @ self.v(x)


class Buffered(Head):
    """Keeps a context x context matrix, and uses a part of it as `use` says."""

    def __init__(self, matrix: Tensor, use: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, dim = x.shape
        q, k, v = (f(x).view(batch, seq, 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1)
        out = self.use(self.matrix, scores, seq).softmax(-1) @ v
        return out.transpose(1, 2).reshape(batch, seq, dim)


def masked_head(context: int) -> Buffered:
    """The usual head with a boolean context x context buffer."""
    return Buffered(future(context), lambda m, s, n: s.masked_fill(m[:n, :n], -math.inf))


class Positions(Head):
    """Learned positions: the table is the limit."""

    def __init__(self, context: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.table = nn.Embedding(context, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x + self.table(torch.arange(x.shape[-2])))


class Asserting(Head):
    """A limit that only Python knows."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.context:
            raise ValueError(f"{x.shape[1]} positions, at most {self.context}")
        return self.core(x)


class Language(Head):
    """Token ids in, scores over the vocabulary out."""

    def __init__(self, vocab: int = VOCAB, context: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.tokens = nn.Embedding(vocab, DIM)
            self.positions = nn.Embedding(context, DIM) if context else None
            self.head = nn.Linear(DIM, vocab)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(input_ids.shape[-1]))
        return self.head(self.core(x))


class Bidirectional(Head):
    def masked(self, scores: Tensor) -> Tensor:
        return scores


class ShiftedMask(Head):
    """Sees one position too many."""

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(future(scores.shape[-1]).triu(2), -math.inf)


class LeaksLate(Head):
    """Causal up to 50 positions, not beyond."""

    def masked(self, scores: Tensor) -> Tensor:
        place = torch.arange(scores.shape[-1])
        hidden = (place[None] > place[:, None]) & (place[:, None] < 50)
        return scores.masked_fill(hidden, -math.inf)


class Random(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.core(F.dropout(x, 0.5))


class Looping(Head):
    """A Python loop over positions."""

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for stop in range(1, x.shape[1] + 1):
            rows.append(self.core(x[:, :stop])[:, -1])
        return torch.stack(rows, 1)


class Branching(Head):
    """Computes something else where the numbers are large."""

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 100:
            x = x / 100
        return self.core(x)


class Checking(Head):
    """Asks its input for NaN, and computes the same either way."""

    def forward(self, x: Tensor) -> Tensor:
        assert not x.isnan().any()
        return self.core(x)


class FixedBatch(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.core(x.view(4, -1, DIM))


class Chunked(Head):
    """Takes multiples of four."""

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, dim = x.shape
        return self.core(x.view(batch, seq // 4, 4, dim)).view(batch, seq, dim)


class Writing(Head):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return self.core(x)


class Counting(Head):
    """Another result at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.core(x) * self.calls


class Growing(Head):
    """Keeps a mask that grows with the longest sequence it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = future(1)

    def forward(self, x: Tensor) -> Tensor:
        seq = x.shape[1]
        if self.mask.shape[0] < seq:
            self.mask = future(seq)
        scores = self.scores(x).masked_fill(self.mask[:seq, :seq], -math.inf)
        return scores.softmax(-1) @ self.v(x)


class KeywordOnly(Head):
    def forward(self, *, x: Tensor, scale: Tensor) -> Tensor:
        return self.core(x * scale)


class Variadic(Head):
    def forward(self, *parts: Tensor) -> Tensor:
        return self.core(parts[0] + parts[1])


class Returning(Head):
    """Returns what `shape` makes of the input and the result."""

    def __init__(self, shape: Callable[[Tensor, Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(x, self.core(x), self)


def through(function: Callable[[Tensor], Tensor]) -> Returning:
    """A head whose result goes through a function."""
    return Returning(lambda _, result, __: function(result))


@dataclass
class Result:
    hidden: Tensor
    extra: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor
