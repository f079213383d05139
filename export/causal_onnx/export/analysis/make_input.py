"""A value for an input of a graph, plausible by what the input is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.export.analysis.signature import CAUSAL_ROLES, InputAxes, Sizes

__all__ = ["make_input"]

Array = npt.NDArray[Any]


def make_input(spec: InputAxes, sizes: Sizes, rng: np.random.Generator, ids: range | None) -> Array:
    """A plausible value: valid ids, an all-ones mask, positions after the past, finite floats."""
    shape = spec.shape(sizes)
    dtype = spec.dtype.numpy()
    if spec.role == "positions":
        places = np.arange(sizes.past_seq, sizes.total_seq)
        return np.broadcast_to(places, shape).astype(dtype).copy()
    if spec.role in CAUSAL_ROLES:
        return _causal(spec, sizes).astype(dtype)
    if spec.role == "mask":
        if np.issubdtype(dtype, np.floating) and len(shape) > 2:
            return np.zeros(shape, dtype)  # added to the scores: nothing is masked
        return np.ones(shape, dtype)
    if spec.role == "lengths":
        if "total" in spec.name:
            return np.full(shape, sizes.total_seq, dtype)
        offset = 1 if "seqlens_k" in spec.name else 0
        return np.full(shape, sizes.total_seq - offset, dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        valid = ids or range(2)
        return rng.integers(valid.start, valid.stop, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _causal(spec: InputAxes, sizes: Sizes) -> Array:
    """Every later key hidden, and no other one."""
    shape = spec.shape(sizes)
    queries, keys = spec.pair_axes
    seen = np.tril(np.ones((shape[queries], shape[keys]), bool), shape[keys] - shape[queries])
    place = [1] * len(shape)
    place[queries], place[keys] = seen.shape
    pattern = np.broadcast_to(seen.reshape(place), shape)
    if spec.role == "causal_bias":
        return np.where(pattern, 0.0, -np.inf)
    return pattern if spec.role == "causal_mask" else ~pattern
