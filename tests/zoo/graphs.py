"""Small good ONNX graphs in several styles, written by hand: the stock of the graph mutants.

Each takes `x` (batch, seq, 16), some a past as well, and gives `y` (batch, seq, 16), causally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper, parser

__all__ = ["GRAPHS", "GoodGraph"]

DIM = 16
WINDOW = 3

_HEAD = '<ir_version: 10, opset_import: ["": {opset}{domain}]>'
_X_Y = "main (float[batch, seq, 16] x) => (float[batch, seq, 16] y)"


@dataclass(frozen=True, kw_only=True)
class GoodGraph:
    """One graph that a prover must accept."""

    name: str
    model: Callable[[], onnx.ModelProto]
    """Builds a fresh copy, the same every time."""
    style: str
    has_past: bool = False
    """Takes past_key and past_value (batch, 2, past_seq, 8) too, and gives present ones."""
    footprint: str = "causal"


def _build(signature: str, body: str, *, opset: int = 20, contrib: bool = False) -> onnx.ModelProto:
    """Parse `body` and add random weights for wq, wk, wv, wo, gain, filter where it reads them."""
    domain = ', "com.microsoft": 1' if contrib else ""
    model = parser.parse_model(f"{_HEAD.format(opset=opset, domain=domain)} {signature} {{{body}}}")
    rng = np.random.default_rng(11)
    shapes = {
        "wq": (DIM, DIM),
        "wk": (DIM, DIM),
        "wv": (DIM, DIM),
        "wo": (DIM, DIM),
        "gain": (DIM,),
        "filter": (DIM, 1, 3),
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        values = (rng.standard_normal(shape) / 2).astype(np.float32)
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    return model


_NORM = """
    square = Mul(x, x)
    norm_axes = Constant <value_ints = [-1]> ()
    mean = ReduceMean <keepdims = 1> (square, norm_axes)
    tiny = Constant <value_float = 0.00001> ()
    shifted = Add(mean, tiny)
    root = Sqrt(shifted)
    normed = Div(x, root)
    h = Mul(normed, gain)
"""
_QKV = """
    q3 = MatMul(h, wq)
    k3 = MatMul(h, wk)
    v3 = MatMul(h, wv)
"""
_SPLIT = """
    split = Constant <value_ints = [0, 0, 2, 8]> ()
    q4 = Reshape(q3, split)
    k4 = Reshape(k3, split)
    v4 = Reshape(v3, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
"""
_SCORES = """
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    raw = MatMul(q, kt)
    scale = Constant <value_float = 0.35355338> ()
    s = Mul(raw, scale)
"""
_SIZES = """
    n = Shape <start = 1, end = 2> (x)
    nn = Concat <axis = 0> (n, n)
"""
_FINISH = """
    p = Softmax <axis = -1> (masked)
    ctx = MatMul(p, v)
    back = Transpose <perm = [0, 2, 1, 3]> (ctx)
    merge = Constant <value_ints = [0, 0, 16]> ()
    flat = Reshape(back, merge)
    y = MatMul(flat, wo)
"""


def _trilu_where() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}{_SPLIT}{_SCORES}{_SIZES}
        ones = ConstantOfShape <value = float[1] {{1}}> (nn)
        lower = Trilu <upper = 0> (ones)
        visible = Cast <to = 9> (lower)
        low = Constant <value_float = -1e30> ()
        masked = Where(visible, s, low)
        {_FINISH}""",
    )


def _trilu_added() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}{_SPLIT}{_SCORES}{_SIZES}
        full = ConstantOfShape <value = float[1] {{-3e38}}> (nn)
        one = Constant <value_int = 1> ()
        bias = Trilu <upper = 1> (full, one)
        masked = Add(s, bias)
        {_FINISH}""",
    )


def _range_compared() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}{_SPLIT}{_SCORES}{_SIZES}
        scalar = Constant <value_ints = [0]> ()
        count = Squeeze(n, scalar)
        zero = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        at = Range(zero, count, step)
        last = Constant <value_ints = [1]> ()
        row = Unsqueeze(at, last)
        visible = LessOrEqual(at, row)
        low = Constant <value_float = -1e30> ()
        masked = Where(visible, s, low)
        {_FINISH}""",
    )


def _not_of_upper() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}{_SPLIT}{_SCORES}{_SIZES}
        ones = ConstantOfShape <value = float[1] {{1}}> (nn)
        one = Constant <value_int = 1> ()
        upper = Trilu <upper = 1> (ones, one)
        hidden = Cast <to = 9> (upper)
        visible = Not(hidden)
        zero = Constant <value_float = 0.0> ()
        low = Constant <value_float = -1e30> ()
        bias = Where(visible, zero, low)
        masked = Add(s, bias)
        {_FINISH}""",
    )


def _attention_op() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}
        flat = Attention <is_causal = 1, q_num_heads = 2, kv_num_heads = 2> (q3, k3, v3)
        y = MatMul(flat, wo)""",
        opset=23,
    )


def _attention_op_masked() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}{_SIZES}
        ones = ConstantOfShape <value = float[1] {{1}}> (nn)
        lower = Trilu <upper = 0> (ones)
        visible = Cast <to = 9> (lower)
        flat = Attention <q_num_heads = 2, kv_num_heads = 2> (q3, k3, v3, visible)
        y = MatMul(flat, wo)""",
        opset=23,
    )


def _contrib_mha() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}
        flat = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (q3, k3, v3)
        y = MatMul(flat, wo)""",
        contrib=True,
    )


def _contrib_gqa_window() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}{_QKV}
        n = Shape <start = 1, end = 2> (x)
        b = Shape <start = 0, end = 1> (x)
        scalar = Constant <value_ints = [0]> ()
        count64 = Squeeze(n, scalar)
        count = Cast <to = 6> (count64)
        one = Constant <value_ints = [1]> ()
        less64 = Sub(n, one)
        less = Cast <to = 6> (less64)
        lengths = Expand(less, b)
        two = Constant <value_ints = [2]> ()
        zero = Constant <value_ints = [0]> ()
        eight = Constant <value_ints = [8]> ()
        none = Concat <axis = 0> (b, two, zero, eight)
        past = ConstantOfShape <value = float[1] {{0}}> (none)
        flat, present_k, present_v = com.microsoft.GroupQueryAttention <
            num_heads = 2, kv_num_heads = 2, local_window_size = {WINDOW}
        > (q3, k3, v3, past, past, lengths, count)
        y = MatMul(flat, wo)""",
        contrib=True,
    )


def _running_mean() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}
        v3 = MatMul(h, wv)
        axis = Constant <value_int = 1> ()
        sums = CumSum(v3, axis)
        shape = Shape(v3)
        ones = ConstantOfShape <value = float[1] {{1}}> (shape)
        counts = CumSum(ones, axis)
        flat = Div(sums, counts)
        y = MatMul(flat, wo)""",
    )


def _left_padded_conv() -> onnx.ModelProto:
    return _build(
        _X_Y,
        f"""{_NORM}
        channels = Transpose <perm = [0, 2, 1]> (h)
        mixed = Conv <group = 16, kernel_shape = [3], pads = [2, 0]> (channels, filter)
        flat = Transpose <perm = [0, 2, 1]> (mixed)
        y = MatMul(flat, wo)""",
    )


def _past_joined() -> onnx.ModelProto:
    kv = "float[batch, 2, {}, 8] {}"
    inputs = f"float[batch, seq, 16] x, {kv.format('past_seq', 'past_key')}"
    inputs += f", {kv.format('past_seq', 'past_value')}"
    outputs = f"float[batch, seq, 16] y, {kv.format('total_seq', 'present_key')}"
    outputs += f", {kv.format('total_seq', 'present_value')}"
    split = _SPLIT.replace("    k = Tr", "    new_k = Tr").replace("    v = Tr", "    new_v = Tr")
    return _build(
        f"main ({inputs}) => ({outputs})",
        f"""{_NORM}{_QKV}{split}
        present_key = Concat <axis = 2> (past_key, new_k)
        present_value = Concat <axis = 2> (past_value, new_v)
        k = Identity(present_key)
        v = Identity(present_value)
        {_SCORES}
        n = Shape <start = 1, end = 2> (x)
        past = Shape <start = 2, end = 3> (past_key)
        total = Shape <start = 2, end = 3> (k)
        both = Concat <axis = 0> (n, total)
        ones = ConstantOfShape <value = float[1] {{1}}> (both)
        scalar = Constant <value_ints = [0]> ()
        offset = Squeeze(past, scalar)
        lower = Trilu <upper = 0> (ones, offset)
        visible = Cast <to = 9> (lower)
        low = Constant <value_float = -1e30> ()
        masked = Where(visible, s, low)
        {_FINISH}""",
    )


GRAPHS: tuple[GoodGraph, ...] = (
    GoodGraph(name="trilu_where", model=_trilu_where, style="lower triangle, Where"),
    GoodGraph(name="trilu_added", model=_trilu_added, style="upper triangle of a low number, Add"),
    GoodGraph(name="range_compared", model=_range_compared, style="Range compared with itself"),
    GoodGraph(name="not_of_upper", model=_not_of_upper, style="Not of an upper triangle, Add"),
    GoodGraph(name="attention_op", model=_attention_op, style="Attention-23 with is_causal"),
    GoodGraph(
        name="attention_op_masked",
        model=_attention_op_masked,
        style="Attention-23 with a boolean mask",
    ),
    GoodGraph(name="contrib_mha", model=_contrib_mha, style="contrib MultiHeadAttention"),
    GoodGraph(
        name="contrib_gqa_window",
        model=_contrib_gqa_window,
        style="contrib GroupQueryAttention with a window",
        footprint=f"window:{WINDOW}",
    ),
    GoodGraph(
        name="running_mean", model=_running_mean, style="CumSum over a count", footprint="other"
    ),
    GoodGraph(
        name="left_padded_conv",
        model=_left_padded_conv,
        style="Conv padded on the left",
        footprint="other",
    ),
    GoodGraph(name="past_joined", model=_past_joined, style="past joined by Concat", has_past=True),
)
