"""What is written here as the body of an operator computes what onnxruntime's operator does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from causal_onnx.export.analysis.expansion import body_of, written

from .graphs import build, static

Array = np.ndarray[Any, np.dtype[Any]]
CONTRIB = "com.microsoft"
rng = np.random.default_rng(5)


def numbers(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def codes(*shape: int) -> Array:
    return rng.integers(0, 255, shape).astype(np.uint8)


def scale(value: float = 0.02) -> Array:
    return np.asarray(value, np.float32)


ZERO = np.asarray(128, np.uint8)
X = numbers(2, 3, 4)
CODED = (codes(2, 3, 4), scale(), ZERO)
OTHER = (codes(2, 3, 4), scale(0.03), np.asarray(120, np.uint8))
OUT = (scale(0.05), np.asarray(125, np.uint8))
IDS = rng.integers(0, 9, (2, 3)).astype(np.int32)
PLACES = rng.integers(0, 5, (2, 3)).astype(np.int32)
MASK = np.asarray([[1, 1, 0], [1, 1, 1]], np.int32)
TABLES = (numbers(9, 4), numbers(5, 4), numbers(9, 4), numbers(4), numbers(4))
CODED_TABLES = (codes(9, 4), codes(5, 4), codes(9, 4), codes(4), codes(4))
SCALES = (scale(), scale(0.03), scale(0.04), scale(0.05), scale(0.06))
IMAGE = numbers(2, 4, 5, 5)
PAST = numbers(2, 2, 2, 3, 2)
PROJECTION = (numbers(4, 12), numbers(12))
ANGLES = (numbers(9, 2), numbers(9, 2))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One node: its operator, inputs and attributes, and how close its body must come."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any]
    outputs: int
    domain: str
    close: float
    label: str

    def __str__(self) -> str:
        return f"{self.op} {self.label}"


def case(op: str, *inputs: Array | None, outputs: int = 1, domain: str = CONTRIB,
         close: float = 1e-4, label: str = "", **attributes: Any) -> Case:  # fmt: skip
    return Case(op=op, inputs=inputs, attributes=attributes, outputs=outputs, domain=domain,
                close=close, label=label or ", ".join(attributes))  # fmt: skip


CASES = [
    case("Gelu", X), case("BiasGelu", X, numbers(4)), case("FastGelu", X, numbers(4)),
    case("FastGelu", X, label="without bias"), case("QuickGelu", X, alpha=1.5),
    case("SkipLayerNormalization", X, X + 1, numbers(4), numbers(4), numbers(4), epsilon=1e-3),
    case("SkipLayerNormalization", X, numbers(3, 4), numbers(4), label="a skip of fewer axes"),
    case("SkipSimplifiedLayerNormalization", X, X + 1, numbers(4), numbers(4), epsilon=1e-3),
    case("SkipSimplifiedLayerNormalization", X, X + 1, numbers(4), label="without bias"),
    case("EmbedLayerNormalization", IDS, IDS, *TABLES, MASK, outputs=2, epsilon=1e-3),
    case("EmbedLayerNormalization", IDS, None, *TABLES[:2], None, *TABLES[3:], None, PLACES,
         outputs=3, label="at given places"),
    case("LpNormalization", X, domain="", p=1, axis=1), case("LpNormalization", X, domain=""),
    case("InstanceNormalization", IMAGE, numbers(4), numbers(4), domain="", epsilon=1e-2),
    case("OneHot", (PLACES - 2).astype(np.int64), np.asarray([5]), numbers(2), domain="", axis=1),
    case("OneHot", PLACES.astype(np.int64), np.asarray(6), numbers(2), domain="", axis=-1),
    case("Gemm", X[0], numbers(5, 4), numbers(5), domain="", transB=1, alpha=0.5, beta=2.0),
    case("Gemm", numbers(4, 3), numbers(4, 5), domain="", transA=1, label="without C"),
    case("GlobalAveragePool", IMAGE, domain=""), case("GlobalMaxPool", IMAGE, domain=""),
    case("FusedMatMul", X, X, transB=1, alpha=0.5),
    case("FusedMatMul", numbers(3, 2, 4), numbers(4, 2, 5), transBatchA=1, transBatchB=1),
    case("FusedMatMul", numbers(3, 2, 4), numbers(2, 3, 5), transBatchA=1, transA=1),
    case("TransposeMatMul", X, numbers(2, 3, 5), transA=1),
    case("FusedGemm", X[0], numbers(5, 4), numbers(5), transB=1, alpha=0.5, activation="Relu"),
    case("FusedGemm", X[0], numbers(4, 5), activation="LeakyRelu", activation_alpha=0.3),
    case("FusedConv", IMAGE, numbers(4, 4, 3, 3), numbers(4), numbers(2, 4, 3, 3),
         activation="Relu", kernel_shape=[3, 3]),
    case("Attention", X, *PROJECTION, num_heads=2, unidirectional=1),
    case("Attention", X, *PROJECTION, MASK, num_heads=2, scale=0.3),
    case("Attention", X, numbers(4, 14), numbers(14), None, None, numbers(1, 2, 3, 3),
         num_heads=2, qkv_hidden_sizes=[4, 4, 6]),
    case("Attention", X, *PROJECTION, None, PAST, outputs=2, num_heads=2, unidirectional=1),
    case("RotaryEmbedding", numbers(2, 3, 8), PLACES.astype(np.int64), *ANGLES, num_heads=2,
         interleaved=1),
    case("RotaryEmbedding", numbers(2, 3, 8), PLACES.astype(np.int64), *ANGLES,
         label="3-D, heads by the angles"),
    case("RotaryEmbedding", numbers(2, 3, 8), PLACES.astype(np.int64), ANGLES[0][:, :1],
         ANGLES[1][:, :1], num_heads=2, rotary_embedding_dim=2),
    case("RotaryEmbedding", numbers(2, 2, 3, 4), np.asarray([4]), *ANGLES, label="4-D, offset"),
    case("RotaryEmbedding", numbers(2, 3, 8), np.asarray([4]), *ANGLES, num_heads=2,
         label="3-D, offset"),
    *(case(f"QLinear{op}", *CODED, *OTHER, *OUT, close=1.01) for op in ("Add", "Mul")),
    case("QLinearSigmoid", *CODED, *OUT, close=1.01),
    case("QLinearLeakyRelu", *CODED, *OUT, close=1.01, alpha=0.3),
    case("QLinearWhere", X > 0, *CODED, *OTHER, *OUT, close=1.01),
    case("QLinearSoftmax", *CODED, scale(1 / 256), np.asarray(0, np.uint8), close=1.01, axis=-1,
         opset=13),
    case("QLinearSoftmax", *CODED, scale(1 / 256), np.asarray(0, np.uint8), close=1.01, axis=1,
         opset=12),
    case("QLinearConcat", *OUT, *CODED, *OTHER, close=1.01, axis=1),
    case("QLinearConcat", *OUT, *CODED * 9, close=1.01, axis=2, label="of many"),
    case("QLinearMatMul", *CODED, codes(4, 5), scale(), ZERO, *OUT, domain="", close=1.01),
    case("QLinearMatMul", *CODED, codes(4, 5), numbers(5) ** 2, codes(5), *OUT, domain="",
         close=1.01, label="a scale for each column"),
    case("QLinearConv", codes(2, 4, 5), scale(), ZERO, codes(4, 4, 3), numbers(4) ** 2 / 99,
         codes(1).repeat(4), *OUT, np.arange(4, dtype=np.int32), domain="", close=1.01),
    case("MatMulInteger", codes(3, 4), codes(4, 5), np.asarray(7, np.uint8), codes(5), domain=""),
    case("MatMulIntegerToFloat", CODED[0], codes(4, 5), scale(), scale(), ZERO, ZERO, numbers(5)),
    case("DynamicQuantizeMatMul", X, codes(4, 5), scale(), ZERO, numbers(5), close=1e-3),
    case("QGemm", codes(3, 4), scale(), ZERO, codes(5, 4), scale(), ZERO,
         np.arange(5, dtype=np.int32), *OUT, close=1.01, transB=1),
    case("QGemm", codes(3, 4), scale(), ZERO, codes(4, 5), scale(), ZERO, label="to floats"),
    case("QAttention", CODED[0], codes(4, 12), numbers(12), scale(), scale(), MASK, ZERO, ZERO,
         num_heads=2, unidirectional=1, close=1e-3),
    case("QAttention", CODED[0], codes(4, 12), numbers(12), scale(), scale(), None, ZERO, ZERO,
         PAST, outputs=2, num_heads=2, unidirectional=1, close=1e-3),
    case("QEmbedLayerNormalization", IDS, IDS, *CODED_TABLES, MASK, *SCALES, *[ZERO] * 5,
         outputs=2, close=1e-3),
]  # fmt: skip
WITHOUT_KERNEL = {
    "BiasAdd", "BiasSplitGelu", "GemmFastGelu", "BiasSoftmax", "QOrderedGelu", "QOrderedMatMul",
    "QOrderedLayerNormalization", "NhwcConv", "GlobalLpPool",
}  # fmt: skip
"""onnxruntime has none of these for the CPU; GlobalLpPool it has in an older version alone."""


def ran(graph: ir.Graph, arrays: list[Array]) -> list[Array]:
    for value, array in zip(graph.inputs, arrays, strict=True):
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    for place, node in enumerate(graph):
        node.name = f"node{place}"
    graph.opset_imports.update({"": 24, CONTRIB: 1})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, ["CPUExecutionProvider"])
    feeds = {value.name: array for value, array in zip(graph.inputs, arrays, strict=True)}
    return list(session.run(None, feeds))


def alone(case: Case) -> tuple[ir.Node, ir.Graph, list[Array]]:
    """The node, a graph of it alone, and the arrays that it takes."""
    inputs = [None if a is None else ir.Value(name=f"i{k}") for k, a in enumerate(case.inputs)]
    outputs = [ir.Value(name=f"o{k}") for k in range(case.outputs)]
    attributes = ir.convenience.convert_attributes(case.attributes)
    node = ir.Node(case.domain, case.op, inputs, attributes, outputs=outputs, name="it")
    graph = ir.Graph([v for v in inputs if v is not None], outputs, nodes=[node], name="g")
    return node, graph, [a for a in case.inputs if a is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_body_computes_what_the_operator_does(case: Case) -> None:
    node, graph, arrays = alone(case)
    body = body_of(node, [None if a is None else a.shape for a in case.inputs], {"": 24})
    assert body is not None
    wanted = ran(graph, arrays)
    found = ran(body.graph, arrays)[: len(wanted)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=case.close)


def test_every_body_with_a_kernel_to_compare_with_is_compared() -> None:
    operators = {name.removeprefix(f"{CONTRIB}.") for name in written()}
    assert operators == {case.op for case in CASES} | WITHOUT_KERNEL


def test_what_is_said_of_a_body_names_the_operator_and_the_node() -> None:
    text = "y = com.microsoft.BiasSoftmax <axis = 1, is_inner_broadcast = 0> (x, x)"
    model = build(text, contrib=True)
    model.graph.node[0].name = "mixer"
    offence = static(model).offence
    assert offence is not None
    assert (offence.domain, offence.op_type, offence.node) == (CONTRIB, "BiasSoftmax", "mixer")


@pytest.mark.parametrize(
    ("taken", "verdict"),
    [("Neg(x)", "causal"), ("ReduceMax <keepdims = 1> (x, one)", "not_causal")],
)
def test_an_operator_that_onnx_defines_by_others_is_followed_by_its_definition(
    taken: str, verdict: str
) -> None:
    body = f"r0 = {taken} r = Add(r0, x) y = SwiGLU(x, r)"
    proof = static(build(body, opset=28, one=np.asarray([1])))
    assert proof.verdict == verdict, proof.reason


def test_a_body_without_a_rule_for_a_part_leaves_the_node_named_and_mixing() -> None:
    text = 'y = com.microsoft.FusedGemm <activation = "Mystery"> (x, w)'
    model = build("a = Constant <value_ints = [-1, 4]> () f = Reshape(x, a) "
                  + text.replace("(x", "(f").replace("y =", "p =")
                  + " n = Shape(x) y = Reshape(p, n)", contrib=True)  # fmt: skip
    proof = static(model)
    assert proof.verdict == "undecided"
    assert proof.offence is not None
    assert proof.offence.op_type == "FusedGemm"
