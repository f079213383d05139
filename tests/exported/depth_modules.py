"""Main models that give a hidden state of each frame, and small decoders of its codebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from causal_onnx.runtime import DepthDecoder, Model
from tests.export.quick import quick_export
from tests.zoo.codebooks import DIM, VOCAB, First

COUNT, WIDTH = 4, 12


class Main(First):
    """ids (batch, codebooks, seq) -> a hidden state of each position; all codebooks are chosen by
    another decoder."""

    sizes = (VOCAB,) * COUNT

    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.hidden(codes.unbind(1))}


class MainWithFirst(Main):
    """With the logits of the first codebook."""

    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        x = self.hidden(codes.unbind(1))
        return {"logits": self.heads[0](x), "hidden": x}


class Depth(nn.Module):
    """ids (batch, seq) -> logits (batch, seq, vocab), with a head of its own for each position.

    One id more stands for none, and has no logit.
    """

    def __init__(self, places: int = COUNT, size: int = VOCAB + 1) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(size, WIDTH), nn.Embedding(places, WIDTH)
        self.project = nn.Linear(DIM, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.heads = nn.Parameter(torch.randn(places, WIDTH, VOCAB))

    def scores(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        x = x + self.place(places)
        q, k, v = (y.unsqueeze(1) for y in self.qkv(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        return torch.einsum("bsw,swv->bsv", x, self.heads[places])


class AtFirst(Depth):
    """The hidden state (batch, seq, width) takes the place of the first id, as in CSM."""

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        is_first = (torch.arange(ids.shape[1]) == 0)[:, None]
        return self.scores(torch.where(is_first, self.project(hidden), self.embed(ids)))


class AddedAtFirst(AtFirst):
    """The hidden state (batch, seq, width) is added to the first id."""

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return self.scores(self.embed(ids) + self.project(hidden))


class Everywhere(Depth):
    """The hidden state (batch, width) is added to each id, as in Moshi."""

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return self.scores(self.embed(ids) + self.project(hidden)[:, None])


class Broadcast(Depth):
    """The same, from (batch, 1, width)."""

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return self.scores(self.embed(ids) + self.project(hidden))


@dataclass(frozen=True)
class Pair:
    main: Main
    depth: Depth
    first_id: int | None
    model: Model
    decoder: DepthDecoder


def export_main(module: Main, path: Path) -> Model:
    example = torch.arange(2 * COUNT * 5).reshape(2, COUNT, 5) % VOCAB
    return quick_export(module, path, example=example, axes=[{0: "batch", 2: "seq"}], cache=True)


def export_depth(module: Depth, path: Path) -> Model:
    shape: tuple[int, ...] = (2, DIM)
    if not isinstance(module, Everywhere):
        shape = (2, 3, DIM) if isinstance(module, AtFirst) else (2, 1, DIM)
    hidden = torch.randn(shape)
    axes = [{0: "batch", 1: "seq"}, {0: "batch"}]
    if isinstance(module, AtFirst):
        axes[1] = axes[0]
    ids = torch.arange(6).reshape(2, 3)
    return quick_export(module, path, example=(ids, hidden), axes=axes, cache=True)


def make_pair(folder: Path, main: type[Main], depth: type[Depth], first_id: int | None) -> Pair:
    torch.manual_seed(2)
    modules = main().eval(), depth().eval()
    modules[0].heads[0].weight.data *= 6  # or all ids are about equally likely
    return Pair(
        *modules,
        first_id,
        export_main(modules[0], folder / "main.onnx"),
        DepthDecoder(model=export_depth(modules[1], folder / "depth.onnx"), first_id=first_id),
    )


def depth_inputs(pair: Pair, ids: list[int], state: Tensor) -> tuple[Tensor, ...]:
    """All that the depth decoder reads of a frame, whose main model's state is (width,)."""
    hidden: Any = state[None]
    if isinstance(pair.depth, AtFirst):
        hidden = F.pad(state[None, None], (0, 0, 0, len(ids) - 1))
    elif isinstance(pair.depth, Broadcast):
        hidden = state[None, None]
    return torch.tensor([ids]), hidden
