"""Probes of a module in eager PyTorch: which outputs move when which inputs change.

They need no exporter, so that an entry's claims are checked against PyTorch alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .entry import generator, output_tensors

__all__ = [
    "Sizes",
    "Subject",
    "call",
    "declared_influence",
    "first_difference",
    "future_moves",
    "influence",
    "past_change",
    "prefix_change",
    "relative_change",
    "run",
    "takes_past",
]


class Subject(Protocol):
    """What a probe needs to know: a zoo entry or a mutant."""

    @property
    def factory(self) -> Callable[[], nn.Module]: ...
    @property
    def inputs(self) -> Callable[..., tuple[Tensor, ...]]: ...
    @property
    def axes(self) -> tuple[Mapping[int, str], ...]: ...
    @property
    def roles(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call."""

    batch: int
    seq: int
    past: int = 0


def takes_past(subject: Subject) -> bool:
    return any(n in ("past_seq", "total_seq") for axes in subject.axes for n in axes.values())


def make_inputs(subject: Subject, sizes: Sizes) -> tuple[Tensor, ...]:
    if takes_past(subject):
        return subject.inputs(sizes.batch, sizes.seq, sizes.past)
    return subject.inputs(sizes.batch, sizes.seq)


def run(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The output tensors, copied; the inputs are copied first, for modules that write into them."""
    with torch.no_grad():
        return tuple(t.detach().clone() for t in output_tensors(module(*copy.deepcopy(inputs))))


def call(module: nn.Module, subject: Subject, sizes: Sizes) -> tuple[Tensor, ...]:
    """Run on the subject's own inputs."""
    return run(module, make_inputs(subject, sizes))


def relative_change(a: Tensor, b: Tensor, scale_of: Tensor | None = None) -> float:
    """max |a - b| / max |scale_of| (default `a`), in float64; inf where shapes or NaNs differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not a.numel():
        return 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    a64, b64 = a.to(wide), b.to(wide)
    finite = torch.isfinite(a64)
    if not torch.equal(finite, torch.isfinite(b64)):
        return math.inf
    if not finite.any():
        return 0.0
    worst = float((a64 - b64)[finite].abs().max())
    if worst == 0.0:
        return 0.0
    whole = (a if scale_of is None else scale_of).to(wide)
    scale = float(whole[torch.isfinite(whole)].abs().max())
    return worst / scale if scale else math.inf


def replaced_from(value: Tensor, axis: int, cut: int) -> Tensor:
    """`value` with other finite values from position `cut` on along `axis`; ids stay in range."""
    changed = value.clone()
    tail = changed.narrow(axis, cut, value.shape[axis] - cut)
    rng = generator(5, value.numel(), cut, salt=3)
    if value.is_floating_point():
        tail.copy_(torch.randn(tail.shape, generator=rng) * 2 + 0.5)
    else:
        count = int(value.max()) + 1
        if count > 1:
            tail.copy_((tail + torch.randint(1, count, tail.shape, generator=rng)) % count)
    return changed


def change_tokens(
    subject: Subject, inputs: tuple[Tensor, ...], cut: int, *, before: bool = False
) -> tuple[Tensor, ...]:
    """The inputs with every token from position `cut` on replaced; with `before`, up to `cut`."""
    changed = list(inputs)
    for i, (axes, role) in enumerate(zip(subject.axes, subject.roles, strict=True)):
        if role != "tokens":
            continue
        axis = next(a for a, name in axes.items() if name == "seq")
        if before:
            tail = inputs[i].narrow(axis, cut, inputs[i].shape[axis] - cut)
            head = replaced_from(inputs[i].narrow(axis, 0, cut).contiguous(), axis, 0)
            changed[i] = torch.cat([head, tail], dim=axis)
        else:
            changed[i] = replaced_from(inputs[i], axis, cut)
    return tuple(changed)


def seq_axes(
    module: nn.Module, subject: Subject, sizes: Sizes
) -> tuple[tuple[int, int] | None, ...]:
    """Per output (axis, offset): position t stands at index t + offset; None: no position axis.

    Found by comparing shapes at two lengths; where the source takes one length only, the first
    axis of that size.
    """
    here = call(module, subject, sizes)
    lengths = getattr(subject, "lengths", None)
    if lengths is not None and len(lengths) == 1:
        return tuple(
            next(((i, 0) for i, n in enumerate(t.shape) if n == sizes.seq), None) for t in here
        )
    other_seq = min((n for n in lengths or () if n != sizes.seq), default=sizes.seq - 1)
    there = call(module, subject, Sizes(sizes.batch, other_seq, sizes.past))
    found: list[tuple[int, int] | None] = []
    for a, b in zip(here, there, strict=True):
        moved = [i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
        found.append((moved[0], a.shape[moved[0]] - sizes.seq) if moved else None)
    return tuple(found)


def real_positions(subject: Subject, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """(batch, seq), True where no (batch, seq) mask among the inputs says padding."""
    real: Tensor | None = None
    for value, axes, role in zip(inputs, subject.axes, subject.roles, strict=True):
        if role == "mask" and dict(axes) == {0: "batch", 1: "seq"} and value.dim() == 2:
            real = value > 0 if real is None else real & (value > 0)
    return real


def keep_real(value: Tensor, axis: int, real: Tensor | None) -> Tensor:
    """`value` with outputs at padding set to 0; batch is axis 0, positions are `axis`."""
    if real is None:
        return value
    shape = [1] * value.dim()
    shape[0], shape[axis] = real.shape[0], value.shape[axis]
    return torch.where(real[:, : value.shape[axis]].view(shape), value, torch.zeros_like(value))


def past_change(subject: Subject, sizes: Sizes, *cuts: int, real_only: bool = False) -> float:
    """How far outputs before a cut move when tokens from the cut on are replaced, at worst.

    Relative to each output's scale; every run gets a module of its own, so that nothing a module
    keeps on itself can hide or feign a change; `real_only`: outputs at padding are left out.
    """
    axes = seq_axes(subject.factory().eval(), subject, sizes)
    inputs = make_inputs(subject, sizes)
    real = real_positions(subject, inputs) if real_only else None
    base = run(subject.factory().eval(), inputs)
    worst = 0.0
    for cut in cuts:
        moved = run(subject.factory().eval(), change_tokens(subject, inputs, cut))
        for a, b, where in zip(base, moved, axes, strict=True):
            if where is not None:
                axis, keep = where[0], cut + where[1]
                before = keep_real(a.narrow(axis, 0, keep), axis, real)
                after = keep_real(b.narrow(axis, 0, keep), axis, real)
                worst = max(worst, relative_change(before, after, a))
    return worst


def future_moves(subject: Subject, sizes: Sizes, cut: int) -> bool:
    """Whether replacing tokens before `cut` moves the first output at the last position.

    An output without a position axis counts as a whole.
    """
    module = subject.factory().eval()
    axes = seq_axes(module, subject, sizes)
    inputs = make_inputs(subject, sizes)
    base = run(module, inputs)
    moved = run(module, change_tokens(subject, inputs, cut, before=True))
    for a, b, where in zip(base, moved, axes, strict=True):
        if where is None:
            return relative_change(a, b) > 0.0
        axis, last = where[0], a.shape[where[0]] - 1
        return relative_change(a.select(axis, last), b.select(axis, last), a) > 0.0
    raise ValueError("the module gave no tensor")


def prefix_change(subject: Subject, sizes: Sizes, short: int, *, real_only: bool = False) -> float:
    """How far outputs at the first `short` positions differ from running those tokens alone."""
    module = subject.factory().eval()
    axes_out = seq_axes(module, subject, sizes)
    inputs = make_inputs(subject, sizes)
    cut_inputs = []
    keep_of = {"seq": short, "total_seq": sizes.past + short}
    for value, axes, role in zip(inputs, subject.axes, subject.roles, strict=True):
        kept = value.clamp(max=short) if role == "lengths" else value
        for axis, name in axes.items():
            if name in keep_of:
                kept = kept.narrow(axis, 0, keep_of[name])
        cut_inputs.append(kept.contiguous())
    real = real_positions(subject, inputs) if real_only else None
    whole = run(subject.factory().eval(), inputs)
    alone = run(subject.factory().eval(), tuple(cut_inputs))
    worst = 0.0
    for a, b, where in zip(whole, alone, axes_out, strict=True):
        if where is None:
            continue
        axis, offset = where
        keep = short + offset
        # Attention weights grow along the keys too: compare the corner that both have.
        corner = a[tuple(slice(0, size) for size in b.shape)]
        before = keep_real(corner.narrow(axis, 0, keep), axis, real)
        worst = max(worst, relative_change(before, keep_real(b.narrow(axis, 0, keep), axis, real)))
    return worst


def influence(subject: Subject, sizes: Sizes) -> Tensor:
    """(seq, seq) booleans: [t, j] is True where some output at position t moves with token j.

    Bit for bit, so that 0.0 is no influence; outputs without a position axis are left out.
    """
    module = subject.factory().eval()
    axes_out = seq_axes(module, subject, sizes)
    inputs = make_inputs(subject, sizes)
    base = run(subject.factory().eval(), inputs)
    seen = torch.zeros(sizes.seq, sizes.seq, dtype=torch.bool)
    for j in range(sizes.seq):
        changed = list(inputs)
        for i, (axes, role) in enumerate(zip(subject.axes, subject.roles, strict=True)):
            if role == "tokens":
                axis = next(a for a, name in axes.items() if name == "seq")
                other = replaced_from(inputs[i], axis, 0).narrow(axis, j, 1)
                changed[i] = inputs[i].clone()
                changed[i].narrow(axis, j, 1).copy_(other)
        moved = run(subject.factory().eval(), tuple(changed))
        for a, b, where in zip(base, moved, axes_out, strict=True):
            if where is not None:
                axis, offset = where
                differs = (a != b).movedim(axis, 0).flatten(1).any(1)
                seen[:, j] |= differs[offset:]
    return seen


def declared_influence(footprint: str, seq: int) -> Tensor | None:
    """The (seq, seq) booleans that one attention core of this footprint gives; None for others."""
    lower = torch.ones(seq, seq, dtype=torch.bool).tril()
    if footprint == "causal":
        return lower
    kind, _, width = footprint.partition(":")
    if kind == "window" and width.isdigit():
        return lower.triu(1 - int(width))
    return None


def first_difference(a: nn.Module, b: nn.Module) -> str | None:
    """The first parameter or buffer in which two modules differ, or None."""
    left, right = a.state_dict(), b.state_dict()
    if left.keys() != right.keys():
        return str(sorted(left.keys() ^ right.keys())[0])
    for name, value in left.items():
        if isinstance(value, Tensor) and not torch.equal(value, right[name]):
            return name
    return None
