"""An independent check of a cached file: sequences fed in chunks, rows of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tools.zoo.check import WITHOUT_LIMIT, File, Finding, Reference, difference, short
from torch import Tensor

from tests.zoo.entry import ZooEntry
from tests.zoo.probes import Sizes, make_inputs

__all__ = ["check_chunks"]

RAGGED_STEPS = 3
"""Single positions that each row of a ragged batch gets after its prefill."""


def check_chunks(path: Path, reference: Reference) -> Finding:
    """Feed sequences through the cache of a file in several chunkings; compare with full passes."""
    entry = reference.entry
    try:
        file = File(path)
    except Exception as error:
        return Finding(status="unloadable", reason=short(error))
    if not file.past:
        return Finding(status="fails", reason="the file has no inputs of a past")
    top = entry.limit if entry.limit is not None else WITHOUT_LIMIT
    has_batch = any("batch" in axes.values() for axes in entry.axes)
    worst, shapes = 0.0, 0
    for seq in sorted({1, 2, min(11, top), top}):
        for batch in (1, 3) if has_batch else (1,):
            sizes = Sizes(batch, seq)
            inputs = make_inputs(entry, sizes)
            expected = reference(inputs)
            axes = reference.axes(sizes) if seq > 1 else reference.axes(Sizes(batch, 2))
            for bounds in _chunkings(seq):
                place = f"batch {batch}, length {seq}, chunks of {_widths(bounds)}"
                try:
                    error_here, why = _fed(
                        file, entry, inputs, expected=expected, axes=axes, bounds=bounds
                    )
                except Exception as error:
                    reason = f"{place}: {short(error)}"
                    return Finding(status="fails", reason=reason, max_error=worst, shapes=shapes)
                worst, shapes = max(worst, error_here), shapes + 1
                if error_here > reference.tolerance:
                    return Finding(
                        status="wrong", reason=f"{place}: {why}", max_error=worst, shapes=shapes
                    )
    if file.mask is not None and has_batch and top >= 2 * RAGGED_STEPS:
        try:
            error_here, why = _ragged(file, reference, min(12, top))
        except Exception as error:
            reason = f"rows of different lengths: {short(error)}"
            return Finding(status="fails", reason=reason, max_error=worst, shapes=shapes)
        worst, shapes = max(worst, error_here), shapes + 1
        if error_here > reference.tolerance:
            reason = f"rows of different lengths, {why}"
            return Finding(status="wrong", reason=reason, max_error=worst, shapes=shapes)
    return Finding(status="right", max_error=worst, shapes=shapes)


def _ragged(file: File, reference: Reference, seq: int) -> tuple[float, str]:
    """Rows of different lengths, padded on the right, then single positions for each.

    What stands at the padding are the row's true next tokens: a row that saw them would move.
    """
    entry = reference.entry
    inputs = make_inputs(entry, Sizes(3, seq))
    expected = reference(inputs)
    outputs = [
        (index, batch, where[0])
        for index, where in enumerate(reference.axes(Sizes(3, seq)))
        if where is not None
        and where[1] == 0
        and (batch := file.batch_axes[index]) is not None
        and expected[index].shape.count(seq) == 1  # attention weights have the keys as well
    ]
    longest = seq - RAGGED_STEPS
    lengths = (longest, longest // 2, 1)
    mask = np.array([[int(p < n) for p in range(longest)] for n in lengths], np.int64)
    past = file.empty_past(inputs)
    chunk = _chunk(file, entry, inputs, 0, longest)
    worst, why = 0.0, ""
    for step in range(RAGGED_STEPS + 1):
        if step:
            chunk = _next_of_each(entry, inputs, [n + step - 1 for n in lengths])
            mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        got, past = file.step(chunk, past, mask.shape[1] - _width(chunk, entry), mask)
        for row, length in enumerate(lengths):
            first, last = (0, length) if step == 0 else (length + step - 1, length + step)
            for index, batch, axis in outputs:
                mine = got[index].select(batch, row).unsqueeze(batch).narrow(axis, 0, last - first)
                whole = expected[index].select(batch, row).unsqueeze(batch)
                error, reason = difference([mine], [whole.narrow(axis, first, last - first)])
                if error >= worst:
                    worst, why = error, f"row {row}, positions {first} to {last - 1}: {reason}"
    return worst, why


def _width(chunk: Sequence[Tensor], entry: ZooEntry) -> int:
    return next(
        value.shape[axis]
        for value, axes in zip(chunk, entry.axes, strict=True)
        for axis, name in axes.items()
        if name == "seq"
    )


def _next_of_each(
    entry: ZooEntry, inputs: tuple[Tensor, ...], positions: Sequence[int]
) -> list[Tensor]:
    """One position per row: that of the row."""
    chunk = []
    for value, axes in zip(inputs, entry.axes, strict=True):
        batch = next((a for a, name in axes.items() if name == "batch"), None)
        seq = next((a for a, name in axes.items() if name == "seq"), None)
        if batch is None or seq is None:
            chunk.append(value)
            continue
        rows = [
            value.select(batch, row).unsqueeze(batch).narrow(seq, position, 1)
            for row, position in enumerate(positions)
        ]
        chunk.append(torch.cat(rows, batch))
    return chunk


def _chunkings(seq: int) -> list[list[int]]:
    """Bounds of the chunks: all at once, single steps, a prefill and steps, uneven pieces."""
    found = [[0, seq], list(range(seq + 1))]
    if seq > 3:
        found += [[0, *range(seq // 2, seq + 1)], [0, 1, 3, seq - 1, seq]]
    return found if seq > 1 else found[:1]


def _widths(bounds: Sequence[int]) -> str:
    widths = [b - a for a, b in pairwise(bounds)]
    return ", ".join(map(str, widths[:4])) + (", ..." if len(widths) > 4 else "")


def _fed(
    file: File,
    entry: ZooEntry,
    inputs: tuple[Tensor, ...],
    *,
    expected: tuple[Tensor, ...],
    axes: Sequence[tuple[int, int] | None],
    bounds: Sequence[int],
) -> tuple[float, str]:
    """Feed the chunks in turn; the largest error of all, and where."""
    past = file.empty_past(inputs)
    worst, why = 0.0, ""
    for start, stop in pairwise(bounds):
        got, past = file.step(_chunk(file, entry, inputs, start, stop), past, start)
        parts = []
        for whole, piece, where in zip(expected, got, axes, strict=True):
            if where is None:
                parts.append(whole if stop == bounds[-1] else piece)
                continue
            axis, offset = where
            part = whole.narrow(axis, start + offset, stop - start)
            # What grows along the keys as well (attention weights) has only those seen so far.
            corner = tuple(
                slice(None) if i == axis else slice(0, size) for i, size in enumerate(piece.shape)
            )
            parts.append(part[corner])
        error, reason = difference(got, parts)
        if error >= worst:
            worst, why = error, f"positions {start} to {stop - 1}: {reason}"
    return worst, why


def _chunk(
    file: File, entry: ZooEntry, inputs: tuple[Tensor, ...], start: int, stop: int
) -> list[Tensor]:
    """The inputs of positions start to stop - 1; what runs along total_seq from 0 on."""
    chunk = []
    for item, value, axes in zip(file.inputs, inputs, entry.axes, strict=True):
        part = value
        for axis, name in axes.items():
            if name == "seq":
                first = 0 if item.shape[axis] == "total_seq" else start
                part = part.narrow(axis, first, stop - first)
        chunk.append(part)
    return chunk
