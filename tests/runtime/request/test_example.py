"""Requests that are made up from a contract are what the contract allows."""

from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import FreeAxis
from causal_onnx.runtime.request.example import make_request
from causal_onnx.runtime.request.request import RequestChecker

X = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
Y = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 4))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32"])
def test_values_lie_in_their_range(dtype: str) -> None:
    times = TensorSpec(name="t", dtype=dtype, axes=("batch", "seq"), value_range=(3, 6.5))
    contract = Contract(inputs=(X, times), outputs=(Y,))
    request = make_request(contract, batch=2, seq=50)
    RequestChecker(contract).check((), request)
    assert request["t"].min() >= 3
    assert len(np.unique(request["t"])) > 3


def test_free_axes_are_no_larger_than_they_may_be() -> None:
    memory = TensorSpec(name="memory", dtype="float32", axes=("batch", "frames", 4))
    contract = Contract(
        inputs=(X, memory), outputs=(Y,), free_axes=(FreeAxis(name="frames", largest=3),)
    )
    for seq, frames in ((2, 2), (9, 3)):
        request = make_request(contract, seq=seq)
        RequestChecker(contract).check((), request)
        assert request["memory"].shape == (1, frames, 4)
