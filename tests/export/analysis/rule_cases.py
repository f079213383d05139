"""One graph per line: an operator used within a position or along positions, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from .graphs import X_Y, build, i64

__all__ = ["CASES", "Case"]

Array = np.ndarray[Any, np.dtype[Any]]
rng = np.random.default_rng(9)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A graph and what is true of it."""

    name: str
    body: str
    verdict: str = "causal"
    blames: str = ""
    """The operator that a rejection names."""
    every_length: bool = True
    """The proof reaches every length."""
    measured: bool = False
    """It needs what the runs showed for some node."""
    signature: str = X_Y
    opset: int = 18
    contrib: bool = False
    shows: bool = True
    """The leak is large enough to change bits."""
    arrays: dict[str, Array] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        return build(
            self.body, self.signature, opset=self.opset, contrib=self.contrib, **self.arrays
        )


def good(name: str, body: str, **rest: Any) -> Case:
    arrays = {k: rest.pop(k) for k in list(rest) if isinstance(rest[k], np.ndarray)}
    return Case(name=name, body=body, arrays=arrays, **rest)


def bad(name: str, body: str, blames: str, **rest: Any) -> Case:
    return good(name, body, verdict="not_causal", blames=blames, **rest)


SCATTERED = """
    u12 = Constant <value_ints = [1, 2]> () u02 = Constant <value_ints = [0, 2]> ()
    batch = Shape <end = 1> (x) seq = Shape <start = 1, end = 2> (x)
    n = Sub(seq, {delta}) ns = Squeeze(n) bs = Squeeze(batch)
    part = Slice(x, {delta}, seq, k)
    r = Range(s0, bs, s1) r3 = Unsqueeze(r, u12) c = Range(s0, ns, s1) c3 = Unsqueeze(c, u02)
    one = Constant <value_ints = [1]> ()
    goal = Concat <axis = 0> (batch, n, one)
    re = Expand(r3, goal) ce = Expand(c3, goal)
    i = Concat <axis = 2> (re, ce)
    o = Mul(x, x)
    y = ScatterND(o, i, part)
"""

ATTEND = """
    kt = Transpose <perm = [0, 2, 1]> (x)
    s = MatMul(x, kt)
    {mask}
    p = Softmax <axis = -1> (m)
    y = MatMul(p, x)
"""
SIZES = """
    n1 = Shape <start = 1, end = 2> (x)
    nn = Concat <axis = 0> (n1, n1)
    n = Squeeze(n1)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    at = Range(zero, n, one)
    a0 = Constant <value_ints = [0]> ()
    a1 = Constant <value_ints = [1]> ()
    j = Unsqueeze(at, a0)
    i = Unsqueeze(at, a1)
    lowest = Constant <value_float = {low}> ()
    nothing = Constant <value_float = 0.0> ()
"""
INF = SIZES.replace("{low}", "-inf")
FINITE = SIZES.replace("{low}", "-1.0e9")
MILD = SIZES.replace("{low}", "-50.0")
TRIL = "ones = ConstantOfShape <value = float[1] {1.0}> (nn) tril = Trilu <upper = 0> (ones)"


def attend(mask: str, sizes: str = INF) -> str:
    return sizes + ATTEND.replace("{mask}", mask)


def flat_rows(column: str) -> str:
    """Batch and positions merged, and taken apart again by a flat index, as tracing writes it."""
    return (
        INF
        + f"""
        s0 = Shape <start = 0, end = 1> (x)
        rows = Squeeze(s0)
        r0 = Range(zero, rows, one)
        r1 = Unsqueeze(r0, a1)
        begin = Mul(r1, n)
        last = Sub(n, one)
        later = Sub(last, j)
        index = Add(begin, {column})
        wide = Constant <value_ints = [-1, 4]> ()
        flat = Reshape(x, wide)
        y = Gather <axis = 0> (flat, index)
    """
    )


MASKS = [
    good("where_compare", attend("c = LessOrEqual(j, i) m = Where(c, s, lowest)")),
    good("where_not_greater", attend("c0 = Greater(j, i) c = Not(c0) m = Where(c, s, lowest)")),
    good("where_finite", attend("c = LessOrEqual(j, i) m = Where(c, s, lowest)", FINITE)),
    good("add_where", attend("c = LessOrEqual(j, i) b = Where(c, nothing, lowest) m = Add(s, b)")),
    good("add_trilu", attend(
        "full = Expand(lowest, nn) b = Trilu <upper = 1> (full, one) m = Add(s, b)", FINITE)),
    good("where_trilu", attend(TRIL + " c = Cast <to = 9> (tril) m = Where(c, s, lowest)")),
    good("log_of_trilu", attend(TRIL + " b = Log(tril) m = Add(s, b)")),
    good("blend", attend(
        TRIL + " less = Sub(ones, tril) b = Mul(less, lowest) k = Mul(s, tril) m = Add(k, b)",
        FINITE)),
    good("ramp", attend("d0 = Sub(j, i) d1 = Relu(d0f) b = Mul(d1, lowest) m = Add(s, b)".replace(
        "d1 = Relu(d0f)", "d0f = Cast <to = 1> (d0) d1 = Relu(d0f)"), FINITE)),
    good("min_of_both", attend(
        "c = LessOrEqual(j, i) cap = Where(c, big, lowest) m = Min(s, cap)".replace(
            "c = Less", "big = Constant <value_float = 1.0e30> () c = Less")), every_length=True),
    good("window", attend(
        "c1 = LessOrEqual(j, i) k = Constant <value_int = 3> () e = Sub(i, k) c2 = Greater(j, e) "
        "c = And(c1, c2) m = Where(c, s, lowest)")),
    good("clip_without_a_lower_limit", attend(
        "d = Sub(j, i) low = Clip(d, , zero) c = Equal(low, d) m = Where(c, s, lowest)")),
    good("strictly_earlier_nan", attend(
        "c = Less(j, i) m = Where(c, s, lowest)").replace(
            "y = MatMul(p, x)", "q = IsNaN(p) r = Where(q, nothing, p) y = MatMul(r, x)")),
    good("cumsum_of_ones", attend(
        "o = ConstantOfShape <value = int64[1] {1}> (n1) k = CumSum(o, zero) kj = Unsqueeze(k, a0) "
        "ki = Unsqueeze(k, a1) c = LessOrEqual(kj, ki) m = Where(c, s, lowest)")),
    good("baked_and_cut", attend(
        "c0 = Slice(table, a0, nn, axes2) c = Identity(c0) m = Where(c, s, lowest)".replace(
            "a0, nn, axes2", "zeros, nn, axes2")),
        table=np.tril(np.ones((40, 40), np.bool_)), zeros=i64(0, 0), axes2=i64(0, 1)),
    bad("baked_and_cut_with_a_hole", attend(
        "c = Slice(table, zeros, nn, axes2) m = Where(c, s, lowest)"), "Softmax",
        table=np.tril(np.ones((40, 40), np.bool_)) | (np.eye(40, k=1) * (np.arange(40) == 9) > 0),
        zeros=i64(0, 0), axes2=i64(0, 1)),
    bad("no_mask", attend("m = Identity(s)"), "Softmax"),
    bad("inverted", attend("c = GreaterOrEqual(j, i) m = Where(c, s, lowest)"), "Softmax"),
    bad("one_too_far", attend(
        "k = Add(i, one) c = LessOrEqual(j, k) m = Where(c, s, lowest)"), "Softmax"),
    bad("mild_value", attend("c = LessOrEqual(j, i) m = Where(c, s, lowest)", MILD), "Softmax",
        shows=False),
    bad("softcap_after_mask", attend(
        "c = LessOrEqual(j, i) m0 = Where(c, s, lowest) m = Tanh(m0)"), "Softmax"),
    bad("wrong_softmax_axis", attend(
        "c = LessOrEqual(j, i) m = Where(c, s, lowest)").replace("axis = -1", "axis = 1"),
        "Softmax"),
    bad("only_the_first_sixteen", attend(
        "k = Constant <value_int = 16> () late = GreaterOrEqual(j, k) c0 = LessOrEqual(j, i) "
        "c = Or(c0, late) m = Where(c, s, lowest)"), "Softmax"),
    bad("one_row_for_all", attend(
        "shape1 = Concat <axis = 0> (a1, a1) o = ConstantOfShape <value = float[1] {1.0}> (shape1) "
        "t = Trilu <upper = 0> (o) c = Cast <to = 9> (t) m = Where(c, s, lowest)"), "Softmax"),
]  # fmt: skip

ALONG = [
    good("layer_norm", "y = LayerNormalization <axis = -1> (x, g)"),
    bad("layer_norm_over_positions", "y = LayerNormalization <axis = 1> (x, k)",
        "LayerNormalization", signature="(float[batch, 3, 4] x) => (float[batch, 3, 4] y)",
        k=np.ones((3, 4), np.float32)),
    good("mean_of_features", "a = Constant <value_ints = [2]> () m = ReduceMean(x, a) y = "
         "Sub(x, m)"),
    bad("mean_of_positions", "a = Constant <value_ints = [1]> () m = ReduceMean(x, a) y = "
        "Sub(x, m)",
        "ReduceMean"),
    good("softmax_of_features", "y = Softmax <axis = 2> (x)"),
    bad("softmax_of_positions", "y = Softmax <axis = 1> (x)", "Softmax"),
    good("cumsum", "a = Constant <value_int = 1> () y = CumSum(x, a)"),
    good("cumsum_exclusive", "a = Constant <value_int = 1> () y = CumSum <exclusive = 1> (x, a)"),
    bad("cumsum_reverse", "a = Constant <value_int = 1> () y = CumSum <reverse = 1> (x, a)",
        "CumSum"),
    good("shift_right", "p = Constant <value_ints = [0, 1, 0, 0, -1, 0]> () y = Pad(x, p)"),
    bad("shift_left", "p = Constant <value_ints = [0, -1, 0, 0, 1, 0]> () y = Pad(x, p)", "Pad"),
    good("there_and_back",
         "p = Constant <value_ints = [0, -1, 0, 0, 1, 0]> () l = Pad(x, p) "
         "q = Constant <value_ints = [0, 1, 0, 0, -1, 0]> () y = Pad(l, q)"),
    good("pad_and_slice",
         "p = Constant <value_ints = [0, 2, 0, 0, 0, 0]> () l = Pad(x, p) z = Constant "
         "<value_ints = [0]> () e = Constant <value_ints = [-2]> () a = Constant <value_ints = "
         "[1]> () y = Slice(l, z, e, a)"),
    bad("flip", "s = Constant <value_ints = [-1]> () e = Constant <value_ints = "
        "[-9223372036854775807]> () a = Constant <value_ints = [1]> () y = Slice(x, s, e, a, s)",
        "Slice"),
    good("flip_twice", "s = Constant <value_ints = [-1]> () e = Constant <value_ints = "
         "[-9223372036854775807]> () a = Constant <value_ints = [1]> () l = Slice(x, s, e, a, s) "
         "y = Slice(l, s, e, a, s)"),
    good("conv_causal", "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <kernel_shape = [3], pads = "
         "[2, 0]> (t, f) y = Transpose <perm = [0, 2, 1]> (c)",
         f=rng.standard_normal((4, 4, 3)).astype(np.float32)),
    good("conv_masked_taps", "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <kernel_shape = [3], "
         "pads = [1, 1]> (t, f) y = Transpose <perm = [0, 2, 1]> (c)",
         f=np.concatenate([np.ones((4, 4, 2)), np.zeros((4, 4, 1))], 2).astype(np.float32)),
    bad("conv_centred", "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <kernel_shape = [3], pads = "
        "[1, 1]> (t, f) y = Transpose <perm = [0, 2, 1]> (c)", "Conv",
        f=rng.standard_normal((4, 4, 3)).astype(np.float32)),
    good("conv_depthwise_dilated", "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <kernel_shape = "
         "[2], pads = [3, 0], dilations = [3], group = 4> (t, f) y = Transpose <perm = [0, 2, 1]> "
         "(c)", f=rng.standard_normal((4, 1, 2)).astype(np.float32)),
    good("max_pool_causal", "t = Transpose <perm = [0, 2, 1]> (x) c = MaxPool <kernel_shape = [2], "
         "pads = [1, 0]> (t) y = Transpose <perm = [0, 2, 1]> (c)"),
    bad("average_pool_centred", "t = Transpose <perm = [0, 2, 1]> (x) c = AveragePool "
        "<kernel_shape = [3], pads = [1, 1]> (t) y = Transpose <perm = [0, 2, 1]> (c)",
        "AveragePool"),
    good("conv_transpose_cut", "t = Transpose <perm = [0, 2, 1]> (x) c = ConvTranspose "
         "<kernel_shape = [2], pads = [0, 1]> (t, f) y = Transpose <perm = [0, 2, 1]> (c)",
         f=rng.standard_normal((4, 4, 2)).astype(np.float32), measured=True),
    bad("global_pool", "t = Transpose <perm = [0, 2, 1]> (x) c = GlobalAveragePool(t) "
        "b = Transpose <perm = [0, 2, 1]> (c) y = Add(x, b)", "GlobalAveragePool"),
    good("top_k_of_features", "k = Constant <value_ints = [4]> () y, i = TopK <axis = 2> (x, k)"),
    bad("argmax_of_positions", "a = ArgMax <axis = 1> (x) f = Cast <to = 1> (a) y = Add(x, f)",
        "ArgMax"),
    good("batch_norm", "t = Transpose <perm = [0, 2, 1]> (x) b = BatchNormalization (t, g, g, "
         "g, h) "
         "y = Transpose <perm = [0, 2, 1]> (b)", h=np.ones(4, np.float32)),
    bad("batch_norm_of_its_input", "t = Transpose <perm = [0, 2, 1]> (x) a = Constant "
        "<value_ints = "
        "[0, 2]> () m = ReduceMean <keepdims = 0> (t, a) d = ReduceSumSquare <keepdims = 0> (t, a) "
        "b = BatchNormalization (t, g, g, m, d) y = Transpose <perm = [0, 2, 1]> (b)",
        "ReduceMean"),
    bad("instance_norm", "t = Transpose <perm = [0, 2, 1]> (x) b = InstanceNormalization (t, g, g) "
        "y = Transpose <perm = [0, 2, 1]> (b)", "InstanceNormalization"),
    good("lp_norm", "y = LpNormalization <axis = 2> (x)"),
    bad("lp_norm_of_positions", "y = LpNormalization <axis = 1> (x)", "LpNormalization"),
    bad("dynamic_quantisation", "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)",
        "DynamicQuantizeLinear"),
    good("fixed_quantisation", "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
         s=np.asarray(0.1, np.float32), z=np.asarray(128, np.uint8)),
    good("lstm_forward", "t = Transpose <perm = [1, 0, 2]> (x) h = LSTM <hidden_size = 4> (t, "
         "a, b) "
         "e = Constant <value_ints = [1]> () q = Squeeze(h, e) y = Transpose <perm = [1, 0, 2]> "
         "(q)",
         a=rng.standard_normal((1, 16, 4)).astype(np.float32),
         b=rng.standard_normal((1, 16, 4)).astype(np.float32)),
    bad("gru_backward", "t = Transpose <perm = [1, 0, 2]> (x) h = GRU <hidden_size = 4, "
        "direction = "
        "\"reverse\"> (t, a, b) e = Constant <value_ints = [1]> () q = Squeeze(h, e) "
        "y = Transpose <perm = [1, 0, 2]> (q)", "GRU",
        a=rng.standard_normal((1, 12, 4)).astype(np.float32),
        b=rng.standard_normal((1, 12, 4)).astype(np.float32)),
    bad("last_position_added", "i = Constant <value_int = -1> () l = Gather <axis = 1> (x, i) "
        "a = Constant <value_ints = [1]> () m = Unsqueeze(l, a) y = Add(x, m)", "Gather"),
    good("first_position_added", "i = Constant <value_int = 0> () l = Gather <axis = 1> (x, i) "
         "a = Constant <value_ints = [1]> () m = Unsqueeze(l, a) y = Add(x, m)"),
    good("heads_split_and_merged", "s = Constant <value_ints = [0, 0, 2, 2]> () h = Reshape(x, s) "
         "t = Transpose <perm = [0, 2, 1, 3]> (h) b = Transpose <perm = [0, 2, 1, 3]> (t) "
         "e = Constant <value_ints = [0, 0, 4]> () y = Reshape(b, e)"),
    bad("heads_not_transposed_back", "s = Constant <value_ints = [0, 0, 2, 2]> () "
        "h = Reshape(x, s) t = Transpose <perm = [0, 2, 1, 3]> (h) n = Shape(x) "
        "y = Reshape(t, n)", "Reshape"),
    good("batch_and_positions_merged", "s = Constant <value_ints = [-1, 4]> () f = Reshape(x, s) "
         "m = Gemm(f, w, g) n = Shape(x) y = Reshape(m, n)"),
    bad("batch_and_positions_swapped", "f = Transpose <perm = [1, 0, 2]> (x) n = Shape(x) "
        "y = Reshape(f, n)", "Reshape"),
    good("linear_attention", INF + TRIL.replace("ones = ", "\n    ones = ") +
         " kt = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, kt) m = Mul(s, tril) "
         "y = MatMul(m, x)"),
    bad("linear_attention_unmasked", "kt = Transpose <perm = [0, 2, 1]> (x) s = MatMul(kt, x) "
        "y = MatMul(x, s)", "MatMul"),
    good("einsum_masked", INF + TRIL + " y = Einsum <equation = \"bjd,ij->bid\"> (x, tril)"),
    bad("einsum_unmasked", "y = Einsum <equation = \"bjd,bje,bie->bid\"> (x, x, x)", "Einsum"),
    good("rows_of_merged_axes", flat_rows("j")),
    bad("rows_of_merged_axes_backwards", flat_rows("later"), "Gather"),
    good("gather_elements_of_features", "i = Constant <value = int64[1, 1, 4] {3, 2, 1, 0}> () "
         "n = Shape(x) k = Expand(i, n) y = GatherElements <axis = 2> (x, k)"),
    good("scatter_features", "m = ArgMax <axis = 2> (x) o = Mul(x, x) r = ReduceMax(x, t) "
         "y = ScatterElements <axis = 2> (o, m, r)", t=i64(2)),
    good("tensor_scatter_at_its_own_place", "o = Mul(x, x) y = TensorScatter <axis = 1> (o, x)",
         opset=24),
    bad("tensor_scatter_one_place_early", "n = Shape <start = 1, end = 2> (x) r = Slice(x, one, n, "
        "one) y = TensorScatter <axis = 1> (x, r)", "Slice", one=i64(1), opset=24),
    good("scatter_rows_at_their_own_places", SCATTERED.format(delta="zero"), k=i64(1), zero=i64(0),
         s0=np.asarray(0), s1=np.asarray(1)),
    bad("scatter_rows_from_a_later_one", SCATTERED.format(delta="k"), "Slice", k=i64(1),
        s0=np.asarray(0), s1=np.asarray(1)),
    good("one_hot_of_argmax", "m = ArgMax <axis = 2, keepdims = 0> (x) d = Constant <value_int "
         "= 4> "
         "() y = OneHot(m, d, e)", e=np.asarray([0, 1], np.float32)),
    good("sequence_of_parts", "s = SplitToSequence <axis = 2> (x, k) y = ConcatFromSequence "
         "<axis = "
         "2> (s)", k=i64(1, 3)),
    good("constant_condition", "c = Constant <value = bool[1] {1}> () y = If (c) <then_branch = g1 "
         "() => (float[batch, seq, 4] a) { a = Relu(x) }, else_branch = g2 () => (float[batch, "
         "seq, "
         "4] b) { a1 = Constant <value_ints = [1]> () m = ReduceMean(x, a1) b = Sub(x, m) }>"),
    good("condition_from_the_length", "n0 = Shape <start = 1, end = 2> (x) n = Squeeze(n0) "
         "k = Constant <value_int = 4> () c = Greater(n, k) y = If (c) <then_branch = g1 () => "
         "(float[batch, seq, 4] a) { a = Relu(x) }, else_branch = g2 () => "
         "(float[batch, seq, 4] b) { b = Neg(x) }>"),
    bad("condition_from_the_length_one_bad_branch", "n0 = Shape <start = 1, end = 2> (x) n = "
        "Squeeze(n0) k = Constant <value_int = 4> () c = Greater(n, k) y = If (c) <then_branch = "
        "g1 () => (float[batch, seq, 4] a) { a1 = Constant <value_ints = [1]> () m = "
        "ReduceMean(x, a1) a = Sub(x, m) }, else_branch = g2 () => (float[batch, seq, 4] b) "
        "{ b = Neg(x) }>", "ReduceMean"),
    bad("condition_from_data", "t = Constant <value_ints = [0, 1, 2]> () r = ReduceMean "
        "<keepdims = 0> "
        "(x, t) z = Constant <value_float = 0.0> () c = Greater(r, z) y = If (c) <then_branch = g1 "
        "() => (float[batch, seq, 4] a) { a = Relu(x) }, else_branch = g2 () => (float[batch, seq, "
        "4] b) { b = Neg(x) }>", "ReduceMean"),
]  # fmt: skip

SCAN = """
    t = Transpose <perm = [1, 0, 2]> (x)
    b = Shape <start = 0, end = 1> (x)
    d = Constant <value_ints = [4]> ()
    bd = Concat <axis = 0> (b, d)
    init = ConstantOfShape <value = float[1] {{0.0}}> (bd)
    last, all = Scan <num_scan_inputs = 1{attributes}, body = step
        (float[batch, 4] state, float[batch, 4] row)
        => (float[batch, 4] next, float[batch, 4] out)
        {{ next = Add(state, row) out = Tanh(next) }}> (init, t)
    y = Transpose <perm = [1, 0, 2]> (all)
"""
CONTROL = [
    good("scan", SCAN.format(attributes="")),
    bad("scan_backwards", SCAN.format(
        attributes=", scan_input_directions = [1], scan_output_directions = [1]"), "Scan"),
    good("loop_of_fixed_trips", "n = Constant <value_int = 3> () c = Constant <value = bool "
         "{1}> () "
         "y = Loop (n, c, x) <body = step (int64 i, bool on, float[batch, seq, 4] a) => (bool go, "
         "float[batch, seq, 4] z) { go = Identity(on) r = Relu(a) z = Add(r, a) }>", measured=True),
]  # fmt: skip

HEADED = "(float[batch, 2, seq, 4] x) => (float[batch, 2, seq, 4] y)"
PAST = (
    "(float[batch, 2, seq, 4] x, float[batch, 2, past_seq, 4] past_key, "
    "float[batch, 2, past_seq, 4] past_value) => (float[batch, 2, seq, 4] y, "
    "float[batch, 2, total_seq, 4] present_key, float[batch, 2, total_seq, 4] present_value)"
)
FLAT = "(float[batch, seq, 32] x) => (float[batch, seq, 32] y)"
FLAT_PAST = (
    "(float[batch, seq, 32] x, float[batch, 2, past_seq, 16] past_key, "
    "float[batch, 2, past_seq, 16] past_value) => (float[batch, seq, 32] y, "
    "float[batch, 2, total_seq, 16] present_key, float[batch, 2, total_seq, 16] present_value)"
)
CHUNK = (
    "b = Shape <end = 1> (x) n1 = Shape <start = 1, end = 2> (x) "
    "axis = Constant <value_ints = [0]> () p1 = Shape <start = 2, end = 3> (past_key) "
    "o = Constant <value_ints = [1]> () all = Add(n1, p1) total0 = Squeeze(all, axis) total = "
    "Cast <to = 6> (total0) less0 = Sub(all, o) less1 = Expand(less0, b) less = Cast <to = 6> "
    "(less1) new0 = Expand(n1, b) new = Cast <to = 6> (new0) y, present_key, present_value = "
    "com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> (x, x, x, past_key, "
    "past_value, less, total, , , , , , , , , , new)"
)
ENDS = {
    name: np.array([number], np.int64)
    for name, number in {
        "n0": 0, "n1": 1, "n2": 2, "n16": 16, "last": -1, "first": -(1 << 40),
    }.items()
}  # fmt: skip
FUSED = [
    good("attention_causal", "y = Attention <is_causal = 1> (x, x, x)", signature=HEADED, opset=23),
    bad("attention_full", "y = Attention(x, x, x)", "Attention", signature=HEADED, opset=23),
    good("attention_past", "y, present_key, present_value = Attention <is_causal = 1> (x, x, x, , "
         "past_key, past_value)", signature=PAST, opset=23),
    bad("attention_past_full", "y, present_key, present_value = Attention (x, x, x, , past_key, "
        "past_value)", "Attention", signature=PAST, opset=23),
    good("attention_windowed", "y = Attention <is_causal = 0, left_window_size = 2, "
         "right_window_size = 0> (x, x, x)", signature=HEADED, opset=25),
    bad("attention_window_ahead", "y = Attention <is_causal = 0, left_window_size = 2, "
        "right_window_size = 1> (x, x, x)", "Attention", signature=HEADED, opset=25),
    good("multi_head", "y = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> "
         "(x, x, x)", signature=FLAT, contrib=True),
    bad("multi_head_full", "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x)",
        "MultiHeadAttention", signature=FLAT, contrib=True),
    good("group_query", "b = Shape <end = 1> (x) n1 = Shape <start = 1, end = 2> (x) n = "
         "Squeeze(n1) total = Cast <to = 6> (n) o = Constant <value_int = 1> () less0 = Sub(n1, o) "
         "less1 = Expand(less0, b) less = Cast <to = 6> (less1) "
         "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> "
         "(x, x, x, , , less, total)", signature=FLAT, contrib=True),
    good("group_query_chunks", CHUNK, signature=FLAT_PAST, contrib=True),
    good("gated_linear_attention", "k = Slice(x, n0, n16, n2) y, s = com.microsoft.LinearAttention "
         "<q_num_heads = 4, kv_num_heads = 2, update_rule = \"gated\"> (x, k, k, , k)",
         signature=FLAT, contrib=True, **ENDS),
    good("delta_rule", "k = Slice(x, n0, n16, n2) b = Slice(x, n0, n1, n2) y, s = "
         "com.microsoft.LinearAttention <q_num_heads = 4, kv_num_heads = 2, update_rule = "
         "\"delta\"> (x, k, k, , , b)", signature=FLAT, contrib=True, **ENDS),
    bad("linear_attention_of_later_values", "k = Slice(x, n0, n16, n2) r = Slice(k, last, first, "
        "n1, last) y, s = com.microsoft.LinearAttention <q_num_heads = 4, kv_num_heads = 2, "
        "update_rule = \"linear\"> (x, k, r)", "LinearAttention", signature=FLAT, contrib=True,
        **ENDS),
    bad("linear_attention_of_later_decays", "k = Slice(x, n0, n16, n2) r = Slice(k, last, first, "
        "n1, last) y, s = com.microsoft.LinearAttention <q_num_heads = 4, kv_num_heads = 2, "
        "update_rule = \"gated\"> (x, k, k, , r)", "LinearAttention", signature=FLAT, contrib=True,
        **ENDS),
    good("skip_norm", "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1.0e-5> "
         "(x, x, g32)", signature=FLAT, contrib=True, g32=np.ones(32, np.float32)),
    good("matmul_nbits", "y = com.microsoft.MatMulNBits <K = 32, N = 32, bits = 4, block_size = "
         "32> "
         "(x, packed, scales)", signature=FLAT, contrib=True,
         packed=rng.integers(0, 255, (32, 1, 16)).astype(np.uint8),
         scales=np.ones(32, np.float32)),
    bad("dynamic_quantised_product", "y = com.microsoft.DynamicQuantizeMatMul (x, packed, s)",
        "DynamicQuantizeMatMul", signature=FLAT, contrib=True,
        packed=rng.integers(0, 255, (32, 32)).astype(np.uint8), s=np.asarray(0.01, np.float32)),
    good("fused_product", "y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (x, w)",
         contrib=True),
    good("bias_gelu", "y = com.microsoft.BiasGelu (x, g)", contrib=True),
    good("rotary", "p0 = Shape <start = 1, end = 2> (x) p1 = Squeeze(p0) z = Constant <value_int = "
         "0> () o = Constant <value_int = 1> () r = Range(z, p1, o) s = Shape <end = 2> (x) "
         "pos = Expand(r, s) y = com.microsoft.RotaryEmbedding <num_heads = 1> (x, pos, c, c)",
         signature=FLAT, contrib=True, c=rng.random((64, 16)).astype(np.float32)),
]  # fmt: skip

TOKENS = "(int32[batch, seq] ids) => (float[batch, seq, 4] y)"
EMBED = "y0, count = com.microsoft.EmbedLayerNormalization (ids, {more}"
TABLES = {
    "words": rng.standard_normal((10, 4)).astype(np.float32),
    "places": rng.standard_normal((64, 4)).astype(np.float32),
}
CODES = "s = Constant <value_float = 0.05> () z = Cast <to = 2> (zero) k = QuantizeLinear(x, s, z) "
BYTES = {"zero": np.asarray(128, np.int64)}
DECODED = " y = DequantizeLinear(c, s, z)"
PROJECT = {
    "w8": rng.integers(0, 255, (32, 96)).astype(np.uint8),
    "b96": np.zeros(96, np.float32),
    "s8": np.asarray(0.01, np.float32),
    "z8": np.asarray(128, np.uint8),
}
QUANTISED = (
    "k = QuantizeLinear(x, s8, z8) y = com.microsoft.QAttention <num_heads = 2, unidirectional = "
    "{causal}> (k, w8, b96, s8, s8, , z8, z8)"
)
OPTIMISED = [
    good("embed_norm", EMBED.format(more=", words, places, , g, g) y = Identity(y0)"),
         signature=TOKENS, contrib=True, **TABLES),
    good("embed_norm_segments", "two = Constant <value_int = 2> () i = Cast <to = 7> (ids) "
         "r0 = Mod(i, two) r = Cast <to = 6> (r0) " + EMBED.format(
             more="r, words, places, words, g, g) y = Identity(y0)"),
         signature=TOKENS, contrib=True, **TABLES),
    bad("embed_norm_counting", EMBED.format(more=", words, places, , g, g, ids) ") + "a = Constant "
        "<value_ints = [1, 2]> () c0 = Cast <to = 1> (count) c = Unsqueeze(c0, a) "
        "y = Add(y0, c)",
        "EmbedLayerNormalization", signature=TOKENS, contrib=True, **TABLES),
    good("fused_gemm", "q = Constant <value_ints = [-1, 4]> () h = Reshape(x, q) "
         "h1 = com.microsoft.FusedGemm <activation = \"Relu\"> (h, w, g) n = Shape(x) "
         "y = Reshape(h1, n)", contrib=True),
    good("quantised_attention", QUANTISED.format(causal=1), signature=FLAT, contrib=True,
         **PROJECT),
    bad("quantised_attention_full", QUANTISED.format(causal=0), "QAttention", signature=FLAT,
        contrib=True, **PROJECT),
    good("quantised_sum", CODES + "c = com.microsoft.QLinearAdd (k, s, z, k, s, z, s, z)" + DECODED,
         contrib=True, **BYTES),
    good("quantised_product", CODES + "c = com.microsoft.QLinearMul (k, s, z, k, s, z, s, z)"
         + DECODED, contrib=True, **BYTES),
    good("quantised_sigmoid", CODES + "c = com.microsoft.QLinearSigmoid (k, s, z, s, z)" + DECODED,
         contrib=True, **BYTES),
    good("quantised_leaky", CODES + "c = com.microsoft.QLinearLeakyRelu <alpha = 0.1> "
         "(k, s, z, s, z)" + DECODED, contrib=True, **BYTES),
    good("quantised_softmax", CODES + "c = com.microsoft.QLinearSoftmax <axis = -1, opset = 13> "
         "(k, s, z, s, z)" + DECODED, contrib=True, **BYTES),
    bad("quantised_softmax_over_time", CODES + "c = com.microsoft.QLinearSoftmax <axis = 1, opset "
        "= 13> (k, s, z, s, z)" + DECODED, "QLinearSoftmax", contrib=True, **BYTES),
    good("quantised_concat", CODES + "c = com.microsoft.QLinearConcat <axis = 2> "
         "(s, z, k, s, z, k, s, z)" + DECODED, contrib=True,
         signature="(float[batch, seq, 4] x) => (float[batch, seq, 8] y)", **BYTES),
    good("quantised_where", CODES + "f = Constant <value_ints = [1]> () b = Cast <to = 9> (f) c = "
         "com.microsoft.QLinearWhere (b, k, s, z, k, s, z, s, z)" + DECODED, contrib=True, **BYTES),
]  # fmt: skip

CHUNKED = """
    n1 = Shape <start = 1, end = 2> (x) b = Shape <end = 1> (x)
    size = Constant <value_ints = [3]> () less = Constant <value_ints = [2]> ()
    z = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> () width = Constant <value_ints = [4]> ()
    n2 = Add(n1, less) m = Div(n2, size) t = Mul(m, size) extra = Sub(t, n1)
    pads = Concat <axis = 0> (z, z, z, z, extra, z) padded = Pad(x, pads)
    goal = Concat <axis = 0> (b, m, size, width) c = Reshape(padded, goal)
    whole = ReduceSum <keepdims = 0> (c, two)
    mm = Concat <axis = 0> (m, m) ones = ConstantOfShape <value = float[1] {1.0}> (mm)
    k = Constant <value_int = {diagonal}> () earlier = Trilu <upper = 0> (ones, k)
    carried = {product} c1 = Unsqueeze(carried, two)
    axis = Constant <value_int = 2> () inner = CumSum(c, axis) r = Add(inner, c1)
    back = Concat <axis = 0> (b, t, width) f = Reshape(r, back) y = Slice(f, z, n1, one)
"""
EINSUM = 'Einsum <equation = "ij,bjd->bid"> (earlier, whole)'
SCANS = [
    good("chunked_sum", CHUNKED.replace("{diagonal}", "-1").replace("{product}", EINSUM)),
    good("chunked_product", CHUNKED.replace("{diagonal}", "-1").replace(
        "{product}", "MatMul(earlier, whole)")),
    good("chunked_skipping_one", CHUNKED.replace("{diagonal}", "-2").replace("{product}", EINSUM)),
    bad("chunked_peeking", CHUNKED.replace("{diagonal}", "0").replace("{product}", EINSUM), ""),
    bad("chunked_open", CHUNKED.replace("{diagonal}", "9").replace(
        "{product}", "MatMul(earlier, whole)"), ""),
]  # fmt: skip

CASES: list[Case] = [*MASKS, *ALONG, *CONTROL, *FUSED, *OPTIMISED, *SCANS]
