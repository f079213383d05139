"""What is left of a contract where inputs are given beforehand, and what rows began with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import CachePair, FreeAxis
from causal_onnx.runtime.stream.staying import Begun, without_inputs

IDS = TensorSpec(name="ids", dtype="int64", axes=("batch", "seq"), vocab_size=7)
MEMORY = TensorSpec(name="memory", dtype="float32", axes=("batch", "frames", 2))
SCALE = TensorSpec(name="scale", dtype="float32", axes=(1,))
OUT = TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 7))
ECHO = TensorSpec(name="echo", dtype="float32", axes=("batch", "frames", 2))
CONTRACT = Contract(
    inputs=(IDS, MEMORY, SCALE), outputs=(OUT, ECHO), free_axes=(FreeAxis(name="frames"),)
)


def test_what_is_left_of_the_contract_has_no_axis_that_is_gone() -> None:
    left = without_inputs(CONTRACT, {"memory": None, "scale": None})
    assert [spec.name for spec in left.inputs] == ["ids"]
    assert [spec.name for spec in left.outputs] == ["logits"]
    assert left.free_axes == ()


def test_a_contract_is_not_left_without_an_input_that_it_has_not() -> None:
    with pytest.raises(ValueError, match="unknown input 'banana'"):
        without_inputs(CONTRACT, {"banana": None})


ONCE = Contract(
    inputs=(
        IDS,
        MEMORY,
        TensorSpec(name="mask", dtype="int64", axes=("batch", "total_seq")),
        TensorSpec(name="past_keys", dtype="float32", axes=("batch", "past_seq")),
        TensorSpec(name="past", dtype="float32", axes=("batch", 1, "past_slots", "frames")),
    ),
    outputs=(
        OUT,
        TensorSpec(name="keys", dtype="float32", axes=("batch", "total_seq")),
        TensorSpec(name="present", dtype="float32", axes=("batch", 1, "present_slots", "frames")),
    ),
    free_axes=(FreeAxis(name="frames"),),
    cache=(
        CachePair(past="past_keys", present="keys"),
        CachePair(past="past", present="present", bounded=1, computed_from=("memory",)),
    ),
    mask="mask",
)


def frames(*numbers: float, size: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    return {"memory": np.stack([np.full((size, 2), n, np.float32) for n in numbers])}


def test_rows_that_have_begun_hold_to_what_they_began_with() -> None:
    begun = Begun(ONCE)
    begun.check(frames(1, 2), np.array([0, 0]))
    begun.check(frames(1, 3), np.array([4, 0]))  # the second row begins now
    begun.check(frames(1, 3), np.array([5, 1]))
    with pytest.raises(ValueError, match="'memory' is not what the sequence began with"):
        begun.check(frames(1, 2), np.array([5, 1]))
    with pytest.raises(ValueError, match="'memory' is not what the sequence began with"):
        begun.check(frames(1, 3, size=4), np.array([5, 1]))
    begun.check(frames(7, 8, size=4), np.array([0, 0]))


def test_what_rows_began_with_is_a_copy_and_goes_with_them() -> None:
    given = frames(1, 2)
    begun = Begun(ONCE)
    begun.check(given, np.array([0, 0]))
    given["memory"] += 1
    twin = Begun(ONCE, begun.rows(np.array([1, 1])))
    twin.check(frames(2, 2), np.array([3, 3]))
    with pytest.raises(ValueError, match="Give the same in every call, or start another stream"):
        twin.check(frames(1, 2), np.array([3, 3]))


def test_what_a_contract_computes_once_of_an_input_goes_with_it() -> None:
    left = without_inputs(ONCE, {"memory": None})
    assert [spec.name for spec in left.inputs] == ["ids", "mask", "past_keys"]
    assert [spec.name for spec in left.outputs] == ["logits", "keys"]
    assert [pair.past for pair in left.cache] == ["past_keys"]
