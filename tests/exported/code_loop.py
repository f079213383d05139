"""The plain loop beside which tests of codes stand: a pass over all positions for each new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Scores", "as_lists", "plain_loop"]

Scores = Callable[[int], Tensor]
"""A codebook -> its logits (vocab,); the ids of those before it stand in the grid by then."""


def plain_loop(
    scores_after: Callable[[Tensor, int], Scores],
    fill: Tensor,
    prompt: Sequence[Sequence[int]],
    count: int,
    *,
    delays: Sequence[int] | None = None,
    temperature: float | None = None,
    seed: Sequence[int] = (0, 0),
) -> list[list[int]]:
    """`count` frames after a prompt, each position from a pass over all before it.

    The whole grid (codebooks, positions) is laid out first: ids that are known, and -1 where one is
    chosen.

    Args:
        scores_after: From the grid and a position: what its ids are chosen by.
        fill: (codebooks,), the id that stands for none.
        prompt: A list of ids for each codebook.
        count: Of the frames.
        delays: As for `generate_codes`.
        temperature: None: the likeliest id.
        seed: Of the random numbers.
    """
    lags, random = delays or (0,) * len(fill), np.random.default_rng(seed)
    first, total = len(prompt[0]), len(prompt[0]) + count
    grid = fill[:, None].repeat(1, total + max(lags))
    for book, lag in enumerate(lags):
        grid[book, lag : lag + total] = torch.tensor([*prompt[book], *[-1] * count])
    for place in range(first, grid.shape[1]):
        scores = scores_after(grid, place)
        for book in range(len(fill)):
            own = scores(book)
            if grid[book, place] == -1:
                grid[book, place] = _pick(own, temperature, random)
    return [grid[book, lag + first : lag + total].tolist() for book, lag in enumerate(lags)]


def _pick(scores: Tensor, temperature: float | None, random: np.random.Generator) -> int:
    uniform = random.random()
    if temperature is None:
        return int(scores.argmax())
    cumulative = (scores.double() / temperature).softmax(-1).cumsum(-1)
    return int((cumulative > uniform).int().argmax())


def as_lists(ids: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    return [list(book) for book in ids]
