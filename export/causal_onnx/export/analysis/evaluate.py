"""Evaluation of nodes whose inputs are all known: masks, rotary tables, shape arithmetic.

The frequent operators run in numpy; any other in onnxruntime, as a model of that one node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import UnsupportedError, attr, normal_axis
from causal_onnx.export.analysis.elements import Abstract, Array, Elements, Known, plain, refusing
from causal_onnx.export.analysis.moves import MOVES, split_sizes
from causal_onnx.export.analysis.session import plain_session

__all__ = ["ELEMENTWISE", "evaluate", "evaluate_elementwise", "refusal"]

Function: TypeAlias = Callable[..., Array]


def _divide(a: Array, b: Array) -> Array:
    """Integers divide towards zero, as in C."""
    if np.issubdtype(a.dtype, np.integer):
        quotient = np.abs(a) // np.where(b == 0, 1, np.abs(b))
        return np.asarray(quotient * np.sign(a) * np.sign(b)).astype(a.dtype)
    return np.asarray(a / b)


def _power(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.power(a.astype(np.float64), b)).astype(a.dtype)
    return np.asarray(np.power(a, b.astype(a.dtype)))


def _sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def _fold(function: Callable[[Array, Array], Array]) -> Function:
    def folded(*arrays: Array) -> Array:
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return folded


_SIMPLE: dict[str, Function] = {
    "Abs": np.abs,
    "Neg": np.negative,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Round": np.rint,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Tanh": np.tanh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Sigmoid": _sigmoid,
    "Relu": lambda a: np.maximum(a, np.asarray(0, a.dtype)),
    "Sign": np.sign,
    "Reciprocal": lambda a: (1 / a).astype(a.dtype),
    "Not": np.logical_not,
    "BitwiseNot": np.invert,
    "IsNaN": np.isnan,
    "Identity": lambda a: a,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Pow": _power,
    "Max": _fold(np.maximum),
    "Min": _fold(np.minimum),
    "Sum": _fold(np.add),
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Where": np.where,
}


def _cast(node: ir.Node, array: Array) -> Array:
    return _to_dtype(array, ir.DataType(attr(node, "to")).numpy())


def _to_dtype(array: Array, dtype: Any) -> Array:
    if array.dtype == dtype:
        return array
    return plain(array.astype(dtype))


def _cast_like(node: ir.Node, array: Array, like: Array) -> Array:
    return _to_dtype(array, like.dtype)


def _clip(
    node: ir.Node, array: Array, low: Array | None = None, high: Array | None = None
) -> Array:
    low = attr(node, "min") if low is None else low
    high = attr(node, "max") if high is None else high
    if low is not None:
        array = np.maximum(array, np.asarray(low, array.dtype))
    if high is not None:
        array = np.minimum(array, np.asarray(high, array.dtype))
    return array


def _mod(node: ir.Node, a: Array, b: Array) -> Array:
    return np.fmod(a, b) if attr(node, "fmod", 0) else np.mod(a, b)


def _is_inf(node: ir.Node, array: Array) -> Array:
    found = np.isinf(array)
    if not attr(node, "detect_negative", 1):
        found = found & (array > 0)
    if not attr(node, "detect_positive", 1):
        found = found & (array < 0)
    return found


def _bit_shift(node: ir.Node, a: Array, b: Array) -> Array:
    return np.left_shift(a, b) if attr(node, "direction") == "LEFT" else np.right_shift(a, b)


_WITH_NODE: dict[str, Function] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Mod": _mod,
    "IsInf": _is_inf,
    "BitShift": _bit_shift,
}

ELEMENTWISE = frozenset(_SIMPLE) | frozenset(_WITH_NODE)
"""Operators of the default domain that numpy evaluates element by element, broadcasting."""


def evaluate_elementwise(node: ir.Node, arrays: Sequence[Array | None]) -> Array:
    """The value of an element-wise node; `None` for an absent optional input."""
    with np.errstate(all="ignore"), refusing():
        simple = _SIMPLE.get(node.op_type)
        if simple is not None:
            return np.asarray(simple(*arrays))
        return np.asarray(_WITH_NODE[node.op_type](node, *arrays))


def _reduced_axes(node: ir.Node, arrays: Sequence[Array | None]) -> tuple[int, ...] | None:
    given = arrays[1].reshape(-1) if len(arrays) > 1 and arrays[1] is not None else None
    axes = attr(node, "axes") if given is None else [int(axis) for axis in given]
    if axes is None or len(axes) == 0:
        return () if attr(node, "noop_with_empty_axes", 0) else None
    return tuple(int(axis) for axis in axes)


_REDUCTIONS: dict[str, Function] = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
}


def _reduce(node: ir.Node, arrays: Sequence[Array | None]) -> Array:
    array = arrays[0]
    assert array is not None
    axes = _reduced_axes(node, arrays)
    function = _REDUCTIONS[node.op_type]
    result = function(array, axis=axes, keepdims=bool(attr(node, "keepdims", 1)))
    return np.asarray(result).astype(array.dtype)


def _cumsum(array: Array, axis: int, *, exclusive: bool, reverse: bool) -> Array:
    flipped = np.flip(array, axis) if reverse else array
    total = np.cumsum(flipped, axis=axis, dtype=array.dtype)
    if exclusive:
        total = total - flipped
    return np.flip(total, axis) if reverse else total


def _constant(node: ir.Node) -> Array:
    for name, found in node.attributes.items():
        if name == "value":
            return plain(np.asarray(found.as_tensor().numpy()))
        if name == "value_int":
            return np.asarray(found.value, np.int64)
        if name == "value_ints":
            return np.asarray(found.value, np.int64).reshape(-1)
        if name == "value_float":
            return np.asarray(found.value, np.float32)
        if name == "value_floats":
            return np.asarray(found.value, np.float32).reshape(-1)
        if name in ("value_string", "value_strings"):
            return np.asarray(found.value, object)
        if name == "sparse_value":
            raise UnsupportedError("a sparse constant")
    raise UnsupportedError("a constant of this kind")


def _made_up(node: ir.Node, shape: Array) -> Array:
    fill = attr(node, "value")
    entry = np.zeros(1, np.float32) if fill is None else plain(fill.numpy().reshape(-1))
    return np.full([int(n) for n in shape], entry[0], entry.dtype)


def _eye(node: ir.Node, like: Array) -> Array:
    dtype = attr(node, "dtype")
    kind = like.dtype if dtype is None else ir.DataType(dtype).numpy()
    rows, columns = like.shape
    return plain(np.eye(rows, columns, k=attr(node, "k", 0)).astype(kind))


_DIRECT: dict[str, tuple[int, Callable[..., Array]]] = {
    "Constant": (0, _constant),
    "Shape": (1, lambda node, a: np.asarray(
        a.shape[attr(node, "start", 0) : attr(node, "end")], np.int64)),
    "Size": (1, lambda node, a: np.asarray(a.size, np.int64)),
    "EyeLike": (1, _eye),
    "ConstantOfShape": (1, _made_up),
    "NonZero": (1, lambda node, a: np.asarray(np.nonzero(a), np.int64).reshape(
        max(a.ndim, 1), -1)),
    "MatMul": (2, lambda node, a, b: np.matmul(a, b)),
    "CumSum": (2, lambda node, a, axis: _cumsum(
        a, int(axis.item()), exclusive=bool(attr(node, "exclusive", 0)),
        reverse=bool(attr(node, "reverse", 0)))),
    "Range": (3, lambda node, start, limit, step: np.arange(
        start.item(), limit.item(), step.item(), dtype=start.dtype)),
}  # fmt: skip
"""Operators with a numpy form of their own, by how many inputs it takes."""


def _direct(node: ir.Node, arrays: Sequence[Array | None]) -> list[Array] | None:
    """The outputs of a node that numpy evaluates; None for any other."""
    op = node.op_type
    if op in _REDUCTIONS:
        return [_reduce(node, arrays)]
    if op == "Concat":
        return [np.concatenate([a for a in arrays if a is not None], axis=attr(node, "axis"))]
    if op == "Split" and arrays[0] is not None:
        return _split(node, arrays)
    count, function = _DIRECT.get(op, (0, None))
    given = [array for array in arrays[:count] if array is not None]
    return None if function is None or len(given) < count else [function(node, *given)]


def _split(node: ir.Node, arrays: Sequence[Array | None]) -> list[Array]:
    array = arrays[0]
    assert array is not None
    axis = normal_axis(attr(node, "axis", 0), array.ndim)
    inputs = [None if a is None else Known(a) for a in arrays]
    bounds = np.cumsum(split_sizes(node, array.shape[axis], inputs))[:-1]
    return list(np.split(array, bounds, axis=axis))


def evaluate(
    node: ir.Node, arrays: Sequence[Array | None], opsets: Mapping[str, int]
) -> list[Array]:
    """The outputs of a node from its inputs; None for an absent optional input.

    Raises:
        RefusedByOnnxError: The runtime would refuse these shapes or indices.
        UnsupportedError: Neither numpy nor onnxruntime can run the node.
    """
    if node.domain in ("", "ai.onnx"):
        if node.op_type in ELEMENTWISE:
            return [evaluate_elementwise(node, arrays)]
        make = MOVES.get(node.op_type)
        if make is not None and arrays[0] is not None:
            inputs = [None if array is None else Known(array) for array in arrays]
            fill: Any = 0
            if node.op_type == "Pad":
                fill = attr(node, "value", 0)
                if len(arrays) > 2 and arrays[2] is not None:
                    fill = arrays[2].item()
            return [make(node, arrays[0].shape, inputs)(arrays[0], fill)]
        with np.errstate(all="ignore"), refusing():
            direct = _direct(node, arrays)
        if direct is not None:
            return direct
    return _run(node, arrays, opsets)


def refusal(node: ir.Node, inputs: Sequence[Abstract], opsets: Mapping[str, int]) -> str:
    """Why onnxruntime does not run the node on inputs of these shapes; "" where it does, or cannot.

    For a node that a rule stumbled over: where the runtime takes it, the rule is wrong, and not the
    graph.
    """
    nested = any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
    if nested or any(isinstance(value, list) for value in inputs):
        return ""  # what it reads from outside cannot be made up
    reason = ""
    for guess in (np.float32, np.int64, np.bool_):
        arrays = [
            None if value is None else _sample(value, node.inputs[i], guess)
            for i, value in enumerate(inputs)
            if not isinstance(value, list)
        ]
        # Kernels have ended the process on empty tensors: of those only the shapes are asked for.
        empty = any(array is not None and array.size == 0 for array in arrays)
        try:
            _run(node, arrays, opsets, only_load=empty)
        except UnsupportedError as error:
            if error.__cause__ is None or type(error.__cause__).__name__ == "NotImplemented":
                return ""
            reason = reason or str(error)
        else:
            return ""
    return reason


def _sample(value: Known | Elements, source: ir.Value | None, guess: type[np.generic]) -> Array:
    """The value where it is known; zeros of its type, or the guessed one, elsewhere."""
    if isinstance(value, Known):
        return value.value
    dtype = None if source is None else source.dtype
    return np.zeros(value.shape, guess if dtype is None else dtype.numpy())


def _run(
    node: ir.Node,
    arrays: Sequence[Array | None],
    opsets: Mapping[str, int],
    *,
    only_load: bool = False,
) -> list[Array]:
    """Run one node in onnxruntime; with `only_load` it is checked there, and gives nothing."""
    given = [array for array in arrays if array is not None]
    inputs = [
        None
        if array is None
        else ir.Value(
            name=f"in{i}",
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        for i, array in enumerate(arrays)
    ]
    outputs = [ir.Value(name=f"out{i}") for i in range(len(node.outputs))]
    copy = ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs
    )
    imports = {"": 18, node.domain: 1, **opsets}
    graph = ir.Graph(
        [value for value in inputs if value is not None],
        outputs,
        nodes=[copy],
        opset_imports=imports,
        name="node",
    )
    try:
        proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
        session = plain_session(proto)
        if only_load:
            return []
        feeds = {
            value.name: np.array(array, order="C")
            for value, array in zip([v for v in inputs if v is not None], given, strict=True)
        }
        return [np.asarray(out) for out in session.run(None, feeds)]
    except ImportError as error:
        raise UnsupportedError("it could not be evaluated without onnxruntime") from error
    except Exception as error:  # onnxruntime raises classes of its own, without a common base
        reason = str(error).splitlines()[0]
        raise UnsupportedError(f"it could not be evaluated: {reason}") from error
