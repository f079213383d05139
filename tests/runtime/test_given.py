"""Inputs that a stream is started with: those that stay, and those of the first positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import FreeAxis
from causal_onnx.runtime.stream.given import GivenInputs

IDS = TensorSpec(name="ids", dtype="int64", axes=("batch", "seq"), vocab_size=7)
MEMORY = TensorSpec(name="memory", dtype="float32", axes=("batch", "frames", 2))
SCALE = TensorSpec(name="scale", dtype="float32", axes=(1,))
IMAGE = TensorSpec(name="image", dtype="float32", axes=("batch", "seq", 2))
FLAGS = TensorSpec(name="flags", dtype="bool", axes=("batch", "seq"))
SHARED = TensorSpec(name="shared", dtype="float32", axes=(2, "seq"))
PAIRS = TensorSpec(name="pairs", dtype="float32", axes=("seq", "seq"))
CONTRACT = Contract(
    inputs=(IDS, MEMORY, SCALE, IMAGE, FLAGS, SHARED, PAIRS),
    outputs=(TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 7)),),
    free_axes=(FreeAxis(name="frames"),),
)
NUMBERS = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
START = np.zeros(2, np.int64)


def feeds(
    inputs: dict[str, Any], lengths: list[int], seq: int = 1, **options: Any
) -> dict[str, Any]:
    given = GivenInputs(CONTRACT, inputs, len(lengths), **options)
    return given.feeds(np.array(lengths), seq)


def test_one_row_is_given_to_all_rows_of_the_batch() -> None:
    memory = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    given = {"memory": memory, "scale": [2.0], "image": NUMBERS[:1]}
    found = feeds(given, [0] * 4, 3)
    np.testing.assert_array_equal(found["memory"], memory.repeat(4, 0))
    np.testing.assert_array_equal(found["scale"], np.array([2.0], np.float32))
    np.testing.assert_array_equal(found["image"], NUMBERS[:1].repeat(4, 0))


def test_what_is_given_is_a_copy() -> None:
    memory, image = np.zeros((1, 3, 2), np.float32), np.zeros((1, 2, 2), np.float32)
    given = GivenInputs(CONTRACT, {"memory": memory, "image": image}, 1)
    memory += 1
    image += 1
    assert not any(found.any() for found in given.feeds(np.array([0]), 2).values())


def test_each_row_reads_on_where_it_stands_and_zeros_follow() -> None:
    found = feeds({"image": NUMBERS, "flags": np.ones((2, 3), np.bool_)}, [1, 3], 4)
    assert found["image"].dtype == np.float32
    assert found["flags"].dtype == np.bool_
    np.testing.assert_array_equal(found["image"][0], [[3, 4], [5, 6], [0, 0], [0, 0]])
    assert not found["image"][1].any()
    np.testing.assert_array_equal(found["flags"], [[1, 1, 0, 0], [0, 0, 0, 0]])


def test_rows_of_a_list_have_any_number_of_positions() -> None:
    rows = [NUMBERS[0], None, NUMBERS[1, :1], NUMBERS[0, :0]]
    given = GivenInputs(CONTRACT, {"image": rows, "flags": np.ones((1, 2), np.bool_)}, 4)
    np.testing.assert_array_equal(given.covered, [3, 2, 2, 2])
    image = given.feeds(np.zeros(4, np.int64), 3)["image"]
    np.testing.assert_array_equal(image[0], NUMBERS[0])
    np.testing.assert_array_equal(image[2], [[7, 8], [0, 0], [0, 0]])
    assert not image[[1, 3]].any()


def test_rows_without_any_need_no_array() -> None:
    assert not feeds({"image": [None, None]}, [0, 1], 2)["image"].any()


def test_lists_of_numbers_are_arrays() -> None:
    np.testing.assert_array_equal(feeds({"image": NUMBERS.tolist()}, [0, 0], 3)["image"], NUMBERS)


def test_chosen_rows_keep_what_is_theirs() -> None:
    given = {"image": [NUMBERS[0], NUMBERS[1, :1]], "memory": NUMBERS}
    found = GivenInputs(CONTRACT, given, 2).rows(np.array([1, 0, 1]))
    np.testing.assert_array_equal(found.covered, [1, 3, 1])
    parts = found.feeds(np.array([0, 2, 1]), 1)
    np.testing.assert_array_equal(parts["image"][:, 0], [[7, 8], [5, 6], [0, 0]])
    np.testing.assert_array_equal(parts["memory"], NUMBERS[[1, 0, 1]])


def test_an_input_without_rows_is_read_by_rows_that_stand_together() -> None:
    given = {"shared": NUMBERS[:, :, 0]}
    np.testing.assert_array_equal(feeds(given, [1, 1], 3)["shared"], [[3, 5, 0], [9, 11, 0]])
    assert not feeds(given, [3, 9])["shared"].any()
    with pytest.raises(ValueError, match=r"one for all rows, and they stand at .* \(1, 2\)"):
        feeds(given, [1, 2])


def test_values_of_another_dtype_are_converted_only_on_request() -> None:
    wide = {"image": NUMBERS.astype(np.float64), "memory": NUMBERS.astype(np.float64)}
    assert feeds(wide, [0, 0], 3, cast=True)["image"].dtype == np.float32
    for name, array in wide.items():
        with pytest.raises(ValueError, match=f"{name!r} has dtype float64, expected float32"):
            feeds({name: array}, [0, 0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"banana": [1.0]}, "unknown input 'banana'; the inputs are ids, memory, scale"),
        ({"memory": np.zeros((3, 4, 2), np.float32)}, "has 3 rows, expected 2, or one that all"),
        ({"memory": np.zeros((4, 2), np.float32)}, r"has rank 2, shape \(4, 2\); expected rank 3"),
        ({"memory": np.zeros((2, 4, 3), np.float32)}, "axis 2 must be 2, got 3; expected memory"),
        ({"image": np.zeros((3, 4, 2), np.float32)}, "has 3 rows, expected 2, or one that all"),
        ({"image": [None] * 3}, "has 3 rows, expected 2, or one that all"),
        ({"image": np.zeros((4, 2), np.float32)}, r"has rank 2, shape \(4, 2\); expected rank 3"),
        ({"image": np.zeros((2, 4, 5), np.float32)}, "axis 2 must be 2, got 5; expected image"),
        (
            {"image": [None, np.zeros((1, 4, 2), np.float32)]},
            r"'image\[1\]' has rank 3, shape \(1, 4, 2\); expected rank 2: .*\(seq, 2\)",
        ),
        ({"image": [np.zeros((4, 3), np.float32)]}, r"'image\[0\]' .* axis 1 must be 2, got 3"),
        ({"pairs": np.zeros((2, 2), np.float32)}, "its size depends on the positions of each call"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GivenInputs(CONTRACT, inputs, 2)


def test_rows_that_differ_in_more_than_positions_are_refused() -> None:
    spec = replace(IMAGE, axes=("batch", "seq", "frames"))
    contract = replace(CONTRACT, inputs=(IDS, spec, MEMORY))
    rows = [np.zeros((3, 4), np.float32), np.zeros((1, 5), np.float32)]
    with pytest.raises(ValueError, match=r"\(3, 4\), \(1, 5\); they may differ in their positions"):
        GivenInputs(contract, {"image": rows}, 2)


@pytest.mark.parametrize(
    "changes",
    [{"kind": "positions"}, {"kind": "keep_mask"}, {"value_range": (1, 5)}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_may_not_be_zero_is_not_for_the_first_positions_alone(changes: Any) -> None:
    spec = TensorSpec(name="places", dtype="int64", axes=("batch", "seq"), **changes)
    contract = replace(CONTRACT, inputs=(IDS, spec), free_axes=())
    with pytest.raises(ValueError, match="behind them it would be zero, which is no value for"):
        GivenInputs(contract, {"places": [[1, 2]]}, 1)


def test_something_must_say_how_many_positions_a_call_has() -> None:
    contract = replace(CONTRACT, inputs=(IMAGE, SCALE), free_axes=())
    with pytest.raises(ValueError, match="nothing is left that says how many positions a call has"):
        GivenInputs(contract, {"image": NUMBERS}, 2)


def test_bfloat16_is_kept_for_the_call_that_converts_it() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = (IDS, replace(IMAGE, dtype="bfloat16"), replace(MEMORY, dtype="bfloat16"))
    contract = replace(CONTRACT, inputs=inputs)
    given = {"image": NUMBERS.astype(bfloat16), "memory": NUMBERS.astype(bfloat16)}
    found = GivenInputs(contract, given, 2).feeds(START, 4)
    assert {array.dtype for array in found.values()} == {np.dtype(bfloat16)}
    np.testing.assert_array_equal(found["image"][:, :3].astype(np.float32), NUMBERS)
