"""A padding mask that a module takes itself: found by calling, then filled in.

A derived cache has an `attention_mask` of its own (docs/state.md). A module's input that does
nothing else than hide padding is therefore set to "keep" everywhere, and no longer an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.source.inputs import CallSizes, InputSpec, changed_values, make_inputs
from causal_onnx.export.source.module import Filled, Source

__all__ = ["fill_padding"]

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative to the output's scale; 1e-4 for others: products of other sizes round otherwise."""
HIDDEN = 1
"""The column that is hidden in trials: not the first, so that every row of queries sees one."""


def fill_padding(
    source: Source, specs: Sequence[InputSpec]
) -> tuple[Source, tuple[InputSpec, ...], str | None]:
    """Fill the first input that only says which positions are padding.

    Returns:
        A source without that input, the specs of the others, and the input's name; None: the module
        has no such input, and everything is as it was.
    """
    for index, spec in enumerate(specs):
        axes = {label: axis for axis, label in spec.axes.items()}
        others = tuple(s for s in specs if s is not spec)
        if spec.kind != "mask" or len(spec.axes) != 2 or set(axes) != {"batch", "seq"}:
            continue
        shape = tuple(
            _like(others, label) if label is not None else size
            for label, size in (
                (spec.axes.get(axis), size) for axis, size in enumerate(spec.example.shape)
            )
        )
        if None in shape or any("past_seq" in s.axes.values() for s in specs):
            continue
        for keep, drop in _candidates(spec.example):
            filled = Filled(
                index=index,
                shape=tuple(place for place in shape if place is not None),
                dtype=spec.example.dtype,
                keep=keep,
                drop=drop,
                batch_axis=axes["batch"],
                seq_axis=axes["seq"],
            )
            without = source.filling(filled)
            if _only_pads(source, without, others, filled, _length(spec)):
                return without, others, spec.name
    return source, tuple(specs), None


def _like(specs: Sequence[InputSpec], label: str) -> tuple[int, int] | None:
    """An input among `specs`, and its axis, that has the axis `label`."""
    for index, spec in enumerate(specs):
        for axis, name in spec.axes.items():
            if name == label:
                return index, axis
    return None


def _length(spec: InputSpec) -> int:
    """At which to try: the example's, at least 4, so that two positions can be taken away."""
    return max(4, min(8, spec.example.shape[next(a for a, n in spec.axes.items() if n == "seq")]))


def _candidates(example: Tensor) -> Iterator[tuple[float | bool, float | bool]]:
    """(keep, drop) values to try."""
    if example.dtype == torch.bool:
        yield from ((True, False), (False, True))
    elif example.is_floating_point() and example.numel() and float(example.min()) < 0:
        yield 0.0, float(example.min())  # added to the scores
    else:
        yield from ((1, 0), (0, 1))


@dataclass(frozen=True)
class _Trial:
    """Calls of the module with its mask spelled out."""

    source: Source
    specs: Sequence[InputSpec]
    filled: Filled

    def inputs(self, seq: int) -> tuple[Tensor, ...]:
        return make_inputs(self.specs, CallSizes(batch=2, seq=seq), seed=5)

    def __call__(self, inputs: Sequence[Tensor], dropped: slice) -> tuple[Tensor, ...] | Refusal:
        """The outputs with the columns `dropped` hidden in every row."""
        mask = self.filled.make(inputs, self.source)
        mask.movedim(self.filled.seq_axis, 0)[dropped] = self.filled.drop
        return ask(self.source.run, self.filled.inserted(inputs, mask))


def _only_pads(
    source: Source, without: Source, specs: Sequence[InputSpec], filled: Filled, seq: int
) -> bool:
    """Whether the mask hides positions, and does nothing else that a file could tell.

    Three questions to the module: padding on the right equals absent tokens; what stands at a
    hidden position reaches no later output, and does where it is kept; and where the argument has a
    default, all kept equals not given.
    """
    trial = _Trial(source.fresh(), specs, filled)
    nothing, last = slice(0, 0), slice(seq - 2, seq)
    inputs, short = trial.inputs(seq), _cut(trial.inputs(seq), specs, seq - 2)
    changed = _changed(inputs, trial.specs)
    hidden = slice(HIDDEN, HIDDEN + 1)
    found = []
    for given, dropped in (
        (inputs, nothing),
        (inputs, last),
        (short, nothing),
        (inputs, hidden),
        (changed, hidden),
        (changed, nothing),
    ):
        outputs = trial(given, dropped)
        if isinstance(outputs, Refusal):
            return False
        found.append(outputs)
    whole, padded, absent, hiding, hiding_changed, whole_changed = found
    if len({len(outputs) for outputs in found}) > 1:
        return False
    if not _same_start(padded, absent):
        return False
    axes = [_moving_axis(a, b) for a, b in zip(padded, absent, strict=True)]
    if not _same_end(hiding, hiding_changed, axes):
        return False
    if _same_end(whole, whole_changed, axes):
        return False  # this mask keeps nothing, or the module does not look back
    default = without.leaving_out()
    given_none = None if default is None else ask(default.run, inputs)
    if given_none is None or isinstance(given_none, Refusal):
        return True  # no default, or not one for these inputs
    return len(whole) == len(given_none) and all(
        _close(a, b) for a, b in zip(whole, given_none, strict=True)
    )


def _cut(inputs: Sequence[Tensor], specs: Sequence[InputSpec], length: int) -> tuple[Tensor, ...]:
    """The first `length` positions."""
    found = []
    for value, spec in zip(inputs, specs, strict=True):
        part = value
        for axis, label in spec.axes.items():
            if label in ("seq", "total_seq"):
                part = part.narrow(axis, 0, length)
        found.append(part)
    return tuple(found)


def _changed(inputs: Sequence[Tensor], specs: Sequence[InputSpec]) -> tuple[Tensor, ...]:
    """`inputs` with other values at the hidden column."""
    found = []
    for value, spec in zip(inputs, specs, strict=True):
        axis = next((a for a, label in spec.axes.items() if label == "seq"), None)
        changed = value.clone()
        if axis is not None and spec.is_data:
            column = changed.select(axis, HIDDEN)
            if spec.kind != "flags" and value.is_floating_point():
                column.copy_(1.5 - 2.0 * column)
            else:
                column.copy_(changed_values(spec, changed_values(spec, column)))
                same = column == value.select(axis, HIDDEN)
                column.copy_(torch.where(same, changed_values(spec, column), column))
        found.append(changed)
    return tuple(found)


def _moving_axis(long: Tensor, short: Tensor) -> int | None:
    """The first axis that follows the length: the queries'."""
    sizes = zip(long.shape, short.shape, strict=True)
    return next((axis for axis, (a, b) in enumerate(sizes) if a != b), None)


def _same_start(long: Sequence[Tensor], short: Sequence[Tensor]) -> bool:
    """Whether `short` is the beginning of `long` along every axis."""
    if len(long) != len(short) or any(a.ndim != b.ndim for a, b in zip(long, short, strict=True)):
        return False
    return all(
        _close(a[tuple(slice(0, n) for n in b.shape)], b) for a, b in zip(long, short, strict=True)
    )


def _same_end(
    first: Sequence[Tensor], second: Sequence[Tensor], axes: Sequence[int | None]
) -> bool:
    """Whether the outputs behind the hidden column are equal."""
    moving = [
        (a, b, axis) for a, b, axis in zip(first, second, axes, strict=True) if axis is not None
    ]
    if not moving or any(a.shape != b.shape or a.shape[n] <= HIDDEN + 1 for a, b, n in moving):
        return False
    return all(
        _close(*(x.narrow(axis, HIDDEN + 1, x.shape[axis] - HIDDEN - 1) for x in (a, b)))
        for a, b, axis in moving
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.double().nan_to_num(0, 0, 0).abs().max())
    atol = TOLERANCE.get(a.dtype, 1e-4) * scale
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=atol) and scale > 0
