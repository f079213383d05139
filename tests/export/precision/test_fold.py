"""Where scale may move from activations into weights: found by what a graph computes, or left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from causal_onnx.export.precision.fold import find_places, fold

WIDTH, INNER = 8, 12

STORED = {
    "n": (WIDTH,),
    "n2": (5, WIDTH),
    "one": (1,),
    "b": (WIDTH,),
    "c": (INNER,),
    "u": (WIDTH, INNER),
    "g": (WIDTH, INNER),
    "d": (INNER, WIDTH),
    "q": (WIDTH, WIDTH),
    "k": (WIDTH, WIDTH),
}


def graph(body: str) -> ir.Model:
    """A model of x (batch, seq, 8) -> y, with those arrays of `STORED` that it reads."""
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[B, S, {WIDTH}] x) => (float[] y) '
        f"{{ {body} }}"
    )
    random = np.random.default_rng(0)
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in STORED.items():
        array = random.uniform(0.5, 2.0, shape).astype(np.float32)
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    keep = numpy_helper.from_array(np.array([0, 0, WIDTH], np.int64), "same")
    rows = numpy_helper.from_array(np.array([-1, WIDTH], np.int64), "rows")
    split = numpy_helper.from_array(np.array([0, 0, 2, -1], np.int64), "split")
    model.graph.initializer.extend(a for a in (keep, rows, split) if a.name in read)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(model)


def computed(model: ir.Model) -> npt.NDArray[np.float32]:
    proto: onnx.ModelProto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x = np.random.default_rng(1).standard_normal((2, 3, WIDTH)).astype(np.float32)
    y: npt.NDArray[np.float32] = session.run(None, {"x": x})[0]
    return y


NORM = "h = RMSNormalization(x, n)"
GATED = "h = Mul(e, a) y = MatMul(h, d)"

FOUND = {
    "an RMS norm": f"{NORM} y = MatMul(h, u)",
    "a layer norm": "h = LayerNormalization(x, n, b) y = MatMul(h, u)",
    "a norm written out": "s = Softmax(x) h = Mul(n, s) y = MatMul(h, u)",
    "and a shift": "s = Mul(x, n) h = Add(s, b) y = MatMul(h, u)",
    "two readers": f"{NORM} p = MatMul(h, u) r = MatMul(h, g) y = Add(p, r)",
    "another shape": f"{NORM} r = Reshape(h, rows) y = MatMul(r, u)",
    "a ReLU between": "h = MatMul(x, u) i = Add(h, c) r = Relu(i) y = MatMul(r, d)",
    "a Gemm before": "r = Reshape(x, rows) h = Gemm(r, u, c) i = Relu(h) y = Gemm(i, d, b)",
    "a gated MLP": f"s = MatMul(x, g) e = Sigmoid(s) a = MatMul(x, u) {GATED}",
}


@pytest.mark.parametrize("body", FOUND.values(), ids=FOUND)
def test_moving_a_power_of_two_changes_no_bit(body: str) -> None:
    model = graph(body)
    before = computed(model)
    places = find_places(model)
    (place,) = (p for p in places if p.uses[-1].node.outputs[0].name in ("y", "r"))
    exponents = (np.arange(place.channels) % 7 - 3).astype(np.int8)
    old = {use.weight.name: use.weight.const_value.numpy().copy() for use in place.uses}
    fold(model, place, exponents)
    np.testing.assert_array_equal(computed(model), before)
    for use in place.uses:
        changed = use.weight.const_value.numpy() / old[use.weight.name]
        np.testing.assert_array_equal(changed[:, 0], np.exp2(exponents.astype(np.float32)))


SCORES = "t1 = Transpose<perm=[0, 2, 1]>(h) s = MatMul(h, t1)"
TWICE = "r = RMSNormalization(p, b) y = MatMul(r, q)"

REFUSED = {
    "the norm is an output too": "y = RMSNormalization(x, n) h = MatMul(y, u)",
    "the sum goes on": f"{NORM} p = MatMul(h, q) y = Add(p, h)",
    "a reader that is no product": f"{NORM} e = Relu(h) p = MatMul(h, q) y = Add(e, p)",
    "a product of two activations": f"{NORM} {SCORES} p = MatMul(h, q) y = MatMul(s, p)",
    "a weight used twice": f"{NORM} p = MatMul(h, q) {TWICE}",
    "an input": "y = MatMul(x, u)",
    "a GELU between": "h = MatMul(x, u) r = Gelu(h) y = MatMul(r, d)",
    "a square between": "h = MatMul(x, u) r = Mul(h, h) y = MatMul(r, d)",
    "SiLU alone": "h = MatMul(x, u) e = Sigmoid(h) r = Mul(h, e) y = MatMul(r, d)",
    "a norm over another axis": "h = LayerNormalization<axis=1>(x, n2) y = MatMul(h, u)",
    "one scale for all": "h = Mul(x, one) y = MatMul(h, u)",
    "heads apart": f"{NORM} r = Reshape(h, split) p = Reshape(r, same) y = MatMul(p, u)",
    "a shift that is not stored": "a = MatMul(x, q) e = Sigmoid(x) h = Add(a, e) y = MatMul(h, u)",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_is_not_surely_the_same_is_left_alone(body: str) -> None:
    model = graph(body)
    assert find_places(model) == []


def test_a_norm_that_shares_its_weight_with_another_changes_alone() -> None:
    body = f"{NORM} p = MatMul(h, q) r = RMSNormalization(p, n) y = MatMul(r, k)"
    model = graph(body)
    before = computed(model)
    first, second = find_places(model)
    fold(model, first, np.full(WIDTH, 2, np.int8))
    fold(model, second, np.full(WIDTH, -1, np.int8))
    np.testing.assert_array_equal(computed(model), before)
