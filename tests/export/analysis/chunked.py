"""Causal modules that compute in chunks, as scans and linear attention are written."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8


def chunks(x: Tensor, size: int) -> Tensor:
    """(batch, seq, width) padded to (batch, chunks, size, width)."""
    n = x.shape[1]
    count = (n + size - 1) // size
    return functional.pad(x, (0, 0, 0, count * size - n)).unflatten(1, (count, size))


def joined(y: Tensor, x: Tensor) -> Tensor:
    return y.flatten(1, 2)[:, : x.shape[1]]


class Chunked(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            chunks(self.q(x), self.size),
            chunks(self.k(x), self.size),
            chunks(self.v(x), self.size),
        )


class PrefixSum(Chunked):
    """Sums within a chunk, plus what a strict triangle carries from earlier chunks."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        m = y.shape[1]
        within = torch.ones(self.size, self.size).tril() @ y
        before = torch.einsum("ij,bjd->bid", torch.ones(m, m).tril(-1), y.sum(2))
        return joined(within + before[:, :, None], x)


class PrefixSumByCumsum(Chunked):
    """What earlier chunks carry is a running sum less the chunk's own."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        total = y.sum(2)
        before = functional.pad(total.cumsum(1)[:, :-1], (0, 0, 1, 0))
        return joined(y.cumsum(2) + before[:, :, None], x)


class CumulativeMean(Chunked):
    """A prefix sum in chunks over the count."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        m = y.shape[1]
        before = torch.tril(torch.ones(m, m), diagonal=-1) @ y.sum(2)
        total = joined(y.cumsum(2) + before.unsqueeze(2), x)
        return total / torch.arange(1, x.shape[1] + 1)[:, None]


class LinearAttention(Chunked):
    """q (sum of k^T v of earlier chunks), plus the triangle within the chunk; a where for decay."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        m = q.shape[1]
        lag = torch.arange(m)[:, None] - torch.arange(m) - 1
        carry = torch.where(lag >= 0, 0.9 ** lag.float(), 0.0)
        before = torch.einsum("ij,bjde->bide", carry, k.mT @ v)
        return joined(torch.tril(q @ k.mT) @ v + q @ before, x)


class ByComparison(Chunked):
    """The triangle of chunks is a comparison of ranges as floats, multiplied in."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        m = torch.arange(q.shape[1])
        earlier = (m[None, :] < m[:, None]).float()
        state = (k.mT @ v).flatten(2)
        before = (earlier @ state).unflatten(2, (WIDTH, WIDTH))
        inner = (q @ k.mT) * torch.ones(self.size, self.size).tril()
        return joined(inner @ v + q @ before, x)


class ByBroadcastMask(Chunked):
    """Every pair of chunks, masked by a multiplication and summed."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        m = torch.arange(y.shape[1])
        earlier = (m[:, None] > m[None, :]).to(x.dtype)
        before = (y.sum(2)[:, None] * earlier[None, :, :, None]).sum(2)
        return joined(y.cumsum(2) + before[:, :, None], x)


class ByMaskedFill(Chunked):
    """Every pair of chunks, later ones filled with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        m = y.shape[1]
        later = torch.ones(m, m, dtype=torch.bool).triu()
        total = y.sum(2)[:, None].expand(-1, m, -1, -1)
        before = total.masked_fill(later[None, :, :, None], 0.0).sum(2)
        return joined(y.cumsum(2) + before[:, :, None], x)


class ByRunningCount(Chunked):
    """The triangle of chunks from two running sums of ones."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        place = torch.ones(y.shape[1], dtype=torch.int64).cumsum(0)
        earlier = (place[None, :] < place[:, None]).float()
        return joined(y.cumsum(2) + (earlier @ y.sum(2))[:, :, None], x)


class Retention(Chunked):
    """Retention in chunks: decay within, across and on the way into the state."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        m, c = q.shape[1], self.size
        step = torch.arange(c)
        lag = step[:, None] - step[None, :]
        decay = torch.where(lag >= 0, 0.9 ** lag.float().clamp(min=0), 0.0)
        into = 0.9 ** (c - 1 - step).float()[:, None]
        state = (k * into).mT @ v
        gap = torch.arange(m)[:, None] - torch.arange(m)[None, :] - 1
        carry = torch.tril(0.9 ** (c * gap.clamp(min=0)).float(), diagonal=-1)
        before = torch.einsum("ij,bjde->bide", carry, state)
        out = 0.9 ** (step + 1).float()[:, None]
        return joined((q @ k.mT * decay) @ v + (q * out) @ before, x)


class StateSpace(Chunked):
    """The chunked form of a scalar state space: decays from running sums of the data."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        m, c = q.shape[1], self.size
        a = -functional.softplus(chunks(self.q(x).mean(-1, keepdim=True), c).squeeze(-1))
        run = a.cumsum(2)
        lag = run[..., :, None] - run[..., None, :]
        inner = torch.exp(lag.masked_fill(torch.ones(c, c, dtype=torch.bool).triu(1), -torch.inf))
        state = (k * torch.exp(run[..., -1:] - run)[..., None]).mT @ v
        total = functional.pad(run[..., -1].cumsum(1), (1, 0))  # after the chunks before each one
        gap = total[:, :-1, None] - total[:, None, 1:]
        carry = torch.exp(gap.masked_fill(torch.ones(m, m, dtype=torch.bool).triu(), -torch.inf))
        before = torch.einsum("bij,bjde->bide", carry, state)
        return joined((q @ k.mT * inner) @ v + (q * torch.exp(run)[..., None]) @ before, x)


class BlockLocal(Chunked):
    """Attention to the own chunk and the one before, masked to the past."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        c = self.size
        k, v = (
            torch.cat([functional.pad(t, (0, 0, 0, 0, 1, 0))[:, :-1], t], dim=2) for t in (k, v)
        )
        row, column = torch.arange(c)[:, None], torch.arange(2 * c)[None, :] - c
        scores = (q @ k.mT / WIDTH**0.5).masked_fill(column > row, -torch.inf)
        return joined(scores.softmax(-1) @ v, x)


class ConvolutionByUnfold(Chunked):
    """A causal convolution as windows of the padded sequence times a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, self.size - 1, 0))
        windows = padded.unfold(1, self.size, 1)
        return windows @ torch.linspace(0.1, 1.0, self.size)


class ConvolutionByChunks(Chunked):
    """A causal convolution: a triangle on the own chunk, another on the chunk before."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        lag = torch.arange(self.size)[:, None] - torch.arange(self.size)[None, :]
        own = torch.where(lag >= 0, 0.5 ** lag.float().abs(), 0.0)
        over = torch.where(lag < 0, 0.5 ** (lag + self.size).float(), 0.0)
        before = functional.pad(y, (0, 0, 0, 0, 1, 0))[:, :-1]
        return joined(own @ y + over @ before, x)


class Peeking(Chunked):
    """Not causal: the triangle of chunks includes the chunk itself."""

    def forward(self, x: Tensor) -> Tensor:
        y = chunks(x, self.size)
        m = y.shape[1]
        carried = torch.einsum("ij,bjd->bid", torch.ones(m, m).tril(), y.sum(2))
        return joined(y.cumsum(2) + carried[:, :, None], x)


class Cancelled(nn.Module):
    """Causal by arithmetic alone: what later positions add is taken off again, exactly."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x.amax(1, keepdim=True)
        return x + (whole - whole.clone())


CAUSAL = (
    PrefixSum,
    PrefixSumByCumsum,
    CumulativeMean,
    LinearAttention,
    ByComparison,
    ByBroadcastMask,
    ByMaskedFill,
    ByRunningCount,
    Retention,
    StateSpace,
    BlockLocal,
    ConvolutionByUnfold,
    ConvolutionByChunks,
)
