"""What this machine can do at most: read memory, and multiply matrices in onnxruntime."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from causal_onnx.runtime import Contract, TensorSpec, load

__all__ = ["CACHE_BYTES", "Rates", "matrix_product", "measure_rates"]

SECONDS = 0.7
LEAST_REPEATS = 3
BUFFER_BYTES = 256 << 20
"""Several times what caches hold, so that a part of it is gone from them when its turn comes."""
PART_BYTES = 32 << 20
"""Read at once. Small parts, and small matrices, because other work on the machine takes turns of
some milliseconds with this: beside sixteen busy processes, even the best of the products of
1024 x 1024 came to a fifth of what the machine can do."""
CACHE_BYTES = 64 << 20
"""Less than this may stay in a processor's caches from call to call."""
SIDE = 512
"""Of the matrices: their product takes 2 SIDE^3 operations, 3 ms of one core or less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The best of some repeats, with the threads that the model has."""

    bytes_per_s: float
    """Reading memory."""
    flops_per_s: float
    """A product of two fp32 matrices of 512 x 512."""

    def best_with(self, other: Rates) -> Rates:
        """The better of each."""
        return Rates(
            bytes_per_s=max(self.bytes_per_s, other.bytes_per_s),
            flops_per_s=max(self.flops_per_s, other.flops_per_s),
        )


def measure_rates(threads: int) -> Rates:
    """Measure for two seconds or a little more.

    Raises:
        RunError: onnxruntime failed.
    """
    buffer = np.ones((BUFFER_BYTES // PART_BYTES, PART_BYTES // 8), np.int64)
    turns = itertools.cycle([np.array_split(part, threads) for part in buffer])
    # A reduction keeps nothing but one register; numpy lets other threads run meanwhile.
    with ThreadPoolExecutor(threads) as pool:
        reading_s = _best(lambda: list(pool.map(np.bitwise_or.reduce, next(turns))))
    square = np.ones((SIDE, SIDE), np.float32)
    sides = (SIDE, SIDE)
    contract = Contract(
        inputs=(
            TensorSpec(name="a", dtype="float32", axes=("batch", SIDE)),
            TensorSpec(name="b", dtype="float32", axes=sides),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", SIDE)),),
    )
    model = load(matrix_product(SIDE), contract=contract, threads=threads)
    product_s = _best(lambda: model(square, square))
    return Rates(bytes_per_s=PART_BYTES / reading_s, flops_per_s=2 * SIDE**3 / product_s)


def _best(work: Callable[[], object]) -> float:
    work()
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(times) < LEAST_REPEATS or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def matrix_product(side: int) -> bytes:
    """The ONNX model y = a b of (batch, side) and (side, side), encoded without the package onnx.

    Source: onnx.proto; https://protobuf.dev/programming-guides/encoding.
    """

    def tensor(name: str, *axes: int | str) -> bytes:
        dims = (_field(1, axis) if isinstance(axis, int) else _field(2, axis) for axis in axes)
        shape = b"".join(_field(1, dim) for dim in dims)
        return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))

    node = _field(1, "a") + _field(1, "b") + _field(2, "y") + _field(4, "MatMul")
    values = _field(11, tensor("a", "batch", side)) + _field(11, tensor("b", side, side))
    graph = _field(1, node) + _field(2, "g") + values + _field(12, tensor("y", "batch", side))
    return _field(1, 10) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 20))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
