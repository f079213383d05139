"""Valid ONNX graphs of odd kinds: what a checker may meet and must not fall over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

__all__ = ["ODD"]

FLOAT, INT64, BOOL, STRING = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.STRING,
)
ODD: dict[str, Callable[[], onnx.ModelProto]] = {}


def odd(make: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    ODD[make.__name__] = make
    return make


def text(
    body: str, signature: str = "(float[batch, seq, 4] x) => (float[batch, seq, 4] y)", **arrays
) -> onnx.ModelProto:
    domains = '"": 18, "com.microsoft": 1'
    model = parser.parse_model(
        f"<ir_version: 10, opset_import: [{domains}]> main {signature} {{{body}}}"
    )
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def info(name: str, kind: int = FLOAT, shape: object = ("batch", "seq", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes, inputs, outputs, initializers=(), opset=18) -> onnx.ModelProto:
    made = helper.make_graph(list(nodes), "main", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def zeros(name: str, *shape: int, dtype=np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


@odd
def output_is_an_initializer() -> onnx.ModelProto:
    relu = helper.make_node("Relu", ["x"], ["y"])
    return graph([relu], [info("x")], [info("y"), info("t", shape=(2, 3))], [zeros("t", 2, 3)])


@odd
def only_output_is_an_initializer() -> onnx.ModelProto:
    return graph([], [info("x")], [info("t", shape=(2, 3))], [zeros("t", 2, 3)])


@odd
def output_is_an_input() -> onnx.ModelProto:
    return graph([], [info("x")], [info("x")])


@odd
def output_is_an_input_beside_a_node() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("x"), info("y")])


@odd
def output_is_a_constant_node() -> onnx.ModelProto:
    return text(
        "y = Relu(x) c = Constant <value_ints = [1, 2]> ()",
        "(float[batch, seq, 4] x) => (float[batch, seq, 4] y, int64[2] c)",
    )


@odd
def output_is_a_scalar() -> onnx.ModelProto:
    return text(
        "y = Relu(x) s = ReduceSum <keepdims = 0> (x)",
        "(float[batch, seq, 4] x) => (float[batch, seq, 4] y, float s)",
    )


@odd
def output_is_a_shape() -> onnx.ModelProto:
    return text("y = Shape(x)", "(float[batch, seq, 4] x) => (int64[3] y)")


@odd
def output_twice() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y"), info("y")])


@odd
def no_outputs() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [])


@odd
def no_nodes_no_inputs() -> onnx.ModelProto:
    return graph([], [], [])


@odd
def output_of_an_if() -> onnx.ModelProto:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [info(op)])
        for op in ("Relu", "Abs")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return graph([node], [info("x"), info("c", BOOL, ())], [info("y")])


@odd
def if_that_returns_outer_values() -> onnx.ModelProto:
    then = helper.make_graph([], "a", [], [info("x")])
    other = helper.make_graph([], "b", [], [info("z")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    z = helper.make_node("Relu", ["x"], ["z"])
    flag = numpy_helper.from_array(np.asarray(True), "c")
    return graph([z, node], [info("x")], [info("y")], [flag])


@odd
def empty_branch_constant() -> onnx.ModelProto:
    one = helper.make_graph([], "a", [], [info("t", shape=(1,))], [zeros("t", 1)])
    two = helper.make_graph([], "b", [], [info("u", shape=(1,))], [zeros("u", 1)])
    node = helper.make_node("If", ["c"], ["p"], then_branch=one, else_branch=two)
    add = helper.make_node("Add", ["x", "p"], ["y"])
    flag = numpy_helper.from_array(np.asarray(False), "c")
    return graph([node, add], [info("x")], [info("y")], [flag])


@odd
def empty_constant_joined() -> onnx.ModelProto:
    return text("y = Concat <axis = 1> (e, x)", e=np.zeros((2, 0, 4), np.float32))


@odd
def empty_encoder_keys() -> onnx.ModelProto:
    return text(
        "t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(x, t) p = Softmax <axis = -1> (s) "
        "y = MatMul(p, k)",
        k=np.zeros((1, 0, 4), np.float32),
    )


@odd
def empty_reduction() -> onnx.ModelProto:
    return text(
        "a = Constant <value_ints = [1]> () m = ReduceSum(e, a) y = Add(x, m)",
        e=np.zeros((1, 0, 4), np.float32),
    )


@odd
def empty_maximum() -> onnx.ModelProto:
    return text(
        "a = Constant <value_ints = [1]> () m = ReduceMax(e, a) y = Add(x, m)",
        e=np.zeros((1, 0, 4), np.float32),
    )


@odd
def empty_features() -> onnx.ModelProto:
    return text("y = Relu(x)", "(float[batch, seq, 0] x) => (float[batch, seq, 0] y)")


@odd
def empty_batch_of_fixed_size() -> onnx.ModelProto:
    return text("y = Softmax <axis = -1> (x)", "(float[0, seq, 4] x) => (float[0, seq, 4] y)")


@odd
def empty_slice() -> onnx.ModelProto:
    return text(
        "z = Constant <value_ints = [0]> () a = Constant <value_ints = [1]> () "
        "e = Slice(x, z, z, a) m = ReduceSum(e, a) s = Softmax <axis = 1> (e) "
        "j = Concat <axis = 1> (s, x) y = Add(j, m)"
    )


@odd
def empty_gather() -> onnx.ModelProto:
    return text(
        "e = Gather <axis = 1> (x, i) y = Concat <axis = 1> (x, e)", i=np.zeros((0,), np.int64)
    )


@odd
def empty_split_part() -> onnx.ModelProto:
    return text(
        "n = Shape <start = 1, end = 2> (x) z = Constant <value_ints = [0]> () "
        "s = Concat <axis = 0> (z, n) e, r = Split <axis = 1> (x, s) y = Concat <axis = 1> (e, r)"
    )


@odd
def empty_cumsum_and_topk() -> onnx.ModelProto:
    return text(
        "a = Constant <value_int = 1> () c = CumSum(e, a) k = Constant <value_ints = [0]> () "
        "v, i = TopK <axis = 1> (x, k) j = Concat <axis = 1> (x, v) y = Concat <axis = 1> (c, j)",
        e=np.zeros((2, 0, 4), np.float32),
    )


@odd
def empty_product() -> onnx.ModelProto:
    return text(
        "m = MatMul(x, a) n = MatMul(m, b) y = Add(x, n)",
        a=np.zeros((4, 0), np.float32),
        b=np.zeros((0, 4), np.float32),
    )


@odd
def empty_einsum() -> onnx.ModelProto:
    return text(
        'm = Einsum <equation = "bsd,dk->bsk"> (x, a) n = Einsum <equation = "bsk,kd->bsd"> (m, b) '
        "y = Add(x, n)",
        a=np.zeros((4, 0), np.float32),
        b=np.zeros((0, 4), np.float32),
    )


@odd
def empty_attention() -> onnx.ModelProto:
    return text(
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, k, k)",
        k=np.zeros((2, 0, 4), np.float32),
    )


@odd
def empty_convolution() -> onnx.ModelProto:
    return text(
        "t = Transpose <perm = [0, 2, 1]> (x) c = Conv(t, w) d = Transpose <perm = [0, 2, 1]> (c) "
        "y = Concat <axis = 2> (x, d)",
        "(float[batch, seq, 4] x) => (float[batch, seq, 4] y)",
        w=np.zeros((0, 4, 1), np.float32),
    )


@odd
def empty_norm() -> onnx.ModelProto:
    return text(
        "e = MatMul(x, a) n = LayerNormalization(e, g) r = ReduceSum(n, o) y = Add(x, r)",
        a=np.zeros((4, 0), np.float32),
        g=np.zeros((0,), np.float32),
        o=np.asarray([2]),
    )


@odd
def optional_inputs_left_out() -> onnx.ModelProto:
    clip = helper.make_node("Clip", ["x", "", "m"], ["a"])
    pad = helper.make_node("Pad", ["a", "p", ""], ["b"])
    resize = helper.make_node("Dropout", ["b", "", ""], ["y", ""])
    arrays = [
        numpy_helper.from_array(np.float32(3), "m"),
        numpy_helper.from_array(np.zeros(6, np.int64), "p"),
    ]
    return graph([clip, pad, resize], [info("x")], [info("y")], arrays)


@odd
def outputs_left_out() -> onnx.ModelProto:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["a", "", ""]),
        helper.make_node("MaxPool", ["a"], ["y", ""], kernel_shape=[1]),
    ]
    return graph(nodes, [info("x")], [info("y")], [zeros("g", 4)])


@odd
def scalar_input() -> onnx.ModelProto:
    add = helper.make_node("Add", ["x", "s"], ["y"])
    return graph([add], [info("x"), info("s", shape=())], [info("y")])


@odd
def only_a_scalar_input() -> onnx.ModelProto:
    return graph(
        [helper.make_node("Relu", ["s"], ["y"])], [info("s", shape=())], [info("y", shape=())]
    )


@odd
def input_without_a_shape() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x", shape=None)], [info("y")])


@odd
def output_without_a_shape() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y", shape=None)])


@odd
def output_without_a_type() -> onnx.ModelProto:
    made = graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y")])
    made.graph.output[0].ClearField("type")
    return made


@odd
def nameless_axes() -> onnx.ModelProto:
    return graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        [info("x", shape=(None, None, 4))],
        [info("y", shape=(None, None, None))],
    )


@odd
def sequence_input() -> onnx.ModelProto:
    made = helper.make_tensor_sequence_value_info("q", FLOAT, ("batch", "seq", 4))
    node = helper.make_node("ConcatFromSequence", ["q"], ["z"], axis=2)
    relu = helper.make_node("Relu", ["x"], ["y"])
    return graph([node, relu], [info("x"), made], [info("y"), info("z", shape=None)])


@odd
def sequence_output() -> onnx.ModelProto:
    out = helper.make_tensor_sequence_value_info("q", FLOAT, ("batch", "seq", 4))
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["q"])
    return graph([node], [info("x")], [out])


@odd
def empty_sequence() -> onnx.ModelProto:
    out = helper.make_tensor_sequence_value_info("q", FLOAT, None)
    nodes = [
        helper.make_node("SequenceEmpty", [], ["q"]),
        helper.make_node("SequenceLength", ["q"], ["n"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    return graph(nodes, [info("x")], [info("y"), out, info("n", INT64, ())])


@odd
def empty_sequence_joined() -> onnx.ModelProto:
    nodes = [
        helper.make_node("SequenceEmpty", [], ["q"]),
        helper.make_node("ConcatFromSequence", ["q"], ["z"], axis=1),
        helper.make_node("Concat", ["x", "z"], ["y"], axis=1),
    ]
    return graph(nodes, [info("x")], [info("y")])


@odd
def sequence_index_out_of_bounds() -> onnx.ModelProto:
    nodes = [
        helper.make_node("SequenceConstruct", ["x"], ["q"]),
        helper.make_node("SequenceAt", ["q", "i"], ["y"]),
    ]
    return graph(nodes, [info("x")], [info("y")], [numpy_helper.from_array(np.asarray(3), "i")])


@odd
def optional_input() -> onnx.ModelProto:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, (2,)))
    made = helper.make_value_info("o", kind)
    nodes = [
        helper.make_node("OptionalHasElement", ["o"], ["h"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    return graph(nodes, [info("x"), made], [info("y"), info("h", BOOL, ())])


@odd
def string_values() -> onnx.ModelProto:
    words = helper.make_tensor("w", STRING, (2,), [b"a", b"b"])
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Equal", ["w", "v"], ["e"]),
        helper.make_node("Cast", ["e"], ["f"], to=FLOAT),
    ]
    outputs = [info("y"), info("v", STRING, (2,)), info("f", shape=(2,))]
    return graph(nodes, [info("x")], outputs, [words], opset=19)


@odd
def string_input() -> onnx.ModelProto:
    node = helper.make_node("Identity", ["w"], ["y"])
    shape = ("batch", "seq")
    return graph([node], [info("w", STRING, shape)], [info("y", STRING, shape)])


@odd
def boolean_and_double_inputs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["b"], ["f"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["f", "d"], ["y"]),
    ]
    inputs = [info("b", BOOL, ("batch", "seq")), info("d", TensorProto.DOUBLE, ("batch", "seq"))]
    return graph(nodes, inputs, [info("y", TensorProto.DOUBLE, ("batch", "seq"))])


@odd
def complex_input() -> onnx.ModelProto:
    kind, shape = TensorProto.COMPLEX64, ("batch", "seq")
    return graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        [info("c", kind, shape)],
        [info("y", kind, shape)],
    )


@odd
def eight_bit_float_input() -> onnx.ModelProto:
    kind, shape = TensorProto.FLOAT8E4M3FN, ("batch", "seq", 4)
    return graph(
        [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)],
        [info("x", kind, shape)],
        [info("y")],
        opset=19,
    )


@odd
def bfloat16_leak() -> onnx.ModelProto:
    kind, shape = TensorProto.BFLOAT16, ("batch", "seq", 4)
    return graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        [info("x", kind, shape)],
        [info("y", kind, shape)],
    )


@odd
def initializer_that_is_an_input_too() -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", "t"], ["y"])
    return graph([node], [info("x"), info("t", shape=(4,))], [info("y")], [zeros("t", 4)])


@odd
def initializer_without_a_value_info_type() -> onnx.ModelProto:
    model = text("y = Add(x, t)", t=np.zeros(4, np.float32))
    del model.graph.value_info[:]
    return model


@odd
def sparse_initializer() -> onnx.ModelProto:
    model = text("y = MatMul(x, s)")
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    places = numpy_helper.from_array(np.asarray([1, 6]), "s_places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    return model


@odd
def sparse_constant() -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(2, np.float32), "v")
    places = numpy_helper.from_array(np.asarray([1, 6]), "p")
    sparse = helper.make_sparse_tensor(values, places, [4, 4])
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "s"], ["y"]),
    ]
    return graph(nodes, [info("x")], [info("y")])


@odd
def constants_of_strings() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["s"], value_string="a"),
        helper.make_node("Constant", [], ["t"], value_strings=["a", "b"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    return graph(nodes, [info("x")], [info("y"), info("s", STRING, ()), info("t", STRING, (2,))])


@odd
def node_without_a_name_or_a_domain_rule() -> onnx.ModelProto:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="made.up")
    model = graph([node], [info("x")], [info("y")])
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    return model


@odd
def mystery_without_a_shape() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], domain="made.up"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    model = graph(nodes, [info("x")], [info("y")])
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    return model


@odd
def loop_that_never_runs() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["s"], ["r"])],
        "body",
        [info("i", INT64, ()), info("c", BOOL, ()), info("s")],
        [info("d", BOOL, ()), info("r")],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    return graph([node], [info("x")], [info("y")], [zeros("n", dtype=np.int64)])


@odd
def scan_over_nothing() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [info("a", shape=(4,))],
        [info("b", shape=(4,))],
    )
    nodes = [
        helper.make_node("Scan", ["e"], ["f"], body=body, num_scan_inputs=1),
        helper.make_node("Concat", ["x", "f"], ["y"], axis=0),
    ]
    shape = ("seq", 4)
    return graph(nodes, [info("x", shape=shape)], [info("y", shape=shape)], [zeros("e", 0, 4)])


@odd
def wrong_broadcast_at_every_length() -> onnx.ModelProto:
    return text("y = Add(x, t)", t=np.zeros((5,), np.float32))


@odd
def wrong_reshape_at_most_lengths() -> onnx.ModelProto:
    return text("s = Constant <value_ints = [2, 3, 4]> () y = Reshape(x, s)")


@odd
def gather_out_of_bounds() -> onnx.ModelProto:
    return text("i = Constant <value_ints = [7]> () g = Gather <axis = 1> (x, i) y = Add(x, g)")


@odd
def axis_that_does_not_exist() -> onnx.ModelProto:
    return text("y = Softmax <axis = 7> (x)")


@odd
def missing_required_input() -> onnx.ModelProto:
    return graph([helper.make_node("Add", ["x", ""], ["y"])], [info("x")], [info("y")])


@odd
def missing_required_attribute() -> onnx.ModelProto:
    return graph([helper.make_node("Concat", ["x", "x"], ["y"])], [info("x")], [info("y")])


@odd
def value_that_nothing_makes() -> onnx.ModelProto:
    return graph([helper.make_node("Add", ["x", "nowhere"], ["y"])], [info("x")], [info("y")])


@odd
def output_that_nothing_makes() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y"), info("z")])


@odd
def nodes_out_of_order() -> onnx.ModelProto:
    nodes = [helper.make_node("Abs", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    return graph(nodes, [info("x")], [info("y")])


CROSS = (
    "t = Transpose <perm = [0, 2, 1]> (e) s = MatMul(x, t) p = Softmax <axis = -1> (s) "
    "o = MatMul(p, e) y = Add(x, o)"
)
FUSED = "o = com.microsoft.MultiHeadAttention <num_heads = 2> (x, e, e) y = Add(x, o)"


def _encoder(body: str, size: str) -> Callable[[], onnx.ModelProto]:
    signature = f"(float[batch, seq, 4] x, float[batch, {size}, 4] e) => (float[batch, seq, 4] y)"
    return lambda: text(body, signature)


for _name, _body in (("cross", CROSS), ("fused", FUSED)):
    for _size in ("0", "past_seq", "encoder_seq"):
        ODD[f"encoder_{_name}_{_size}"] = _encoder(_body, _size)
