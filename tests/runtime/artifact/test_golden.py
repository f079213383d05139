from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.artifact.golden import (
    COMPARED_AT_ONCE,
    MAX_STORED_ELEMENTS,
    GoldenCase,
    GoldenSet,
    relative_error,
)

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def golden(**outputs: Any) -> GoldenSet:
    return GoldenSet(cases=[GoldenCase.record({"x": X}, outputs)], tolerance=1e-5)


def changed(**changes: Any) -> str:
    document = json.loads(golden(y=X).to_json())
    document["cases"][0]["outputs"]["y"].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    "value",
    [
        X,
        X.astype(np.float16),
        X.astype(np.int64).T,
        X > 2,
        X.astype(">f4"),
        np.array([np.nan, -np.inf, -0.0], np.float32),
        np.float64(3.5).reshape(()),
        np.zeros((0, 4), np.float32),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_survive_the_round_trip_bit_for_bit(value: np.ndarray) -> None:
    case = GoldenSet.from_json(golden(y=value).to_json()).cases[0]
    shape, stride, kept = case.outputs["y"]
    assert (shape, stride) == (value.shape, 1)
    assert kept.dtype == value.dtype.newbyteorder("=")
    assert kept.tobytes() == value.reshape(-1).astype(kept.dtype).tobytes()
    assert np.array_equal(case.inputs["x"], X)


def test_a_large_output_is_sampled_and_a_change_in_the_sample_is_found() -> None:
    value = np.random.default_rng(0).standard_normal((3, 5000)).astype(np.float32)
    case = GoldenCase.record({"x": X}, {"y": value})
    assert case.outputs["y"][2].size <= MAX_STORED_ELEMENTS
    assert case.error({"y": value}) == 0.0
    assert case.error({"y": value + np.float32(1)}) > 0.1


def test_a_missing_output_and_another_shape_are_infinite_errors() -> None:
    case = golden(y=X).cases[0]
    assert case.error({}) == math.inf
    assert case.error({"y": X.reshape(3, 2)}) == math.inf


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], math.inf),
        ([np.nan, 1], [np.nan, 1], 0.0),
        ([0.0, 1], [np.nan, 1], math.inf),
        ([np.inf], [np.inf], 0.0),
        ([-np.inf], [np.inf], math.inf),
        ([np.nan], [np.inf], math.inf),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], math.inf),
    ],
)
def test_the_error_is_relative_to_the_scale(
    got: list[float], expected: list[float], error: float
) -> None:
    assert relative_error(np.array(got), np.array(expected)) == error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"format": 9}', "of format 9"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "tolerance": 1e-5, "cases": [3]}', "damaged"),
        ('{"format": 1, "tolerance": 1, "cases": []}', "tolerance must be in"),
        ('{"format": 1, "tolerance": NaN, "cases": []}', "NaN is no number of JSON"),
        (changed(dtype="O"), "unknown dtype 'O'"),
        (changed(dtype="bfloat16"), "damaged"),
        (changed(data="%%%"), "damaged"),
        (changed(data="AAAA"), "damaged"),
        (changed(shape=[5, 5]), "damaged"),
        (changed(stride=0), "stride must be a positive integer, got 0"),
        (changed(stride=True), "stride must be a positive integer, got True"),
        (changed(whole_shape=3), "damaged"),
    ],
)
def test_damaged_golden_vectors_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        GoldenSet.from_json(text)


@pytest.mark.parametrize("mode", ["r", "c"])
def test_an_array_in_a_file_is_compared_and_stays_as_it_is(
    tmp_path: Path, mode: Literal["r", "c"]
) -> None:
    numbers = np.arange(3 * COMPARED_AT_ONCE // 2, dtype=np.float32)
    numbers.tofile(tmp_path / "f")
    held = np.memmap(tmp_path / "f", np.float32, mode)
    if mode == "c":  # what is written into memory alone
        held[5] = numbers[5] = 7
    assert relative_error(numbers + 1, held) == pytest.approx(1 / numbers[-1])
    assert relative_error(numbers, held) == 0
    assert np.array_equal(held, numbers)
