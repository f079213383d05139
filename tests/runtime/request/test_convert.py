from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import TensorSpec
from causal_onnx.runtime.request.convert import to_array


def spec(dtype: str) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, axes=("batch", 3))


X = np.arange(12, dtype=np.float32).reshape(4, 3)


class Tensor:
    """Like a PyTorch tensor: not an array, but gives one when asked."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def test_an_array_as_it_should_be_is_not_copied() -> None:
    assert to_array(spec("float32"), X) is X


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X[::-1][::-1],
        np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(4, 3),
        X.astype(">f4"),
        X.view(np.matrix) if hasattr(np, "matrix") else X,
        np.lib.stride_tricks.as_strided(X, (4, 3), (12, 4), writeable=False),
        Tensor(X),
        X.tolist(),
        [tuple(row) for row in X.tolist()],
        X.astype(int).tolist(),
        memoryview(X),
    ],
    ids=[
        "fortran",
        "strided",
        "reversed twice",
        "unaligned",
        "big-endian",
        "matrix",
        "read-only",
        "tensor",
        "list",
        "tuples",
        "list of int",
        "buffer",
    ],
)
def test_the_same_values_come_out_native_and_contiguous(value: Any) -> None:
    got = to_array(spec("float32"), value)
    assert type(got) is np.ndarray
    assert got.dtype == np.float32
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert got.flags.aligned
    np.testing.assert_array_equal(got, X)


@pytest.mark.parametrize("source", ["int8", "int16", "int32", "uint8", "uint32", ">i4"])
def test_narrower_integers_are_widened(source: str) -> None:
    got = to_array(spec("int64"), np.array([[1, 2, 3]], source))
    assert got.dtype == np.int64
    assert got.tolist() == [[1, 2, 3]]


def test_a_single_number_stays_a_scalar() -> None:
    for value in (3.5, np.float32(3.5), np.array(3.5, np.float32)):
        assert to_array(spec("float32"), value).shape == ()


@pytest.mark.parametrize(
    ("dtype", "source"),
    [
        ("float32", "float64"),
        ("float32", "float16"),
        ("float16", "float32"),
        ("float32", "int64"),
        ("int64", "float32"),
        ("int64", "bool"),
        ("int32", "int64"),
        ("int64", "uint64"),
        ("uint8", "int8"),
        ("bool", "int64"),
        ("bool", "float32"),
        ("bfloat16", "float32"),
        ("bfloat16", "float64"),
    ],
)
def test_another_dtype_is_refused_with_the_remedy(dtype: str, source: str) -> None:
    with pytest.raises(
        ValueError, match=f"input 'x' has dtype {source}, expected {dtype}; .*cast=True"
    ):
        to_array(spec(dtype), np.ones((1, 3), source))


@pytest.mark.parametrize(
    ("dtype", "source"),
    [
        ("float32", "float64"),
        ("float32", "float16"),
        ("float16", "float64"),
        ("float32", "int64"),
        ("float32", "bool"),
        ("int64", "bool"),
        ("int32", "int64"),
        ("int64", "uint64"),
        ("uint8", "int64"),
        ("bfloat16", "float32"),
        ("bfloat16", ">f8"),
    ],
)
def test_cast_allows_the_same_or_a_wider_family(dtype: str, source: str) -> None:
    got = to_array(spec(dtype), np.ones((1, 3), source), cast=True)
    assert got.dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert got.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("dtype", "source"), [("int64", "float32"), ("bool", "int64"), ("bool", "float32")]
)
def test_cast_refuses_what_would_change_the_meaning(dtype: str, source: str) -> None:
    with pytest.raises(ValueError, match="lose what the values mean"):
        to_array(spec(dtype), np.ones((1, 3), source), cast=True)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float16", np.array([[1.0, 70000.0, 1.0]])),
        ("float32", np.array([[1.0, 1e300, 1.0]])),
        ("int32", np.array([[1, 2**40, 1]])),
        ("uint8", np.array([[1, -1, 1]])),
        ("int64", np.array([[1, 2**63 + 5, 1]], np.uint64)),
    ],
)
def test_cast_refuses_a_value_that_the_dtype_cannot_hold(dtype: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"input 'x' holds .*, which {dtype} cannot hold"):
        to_array(spec(dtype), value, cast=True)


def test_cast_keeps_nan_and_infinity() -> None:
    got = to_array(spec("float32"), np.array([np.nan, np.inf, -np.inf]), cast=True)
    np.testing.assert_array_equal(got, [np.nan, np.inf, -np.inf])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int64", [[1.5, 2.0]]), ("float32", [[True]]), ("int64", [[2**70]]), ("bool", [[1]])],
)
def test_python_numbers_of_another_family_are_refused(dtype: str, value: Any) -> None:
    with pytest.raises(ValueError, match="input 'x' has dtype"):
        to_array(spec(dtype), value)


def test_python_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="holds 1e\\+300, which float32 cannot hold"):
        to_array(spec("float32"), [[1e300]])
    with pytest.raises(ValueError, match="holds 300, which uint8 cannot hold"):
        to_array(spec("uint8"), [[300]])


@pytest.mark.parametrize(
    "value",
    [None, "text", [["a"]], object(), {"a": 1}, np.array([1, None]), np.ones(2, complex)],
    ids=["None", "str", "list of str", "object", "dict", "object array", "complex"],
)
@pytest.mark.parametrize("cast", [False, True])
def test_what_is_not_numbers_is_refused(value: Any, cast: bool) -> None:
    with pytest.raises(ValueError, match="expected float32; pass numbers in a regular shape"):
        to_array(spec("float32"), value, cast=cast)


def test_a_ragged_list_is_refused() -> None:
    with pytest.raises(ValueError, match="input 'x' is a list that numpy cannot read"):
        to_array(spec("float32"), [[1.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    "error", [RuntimeError("requires grad"), TypeError("can't convert cuda tensor")]
)
def test_a_tensor_that_gives_no_array_is_refused_with_the_remedy(error: Exception) -> None:
    with pytest.raises(ValueError, match=rf"Tensor .*{error}.*tensor\.detach\(\)\.cpu\(\)"):
        to_array(spec("float32"), Tensor(error))


def test_a_masked_array_is_refused() -> None:
    with pytest.raises(ValueError, match="masked array, whose mask would be lost"):
        to_array(spec("float32"), np.ma.masked_array(X, X > 3))


def test_bfloat16_of_another_package_is_taken_by_its_name() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    value = X.astype(ml_dtypes.bfloat16)
    got = to_array(spec("bfloat16"), value)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, X)
    with pytest.raises(ValueError, match="has dtype bfloat16, expected float32"):
        to_array(spec("float32"), value)
    np.testing.assert_array_equal(to_array(spec("float32"), value, cast=True), X)
