"""Round the weights of a module, and of the graph captured from it, to few bits alike.

What the graph multiplies by or looks up decides which parameters are rounded, and along which axis
their blocks run; module and graph then hold the same numbers, so that one can be the reference of
the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from causal_onnx.export.graph.weights import find_uses
from causal_onnx.export.precision.grid import SMALLEST_ELEMENTS, Grid, round_to_grid

__all__ = ["Rounded", "round_module", "round_weights"]

_TOO_SMALL = f"fewer than {SMALLEST_ELEMENTS} elements"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Which parameters were rounded."""

    axes: Mapping[str, int]
    """Name of the parameter -> the axis along which its blocks run."""
    kept: tuple[str, ...]
    """What was looked up or multiplied by and stays as it is, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        return {"axes": dict(self.axes), "kept": list(self.kept)}


def round_weights(model: ir.Model, module: nn.Module, grid: Grid) -> Rounded:
    """Round the weights of `model` and the parameters of `module` that they are, in place.

    A weight is a stored 2-D matrix that activations are multiplied by, or whose rows ids look up.
    It stays as it is if it is small, if no block divides it, if it is no parameter (nor rows of
    one), or if one use sums over its rows and another over its columns.
    """
    parameters = {
        name: value
        for name, value in module.named_parameters()
        if value.ndim == 2 and value.dtype == torch.float32
    }
    owners = {
        id(value): (value, owner)
        for value in model.graph.initializers.values()
        if (owner := _owner(value, parameters)) is not None
    }
    wanted: dict[str, set[int]] = {}
    kept = []
    for use in find_uses(model):
        label = use.node.name or use.node.op_type
        if id(use.weight) not in owners:
            stored = use.weight.const_value
            is_small = stored is not None and stored.size < SMALLEST_ELEMENTS
            reason = _TOO_SMALL if is_small else "not a parameter of the module"
            kept.append(f"the weight of {label}: {reason}")
            continue
        name, is_transposed, _ = owners[id(use.weight)][1]
        wanted.setdefault(name, set()).add(use.axis ^ is_transposed)
    axes = {}
    for name, found in wanted.items():
        axis = min(found)
        reason = _reason(parameters[name], axis, grid) if len(found) == 1 else "used along both"
        if reason:
            kept.append(f"{name}: {reason}")
        else:
            axes[name] = axis
    round_module(module, axes, grid)
    for value, (name, is_transposed, start) in owners.values():
        if name in axes:
            array = parameters[name].detach().numpy()
            rows = array.T if is_transposed else array
            assert value.shape is not None
            # A view: the module's rounded weights are the graph's, in the same memory.
            part = rows[start : start + int(value.shape[0])]  # type: ignore[arg-type]
            value.const_value = ir.tensor(part, name=value.name)
    return Rounded(axes=dict(sorted(axes.items())), kept=tuple(sorted(set(kept))))


def round_module(module: nn.Module, axes: Mapping[str, int], grid: Grid) -> None:
    """Round the named parameters of `module`, blocks along the named axes.

    Raises:
        ValueError: The module has no such parameter, or none of that shape.
    """
    parameters = dict(module.named_parameters())
    for name, axis in axes.items():
        value = parameters.get(name)
        reason = "there is no such 2-D parameter"
        if value is not None and value.ndim == 2:
            reason = _reason(value, axis, grid)
        if value is None or reason:
            raise ValueError(f"the parameter {name!r} cannot be rounded: {reason}")
        matrix = value.detach().float().numpy()
        rows = matrix if axis == 1 else matrix.T
        block = grid.block(rows.shape[1])
        assert block is not None
        rounded = round_to_grid(np.ascontiguousarray(rows), bits=grid.bits, block=block)
        # In memory of its own: copies of a module share that of its weights.
        value.data = torch.from_numpy(rounded if axis == 1 else rounded.T.copy()).to(value.dtype)


def _reason(value: torch.Tensor, axis: int, grid: Grid) -> str:
    """Why a parameter stays as it is, or ""."""
    if value.numel() < SMALLEST_ELEMENTS:
        return _TOO_SMALL
    if grid.block(value.shape[axis]) is None:
        return f"its width {value.shape[axis]} is not a multiple of 16"
    if not bool(torch.isfinite(value).all()):
        return "it holds numbers that are not finite"
    return ""


Owner = tuple[str, bool, int]
"""Name of the parameter, whether the weight is (rows of) its transpose, the first row."""


def _owner(value: ir.Value, parameters: Mapping[str, torch.Tensor]) -> Owner | None:
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if tensor.size < SMALLEST_ELEMENTS:
        return None
    array = tensor.numpy()
    return next(_places(array, parameters), None)


def _places(array: Floats, parameters: Mapping[str, torch.Tensor]) -> Iterator[Owner]:
    """Where the rows of `array` stand in one of the parameters, or in the transpose of one."""
    rows, width = array.shape
    for name, value in parameters.items():
        whole = value.detach().numpy()
        for is_transposed, matrix in ((False, whole), (True, whole.T)):
            if matrix.shape[1] != width or matrix.shape[0] < rows:
                continue
            starts = np.flatnonzero(matrix[: len(matrix) - rows + 1, 0] == array[0, 0])
            for start in starts[:64]:
                if np.array_equal(matrix[start : start + rows], array):
                    yield name, is_transposed, int(start)
                    break
