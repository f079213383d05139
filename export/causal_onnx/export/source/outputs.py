"""The outputs of a module: names and axes, found by calling it at two sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes, InputSpec, free_axes, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.contract import TensorSpec

__all__ = ["describe_outputs", "dtype_name"]


def describe_outputs(
    source: Source,
    specs: Sequence[InputSpec],
    first: CallSizes,
    second: CallSizes,
    fixed_seq: int | None = None,
) -> tuple[TensorSpec, ...]:
    """Name the outputs and their axes.

    Args:
        source: The module.
        specs: Its inputs.
        first: CallSizes to call it at.
        second: Others, different in every axis that may change.
        fixed_seq: The only length that it accepts, if there is but one.

    Raises:
        ExportError: The number or rank of the outputs changes with the sizes, or an axis follows
            neither the batch nor the sequence.
    """
    inputs = make_inputs(specs, first)
    names = source.name_outputs(inputs)
    a, b = source.run(inputs), source.run(make_inputs(specs, second))
    if len(a) != len(b) or any(x.ndim != y.ndim for x, y in zip(a, b, strict=True)):
        raise ExportError(
            f"the number or rank of the outputs changes with the sizes: {_shapes(a)} at {first}, "
            f"{_shapes(b)} at {second}; return the same structure for every input"
        )
    names = _field_names(names, a, specs)
    seq_axes = {axis for spec in specs for axis, label in spec.axes.items() if label == "seq"}
    labels = ["batch", "seq"]
    if any("past_seq" in spec.axes.values() for spec in specs):
        labels += ["total_seq", "past_seq"]
    labels += free_axes(specs)
    return tuple(
        TensorSpec(
            name=name,
            dtype=dtype_name(x.dtype),
            axes=tuple(
                "seq"
                if m == fixed_seq and axis in seq_axes
                else _axis(name, axis, seen=(m, n), labels=labels, sizes=(first, second))
                for axis, (m, n) in enumerate(zip(x.shape, y.shape, strict=True))
            ),
        )
        for name, x, y in zip(names, a, b, strict=True)
    )


def dtype_name(dtype: torch.dtype) -> str:
    """The contract's name of a torch dtype: `torch.float32` -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _axis(
    name: str,
    axis: int,
    *,
    seen: tuple[int, int],
    labels: Sequence[str],
    sizes: tuple[CallSizes, CallSizes],
) -> str | int:
    first, second = sizes
    if seen[0] == seen[1]:
        return seen[0]
    for label in labels:
        if seen == (first.of(label), second.of(label)):
            return label
    raise ExportError(
        f"axis {axis} of output {name!r} has size {seen[0]} at batch {first.batch}, seq "
        f"{first.seq} and {seen[1]} at batch {second.batch}, seq {second.seq}: neither the batch "
        "nor the sequence. Keep them as axes of their own (do not merge them with view or flatten)"
    )


def _field_names(
    names: Sequence[str], outputs: Sequence[Tensor], specs: Sequence[InputSpec]
) -> list[str]:
    """`logits` for scores over the vocabulary of the ids; else the module's own names."""
    taken = {spec.name for spec in specs}
    # Not the classes of a label, one a row.
    ids = [spec for spec in specs if spec.kind == "ids" and set(spec.axes.values()) != {"batch"}]
    vocabularies = {spec.vocab_size for spec in ids}
    result: list[str] = []
    for own, value in zip(names, outputs, strict=True):
        is_scores = own == "output" and value.ndim >= 2 and value.shape[-1] in vocabularies
        name = "logits" if is_scores and "logits" not in names else own
        while name in taken:
            name += "_out"
        taken.add(name)
        result.append(name)
    return result


def _shapes(outputs: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in outputs)
