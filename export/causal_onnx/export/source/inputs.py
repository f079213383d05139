"""The inputs of a module: names, axes, and how to make valid ones at any batch and length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from causal_onnx.runtime.contract import AXIS_NAMES

__all__ = ["CallSizes", "InputSpec", "describe_inputs", "infer_axes", "make_inputs"]

Kind = Literal["features", "ids", "mask", "positions", "lengths", "fixed"]
Padding = Literal["none", "left", "right"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallSizes:
    """Sizes of the symbolic axes for one call."""

    batch: int
    seq: int
    past: int = 0

    def of(self, axis: str) -> int:
        """The size of the axis `axis`; `total_seq` is `past_seq + seq`."""
        match axis:
            case "batch":
                return self.batch
            case "seq":
                return self.seq
            case "past_seq":
                return self.past
            case "total_seq":
                return self.past + self.seq
        raise ValueError(f"axes are {', '.join(AXIS_NAMES)}, got {axis!r}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One tensor input of the module under export."""

    name: str
    example: Tensor
    axes: Mapping[int, str]
    kind: Kind
    vocab_size: int | None = None
    """For ids: the rows of the embedding they look up, or one more than the largest id seen."""

    def shape(self, sizes: CallSizes) -> tuple[int, ...]:
        return tuple(
            sizes.of(self.axes[axis]) if axis in self.axes else size
            for axis, size in enumerate(self.example.shape)
        )

    def make(
        self, sizes: CallSizes, generator: torch.Generator, padding: Padding = "none"
    ) -> Tensor:
        """A valid input of `sizes`, in the dtype of the example.

        Values follow the example's: features its mean and spread (and its sign, where no feature is
        negative), ids its vocabulary, masks its "may attend" value with `padding` on one side,
        positions 0, 1, 2, ...
        """
        shape, dtype = self.shape(sizes), self.example.dtype
        if self.kind == "fixed":
            return self.example.clone()
        if self.kind == "ids":
            assert self.vocab_size is not None
            rows = min(self.vocab_size, torch.iinfo(dtype).max + 1)
            return torch.randint(rows, shape, generator=generator).to(dtype)
        if self.kind == "mask":
            return self._mask(shape, padding)
        if self.kind == "positions":
            return self._positions(shape, sizes)
        if self.kind == "lengths":
            lengths = torch.randint(1, sizes.seq + 1, shape, generator=generator)
            lengths[..., 0] = sizes.seq  # code written for lengths pads to the longest of them
            return lengths.to(dtype)
        example = self.example.detach().double()
        mean = float(example.mean()) if example.numel() else 0.0
        spread = float(example.std()) if example.numel() > 1 else 0.0
        is_positive = example.numel() > 1 and spread > 0.0 and bool((example >= 0).all())
        if not spread > 0.0 or not torch.isfinite(torch.tensor([mean, spread])).all():
            mean, spread = 0.0, 1.0
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + mean
        if is_positive:
            drawn = drawn.abs()  # lengths, energies, what a logarithm is taken of
        return drawn.to(dtype)

    def _mask(self, shape: tuple[int, ...], padding: Padding) -> Tensor:
        keep, drop = _mask_values(self.example)
        mask = torch.full(shape, keep, dtype=self.example.dtype)
        # The last one: a (batch, 1, seq, seq) mask has its keys there.
        axis = max((a for a, n in self.axes.items() if n in ("seq", "total_seq")), default=None)
        batch_axis = next((a for a, n in self.axes.items() if n == "batch"), None)
        if padding == "none" or axis is None:
            return mask
        for row in range(shape[batch_axis] if batch_axis is not None else 1):
            # Row 0 stays whole, row b loses b tokens but never the last one that is left.
            count = min(row, shape[axis] - 1)
            view = mask if batch_axis is None else mask.select(batch_axis, row)
            rest = axis - 1 if batch_axis is not None and batch_axis < axis else axis
            start = 0 if padding == "left" else shape[axis] - count
            view.narrow(rest, start, count).fill_(drop)
        return mask

    def _positions(self, shape: tuple[int, ...], sizes: CallSizes) -> Tensor:
        axis = next(a for a, n in self.axes.items() if n in ("seq", "total_seq"))
        start = sizes.past if self.axes[axis] == "seq" else 0
        steps = torch.arange(start, start + shape[axis], dtype=self.example.dtype)
        view = [1] * len(shape)
        view[axis] = shape[axis]
        return steps.view(view).expand(shape).clone()


def make_inputs(
    specs: Sequence[InputSpec], sizes: CallSizes, *, seed: int = 0, padding: Padding = "none"
) -> tuple[Tensor, ...]:
    """One valid set of inputs; the same `seed` and `sizes` give the same values."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.make(sizes, generator, padding) for spec in specs)


def describe_inputs(
    names: Sequence[str],
    examples: Sequence[Tensor],
    axes: Sequence[Mapping[int, str]] | None,
) -> tuple[InputSpec, ...]:
    """Name the axes of every input and guess what its values mean.

    Raises:
        TypeError: `axes` is not one {axis: name} per input.
        ValueError: `axes` does not fit the examples, or is needed and missing.
    """
    named = _infer_all(names, examples) if axes is None else _given(names, examples, axes)
    specs = []
    for name, example, labels in zip(names, examples, named, strict=True):
        _check_axes(name, example, labels)
        specs.append(
            InputSpec(
                name=name,
                example=example.detach().cpu().clone(memory_format=torch.contiguous_format),
                axes={axis % example.ndim: label for axis, label in labels.items()},
                kind=_kind(name, example, labels),
            )
        )
    specs = [_with_vocab(spec) for spec in specs]
    if not any("seq" in spec.axes.values() for spec in specs):
        raise ValueError(
            f"no input has a sequence axis (inputs: {', '.join(names)}); "
            "name it: axes=[{0: 'batch', 1: 'seq'}]"
        )
    for spec in specs:
        if not spec.example.numel() and "past_seq" not in spec.axes.values():
            raise ValueError(
                f"the example of input {spec.name!r} is empty, shape {tuple(spec.example.shape)}; "
                "give one of at least one row and one position"
            )
    _check_agreement(specs)
    return tuple(specs)


def _given(
    names: Sequence[str], examples: Sequence[Tensor], axes: Sequence[Mapping[int, str]]
) -> list[dict[int, str]]:
    for labels in axes:
        if not isinstance(labels, Mapping) or not all(isinstance(axis, int) for axis in labels):
            raise TypeError(
                "axes is one {axis: name} per input with integer axes, e.g. "
                f"[{{0: 'batch', 1: 'seq'}}], got {axes!r}"
            )
    if len(axes) != len(examples):
        raise ValueError(
            f"axes has {len(axes)} entries for {len(examples)} inputs ({', '.join(names)}); "
            "give one {axis: name} per input, {} for an input of fixed shape"
        )
    return [dict(labels) for labels in axes]


def _infer_all(names: Sequence[str], examples: Sequence[Tensor]) -> list[dict[int, str]]:
    """Axes of every input; beside batched ones, 1-D integers are one per row, 2-D masks batched."""
    named = [infer_axes(name, example) for name, example in zip(names, examples, strict=True)]
    sizes = {
        label: example.shape[axis]
        for name, example, labels in zip(names, examples, named, strict=True)
        if example.ndim > 1 and "mask" not in name
        for axis, label in labels.items()
    }
    batch, seq = sizes.get("batch"), sizes.get("seq")
    for index, (name, example) in enumerate(zip(names, examples, strict=True)):
        if example.ndim == 2 and "mask" in name and batch is not None:
            named[index] = {0: "batch", 1: "seq"}  # a float mask looks like features without batch
        elif (
            example.ndim == 1
            and example.shape[0] == batch
            and not _is_positions(name)
            and (batch != seq or "len" in name)
        ):
            named[index] = {0: "batch"}
    return named


def infer_axes(name: str, example: Tensor) -> dict[int, str]:
    """Axis names by rank and dtype, for callers that give none.

    Raises:
        ValueError: The rank says nothing; the caller must name the axes.
    """
    integer = not example.is_floating_point()
    if example.ndim == 2 and integer:
        return {0: "batch", 1: "seq"}
    if example.ndim == 3 and not integer:
        return {0: "batch", 1: "seq"}
    if (example.ndim == 2 and not integer) or (example.ndim == 1 and integer):
        return {0: "seq"}
    if example.ndim == 4 and not integer and "past" in name:
        return {0: "batch", 2: "past_seq"}
    if example.ndim == 0:
        return {}
    raise ValueError(
        f"cannot tell which axes of input {name!r} ({example.dtype}, shape {tuple(example.shape)}) "
        "are batch and sequence; name them, one entry per input: axes=[{0: 'batch', 1: 'seq'}]"
    )


def _check_axes(name: str, example: Tensor, axes: Mapping[int, str]) -> None:
    for axis, label in axes.items():
        if not -example.ndim <= axis < example.ndim:
            raise ValueError(f"axes of {name!r}: axis {axis} is out of range for {example.ndim}-D")
        if label not in AXIS_NAMES:
            raise ValueError(
                f"axes of {name!r}: names are {', '.join(AXIS_NAMES)}, "
                f"got {label!r} for axis {axis}"
            )
    if len({axis % max(example.ndim, 1) for axis in axes}) != len(axes):
        raise ValueError(f"axes of {name!r} names one axis twice: {dict(axes)}")


def _check_agreement(specs: Sequence[InputSpec]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for spec in specs:
        for axis, label in spec.axes.items():
            size = spec.example.shape[axis]
            first, expected = seen.setdefault(label, (spec.name, size))
            if size != expected:
                raise ValueError(
                    f"the examples disagree on {label}: {first!r} has {expected}, "
                    f"{spec.name!r} has {size} (axis {axis})"
                )


def _kind(name: str, example: Tensor, axes: Mapping[int, str]) -> Kind:
    if not axes:
        return "fixed"
    labels = set(axes.values())
    if example.dtype == torch.bool:
        return "mask"
    if example.is_floating_point() and "mask" in name and _is_mask(example):
        return "mask"
    if example.is_floating_point() or example.is_complex():
        return "features"
    if labels == {"batch"}:
        return "lengths"
    if "mask" in name and bool(((example == 0) | (example == 1)).all()):
        return "mask"
    if labels & {"seq", "total_seq"} and _is_positions(name):
        return "positions"
    return "ids"


def _is_positions(name: str) -> bool:
    return re.search(r"(^|_)pos(_|$|ition)", name) is not None


def _is_mask(example: Tensor) -> bool:
    """Whether a floating-point example is a mask: 0 and 1, or 0 and something very negative."""
    one, hidden = example == 1, example <= -1e4
    return bool(((example == 0) | one | hidden).all()) and not bool(one.any() and hidden.any())


def _mask_values(example: Tensor) -> tuple[float | bool, float | bool]:
    """(the value of what may be attended to, the value of what is hidden) in a mask's example."""
    if example.dtype == torch.bool:
        usual = bool(example.flatten().mode().values)
        return usual, not usual
    if example.is_floating_point() and not bool((example == 1).any()):
        # Added to the scores.
        hidden = float(example.min()) if example.numel() else 0.0
        return 0.0, hidden if hidden < 0 else torch.finfo(example.dtype).min
    keep = float(example.flatten().mode().values)
    return keep, 1 - keep


def _with_vocab(spec: InputSpec) -> InputSpec:
    if spec.kind != "ids" or spec.vocab_size is not None:
        return spec
    largest = int(spec.example.max()) if spec.example.numel() else 1
    return replace(spec, vocab_size=max(largest + 1, 2))
