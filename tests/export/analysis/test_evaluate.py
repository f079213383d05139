"""Every operator that numpy evaluates gives what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from causal_onnx.export.analysis.attributes import UnsupportedError
from causal_onnx.export.analysis.elements import RefusedByOnnxError
from causal_onnx.export.analysis.evaluate import ELEMENTWISE, _run, evaluate
from causal_onnx.export.analysis.moves import MOVES

Array = np.ndarray[Any, np.dtype[Any]]

rng = np.random.default_rng(1)
F = rng.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(F) + np.float32(0.1)
INTS = rng.integers(-5, 6, (2, 3, 4)).astype(np.int64)
NONZERO = np.where(INTS == 0, 3, INTS)
BOOLS = INTS > 0
FLAGGED = np.asarray([0.5, -np.inf, np.inf, np.nan], np.float32)
IMAGE = rng.random((1, 8, 2, 3)).astype(np.float32)
SEVEN = helper.make_tensor("v", TensorProto.INT64, [1], [7])
SQUARE = rng.standard_normal((2, 4, 5)).astype(np.float32)


def i64(*values: int) -> Array:
    return np.asarray(values, np.int64)


FLOAT_UNARY = (
    *("Abs", "Neg", "Ceil", "Floor", "Round", "Exp", "Sin", "Cos", "Tan", "Sinh"),
    *("Cosh", "Tanh", "Atan", "Asinh", "Sigmoid", "Relu", "Sign", "Identity"),
)
CASES: list[tuple[str, list[Array | None], dict[str, Any]]] = [
    *((op, [F], {}) for op in FLOAT_UNARY),
    *((op, [POSITIVE], {}) for op in ("Sqrt", "Log", "Reciprocal")),
    *((op, [np.clip(F, -0.9, 0.9)], {}) for op in ("Asin", "Acos", "Atanh")),
    ("Acosh", [POSITIVE + 1], {}),
    *((op, [F, F[:1]], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((op, [INTS, NONZERO], {}) for op in ("Add", "Sub", "Mul", "Div", "Mod")),
    ("Mod", [F, POSITIVE], {"fmod": 1}),
    ("Mod", [INTS, NONZERO], {"fmod": 1}),
    ("Pow", [POSITIVE, F], {}),
    ("Pow", [INTS, np.abs(INTS)], {}),
    ("Sum", [F, F, F[:1]], {}),
    *((op, [BOOLS, BOOLS[:1]], {}) for op in ("And", "Or", "Xor")),
    ("Not", [BOOLS], {}),
    *((op, [INTS, NONZERO], {}) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    ("BitwiseNot", [INTS], {}),
    ("BitShift", [np.abs(INTS).astype(np.uint32), np.uint32(2)], {"direction": "LEFT"}),
    ("BitShift", [np.abs(INTS).astype(np.uint32), np.uint32(1)], {"direction": "RIGHT"}),
    *((op, [INTS, NONZERO], {}) for op in ("Equal", "Greater", "Less")),
    *((op, [INTS, NONZERO], {}) for op in ("GreaterOrEqual", "LessOrEqual")),
    ("Where", [BOOLS, F, np.float32(-1)], {}),
    ("IsNaN", [FLAGGED], {}),
    ("IsInf", [FLAGGED], {}),
    ("IsInf", [FLAGGED], {"detect_negative": 0}),
    ("IsInf", [FLAGGED], {"detect_positive": 0}),
    ("Clip", [F, np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [F, None, np.float32(0.5)], {}),
    ("Cast", [F], {"to": TensorProto.INT64}),
    ("Cast", [INTS], {"to": TensorProto.BOOL}),
    ("Cast", [INTS], {"to": TensorProto.FLOAT16}),
    ("CastLike", [INTS, F], {}),
    ("Reshape", [F, i64(0, -1)], {}),
    ("Reshape", [F, i64(4, 1, 6)], {}),
    ("Transpose", [F], {"perm": [2, 0, 1]}),
    ("Transpose", [F], {}),
    ("Flatten", [F], {"axis": 2}),
    ("Flatten", [F], {"axis": -1}),
    ("Squeeze", [F[:1], i64(0)], {}),
    ("Squeeze", [F[:1]], {}),
    ("Unsqueeze", [F, i64(0, -1)], {}),
    ("Expand", [F[:, :1], i64(5, 1, 3, 1)], {}),
    ("Tile", [F, i64(1, 2, 3)], {}),
    ("Slice", [F, i64(1), i64(3), i64(1)], {}),
    ("Slice", [F, i64(-1, 0), i64(-9, 9), i64(2, 1), i64(-1, 2)], {}),
    ("Slice", [F, i64(-2, 2), i64(2**62, -9), i64(-1, 1), i64(1, -1)], {}),
    ("Slice", [F, i64(5), i64(9), i64(1)], {}),
    ("Gather", [F, np.asarray([[0, -1]], np.int64)], {"axis": 1}),
    ("Gather", [F, np.asarray(1, np.int64)], {"axis": -1}),
    ("GatherElements", [F, i64(0, -1, 1).reshape(1, 3, 1).repeat(2, 0)], {"axis": 2}),
    ("GatherND", [F, np.asarray([[0, 1], [1, -1]], np.int64)], {}),
    ("GatherND", [F, np.asarray([[1], [-1]], np.int64)], {"batch_dims": 1}),
    ("Pad", [F, i64(0, 1, 0, 0, 2, 1), np.float32(7)], {}),
    ("Pad", [F, i64(0, -1, 0, 0, 2, -1)], {}),
    ("Pad", [F, i64(1, 2), None, i64(1)], {"mode": "edge"}),
    ("Pad", [F, i64(2, 1), None, i64(2)], {"mode": "reflect"}),
    ("Trilu", [SQUARE], {}),
    ("Trilu", [SQUARE, np.asarray(1, np.int64)], {"upper": 0}),
    ("Trilu", [SQUARE, np.asarray(-2, np.int64)], {"upper": 1}),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [rng.random((1, 2, 4, 6)).astype(np.float32)], {"blocksize": 2}),
    ("Compress", [F, np.asarray([True, False, True])], {"axis": 1}),
    ("ReverseSequence", [F, i64(2, 3)], {"time_axis": 1, "batch_axis": 0}),
    ("Shape", [F], {"start": 1}),
    ("Shape", [F], {"end": -1}),
    ("Size", [F], {}),
    ("ConstantOfShape", [i64(2, 3)], {"value": SEVEN}),
    ("Range", [np.asarray(2, np.int64), np.asarray(9, np.int64), np.asarray(3, np.int64)], {}),
    ("CumSum", [F, np.asarray(1, np.int64)], {}),
    ("CumSum", [F, np.asarray(-1, np.int64)], {"exclusive": 1, "reverse": 1}),
    ("Concat", [F, F[:, :1]], {"axis": 1}),
    ("NonZero", [INTS], {}),
    ("MatMul", [F, np.swapaxes(F, 1, 2)], {}),
    ("EyeLike", [SQUARE[0]], {"k": 1}),
    *((op, [F, i64(1)], {"keepdims": 0}) for op in ("ReduceSum", "ReduceMean", "ReduceMax")),
    *((op, [F, i64(0, -1)], {}) for op in ("ReduceMin", "ReduceProd")),
    ("ReduceSum", [F], {}),
    ("ReduceSum", [F], {"noop_with_empty_axes": 1}),
    ("Erf", [F], {}),
    ("Softplus", [F], {}),
]  # fmt: skip


def to_node(op: str, arrays: list[Array | None], attributes: dict[str, Any]) -> ir.Node:
    names = ["" if array is None else f"in{i}" for i, array in enumerate(arrays)]
    proto = helper.make_node(op, names, ["out"], **attributes)
    return ir.serde.deserialize_node(proto)


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"), CASES, ids=[f"{i}_{case[0]}" for i, case in enumerate(CASES)]
)
def test_numpy_evaluates_as_onnxruntime_does(
    op: str, arrays: list[Array | None], attributes: dict[str, Any]
) -> None:
    arrays = [None if a is None else np.asarray(a) for a in arrays]
    node = to_node(op, arrays, attributes)
    (mine,) = evaluate(node, arrays, {"": 20})
    (theirs,) = _run(node, arrays, {"": 20})
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    if mine.dtype.kind == "f":
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-7)
    else:
        np.testing.assert_array_equal(mine, theirs)


def test_every_numpy_operator_is_compared() -> None:
    assert (set(ELEMENTWISE) | set(MOVES)) <= {case[0] for case in CASES}


def test_split_evaluates_as_onnxruntime_does() -> None:
    proto = helper.make_node("Split", ["in0"], ["a", "b", "c"], axis=-1, num_outputs=3)
    node = ir.serde.deserialize_node(proto)
    for mine, theirs in zip(evaluate(node, [F], {"": 20}), _run(node, [F], {"": 20}), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_bfloat16_is_followed_as_float32() -> None:
    node = to_node("Cast", [F], {"to": TensorProto.BFLOAT16})
    (out,) = evaluate(node, [F], {"": 20})
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, F.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("op", "arrays", "attributes", "message"),
    [
        ("Reshape", [F, i64(5, -1)], {}, "cannot be reshaped"),
        ("Gather", [F, i64(3)], {"axis": 1}, "index 3 of an axis of size 3"),
        ("Add", [F, F[:, :2]], {}, "broadcast"),
        ("Squeeze", [F, i64(1)], {}, "Squeeze of axes"),
    ],
)
def test_sizes_that_the_runtime_refuses_are_refused(
    op: str, arrays: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedByOnnxError, match=message):
        evaluate(to_node(op, arrays, attributes), arrays, {"": 20})


def test_an_operator_that_nothing_evaluates_is_unsupported() -> None:
    node = ir.Node("made.up", "Thing", [], num_outputs=1)
    with pytest.raises(UnsupportedError, match="could not be evaluated"):
        evaluate(node, [F], {"": 20})
