from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.bundle.tensor_proto import decode, encode

DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "bfloat16",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 1, 2)], ids=str)
def test_what_is_written_is_read(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    name, values = decode(encode("x.0", array.astype(held := held_as(dtype)), dtype))
    assert name == "x.0"
    assert values.dtype == held
    assert np.array_equal(values, array.astype(held))


def held_as(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_onnx_reads_it_alike(dtype: str) -> None:
    onnx = pytest.importorskip("onnx")
    array = np.array([[0, 1], [1, 3]]).astype(held_as(dtype))
    tensor = onnx.TensorProto.FromString(encode("x", array, dtype))
    values = onnx.numpy_helper.to_array(tensor)
    assert (tensor.name, list(tensor.dims)) == ("x", [2, 2])
    assert np.array_equal(values.astype(held_as(dtype)), array)
    tensor = onnx.numpy_helper.from_array(values, "y")
    name, back = decode(tensor.SerializeToString())
    assert name == "y"
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no raw data of a known type"),
        (encode("x", np.zeros(3, np.float32), "float32")[:-1], "ends 1 bytes after"),
        (encode("x", np.zeros(3, np.float32), "float32").replace(b"\x08\3", b"\x08\4"), "12 bytes"),
        (b"\x08" + b"\xff" * 11, "longer than 10 bytes"),
        (b"\x0b\0\0\0\0", "wire type 3"),
        (b"\x08\x80", "ends in the middle"),
    ],
)
def test_damaged_tensors_are_errors(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode(data)


def test_unknown_types_are_errors() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        encode("x", np.zeros(1), "complex64")
