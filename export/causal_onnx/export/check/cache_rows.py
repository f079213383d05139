"""Proof of a derived cache for batches whose rows differ in length and in how they are fed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from causal_onnx.export.check.later_tokens import LaterTokens, say_left_out
from causal_onnx.export.check.parity import Session
from causal_onnx.export.outcome import SessionError
from causal_onnx.export.report import CacheCase
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.inputs import (
    FREE_SIZES,
    CallSizes,
    InputSpec,
    free_axes,
    make_inputs,
)
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.artifact.golden import relative_error
from causal_onnx.runtime.bundle.replay import joined_rows
from causal_onnx.runtime.contract import Contract

__all__ = ["other_inputs", "ragged_cases"]

ROWS = 3

MOST_STEPS = 12
"""Of a long plan, so many columns are fed one by one."""


@dataclass(frozen=True)
class _Plan:
    """How the rows are fed: each chunk has a width, and how many tokens of it each row has."""

    name: str
    chunks: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def lengths(self) -> list[int]:
        """Of the rows, padding left out."""
        return [sum(row) for row in zip(*(counts for _, counts in self.chunks), strict=True)]


def ragged_cases(
    session: Session,
    specs: Sequence[InputSpec],
    contract: Contract,
    lengths: Sequence[int],
    comparison: LaterTokens,
) -> list[CacheCase]:
    """Compare each row of ragged batches with PyTorch's full pass of that row alone.

    Where the module takes a padding mask itself, with its pass over the padded batch as well.

    Args:
        session: The graph, with a mask.
        specs: The source's inputs.
        contract: Of the graph.
        lengths: How many columns, padding included, to feed.
        comparison: With the source that it must equal.

    Returns:
        A case for each plan; its length is the number of columns.
    """
    rows = ROWS if any("batch" in spec.axes.values() for spec in specs) else 1
    generator = random.Random(1)
    cases = []
    for columns in lengths:
        for plan in _plans(columns, rows, generator):
            name = plan.name
            try:
                error, left = _error(session, specs, contract, plan, comparison)
                name += say_left_out(left)
            except SessionError as failure:
                error = math.inf
                name += f" ({' '.join(str(failure).split())[:120]})"
            passed = error <= comparison.tolerance
            cases.append(
                CacheCase(batch=rows, seq=columns, feeding=name, error=error, passed=passed)
            )
    return cases


def other_inputs(
    specs: Sequence[InputSpec], contract: Contract, inputs: Sequence[Array], *, seed: int
) -> list[Array]:
    """The inputs with other values in the place of those that the first call of a row alone reads.

    A graph that reads them again gives other results.
    """
    if not contract.once_names:
        return list(inputs)
    taken = [spec for spec in contract.inputs if spec.name not in contract.added_names]
    sizes = {
        label: x.shape[axis]
        for spec, x in zip(specs, inputs, strict=True)
        for axis, label in spec.axes.items()
    }
    free = tuple((axis, sizes[axis]) for axis in free_axes(specs))
    call = CallSizes(batch=sizes.get("batch", 1), seq=sizes["seq"], free=free)
    others = [to_numpy(x) for x in make_inputs(specs, call, seed=seed)]
    return [
        other if spec.name in contract.once_names else x
        for spec, x, other in zip(taken, inputs, others, strict=True)
    ]


def _plans(columns: int, rows: int, generator: random.Random) -> list[_Plan]:
    """Plans of `columns` columns in all."""
    prefill = max(columns // 2, columns - MOST_STEPS, 1)
    # The first row is full, the others are a quarter of the one before; a lone row is padded.
    counts = [max(prefill >> (2 * b), 1) for b in range(rows)] if rows > 1 else [prefill - 1]
    steps = [(1, (1,) * rows)] * (columns - prefill)
    chunks, left = [], columns
    while left:
        width = min(left, generator.choice((1, 1, 2, 3, 7, max(columns // 3, 1))))
        chunks.append((width, tuple(generator.randint(0, width) for _ in range(rows))))
        left -= width
    return [
        _Plan("ragged prefill + steps", ((prefill, tuple(counts)), *steps)),
        _Plan("ragged chunks", tuple(chunks)),
    ]


def _error(
    session: Session,
    specs: Sequence[InputSpec],
    contract: Contract,
    plan: _Plan,
    comparison: LaterTokens,
) -> tuple[float, int]:
    """The largest error of a row's tokens, and how many of them were left out.

    Infinite where padding gives no finite number.
    """
    source = comparison.source
    # Rows that share a call have one size of every free axis.
    free = tuple((axis, FREE_SIZES[0]) for axis in free_axes(specs))
    inputs = [
        make_inputs(specs, CallSizes(batch=1, seq=max(n, 1), free=free), seed=7 * b + n)
        for b, n in enumerate(plan.lengths)
    ]
    rows = [[to_numpy(x) for x in row] for row in inputs]
    later = [other_inputs(specs, contract, row, seed=b + 1) for b, row in enumerate(rows)]
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    pieces: list[list[list[Array]]] = [[[] for _ in results] for _ in rows]
    done = [0] * len(rows)
    mask = np.zeros((len(rows), 0), np.int64)
    past: list[Array] | None = None
    for width, counts in plan.chunks:
        feed = [
            _padded(
                spec,
                [
                    other[index] if count else row[index]
                    for row, other, count in zip(rows, later, done, strict=True)
                ],
                done,
                width,
            )
            for index, spec in enumerate(specs)
        ]
        new = (np.arange(width)[None, :] < np.array(counts)[:, None]).astype(np.int64)
        mask = np.concatenate([mask, new], axis=1)
        outputs, past = session.step(feed, past or session.empty_past(feed), mask)
        if not all(np.isfinite(x).all() for x in outputs if x.dtype.kind == "f"):
            return math.inf, 0
        for b, count in enumerate(counts):
            done[b] += count
            for index, (spec, output) in enumerate(zip(results, outputs, strict=True)):
                axis = spec.axis_of("seq")
                if axis is not None:
                    pieces[b][index].append(
                        _row(output, spec.axis_of("batch"), b).take(range(count), axis)
                    )
    worst, left = 0.0, 0
    together = _padded_pass(source, specs, rows, done) if source.pads else None
    along = [index for index, spec in enumerate(results) if spec.axis_of("seq") is not None]
    for b, row in enumerate(inputs):
        if not done[b]:
            continue
        expected = [to_numpy(x) for x in source.run(row)]
        got = {n: joined_rows(pieces[b][n], results[n], columns=done[b]) for n in along}
        error, count = comparison.error(
            [got[n] for n in along],
            [expected[n] for n in along],
            [results[n] for n in along],
            row,
        )
        worst, left = max(worst, error), left + count
        for index in along if together is not None else ():
            assert together is not None
            spec, axis = results[index], results[index].axis_of("seq")
            own = _row(together[index], spec.axis_of("batch"), b).take(range(done[b]), axis)
            if own.shape == got[index].shape:  # weights have a column for each padding too
                worst = max(worst, relative_error(got[index], own))
    return worst, left


def _padded_pass(
    source: Source, specs: Sequence[InputSpec], rows: Sequence[Sequence[Array]], done: Sequence[int]
) -> list[Array]:
    """PyTorch's full pass over all rows at once, padded on the right, by the module's own mask."""
    width, start = max(*done, 1), [0] * len(rows)
    batch = [
        torch.from_numpy(_padded(spec, [row[index] for row in rows], start, width)).to(
            spec.example.dtype
        )
        for index, spec in enumerate(specs)
    ]
    # A row without a token would have nothing to attend to; it is not looked at.
    with source.padded([max(n, 1) for n in done]):
        return [to_numpy(x) for x in source.run(batch)]


def _padded(spec: InputSpec, rows: Sequence[Array], done: Sequence[int], width: int) -> Array:
    """`width` entries of each row from `done` on; what follows its end is other data of its own."""
    axes = {label: axis for axis, label in spec.axes.items()}
    parts = []
    for row, start in zip(rows, done, strict=True):
        part = row
        if "seq" in axes:
            axis = axes["seq"]
            part = row.take(np.arange(start, start + width) % row.shape[axis], axis)
        parts.append(part)
    return np.concatenate(parts, axes["batch"]) if "batch" in axes else parts[0]


def _row(output: Array, axis: int | None, row: int) -> Array:
    return output if axis is None else output.take(range(row, row + 1), axis)
