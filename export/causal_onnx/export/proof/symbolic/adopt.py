"""Reading a symbolic tensor off the runs at several sizes, where no symbolic rule reaches.

What is adopted so holds at the sizes that were run; that it holds at all sizes is an assumption of
the proof, which names the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.elements import NONE, Elements, Known, view
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Sizes
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Constant,
    Expression,
    Measured,
    Sample,
    linear,
)
from causal_onnx.export.proof.symbolic.implication import adopted
from causal_onnx.export.proof.symbolic.poly import ONE, ZERO, Poly, symbol
from causal_onnx.export.proof.symbolic.tensor import OpenError, Space, Symbolic, Term

__all__ = ["SIZE_SYMBOLS", "Evidence", "adopt", "fit"]

SIZE_SYMBOLS = ("batch", "seq", "past_seq")

MAX_OFFSET = 64

LEAST_RUNS = 4
"""Fewer sizes than this would follow too many patterns."""


@dataclass
class Evidence:
    """The runs, at sizes that tell the size symbols apart."""

    runs: Sequence[Run]
    symbols: Sequence[str]
    """The size symbols that vary between the runs."""

    def values(self, value: ir.Value) -> list[tuple[Mapping[str, int], Elements | Known]]:
        """What the runs have for a value, with their sizes; of one in a branch, those in it.

        Raises:
            OpenError: A run has no tensor for it, or too few were in its branch.
        """
        found: list[tuple[Mapping[str, int], Elements | Known]] = []
        for run in self.runs:
            tensor = run.values.get(value)
            if tensor is None:
                continue
            if not isinstance(tensor, Elements | Known):
                raise OpenError("it is no tensor")
            found.append((assignment(run.sizes), tensor))
        if len(found) < min(LEAST_RUNS, len(self.runs)):
            raise OpenError("too few of the lengths followed enter the branch that it stands in")
        return found


def assignment(sizes: Sizes) -> dict[str, int]:
    """The values of the size symbols."""
    return {
        "batch": sizes.batch,
        "seq": sizes.seq,
        "past_seq": sizes.past_seq,
        **dict(sizes.other),
    }


def fit(rows: Sequence[tuple[Mapping[str, int], int]], symbols: Sequence[str]) -> Poly | None:
    """The polynomial with small whole coefficients through all points; None if there is none.

    Monomials: 1, each symbol, and products of two.
    """
    monomials = [ONE, *(symbol(s) for s in symbols)]
    monomials += [symbol(a) * symbol(b) for i, a in enumerate(symbols) for b in symbols[i + 1 :]]
    sizes = [{**dict.fromkeys(symbols, 0), **row} for row, _ in rows]
    goal = np.asarray([number for _, number in rows], np.float64)
    # The fewest monomials that fit: a constant, one symbol, two, ...
    for count in (1, 2, 3, len(monomials)):
        for chosen in _subsets(monomials, count):
            matrix = np.asarray([[m.at(row) for m in chosen] for row in sizes], np.float64)
            solution, *_ = np.linalg.lstsq(matrix, goal, rcond=None)
            rounded = np.rint(solution)
            if np.array_equal(matrix @ rounded, goal):
                result = ZERO
                for coefficient, monomial in zip(rounded, chosen, strict=True):
                    result = result + monomial * int(coefficient)
                return result
    return None


def _subsets(monomials: Sequence[Poly], count: int) -> list[list[Poly]]:
    if count == 1:
        return [[m] for m in monomials]
    if count == 2:
        return [[monomials[0], m] for m in monomials[1:]]
    if count == 3:
        rest = monomials[1:]
        return [[monomials[0], a, b] for i, a in enumerate(rest) for b in rest[i + 1 :]]
    return [list(monomials)]


def adopt(space: Space, evidence: Evidence, value: ir.Value) -> Symbolic:
    """The tensor as the runs show it.

    Raises:
        OpenError: The runs do not follow one pattern.
    """
    found = evidence.values(value)
    ranks = {len(tensor.shape) for _, tensor in found}
    if len(ranks) != 1:
        raise OpenError("its rank depends on the sizes")
    rank = ranks.pop()
    sizes = []
    for axis in range(rank):
        size = fit([(row, tensor.shape[axis]) for row, tensor in found], evidence.symbols)
        if size is None:
            raise OpenError("its shape follows no polynomial of the sizes")
        sizes.append(size)
    adopted()
    axes = tuple(space.axis(size) for size in sizes)
    index = tuple(symbol(axis[0]) if axis else ZERO for axis in axes)
    if all(isinstance(tensor, Known) for _, tensor in found):
        known = [(row, t.value) for row, t in found if isinstance(t, Known)]
        return _known(evidence, known, axes, index)
    data = [(row, t) for row, t in found if isinstance(t, Elements)]
    terms = _reach(space, evidence, data, axes)
    return Symbolic(axes, terms, _partly_known(data, index))


def _partly_known(
    data: Sequence[tuple[Mapping[str, int], Elements]], index: tuple[Poly, ...]
) -> Expression:
    """Elements known at every size keep their values; the rest may be anything."""
    if not any(t.known is not None for _, t in data):
        return UNKNOWN
    samples = []
    for row, tensor in data:
        array = np.full(tensor.shape, np.nan)
        if tensor.known is not None and tensor.value is not None:
            known = view(tensor.known, tensor.shape)
            if tensor.value.dtype.kind not in "biuf":
                return UNKNOWN
            array[known] = np.broadcast_to(tensor.value, tensor.shape)[known]
        samples.append(Sample(row, array))
    return Measured(tuple(samples), index)


def _known(
    evidence: Evidence,
    known: Sequence[tuple[Mapping[str, int], npt.NDArray[Any]]],
    axes: tuple[tuple[str, ...], ...],
    index: tuple[Poly, ...],
) -> Symbolic:
    value: Expression = Measured(tuple(Sample(row, array) for row, array in known), index)
    held: tuple[Poly, ...] | None = None
    shapes = {array.shape for _, array in known}
    first = known[0][1]
    if len(shapes) == 1 and len(axes) <= 1 and first.size <= 16 and first.dtype.kind in "iub":
        polys = [
            fit([(row, int(a.reshape(-1)[i])) for row, a in known], evidence.symbols)
            for i in range(first.size)
        ]
        if all(poly is not None for poly in polys):
            held = tuple(poly for poly in polys if poly is not None)
            if len(held) == 1:
                value = linear(held[0])
    numbers = {float(x) for _, a in known if a.dtype.kind in "biuf" for x in np.unique(a)[:2]}
    if len(numbers) == 1:
        value = Constant(numbers.pop())
    return Symbolic(axes, value=value, ints=held, known=True)


def _reach(
    space: Space,
    evidence: Evidence,
    data: Sequence[tuple[Mapping[str, int], Elements]],
    axes: tuple[tuple[str, ...], ...],
) -> tuple[Term, ...]:
    """Reaches that bound all runs: along one axis, along two, or everything."""
    if all(int(t.reach.max(initial=NONE)) == NONE for _, t in data):
        return ()
    candidates: list[tuple[Poly, ...]] = []
    for i, axis in enumerate(axes):
        offset = _offset(evidence, data, i)
        if axis and offset is not None:
            candidates.append((symbol(axis[0]) + offset,))
    places = [
        symbol(axis[0]) + space.total - space.size(axis)
        for axis in axes
        if axis and space.size(axis).constant is None
    ]
    candidates.extend((a, b) for i, a in enumerate(places) for b in places[i + 1 :])
    best: tuple[Poly, ...] | None = None
    for candidate in candidates:
        if all(_bounds(candidate, row, tensor, axes) for row, tensor in data):
            best = candidate
            break
    if best is None:
        return (space.everything(),)
    return tuple(Term(poly) for poly in best)


def _offset(
    evidence: Evidence, data: Sequence[tuple[Mapping[str, int], Elements]], axis: int
) -> Poly | None:
    """The least polynomial by which reach exceeds the index along one axis."""
    rows = []
    for row, tensor in data:
        reach = view(tensor.reach, tensor.shape)
        place = np.arange(tensor.shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(reach.ndim)]
        )
        excess = np.where(reach == NONE, -MAX_OFFSET * MAX_OFFSET, reach - place)
        if excess.size == 0:
            continue
        largest = int(excess.max())
        if largest > -MAX_OFFSET * MAX_OFFSET:
            rows.append((row, largest))
    if not rows:
        return None
    # An offset that grows with `seq` bounds any axis, and says nothing.
    return fit(rows, [s for s in evidence.symbols if s == "past_seq"])


def _bounds(
    candidate: Sequence[Poly],
    row: Mapping[str, int],
    tensor: Elements,
    axes: tuple[tuple[str, ...], ...],
) -> bool:
    shape = tensor.shape
    names = {axis[0]: i for i, axis in enumerate(axes) if axis}
    grid: dict[str, Any] = {}
    for name, i in names.items():
        grid[name] = np.arange(shape[i]).reshape([-1 if j == i else 1 for j in range(len(shape))])
    limit: Any = NONE
    for poly in candidate:
        total: Any = 0
        for monomial, c in poly.terms.items():
            part: Any = c
            for name, power in monomial:
                part = part * (grid[name] if name in grid else row[name]) ** power
            total = total + part
        limit = np.maximum(limit, total)
    return bool((tensor.reach <= limit).all())
