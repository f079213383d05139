"""Train a small byte-level decoder on a text, for a fixed number of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from examples.demo.corpus import Corpus
from examples.demo.screen import Update

__all__ = ["CurvePoint", "Training", "bits_per_byte", "decoder_config", "train"]

MAX_SEQ_LEN = 256
ROWS_PER_STEP = 4
"""Small, so that a minute on one core is a thousand steps."""
MATRIX_LEARNING_RATE = 0.03
"""Of the matrices in the blocks, which Muon trains."""
OTHER_LEARNING_RATE = 3e-3
"""Of embeddings, norms and the head, which AdamW trains."""
WARM_UP_SHARE = 0.03
POINTS = 12
"""Of the training curve."""
SAMPLED_PIECES = 32
"""Of the held-out text, for a point of the curve; reading all of it each time would cost a tenth
of the training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """The losses after one of the steps, in bits per byte."""

    step: int
    train: float
    """Mean over the steps since the point before."""
    held_out: float
    """Over a sample of the held-out text, the same at each point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A trained model and how it got there."""

    model: DecoderLM
    """In eval mode."""
    curve: tuple[CurvePoint, ...]
    held_out: float
    """Bits per byte of the trained model over all of the held-out text."""
    steps: int
    bytes_read: int
    """Bytes of text trained on, repetitions counted."""
    parameters: int


def decoder_config() -> DecoderConfig:
    """Sizes that gave the lowest held-out loss after a minute on two cores.

    In bits per byte, at 90 s of processor time: 3 layers of 96 features 1.82, of 128 1.83; without
    the query and key norm 1.84; 4 layers of 96 1.87, of 128 1.92, of 192 2.15; learned positions
    for rotary ones 2.71; AdamW for Muon 2.11.
    """
    return DecoderConfig(
        vocab_size=256,
        num_layers=3,
        attention=AttentionConfig(
            embed_dim=96, num_heads=4, max_seq_len=MAX_SEQ_LEN, rotary="half", qk_norm=True
        ),
        mlp_dim=384,
        activation="relu",
    )


def train(
    corpus: Corpus,
    config: DecoderConfig,
    *,
    steps: int,
    seed: int,
    update: Update,
) -> Training:
    """Train for `steps` steps, on one thread.

    The same arguments train the same bits on one machine: neither the clock nor the number of
    threads that PyTorch has, by which sums are split, has a part in it.

    Args:
        corpus: `train` must be longer than the model's `max_seq_len`, `held_out` too.
        config: Sizes; `vocab_size` 256.
        steps: The learning rate falls to 0 over them.
        seed: Of the initial weights and the data order.
        update: Is called after each step with the share of the steps that is done, and the losses.

    Raises:
        ValueError: There are no steps, or a part of the corpus is too short.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    seq = config.max_seq_len or MAX_SEQ_LEN
    for name, text in (("train", corpus.train), ("held_out", corpus.held_out)):
        if len(text) <= seq:
            raise ValueError(f"the {name} text has {len(text)} bytes, but more than {seq} needed")
    model = DecoderLM(config, seed=seed)
    optimizers = _optimizers(model)
    data = _as_ids(corpus.train)
    random = torch.Generator().manual_seed(seed)
    curve: list[CurvePoint] = []
    losses: list[float] = []
    with _one_thread():
        for step in range(1, steps + 1):
            for optimizer, rate in optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule((step - 1) / steps)
            losses.append(_step(model, optimizers, _draw_rows(data, seq, random)))
            update(step / steps, _words(curve, losses, step))
            if step * POINTS // steps > (step - 1) * POINTS // steps:
                held_out = bits_per_byte(
                    model, corpus.held_out, seq=seq, most_pieces=SAMPLED_PIECES
                )
                curve.append(CurvePoint(step=step, train=_mean_bits(losses), held_out=held_out))
                losses = []
        update(1.0, "reading all of the held-out text")
        return Training(
            model=model.eval(),
            curve=tuple(curve),
            held_out=bits_per_byte(model, corpus.held_out, seq=seq),
            steps=steps,
            bytes_read=steps * ROWS_PER_STEP * seq,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )


def bits_per_byte(
    model: nn.Module, text: bytes, *, seq: int, most_pieces: int | None = None
) -> float:
    """The loss of `model` on `text`, read in pieces of `seq` bytes that know nothing of each other.

    Args:
        model: Ids -> logits.
        text: At least `seq + 1` bytes.
        seq: Length of a piece.
        most_pieces: Read only so many, spread evenly; None: all.

    Raises:
        ValueError: The text is shorter than one piece.
    """
    ids = _as_ids(text)
    pieces = (len(ids) - 1) // seq
    if pieces < 1:
        raise ValueError(f"the text has {len(text)} bytes, at least {seq + 1} are needed")
    inputs = ids[: pieces * seq].view(pieces, seq)
    targets = ids[1 : pieces * seq + 1].view(pieces, seq)
    if most_pieces is not None and most_pieces < pieces:
        chosen = torch.linspace(0, pieces - 1, most_pieces).round().long()
        inputs, targets = inputs[chosen], targets[chosen]
    was_training = model.training
    model.eval()
    nats = 0.0
    with torch.inference_mode():
        for x, y in zip(torch.split(inputs, 16), torch.split(targets, 16), strict=True):
            logits = model(x).flatten(0, 1)
            nats += functional.cross_entropy(logits, y.flatten(), reduction="sum").item()
    model.train(was_training)
    return nats / targets.numel() / math.log(2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch computes with one thread in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimizers(model: nn.Module) -> dict[torch.optim.Optimizer, float]:
    """Optimizer -> its highest learning rate.

    Muon for the matrices of the blocks: after a minute it is 0.2 bits per byte ahead of AdamW for
    all, at three quarters of its steps. Source: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = name.startswith("blocks.")
        (matrices if in_block and parameter.ndim == 2 else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.0, adjust_lr_fn="original"
    )
    adam = torch.optim.AdamW(
        others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return {muon: MATRIX_LEARNING_RATE, adam: OTHER_LEARNING_RATE}


def _step(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], rows: Tensor) -> float:
    """Learn from rows (batch, seq + 1); returns the loss in nats."""
    loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _draw_rows(data: Tensor, seq: int, random: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(data) - seq, (ROWS_PER_STEP,), generator=random)
    return data[starts[:, None] + torch.arange(seq + 1)]


def _schedule(spent: float) -> float:
    """The factor on the learning rate after this share of the steps: up, then straight to 0."""
    return min(1.0, 0.01 + spent / WARM_UP_SHARE) * (1.0 - spent)


def _words(curve: Sequence[CurvePoint], losses: Sequence[float], step: int) -> str:
    words = f"step {step}, train {_mean_bits(losses[-20:]):.2f}"
    return f"{words}, held out {curve[-1].held_out:.2f} bits/byte" if curve else words


def _mean_bits(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) / math.log(2)


def _as_ids(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.int64)
