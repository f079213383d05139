"""Inputs that stay as they are for all calls of a stream: a memory, a label, a source text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.request.convert import to_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract

    Array = npt.NDArray[Any]

__all__ = ["staying_inputs", "without_inputs"]


def staying_inputs(
    contract: Contract, inputs: Mapping[str, npt.ArrayLike], batch: int
) -> dict[str, Array]:
    """Copies of the inputs, with one row for each of `batch`.

    Args:
        contract: Of the calls, without the cache.
        inputs: By name; of one row, which all share, or of as many as the batch.
        batch: Rows of the stream.

    Raises:
        ValueError: One is no input of the model, has positions, or another number of rows.
    """
    specs = {spec.name: spec for spec in contract.inputs}
    found: dict[str, Array] = {}
    for name, given in inputs.items():
        spec = specs.get(name)
        if spec is None:
            raise ValueError(f"unknown input {name!r}; the inputs are {', '.join(specs)}")
        if "seq" in spec.axes or "total_seq" in spec.axes:
            raise ValueError(
                f"input {name!r} cannot stay: it has new positions in every call "
                f"({spec.describe()})"
            )
        value = np.array(to_array(spec, given))
        axis = spec.axis_of("batch")
        if value.ndim != len(spec.axes):
            raise ValueError(
                f"input {name!r} has rank {value.ndim}, shape {value.shape}; expected rank "
                f"{len(spec.axes)}: {spec.describe()}"
            )
        if axis is not None and value.shape[axis] != batch:
            if value.shape[axis] != 1:
                raise ValueError(
                    f"input {name!r} has {value.shape[axis]} rows, expected {batch}, or one that "
                    "all share"
                )
            value = np.repeat(value, batch, axis)
        found[name] = value
    return found


def without_inputs(contract: Contract, names: Mapping[str, object]) -> Contract:
    """What is left for the caller where these inputs stay; outputs along their axes are left out.

    Raises:
        ValueError: One is no input of the contract.
    """
    known = [spec.name for spec in contract.inputs]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown input {name!r}; the inputs are {', '.join(known)}")
    inputs = tuple(spec for spec in contract.inputs if spec.name not in names)
    used = {axis for spec in inputs for axis in spec.axes}
    free = tuple(axis for axis in contract.free_axes if axis.name in used)
    gone = {axis.name for axis in contract.free_axes} - {axis.name for axis in free}
    outputs = tuple(spec for spec in contract.outputs if not gone & set(spec.axes))
    return replace(contract, inputs=inputs, outputs=outputs, free_axes=free)
