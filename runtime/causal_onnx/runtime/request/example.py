"""A request made up from a contract alone, to time a model or to compare two sessions of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.request.whole_numbers import whole_number

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["check_sizes", "free_sizes", "make_request"]


def check_sizes(contract: Contract, *, batch: int, seq: int, past: int) -> None:
    """Check a call's sizes against the contract.

    Raises:
        ValueError: One of them is not what the contract allows.
    """
    for name, value, least in (("batch", batch, 1), ("seq", seq, 1), ("past", past, 0)):
        whole_number(name, value, least=least)
    if batch > 1 and not any("batch" in spec.axes for spec in contract.inputs):
        raise ValueError(f"this model takes one sequence at a time, got batch={batch}")
    if past and not contract.cache:
        raise ValueError(
            f"this model has no KV cache, so there is no past, got past={past}; export it with "
            "cache=True"
        )
    least, most = contract.min_seq_len, contract.max_seq_len
    if past + seq < least or past + seq > (most or past + seq):
        limits = f"from {least}" if most is None else f"from {least} to {most}"
        given = f"{past} + {seq}" if past else f"{seq}"
        raise ValueError(f"this model takes {limits} positions, got {given}")


def make_request(
    contract: Contract, *, seq: int, batch: int = 1, past: int = 0
) -> dict[str, Array]:
    """The new positions of a call, as the contract allows them; the same ones every time."""
    sizes = {"batch": batch, "seq": seq, "past_seq": past, "total_seq": past + seq}
    sizes |= free_sizes(contract, seq=seq, past=past)
    generator = np.random.default_rng(0)
    return {
        spec.name: _values(spec, sizes, generator)
        for spec in contract.inputs
        if spec.name not in contract.optional_names  # left out: no past, no padding
    }


def free_sizes(contract: Contract, *, seq: int, past: int) -> dict[str, int]:
    """Sizes for the free axes: as many entries as there are positions before, or else new ones."""
    length = past or seq
    return {axis.name: min(length, axis.largest or length) for axis in contract.free_axes}


def _values(spec: TensorSpec, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
    if spec.dtype == "bfloat16":
        return generator.standard_normal(shape, dtype=np.float32)
    dtype = np.dtype(spec.dtype)
    if spec.value_range is not None:
        low, high = spec.value_range
        if dtype.kind == "f":
            return generator.uniform(low, high, shape).astype(dtype)
        return generator.integers(math.ceil(low), math.ceil(high), size=shape, dtype=dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if spec.vocab_size is not None:
        high = min(spec.vocab_size, int(np.iinfo(dtype).max) + 1)
        return generator.integers(high, size=shape, dtype=dtype)
    # What an integer without a vocabulary means, only its name and axes can tell.
    if "position" in spec.name and spec.axes and spec.axes[-1] in ("seq", "total_seq"):
        end = sizes["total_seq"]
        return np.broadcast_to(np.arange(end - shape[-1], end, dtype=dtype), shape)
    if spec.axes == ("batch",):
        return np.full(shape, sizes["seq"], dtype)
    return np.ones(shape, dtype)
