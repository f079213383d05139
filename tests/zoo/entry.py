"""What a zoo entry is, and how a family file declares one.

A family file makes a `Family` and decorates each module class with `family.add(...)`; the class
stays an ordinary `nn.Module`, and the family collects a `ZooEntry` for it. Several decorators on
one class give several entries (a cache cold and warm, a mask in two dtypes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Family",
    "Inputs",
    "ZooEntry",
    "features",
    "ids",
    "output_tensors",
    "seeded",
    "seq_first",
    "unbatched",
    "with_lengths",
    "with_padding_mask",
]

ROLES = ("tokens", "mask", "positions", "lengths", "past", "given")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How to make the inputs of a module, and what their axes mean."""

    make: Callable[..., tuple[Tensor, ...]]
    """(batch, seq) -> inputs; (batch, seq, past) -> inputs where an axis is past_seq/total_seq.
    The same sizes give the same values."""
    axes: tuple[Mapping[int, str], ...]
    """One {axis: name} per input; an axis that is not named has a fixed size."""
    roles: tuple[str, ...]
    """One of `ROLES` per input: only "tokens" are data of which a causal output t may depend on
    positions <= t alone; the rest say which tokens count, where they stand, what came before, or
    are given to all positions (a label, a memory, the caller's mask)."""

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.roles):
            raise ValueError(f"{len(self.axes)} axes for {len(self.roles)} roles")
        for role in self.roles:
            if role not in ROLES:
                raise ValueError(f"a role is one of {', '.join(ROLES)}, got {role!r}")
        for axes in self.axes:
            for name in axes.values():
                if not name.isidentifier():
                    raise ValueError(f"the name of an axis must be an identifier, got {name!r}")


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One module as people write it, and what an honest exporter should say about it."""

    name: str
    factory: Callable[[], nn.Module]
    """Builds the module with the same weights every time, leaving the global random state as it
    was; in training mode, as a constructor leaves it."""
    inputs: Callable[..., tuple[Tensor, ...]]
    """See `Inputs.make`."""
    axes: tuple[Mapping[int, str], ...]
    roles: tuple[str, ...]
    origin: str
    """Where this style is found, in words."""
    tags: frozenset[str]
    limit: int | None = None
    """The longest sequence that the source accepts (past included); None: no limit."""
    beyond: str = "raises"
    """What the source does past `limit`: "raises", "crops" (a shorter output) or "accepts" (runs,
    with values it was not made for)."""
    lengths: tuple[int, ...] | None = None
    """The only lengths that the source accepts; None: all from 1 to `limit`."""
    expect: str = "causal"
    """"causal", "refused:<why>" (cannot be captured) or "not_causal:<why>"."""
    causal_up_to: float = 0.0
    """How far past outputs move in eager, relative to the output's scale, when future tokens
    change: 0.0 is bit-identical, else the rounding of the source's own arithmetic."""
    prefix_up_to: float = 1e-5
    """How far the outputs at a shorter length are from the same positions at a longer one,
    relative to the output's scale; matmuls of other sizes round differently."""
    cacheable: bool = True
    """A cache can sensibly be derived: each output follows from the positions up to its own."""
    footprint: str = "causal"
    """What the attention cores are declared to see: "causal", "window:<w>" (itself and w - 1
    before), "full" (a memory), "other", or several joined by " / "."""
    warns: str | None = None
    """Start of a warning that the source itself gives in eager."""
    fully_masked_rows: bool = False
    """The inputs leave rows that may attend to nothing."""
    padded_rows_leak: bool = False
    """The source's outputs at padding depend on later tokens (a row of equal scores averages every
    position); those of real tokens do not, and the entry's claims are about these."""

    def __post_init__(self) -> None:
        kind, _, why = self.expect.partition(":")
        if kind not in ("causal", "refused", "not_causal") or (kind == "causal") == bool(why):
            raise ValueError(
                f"{self.name}: expect is 'causal', 'refused:<why>' or 'not_causal:<why>', "
                f"got {self.expect!r}"
            )
        if self.beyond not in ("raises", "crops", "accepts"):
            raise ValueError(f"{self.name}: beyond={self.beyond!r}")

    @property
    def takes_past(self) -> bool:
        """Whether `inputs` takes a third number, the length of the past."""
        return any(name in ("past_seq", "total_seq") for a in self.axes for name in a.values())


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `build` under a seed of its own, then move every parameter off its plain value.

    Fresh norms have weight 1 and bias 0, and an exporter that lost them would not be noticed; so
    one-dimensional floating parameters get noise. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() <= 1 and parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def generator(batch: int, seq: int, past: int = 0, salt: int = 0) -> torch.Generator:
    """A generator that depends on the sizes alone."""
    return torch.Generator().manual_seed(((salt * 67 + batch) * 1009 + seq) * 1013 + past)


def features(dim: int, *, dtype: torch.dtype = torch.float32, copies: int = 1) -> Inputs:
    """(batch, seq, dim) floats; `copies` such inputs."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        rng = generator(batch, seq)
        return tuple(torch.randn(batch, seq, dim, generator=rng).to(dtype) for _ in range(copies))

    return Inputs(make=make, axes=({0: "batch", 1: "seq"},) * copies, roles=("tokens",) * copies)


def unbatched(dim: int) -> Inputs:
    """(seq, dim) floats; the batch size is ignored."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        return (torch.randn(seq, dim, generator=generator(1, seq)),)

    return Inputs(make=make, axes=({0: "seq"},), roles=("tokens",))


def seq_first(dim: int) -> Inputs:
    """(seq, batch, dim) floats."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        return (torch.randn(seq, batch, dim, generator=generator(batch, seq)),)

    return Inputs(make=make, axes=({0: "seq", 1: "batch"},), roles=("tokens",))


def ids(vocab: int, *, dtype: torch.dtype = torch.int64, transposed: bool = False) -> Inputs:
    """(batch, seq) token ids below `vocab`, or (seq, batch) if `transposed`."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        drawn = torch.randint(0, vocab, (batch, seq), generator=generator(batch, seq)).to(dtype)
        return (drawn.t().contiguous() if transposed else drawn,)

    axes = {0: "seq", 1: "batch"} if transposed else {0: "batch", 1: "seq"}
    return Inputs(make=make, axes=(axes,), roles=("tokens",))


def with_padding_mask(
    base: Inputs, *, side: str, dtype: torch.dtype = torch.int64, keep: int = 1
) -> Inputs:
    """`base` and a (batch, seq) mask: 1 on real tokens, 0 on padding at the `side` given.

    Row 0 has no padding; row i is shortened by i mod seq positions, and keeps at least `keep`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is 'left' or 'right', got {side!r}")

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        real = torch.tensor([max(seq - i % seq, keep) for i in range(batch)])
        at = torch.arange(seq)
        mask = at < real[:, None] if side == "right" else at >= seq - real[:, None]
        return (*base.make(batch, seq), mask.to(dtype))

    return Inputs(make=make, axes=(*base.axes, {0: "batch", 1: "seq"}), roles=(*base.roles, "mask"))


def with_lengths(base: Inputs) -> Inputs:
    """`base` and (batch,) int64 lengths: row 0 is full, row i is i mod seq shorter."""

    def make(batch: int, seq: int) -> tuple[Tensor, ...]:
        return (*base.make(batch, seq), torch.tensor([seq - i % seq for i in range(batch)]))

    return Inputs(make=make, axes=(*base.axes, {0: "batch"}), roles=(*base.roles, "lengths"))


class Family:
    """Collects the entries of one file, in the order they are written."""

    def __init__(self, *tags: str) -> None:
        self.tags = tags
        self.entries: list[ZooEntry] = []

    def add(
        self,
        name: str,
        *args: Any,
        inputs: Inputs,
        origin: str,
        tags: Sequence[str] = (),
        warm: Callable[[nn.Module], object] | None = None,
        seed: int = 0,
        **rest: Any,
    ) -> Callable[[Any], Any]:
        """Declare an entry built by calling the decorated class (or function) with `args`.

        `warm` is run on the new module without gradients, e.g. to fill a cache it keeps on
        itself. `rest` are further fields of `ZooEntry`.
        """

        def declare(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
            def factory() -> nn.Module:
                module = seeded(lambda: make(*args), seed)
                if warm is not None:
                    with torch.no_grad():
                        warm(module)
                return module

            # A module with a past of its own needs no other.
            has_past = any("past_seq" in axes.values() for axes in inputs.axes)
            self.entries.append(
                ZooEntry(
                    name=name,
                    factory=factory,
                    inputs=inputs.make,
                    axes=inputs.axes,
                    roles=inputs.roles,
                    origin=origin,
                    tags=frozenset((*self.tags, *tags)),
                    **{"cacheable": not has_past, **rest},
                )
            )
            return make

        return declare


def output_tensors(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a module's output in order: of tuples, mappings and dataclasses, nested.

    None and objects that hold no tensors in a documented way (cache classes) are left out.
    """
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, Mapping):
        return tuple(t for value in output.values() for t in output_tensors(value))
    if isinstance(output, list | tuple):
        return tuple(t for value in output for t in output_tensors(value))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        named = (getattr(output, item.name) for item in dataclasses.fields(output))
        return tuple(t for value in named for t in output_tensors(value))
    return ()
