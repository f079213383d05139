"""Replay golden vectors in chunks through the KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.artifact.golden import GoldenCase, GoldenSet
from causal_onnx.runtime.artifact.selftest import SelfTestCase
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.model import Model

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["joined_rows", "replay_streams", "stream_plans"]

MOST_STEPS = 8
"""Single positions at the end of a stream; what stands before them is read at once."""


def stream_plans(golden: GoldenSet, contract: Contract) -> dict[int, tuple[int, ...]]:
    """How the cases are cut: case -> positions of each chunk, a prompt and then single steps.

    Empty for a model without a cache; a case of one position is not cut.
    """
    if not contract.cache:
        return {}
    plans = {}
    for index, case in enumerate(golden.cases):
        seq = _length(case, contract)
        steps = min(MOST_STEPS, seq - seq // 2)
        if seq > 1:
            plans[index] = (seq - steps, *[1] * steps)
    return plans


def replay_streams(
    model: Model, golden: GoldenSet, plans: Mapping[int, Sequence[int]]
) -> tuple[SelfTestCase, ...]:
    """Feed each planned case chunk by chunk, and compare with what PyTorch gave for the whole.

    Raises:
        ValueError: A case does not fit the contract.
        RunError: onnxruntime failed.
    """
    results = []
    for index, chunks in plans.items():
        case = golden.cases[index]
        error = case.error(_streamed(model, case, chunks))
        results.append(
            SelfTestCase(
                shapes={name: tuple(value.shape) for name, value in case.inputs.items()},
                error=error,
                passed=error <= golden.tolerance,
            )
        )
    return tuple(results)


def _streamed(model: Model, case: GoldenCase, chunks: Sequence[int]) -> dict[str, Array]:
    contract = model.contract
    given = [spec for spec in contract.inputs if spec.name in case.inputs]
    batches = [
        case.inputs[spec.name].shape[axis]
        for spec in given
        if (axis := spec.axis_of("batch")) is not None
    ]
    stream = model.stream(batch=batches[0] if batches else 1)
    pieces: dict[str, list[Array]] = {}
    start = 0
    for count in chunks:
        now = [
            case.inputs[spec.name]
            if (axis := spec.axis_of("seq")) is None
            else np.take(case.inputs[spec.name], range(start, start + count), axis)
            for spec in given
        ]
        start += count
        for name, value in stream.run(*now).items():
            pieces.setdefault(name, []).append(value)
    specs = {spec.name: spec for spec in contract.outputs}
    return {name: joined_rows(parts, specs[name]) for name, parts in pieces.items()}


def joined_rows(pieces: Sequence[Array], spec: TensorSpec, columns: int = 0) -> Array:
    """What several calls gave, joined along the sequence; without such an axis, the last of it.

    Rows of attention weights have a column for each position so far and weigh no later one: the
    others are 0. More than `columns` of them are left only where one is not.
    """
    axis, keys = spec.axis_of("seq"), spec.axis_of("total_seq")
    if axis is None:
        return pieces[-1]
    if keys is None:
        return np.concatenate(pieces, axis)
    widest = max(columns, *(piece.shape[keys] for piece in pieces))
    whole = np.concatenate([_widened(piece, keys, widest) for piece in pieces], axis)
    beyond = whole.take(range(columns, widest), keys)
    return whole.take(range(columns), keys) if columns and not beyond.any() else whole


def _widened(piece: Array, axis: int, size: int) -> Array:
    room = [(0, 0)] * piece.ndim
    room[axis] = (0, size - piece.shape[axis])
    return np.pad(piece, room)


def _length(case: GoldenCase, contract: Contract) -> int:
    for spec in contract.inputs:
        axis = spec.axis_of("seq")
        if axis is not None and spec.name in case.inputs:
            return int(case.inputs[spec.name].shape[axis])
    return 1
