"""Symbolic tensors: shapes, reach and values as functions of the sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from causal_onnx.export.analysis.elements import VERY_NEGATIVE
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Expression,
    mentions,
    substitute,
    surely,
)
from causal_onnx.export.proof.symbolic.implication import conclude
from causal_onnx.export.proof.symbolic.poly import ONE, ZERO, Bounds, Poly, symbol, tightened

__all__ = ["OpenError", "Space", "Symbolic", "Term"]


class OpenError(Exception):
    """A symbolic rule does not reach this far; the message says why."""


@dataclass(frozen=True, slots=True)
class Term:
    """Elements may depend on positions up to `reach`, a polynomial in their indices and the sizes.

    It concerns the elements at which all of `where` are >= 0.
    """

    reach: Poly
    where: tuple[Poly, ...] = ()

    def subs(self, values: Mapping[str, Poly]) -> Term:
        return Term(self.reach.subs(values), tuple(poly.subs(values) for poly in self.where))

    def variables(self) -> set[str]:
        found = self.reach.variables()
        for poly in self.where:
            found |= poly.variables()
        return found


@dataclass(frozen=True, slots=True)
class Symbolic:
    """A tensor for all sizes.

    Each axis is a product of index variables, outermost first; () is an axis of size 1.
    """

    axes: tuple[tuple[str, ...], ...]
    terms: tuple[Term, ...] = ()
    """The element's reach is at most the largest that applies; none: it depends on no data."""
    value: Expression = UNKNOWN
    ints: tuple[Poly, ...] | None = None
    """The whole numbers that a scalar or a short vector holds (shapes, bounds)."""
    known: bool = False
    """It depends on the sizes alone."""

    @property
    def rank(self) -> int:
        return len(self.axes)

    def variables(self) -> set[str]:
        return {name for axis in self.axes for name in axis}

    def subs(self, values: Mapping[str, Poly]) -> Symbolic:
        """Other indices in reach and value; the axes stay."""
        if not values:
            return self
        return replace(
            self,
            terms=tuple(term.subs(values) for term in self.terms),
            value=substitute(self.value, values),
        )


class Space:
    """The sizes and index variables of one proof, and the operations that introduce them."""

    def __init__(self, least: Mapping[str, int], total: Poly) -> None:
        """Start with size symbols.

        Args:
            least: Size symbol -> its least value.
            total: The number of positions, past included.
        """
        self.bounds = Bounds()
        self.bounds.least.update(least)
        self.total = total
        self.limits: dict[Poly, str] = {}
        """Assumed to be >= 0, with the node that made it so: the lengths that the graph takes. With
        "" for a node: it is so by the meaning of a symbol."""
        self.quotients: dict[tuple[Poly, int], Poly] = {}
        """(number, divisor) -> the symbol of how often the one goes into the other."""

    def size(self, axis: Sequence[str]) -> Poly:
        """The size of an axis."""
        total = ONE
        for name in axis:
            total = total * self.bounds.sizes[name]
        return total

    def shape(self, tensor: Symbolic) -> tuple[Poly, ...]:
        return tuple(self.size(axis) for axis in tensor.axes)

    def axis(self, size: Poly) -> tuple[str, ...]:
        """A new axis of this size."""
        return () if size == 1 else (self.bounds.index(size),)

    def nonnegative(self, poly: Poly) -> bool:
        """Whether poly >= 0 for all sizes that the graph takes."""
        return self.bounds.implied(poly, tuple(self.limits))

    def stays_within(self, place: Poly, size: Poly) -> None:
        """Take it as given that an index of one axis, written with those of another, fits."""
        limits = tuple(self.limits)
        conclude(place, ">=", 0, given=limits, bounds=self.bounds)
        conclude(size - 1 - place, ">=", 0, given=limits, bounds=self.bounds)

    def least_of(self, first: Poly, second: Poly) -> Poly:
        """The smaller of two numbers >= 0: a symbol of its own where that depends on the sizes."""
        if self.nonnegative(second - first):
            return first
        if self.nonnegative(first - second):
            return second
        found = self.bounds.least_of.get((first, second))
        if found is None:
            name = f"least_{len(self.bounds.least_of)}"
            self.bounds.least[name] = 0
            found = symbol(name)
            self.limits[first - found] = self.limits[second - found] = ""
            self.bounds.least_of[first, second] = found
        return found

    def quotient(self, number: Poly, divisor: int) -> Poly | None:
        """How often a divisor > 0 goes into a number >= 0; None where it may be negative.

        Where it leaves a rest that depends on the sizes: a symbol of its own.
        """
        if divisor <= 0 or not self.nonnegative(number):
            return None
        found = self.quotients.get((number, divisor))
        if found is None:
            name = f"quotient_{len(self.quotients)}"
            self.bounds.least[name] = int(self.nonnegative(number - divisor))
            found = symbol(name)
            rest = number - found * divisor
            self.limits[rest] = self.limits[divisor - 1 - rest] = ""
            self.quotients[number, divisor] = found
        return found

    def is_bounded(self, pair: Sequence[Poly]) -> bool:
        """Whether the smaller of two is what a bounded cache holds, or follows from that."""
        symbols = {name for poly in self.bounds.least_of.values() for name in poly.variables()}
        return tuple(pair) in self.bounds.least_of or any(symbols & p.variables() for p in pair)

    def everything(self) -> Term:
        """A reach up to the last position."""
        return Term(self.total - 1)

    def fresh(self, tensor: Symbolic) -> Symbolic:
        """The same tensor with index variables of its own."""
        names = {name: self.bounds.index(self.bounds.sizes[name]) for name in tensor.variables()}
        moved = tensor.subs({old: symbol(new) for old, new in names.items()})
        return replace(moved, axes=tuple(tuple(names[n] for n in axis) for axis in tensor.axes))

    def single(self, tensor: Symbolic, axis: int) -> tuple[Symbolic, Poly]:
        """The tensor with one variable, or none, along the axis, and its index polynomial there.

        Raises:
            OpenError: The axis merges several, and the contents depend on them.
        """
        names = tensor.axes[axis]
        if not names:
            return tensor, ZERO
        if len(names) == 1:
            return tensor, symbol(names[0])
        used = {name for term in tensor.terms for name in term.variables()}
        if used & set(names) or mentions(tensor.value, set(names)):
            tensor = self._rejoin(tensor, axis)
            if len(tensor.axes[axis]) > 1:
                tensor = self._rejoin(self._along_whole(tensor, axis), axis)
            if len(tensor.axes[axis]) == 1:
                return tensor, symbol(tensor.axes[axis][0])
            if used & set(names):
                raise OpenError("it takes apart an axis that merges several")
            tensor = replace(tensor, value=UNKNOWN)
        joint = self.axis(self.size(names))
        axes = (*tensor.axes[:axis], joint, *tensor.axes[axis + 1 :])
        return replace(tensor, axes=axes), symbol(joint[0])

    def _rejoin(self, tensor: Symbolic, axis: int) -> Symbolic:
        """Give an axis one variable where its contents only use the joint index (hi * size + lo).

        Neighbouring variables are joined if every polynomial is a function of their joint index.
        """
        names = tensor.axes[axis]
        joint = self.bounds.index(self.size(names))
        # Put joint - (the rest) for the innermost; if the others cancel everywhere, it was joint.
        inner = names[-1]
        rest, step = ZERO, ONE
        for name in reversed(names):
            if name != inner:
                rest = rest + symbol(name) * step
            step = step * self.bounds.sizes[name]
        moved = tensor.subs({inner: symbol(joint) - rest})
        others = set(names[:-1])
        used = {name for term in moved.terms for name in term.variables()}
        if used & others or mentions(moved.value, others):
            return tensor
        axes = (*tensor.axes[:axis], (joint,), *tensor.axes[axis + 1 :])
        return replace(moved, axes=axes)

    def _along_whole(self, tensor: Symbolic, axis: int) -> Symbolic:
        """Reach that goes by the outermost of merged variables, as a function of the joint index.

        What a chunk carries over, 4 h - 1, is no more than 4 h + r - 1.
        """
        names = tensor.axes[axis]
        joint, step = ZERO, ONE
        for name in reversed(names):
            joint = joint + symbol(name) * step
            outer, step = step, step * self.bounds.sizes[name]
        terms = []
        for term in tensor.terms:
            parts = term.reach.split(names[0])
            times = None if parts is None else parts[0].divided_by(outer)
            if times is None or parts is None or times == 0:
                terms.append(term)
                continue
            rest = parts[1].subs(dict.fromkeys(names[1:], ZERO))
            wider = rest + joint * times
            if self.bounds.implied(wider - term.reach, term.where):
                terms.append(Term(wider, term.where))
            else:
                terms.append(term)
        # A condition that is no function of the joint index is left out: that only adds reach.
        inner = {names[-1]: symbol("joint") - (joint - symbol(names[-1]))}
        others = set(names[:-1])
        kept = tuple(
            Term(t.reach, tuple(w for w in t.where if not w.subs(inner).variables() & others))
            for t in terms
        )
        return replace(tensor, terms=kept)

    def split(self, name: str, inner: Poly) -> tuple[str, str, dict[str, Poly]]:
        """Write a variable as outer * inner + rest.

        Returns:
            The two new variables (outer, rest) and what to put in the place of the old one.

        Raises:
            OpenError: The size is no multiple of `inner`.
        """
        outer = self.bounds.sizes[name].divided_by(inner)
        if outer is None:
            raise OpenError(f"an axis of size {self.bounds.sizes[name]!r} is split by {inner!r}")
        high, low = self.bounds.index(outer), self.bounds.index(inner)
        joint = symbol(high) * inner + symbol(low)
        self.stays_within(joint, self.bounds.sizes[name])
        return high, low, {name: joint}

    def replaced(
        self, tensor: Symbolic, name: str, parts: tuple[str, ...], values: Mapping[str, Poly]
    ) -> Symbolic:
        """The tensor with one index variable written as several."""
        axes = tuple(
            tuple(p for n in axis for p in (parts if n == name else (n,))) for axis in tensor.axes
        )
        return replace(tensor.subs(values), axes=axes)

    def regroup(self, tensor: Symbolic, goal: Sequence[Poly]) -> Symbolic:
        """The same elements in another shape.

        Raises:
            OpenError: The sizes do not fall into place.
        """
        names = [name for axis in tensor.axes for name in axis]
        axes: list[tuple[str, ...]] = []
        for size in goal:
            own: list[str] = []
            have = ONE
            while have != size:
                if not names:
                    raise OpenError(f"{self.shape(tensor)!r} does not regroup to {list(goal)!r}")
                name = names.pop(0)
                next_size = self.bounds.sizes[name]
                need = size.divided_by(have)
                if need is None:
                    raise OpenError(f"{self.shape(tensor)!r} does not regroup to {list(goal)!r}")
                if need.divided_by(next_size) is None and next_size != need:
                    inner = next_size.divided_by(need)
                    if inner is None:
                        raise OpenError(
                            f"{self.shape(tensor)!r} does not regroup to {list(goal)!r}"
                        )
                    high, low, values = self.split(name, inner)
                    tensor = self.replaced(tensor, name, (high, low), values)
                    names.insert(0, low)
                    name, next_size = high, need
                own.append(name)
                have = have * next_size
            axes.append(tuple(own))
        if names:
            raise OpenError(f"{self.shape(tensor)!r} does not regroup to {list(goal)!r}")
        return replace(tensor, axes=tuple(axes), ints=None)

    def align(
        self, tensors: Sequence[Symbolic]
    ) -> tuple[list[Symbolic], tuple[tuple[str, ...], ...]]:
        """Bring tensors that broadcast against each other onto the same index variables.

        Returns:
            The tensors (their axes no longer matter) and the axes of the broadcast.

        Raises:
            OpenError: Two sizes that meet are not provably equal.
        """
        rank = max(tensor.rank for tensor in tensors)
        out: list[tuple[str, ...]] = [()] * rank
        done: list[Symbolic] = []
        for index, given in enumerate(tensors):
            tensor = self.fresh(given) if index else given
            lead = rank - tensor.rank
            for axis in range(tensor.rank):
                mine = tensor.axes[axis]
                theirs = out[lead + axis]
                if not mine:
                    continue
                if not theirs:
                    out[lead + axis] = mine
                    continue
                done, out, tensor = self._unify(done, out, tensor, lead, axis)
            done.append(tensor)
        return done, tuple(out)

    def _unify(
        self,
        done: list[Symbolic],
        out: list[tuple[str, ...]],
        tensor: Symbolic,
        lead: int,
        axis: int,
    ) -> tuple[list[Symbolic], list[tuple[str, ...]], Symbolic]:
        """Give an axis of `tensor` the variables that the broadcast has there."""
        if self.size(tensor.axes[axis]) != self.size(out[lead + axis]):
            raise OpenError(
                f"sizes {self.size(tensor.axes[axis])!r} and {self.size(out[lead + axis])!r} meet"
            )
        mine, theirs = list(tensor.axes[axis]), list(out[lead + axis])
        pairs: list[tuple[str, str]] = []
        while mine and theirs:
            a, b = mine.pop(), theirs.pop()
            size_a, size_b = self.bounds.sizes[a], self.bounds.sizes[b]
            if size_a == size_b:
                pairs.append((a, b))
            elif size_a.divided_by(size_b) is not None:
                high, low, values = self.split(a, size_b)
                tensor = self.replaced(tensor, a, (high, low), values)
                pairs.append((low, b))
                mine.append(high)
            elif size_b.divided_by(size_a) is not None:
                high, low, values = self.split(b, size_a)
                done = [self.replaced(t, b, (high, low), values) for t in done]
                out = [tuple(p for n in x for p in ((high, low) if n == b else (n,))) for x in out]
                pairs.append((a, low))
                theirs.append(high)
            else:
                raise OpenError(f"axes of sizes {size_a!r} and {size_b!r} do not line up")
        if mine or theirs:
            raise OpenError("axes that meet are composed of other factors")
        names = dict(pairs)
        moved = tensor.subs({a: symbol(b) for a, b in pairs})
        axes = tuple(tuple(names.get(n, n) for n in x) for x in tensor.axes)
        return done, out, replace(moved, axes=axes)

    def join(self, terms: Iterable[Term]) -> tuple[Term, ...]:
        """The union of reaches, without those that another covers."""
        unique = list(dict.fromkeys(terms))
        kept: list[Term] = []
        for i, term in enumerate(unique):
            covered = any(
                self._covers(other, term) and not (j > i and self._covers(term, other))
                for j, other in enumerate(unique)
                if j != i
            )
            if not covered:
                kept.append(term)
        return tuple(kept)

    def _covers(self, other: Term, term: Term) -> bool:
        if not all(self.bounds.implied(poly, term.where) for poly in other.where):
            return False
        return self.bounds.implied(other.reach - term.reach, (*term.where, *self.limits))

    def eliminate(
        self,
        terms: Sequence[Term],
        gone: set[str],
        left: Sequence[tuple[str, ...]],
        *,
        factors: Sequence[Expression] = (),
        dead: str = "zero",
    ) -> tuple[Term, ...]:
        """The reach after the index variables `gone` were summed (or otherwise combined) over.

        Args:
            terms: Before.
            gone: The variables.
            left: The axes that stay: the result reaches as far as a place along one of them, or as
                another term does, or everywhere.
            factors: An element whose value is `dead` in one of these leaves no trace.
            dead: "zero", "low" (-inf or very negative), or "" for none.
        """
        kept = [term for term in terms if not term.reach.variables() & gone]
        result = [
            Term(t.reach, tuple(w for w in t.where if not w.variables() & gone)) for t in kept
        ]
        for term in terms:
            if not term.reach.variables() & gone:
                continue
            found = None
            open_ = [t.reach for t in result if not t.where]
            beside = self._beside(term.reach, gone, left)
            end = term.reach.subs({n: self.bounds.sizes[n] - 1 for n in gone})
            for guess in [*open_, *beside, *self.guesses(left), end]:
                if self._bounded(term, guess, factors, dead):
                    found = guess
                    break
            result.append(self.everything() if found is None else Term(found))
        return self.join(result)

    def _beside(
        self, reach: Poly, gone: set[str], left: Sequence[tuple[str, ...]]
    ) -> Iterator[Poly]:
        """Where a sum over a variable may end: about an index that stays and runs as far."""
        for name in sorted(reach.variables() & gone):
            for other in (other for axis in left for other in axis):
                if self.bounds.sizes[other] == self.bounds.sizes[name]:
                    for step in (-1, 0, 1):
                        yield reach.subs({name: symbol(other) + step})

    def _bounded(self, term: Term, guess: Poly, factors: Sequence[Expression], dead: str) -> bool:
        """Whether elements that reach beyond `guess` cannot exist or leave no trace."""
        limits = tuple(self.limits)
        if self.bounds.implied(guess - term.reach, (*term.where, *limits)):
            return True
        if not dead:
            return False
        later = term.reach - guess - 1
        conclude(tightened(later), ">=", ZERO, given=(later,), bounds=self.bounds)
        beyond = (tightened(later), *term.where, *limits)
        number = 0.0 if dead == "zero" else VERY_NEGATIVE
        exactly = dead == "zero"
        return any(
            surely(factor, number, self.bounds, beyond, exactly=exactly) for factor in factors
        )

    def guesses(self, axes: Iterable[tuple[str, ...]]) -> list[Poly]:
        """The position that an index along one of the axes would stand for, if it were one."""
        found = []
        for axis in axes:
            for name in axis:
                size = self.bounds.sizes[name]
                if size.constant is None:
                    found.append(symbol(name) + self.total - size)
        return found
