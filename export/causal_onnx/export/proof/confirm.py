"""Confirming a witness by running: the element moves when the later position changes.

What the static pass calls a leak is what it could not rule out. Only a run can say that there is
one: finite values, one position changed, an earlier element that moves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.make_input import make_input
from causal_onnx.export.analysis.signature import InputAxes, Signature, Sizes
from causal_onnx.export.proof.judge import Leak
from causal_onnx.export.proof.perturb import changed_input, same
from causal_onnx.export.proof.running import GraphRunner

__all__ = ["Confirmation", "Suspect", "confirm"]

Array = npt.NDArray[Any]

MAX_RUNS = 600
"""Of one confirmation that finds nothing: some seconds, for a small graph."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An output that the static pass calls leaking, at sizes at which it does."""

    output: str
    leak: Leak
    """The element and the later position that the static pass names."""
    place: Array
    """The position of each element; broadcasts to the output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What running the graph says of a witness."""

    confirmed: bool
    witness: str = ""
    """The element that moved, and the position that was changed; "" if none did."""
    runs: int = 0
    reason: str = ""
    """Why nothing was confirmed."""

    @property
    def is_run(self) -> bool:
        """Some inputs were run; otherwise `reason` says why none."""
        return self.runs > 0


@dataclass(frozen=True, slots=True)
class _Flavour:
    """One way to make up inputs: a leak may show for large scores only, or for certain ids."""

    seed: int
    scale: float = 1.0
    ids: int | None = None
    """Ids below this only."""
    positive: bool = False
    quiet: bool = False
    """Nothing but zeros where nothing was changed: no larger sum hides what leaks."""


FLAVOURS = (
    _Flavour(0),
    _Flavour(1, scale=4.0, ids=3),
    _Flavour(2, quiet=True),
    _Flavour(3, positive=True, ids=2),
    _Flavour(4, scale=30.0),
    _Flavour(5, scale=1000.0),
)


def confirm(
    runner: GraphRunner,
    signature: Signature,
    suspects: Sequence[Suspect],
    *,
    vocabulary: Mapping[str, int],
    fixed: Collection[str] = (),
    max_runs: int = MAX_RUNS,
) -> Confirmation:
    """Look for an earlier element that moves when a later position changes.

    First the element and the position that each witness names; then any other pair at the same
    sizes, with inputs of several magnitudes, one position at a time and all later ones together.

    Args:
        runner: The graph.
        signature: What its inputs are.
        suspects: Witnesses of the static pass, at least one.
        vocabulary: Input of ids -> number of valid ids.
        fixed: Inputs that stay as they are.
        max_runs: After so many runs nothing is confirmed.
    """
    runs, taken = 0, False
    by_sizes: dict[Sizes, list[Suspect]] = {}
    for suspect in suspects:
        by_sizes.setdefault(suspect.leak.sizes, []).append(suspect)
    for flavour in FLAVOURS:
        for wanted, own in by_sizes.items():
            trial = _Trial(runner, signature, flavour, vocabulary, fixed)
            sizes = trial.start(wanted)
            if sizes is None:
                continue
            runs += 1
            if not taken and not trial.repeats():
                reason = "two runs on the same input give different outputs"
                return Confirmation(confirmed=False, runs=runs, reason=reason)
            taken = True
            for first, last in _changes(own, sizes):
                witness = trial.moved(own, first, last)
                runs += 1
                if witness:
                    return Confirmation(confirmed=True, witness=witness, runs=runs)
                if runs >= max_runs:
                    return _nothing(by_sizes, runs)
    if not taken:
        return Confirmation(
            confirmed=False, reason=f"{runner.name} cannot run it: {runner.refusal}"
        )
    return _nothing(by_sizes, runs)


def _nothing(sizes: Collection[Sizes], runs: int) -> Confirmation:
    lengths = ", ".join(str(n) for n in sorted({one.seq for one in sizes}))
    reason = f"in {runs} runs at lengths {lengths} no change of a later position moved it"
    return Confirmation(confirmed=False, runs=runs, reason=reason)


def _changes(suspects: Sequence[Suspect], sizes: Sizes) -> Iterator[tuple[int, int]]:
    """(first, last + 1) positions to change together: the named ones first."""
    total = sizes.total_seq
    named = [suspect.leak.reach for suspect in suspects]
    single = dict.fromkeys([*named, *range(total - 1, 0, -1)])
    yield from ((place, place + 1) for place in single if 0 < place < total)
    yield from ((place, total) for place in single if 0 < place < total - 1)


class _Trial:
    """Inputs of one flavour at one choice of sizes, and the outputs for them."""

    def __init__(
        self,
        runner: GraphRunner,
        signature: Signature,
        flavour: _Flavour,
        vocabulary: Mapping[str, int],
        fixed: Collection[str],
    ) -> None:
        self.runner = runner
        self.specs = signature.inputs
        self.flavour = flavour
        self.vocabulary = vocabulary
        self.fixed = fixed
        self.rng = np.random.default_rng(flavour.seed)

    def start(self, wanted: Sizes) -> Sizes | None:
        """Run unchanged inputs; the sizes that the graph took, None if it took none."""
        # Some kernels take several positions after a past for one row only.
        for sizes in dict.fromkeys((wanted, replace(wanted, batch=1))):
            self.sizes = sizes
            self.feeds = {s.name: self._scaled(s, self._make(s)) for s in self.specs}
            base = self.runner(self.feeds, sizes)
            if base is not None:
                self.base = dict(zip(self.runner.outputs, base, strict=True))
                return sizes
        return None

    def repeats(self) -> bool:
        again = self.runner(self.feeds, self.sizes)
        if again is None:
            return False
        return all(same(a, b) for a, b in zip(self.base.values(), again, strict=True))

    def moved(self, suspects: Sequence[Suspect], first: int, last: int) -> str:
        """The witness that a change of these positions gives; "" for none."""
        feeds = {
            s.name: self.feeds[s.name]
            if s.name in self.fixed
            else self._scaled(
                s,
                changed_input(
                    s, self.feeds[s.name], self.sizes, first, until=last, rng=self.rng,
                    ids=self._ids(s),
                ),
                self.feeds[s.name],
            )
            for s in self.specs
        }  # fmt: skip
        after = self.runner(feeds, self.sizes)
        if after is None:
            return ""
        found = dict(zip(self.runner.outputs, after, strict=True))
        for suspect in suspects:
            a, b = self.base.get(suspect.output), found.get(suspect.output)
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
                text = _moved(suspect, a, b, changed=(first, last), sizes=self.sizes)
                if text:
                    return text
        return ""

    def _ids(self, spec: InputAxes) -> range | None:
        size = self.vocabulary.get(spec.name)
        most = self.flavour.ids
        return None if size is None else range(max(1, size if most is None else min(size, most)))

    def _make(self, spec: InputAxes) -> Array:
        return make_input(spec, self.sizes, self.rng, self._ids(spec))

    def _scaled(self, spec: InputAxes, array: Array, before: Array | None = None) -> Array:
        """The data of a float input in the magnitude of the flavour, where it is new."""
        if spec.role not in ("tokens", "past") or not np.issubdtype(array.dtype, np.floating):
            return array
        if self.flavour.quiet and before is None:
            return np.zeros_like(array)
        fresh = np.abs(array) if self.flavour.positive else array
        fresh = np.clip(fresh * self.flavour.scale, *_finite(array.dtype)).astype(array.dtype)
        return fresh if before is None else np.where(array == before, before, fresh)


def _finite(dtype: Any) -> tuple[float, float]:
    """Half of the range, so that sums of two stay finite."""
    most = min(float(np.finfo(dtype).max) / 2, 1e18)
    return -most, most


def _moved(suspect: Suspect, a: Array, b: Array, *, changed: tuple[int, int], sizes: Sizes) -> str:
    first, last = changed
    if a.dtype.kind in "OSU":
        return ""
    with np.errstate(all="ignore"):
        wide = np.complex128 if a.dtype.kind == "c" else np.float64
        gap = np.abs(a.astype(wide) - b.astype(wide))
    try:
        place = np.broadcast_to(suspect.place, a.shape)
    except ValueError:  # another batch size, along an axis that merges it with positions
        return ""
    hits = np.isfinite(gap) & (gap > 0) & (place < first)
    if not hits.any():
        return ""
    index = suspect.leak.index
    inside = all(i < n for i, n in zip(index, a.shape, strict=True))
    if not (inside and hits[index]):
        index = tuple(
            int(i) for i in np.unravel_index(int(np.where(hits, gap, 0).argmax()), a.shape)
        )
    which = f"position {first}" if last == first + 1 else f"positions {first} to {last - 1}"
    past = f" after a past of {sizes.past_seq}" if sizes.past_seq else ""
    return (
        f"{suspect.output}{list(index)}, position {int(place[index])}, depends on {which} "
        f"(length {sizes.seq}{past}): it moved by {float(gap[index]):.1e}"
    )
