"""Checks of what an entry or a mutant claims about itself, in eager PyTorch alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from .entry import ZooEntry
from .mutants import Mutant
from .probes import (
    Sizes,
    call,
    declared_influence,
    first_difference,
    future_moves,
    influence,
    past_change,
    prefix_change,
    takes_past,
)

__all__ = ["broken_claims", "broken_mutant_claims"]

BATCH = 3
PAST = 3
USUAL = 8
"""A length at which most checks run: past the first block, chunk or window of every entry."""
LEAK = 1e-4
"""Below this share of the output's scale a moved past could be rounding."""
WITHOUT_LIMIT = 29


def broken_claims(entry: ZooEntry) -> list[str]:
    """What `entry` says of itself and eager PyTorch does not bear out; empty if all is well."""
    with warnings.catch_warnings():
        if entry.warns is not None:
            warnings.filterwarnings("ignore", message=entry.warns)
        problems = _same_every_time(entry)
        if "random" in entry.tags:
            return problems + _varies(entry, fresh=True)
        if "state" in entry.tags:
            problems += _varies(entry, fresh=False)
        problems += _runs_at_every_length(entry)
        problems += _limit(entry)
        problems += _causal(entry)
        problems += _stable_prefix(entry)
        return problems + _footprint(entry)


def _lengths(entry: ZooEntry) -> tuple[int, ...]:
    if entry.lengths is not None:
        return entry.lengths
    past = PAST if entry.takes_past else 0
    longest = entry.limit - past if entry.limit is not None else WITHOUT_LIMIT
    return tuple(sorted({1, 2, min(7, longest), longest}))


def _usual(entry: ZooEntry, batch: int = BATCH) -> Sizes:
    seq = USUAL if entry.lengths is None else next(n for n in entry.lengths if n >= USUAL)
    return Sizes(batch, seq, PAST if entry.takes_past else 0)


def _same_every_time(entry: ZooEntry) -> list[str]:
    before = torch.get_rng_state()
    first = entry.factory()
    problems = []
    if not torch.equal(before, torch.get_rng_state()):
        problems.append("the factory moves the global random state")
    torch.manual_seed(torch.initial_seed() + 1)  # other weights, if the factory draws from it
    second = entry.factory()
    torch.set_rng_state(before)
    differs = first_difference(first, second)
    if differs is not None:
        problems.append(f"the factory gives other weights each time: {differs}")
    if not first.training:
        problems.append("the factory gives a module in eval mode")
    return problems


def _varies(entry: ZooEntry, *, fresh: bool) -> list[str]:
    module = entry.factory().eval()
    sizes = _usual(entry)
    first = call(module, entry, sizes)
    second = call(entry.factory().eval() if fresh else module, entry, sizes)
    if all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        return ["two runs in eval mode are equal"]
    return []


def _runs_at_every_length(entry: ZooEntry) -> list[str]:
    problems = []
    module = entry.factory().eval()
    pasts = (0, PAST) if entry.takes_past else (0,)
    for seq in _lengths(entry):
        for batch in (1, BATCH):
            for past in pasts:
                outputs = call(module, entry, Sizes(batch, seq, past))
                if not outputs:
                    problems.append(f"no tensor comes out at length {seq}")
                if any(t.is_floating_point() and not t.isfinite().all() for t in outputs):
                    problems.append(f"not finite at batch {batch}, length {seq}, past {past}")
    return problems


def _limit(entry: ZooEntry) -> list[str]:
    if entry.limit is None:
        return []
    past = PAST if entry.takes_past else 0
    sizes = Sizes(2, entry.limit - past + 1, past)
    try:
        outputs = call(entry.factory().eval(), entry, sizes)
    except Exception as error:
        if entry.beyond == "raises":
            return []
        return [f"beyond the limit it raises {error!r}, declared: {entry.beyond}"]
    full = any(sizes.seq in t.shape for t in outputs)
    does = "accepts" if full else "crops"
    return [] if does == entry.beyond else [f"beyond the limit it {does}, declared {entry.beyond}"]


def _causal(entry: ZooEntry) -> list[str]:
    sizes = _usual(entry)
    problems = []
    cuts = sorted({1, sizes.seq // 2, sizes.seq - 1})
    worst = past_change(entry, sizes, *cuts, real_only=entry.padded_rows_leak)
    if worst > entry.causal_up_to:
        problems.append(f"the past moves by {worst:.1e}, declared {entry.causal_up_to:.1e}")
    if entry.padded_rows_leak and past_change(entry, sizes, *cuts) <= LEAK:
        problems.append("declared to leak at padding, and does not")
    if "degenerate" not in entry.tags and not future_moves(entry, sizes, sizes.seq - 1):
        problems.append("the last output does not depend on earlier tokens")
    return problems


def _stable_prefix(entry: ZooEntry) -> list[str]:
    sizes = _usual(entry)
    short = 5 if entry.lengths is None else min(entry.lengths)
    if short >= sizes.seq:
        return []
    worst = prefix_change(entry, sizes, short, real_only=entry.padded_rows_leak)
    if "length_dependent" in entry.tags:
        return [] if worst > LEAK else ["declared to depend on the length, and does not"]
    if worst > entry.prefix_up_to:
        return [f"a prefix alone differs by {worst:.1e}, declared {entry.prefix_up_to:.1e}"]
    return []


def _footprint(entry: ZooEntry) -> list[str]:
    sizes = _usual(entry, batch=1)  # row 0 has no padding
    declared = declared_influence(entry.footprint, sizes.seq)
    # Where rounding is coarse or layers add up their windows, one matrix does not tell.
    layered = "whole_model" in entry.tags and "window" in entry.tags
    if declared is None or layered or entry.causal_up_to or "last_position" in entry.tags:
        return []
    seen = influence(entry, sizes)
    if "dtype" in entry.tags:  # a coarse format rounds small influences away
        declared = declared & seen
    return [] if torch.equal(seen, declared) else [f"sees {_matrix(seen)}, not {entry.footprint}"]


def _matrix(seen: torch.Tensor) -> str:
    return "/".join("".join("x" if v else "." for v in row) for row in seen.tolist())


def broken_mutant_claims(mutant: Mutant) -> list[str]:
    """What `mutant` says is broken about itself and is not; empty if it is broken as told."""
    problems = []
    first, second = mutant.factory(), mutant.factory()
    if first_difference(first, second) is not None:
        problems.append("the factory gives other weights each time")
    if mutant.breaks not in {name for name, _ in first.named_modules()}:
        problems.append(f"has no submodule {mutant.breaks!r}")
    past = PAST if takes_past(mutant) else 0
    worst = max(
        past_change(mutant, Sizes(BATCH, seq, past), *range(1, seq))
        for seq in {mutant.shows_from, max(mutant.shows_from, USUAL)}
    )
    if mutant.kind == "leak":
        return problems if worst > LEAK else [*problems, f"the past moves by {worst:.1e} only"]
    if worst > 0.0:
        problems.append(f"the past moves by {worst:.1e}, though it is of kind {mutant.kind}")
    sizes = Sizes(BATCH, max(mutant.shows_from, USUAL), past)
    if mutant.kind == "length":
        moved = prefix_change(mutant, sizes, 5)
        return problems if moved > LEAK else [*problems, "a longer input changes nothing"]
    # Only the broken part: the honest attention before it would blur what it sees.
    part = replace(mutant, factory=lambda: mutant.factory().get_submodule(mutant.breaks))
    seen, declared = influence(part, sizes), declared_influence(mutant.declared, sizes.seq)
    if declared is None or torch.equal(seen, declared):
        problems.append(f"sees just what was declared, {mutant.declared}")
    return problems
