"""Golden vectors: small inputs with the outputs PyTorch gave, kept in the file for self-tests."""

from __future__ import annotations

import base64
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import DTYPES, FORMAT, read_document
from causal_onnx.runtime.errors import ArtifactError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["COMPARED_AT_ONCE", "GoldenCase", "GoldenSet", "json_number", "relative_error"]

MAX_STORED_ELEMENTS = 4096
"""Per output and case; a language model's logits are sampled evenly down to this many, so that the
vectors stay small beside the weights (16 KiB each in fp32)."""

COMPARED_AT_ONCE = 1 << 16
"""Elements: what a processor's cache holds. The logits of a prompt are larger than the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenCase:
    """One recorded call."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, tuple[tuple[int, ...], int, Array]]
    """Name -> (shape of the whole output, stride, flat elements 0, stride, 2 x stride, ...)."""

    @classmethod
    def record(cls, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> GoldenCase:
        """Keep `inputs` whole and `outputs` sampled to at most `MAX_STORED_ELEMENTS` each."""
        stored = {}
        for name, value in outputs.items():
            stride = max(1, math.ceil(value.size / MAX_STORED_ELEMENTS))
            stored[name] = (tuple(value.shape), stride, value.reshape(-1)[::stride].copy())
        return cls(inputs=dict(inputs), outputs=stored)

    def error(self, outputs: Mapping[str, Array]) -> float:
        """The largest error of `outputs` against the record, relative to each output's scale.

        Infinite where an output is missing, or differs in shape or in where its NaNs are.
        """
        worst = 0.0
        for name, (shape, stride, expected) in self.outputs.items():
            got = outputs.get(name)
            if got is None or tuple(got.shape) != shape:
                return math.inf
            worst = max(worst, relative_error(got.reshape(-1)[::stride], expected))
        return worst


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSet:
    """The recorded calls of one artifact, and how closely a runtime must repeat them."""

    cases: Sequence[GoldenCase]
    tolerance: float
    """Largest error allowed, relative to the output's scale."""

    def __post_init__(self) -> None:
        # With a tolerance of 1 or more, an output of zeros passes.
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), got {self.tolerance}")

    def to_json(self) -> str:
        """The set as one JSON document; arrays are little-endian bytes in base64."""
        cases = [
            {
                "inputs": {name: _encode(value) for name, value in case.inputs.items()},
                "outputs": {
                    name: {**_encode(kept), "whole_shape": list(shape), "stride": stride}
                    for name, (shape, stride, kept) in case.outputs.items()
                },
            }
            for case in self.cases
        ]
        document = {"format": FORMAT, "tolerance": self.tolerance, "cases": cases}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> GoldenSet:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: The text holds no golden vectors, or of a newer format.
        """
        data = read_document(text, what="golden vectors")
        try:
            cases = [
                GoldenCase(
                    inputs={name: _decode(item) for name, item in case["inputs"].items()},
                    outputs={
                        name: (tuple(item["whole_shape"]), _stride(item), _decode(item))
                        for name, item in case["outputs"].items()
                    },
                )
                for case in data["cases"]
            ]
            return cls(cases=cases, tolerance=float(data["tolerance"]))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ArtifactError(f"the golden vectors are damaged: {error!r}") from error


def relative_error(got: Array, expected: Array) -> float:
    """Give max |got - expected| / max |expected|, both in float64; 0/0 counts as 0.

    NaNs and infinities must stand in the same places, else the error is infinite.
    """
    if got.shape != expected.shape:
        return math.inf
    worst = scale = 0.0
    flat_got, flat_expected = got.reshape(-1), expected.reshape(-1)
    for start in range(0, got.size, COMPARED_AT_ONCE):
        one = flat_got[start : start + COMPARED_AT_ONCE].astype(np.float64)
        other = flat_expected[start : start + COMPARED_AT_ONCE].astype(np.float64)
        finite = np.isfinite(other)
        if not np.array_equal(np.isfinite(one), finite):
            return math.inf
        if not finite.all():
            if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
                return math.inf
            one, other = one[finite], other[finite]
        if other.size:
            scale = max(scale, float(np.abs(other).max()))
            worst = max(worst, float(np.abs(np.subtract(one, other, out=one), out=one).max()))
        _let_go(expected)
    if worst == 0.0:
        return 0.0
    return worst / scale if scale else math.inf


def _let_go(array: Array) -> None:
    """Hold no page in memory of an array that lies in a file; it is read again when it is used."""
    base: object = array.base
    if not isinstance(base, mmap.mmap) or array.flags.writeable:  # else what was written is lost
        return
    if hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def json_number(value: float) -> float | None:
    """The value, or None for infinities and NaN, which JSON has no numbers for."""
    return value if math.isfinite(value) else None


def _encode(value: Array) -> dict[str, Any]:
    little = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
    return {
        "dtype": value.dtype.name,
        "shape": list(value.shape),
        "data": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def _stride(item: Mapping[str, Any]) -> int:
    stride = item["stride"]
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be a positive integer, got {stride!r}")
    return stride


def _decode(item: Mapping[str, Any]) -> Array:
    if item["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {item['dtype']!r}")
    dtype = np.dtype(item["dtype"]).newbyteorder("<")
    raw = base64.b64decode(item["data"], validate=True)
    array = np.frombuffer(raw, dtype=dtype).reshape(item["shape"])
    return array.astype(dtype.newbyteorder("="))
