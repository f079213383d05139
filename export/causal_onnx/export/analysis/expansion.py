"""What an operator is made of: the body by which it is followed where it has no rule of its own.

Operators that ONNX defines by others come with that definition. Those of onnxruntime's optimisers
are written out here, as ContribOperators.md describes them, in ONNX's text form. The node stays in
its graph, and whatever is found out about its body is said of the node: nothing else is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
from onnx import parser
from onnx_ir.passes import common

from causal_onnx.export.analysis.attributes import UnsupportedError, attr, required_attr
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["Body", "Shape", "body_of", "written"]

OPSET = 24
"""Of the bodies that are written here."""
MOST = 19
"""Inputs that a body which is written here may speak of, whether or not the node has them."""

BODIES = """
LpNormalization <axis: int = -1>
    k = Constant <value_ints = [{axis}]> () n = ReduceL{power} (A, k) y = Div(A, n)
InstanceNormalization <epsilon: float = 1e-5>
    k = Constant <value_ints: ints = {space}> () m = ReduceMean(A, k) d = Sub(A, m) q = Mul(d, d)
    v = ReduceMean(q, k) e = Constant <value_float: float = @epsilon> () w = Add(v, e) r = Sqrt(w)
    n = Div(d, r) o = Constant <value_ints: ints = {after_channels}> () s = Unsqueeze(B, o)
    b = Unsqueeze(C, o) t = Mul(n, s) y = Add(t, b)
OneHot <axis: int = -1>
    whole = Constant <value_ints = [-1]> () zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> () d0 = Cast <to = 7> (B) d1 = Reshape(d0, whole)
    d = Squeeze(d1) classes = Range(zero, d, one) i0 = Cast <to = 7> (A) i1 = Mod(i0, d)
    k = Constant <value_ints = [{axis}]> () i = Unsqueeze(i1, k)
    o = Constant <value_ints: ints = {after_line}> () line = Unsqueeze(classes, o)
    hit = Equal(i, line) place = Cast <to = 7> (hit) y = Gather(C, place)
GlobalAveragePool
    k = Constant <value_ints: ints = {space}> () y = ReduceMean(A, k)
GlobalMaxPool
    k = Constant <value_ints: ints = {space}> () y = ReduceMax(A, k)
GlobalLpPool
    k = Constant <value_ints: ints = {space}> () p = Constant <value_float = {power}.0> ()
    m = Abs(A) q = Pow(m, p) s = ReduceSum(q, k) r = Reciprocal(p) y = Pow(s, r)
com.microsoft.BiasAdd
    t = Add(A, B) y = Add(t, C)
com.microsoft.Gelu
    y = Gelu(A)
com.microsoft.BiasGelu
    t = Add(A, B) y = Gelu(t)
com.microsoft.FastGelu
    t = Add(A, B) y = Gelu <approximate = "tanh"> (t)
com.microsoft.QuickGelu <alpha: float = 1.702>
    y = Swish <alpha: float = @alpha> (A)
com.microsoft.BiasSplitGelu
    t = Add(A, B) l, r = Split <axis = -1, num_outputs = 2> (t) g = Gelu(r) y = Mul(l, g)
com.microsoft.GemmFastGelu
    p = MatMul(A, B) t = Add(p, C) y = Gelu <approximate = "tanh"> (t)
com.microsoft.FusedGemm
    t = Gemm {product} (A, B, C) y = {function} (t)
com.microsoft.FusedConv
    p = Conv {window} (A, B, C) t = Add(p, D) y = {function} (t)
com.microsoft.NhwcConv
    p = Transpose <perm = {channels_first}> (A) w = Transpose <perm = {channels_first}> (B)
    t = Conv {window} (p, w, C) y = Transpose <perm = {channels_last}> (t)
com.microsoft.SkipLayerNormalization <epsilon: float = 1e-12>
    t = Add(A, B) y3 = Add(t, E)
    y, y1, y2 = LayerNormalization <axis = -1, epsilon: float = @epsilon> (y3, C, D)
com.microsoft.SkipSimplifiedLayerNormalization <epsilon: float = 1e-12>
    t = Add(A, B) y3 = Add(t, D)
    y, y2 = SimplifiedLayerNormalization <axis = -1, epsilon: float = @epsilon> (y3, C)
    y1 = Identity(y2)
com.microsoft.BiasSoftmax <axis: int = 1>
    s = Add(A, B) {softmax} y = Identity(t)
com.microsoft.QLinearAdd
    s = DequantizeLinear(A, B, C) t = DequantizeLinear(D, E, F) u = Add(s, t)
    y = QuantizeLinear(u, G, H)
com.microsoft.QLinearMul
    s = DequantizeLinear(A, B, C) t = DequantizeLinear(D, E, F) u = Mul(s, t)
    y = QuantizeLinear(u, G, H)
com.microsoft.QLinearSigmoid
    s = DequantizeLinear(A, B, C) t = Sigmoid(s) y = QuantizeLinear(t, D, E)
com.microsoft.QLinearLeakyRelu
    s = DequantizeLinear(A, B, C) t = LeakyRelu <alpha: float = @alpha> (s)
    y = QuantizeLinear(t, D, E)
com.microsoft.QLinearWhere
    s = DequantizeLinear(B, C, D) t = DequantizeLinear(E, F, G) u = Where(A, s, t)
    y = QuantizeLinear(u, H, I)
com.microsoft.QLinearSoftmax <axis: int = -1>
    s = DequantizeLinear(A, B, C) {softmax} y = QuantizeLinear(t, D, E)
com.microsoft.QOrderedGelu
    s = DequantizeLinear(A, B) t = Gelu(s) y = QuantizeLinear(t, C)
com.microsoft.QOrderedLayerNormalization
    s = DequantizeLinear(A, B)
    t = LayerNormalization <axis: int = @axis, epsilon: float = @epsilon> (s, C, D)
    y = QuantizeLinear(t, E)
com.microsoft.QOrderedMatMul
    s = DequantizeLinear(A, B) t = DequantizeLinear <axis = -1> (C, D) p = MatMul(s, t)
    r = DequantizeLinear(G, H) u = Add(p, F) v = Add(u, r) y = QuantizeLinear(v, E)
QLinearMatMul
    s = DequantizeLinear <axis = -2> (A, B, C) t = DequantizeLinear <axis = -1> (D, E, F)
    u = MatMul(s, t) y = QuantizeLinear(u, G, H)
QLinearConv
    s = DequantizeLinear(A, B, C) t = DequantizeLinear <axis = 0> (D, E, F) p = Mul(B, E)
    w = DequantizeLinear <axis = 0> (I, p) u = Conv {window} (s, t, w)
    y = QuantizeLinear(u, G, H)
com.microsoft.MatMulIntegerToFloat
    p = MatMulInteger(A, B, E, F) t = Cast <to = 1> (p) s = Mul(C, D) u = Mul(t, s)
    y = Add(u, G)
com.microsoft.DynamicQuantizeMatMul
    q, s, z = DynamicQuantizeLinear(A)
    y = com.microsoft.MatMulIntegerToFloat (q, B, s, C, z, D, E)
com.microsoft.QEmbedLayerNormalization <epsilon: float = 1e-12>
    w = DequantizeLinear(C, I, N) p = DequantizeLinear(D, J, O) s = DequantizeLinear(E, K, P)
    g = DequantizeLinear(F, L, Q) b = DequantizeLinear(G, M, R)
    y, y1 = com.microsoft.EmbedLayerNormalization <epsilon: float = @epsilon>
        (A, B, w, p, s, g, b, H)
com.microsoft.QAttention
    s = DequantizeLinear(A, D, G) w = DequantizeLinear <axis = 1> (B, E, H)
    y, y1 = com.microsoft.Attention {heads} (s, w, C, F, I)
"""
"""Operator, its attributes with a default, and its body.

Inputs are A, B, ..., outputs y, y1, y2, ...; @name is an attribute of the node, {name} is from
`_fields`. A term or factor that is absent is left out; what is made of an absent tensor is absent.
"""

Shape: TypeAlias = Sequence[object]
"""Of an input: as many entries as it has axes."""
Writer: TypeAlias = Callable[[ir.Node, Sequence[Shape | None]], str]

WRITERS: dict[str, Writer] = {}
"""Operators whose body depends on more."""


@dataclass(frozen=True, slots=True)
class Body:
    """A graph that computes what a node does."""

    graph: ir.Graph
    """Its inputs are those that the node has, without the absent ones; its outputs begin with the
    node's."""
    opsets: Mapping[str, int]


def _texts() -> dict[str, tuple[str, str]]:
    """Operator -> the attributes of its body that have defaults, and the body."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in BODIES.strip().splitlines():
        if line.startswith(" "):
            defaults, text = found[name]
            found[name] = defaults, f"{text} {line.strip()}"
        else:
            name, _, defaults = line.partition(" ")
            found[name] = defaults, ""
    return found


TEXTS = _texts()


def written() -> set[str]:
    """The operators whose bodies are written here."""
    return {*TEXTS, *WRITERS}


def body_of(
    node: ir.Node, shapes: Sequence[Shape | None], opsets: Mapping[str, int]
) -> Body | None:
    """The body of a node; None where neither ONNX nor this file has one.

    Args:
        node: To be followed.
        shapes: Of its inputs, None where absent. The number of axes may decide the body.
        opsets: That the node's graph imports.

    Raises:
        UnsupportedError: The body does not say what the node does with these attributes.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    name = f"{domain}.{node.op_type}" if domain else node.op_type
    function: onnx.FunctionProto | None
    if name in WRITERS:
        function = _parsed(node, "", WRITERS[name](node, shapes))
    elif name in TEXTS:
        defaults, text = TEXTS[name]
        function = _parsed(node, defaults, text.format(**_fields(node, shapes)))
    else:
        function = None if domain else _defined(node, shapes, opsets.get("", 1))
    return None if function is None else _inlined(node, function)


def _parsed(node: ir.Node, defaults: str, text: str) -> onnx.FunctionProto:
    outputs = ", ".join(["y", *(f"y{i}" for i in range(1, len(node.outputs)))])
    opsets = f'opset_import: ["": {OPSET}, "{CONTRIB}": 1]'
    names = ", ".join(_names(0, max(MOST, len(node.inputs))))
    return parser.parse_function(
        f'<domain: "body", {opsets}> Body {defaults} ({names}) => ({outputs}) {{ {text} }}'
    )


def _names(start: int, stop: int) -> list[str]:
    """Of inputs: A to Z, then X26, X27, ..."""
    return [chr(ord("A") + i) if i < 26 else f"X{i}" for i in range(start, stop)]


def _fields(node: ir.Node, shapes: Sequence[Shape | None]) -> dict[str, object]:
    """What a text may ask of the node and of the axes of its first input."""
    rank = len(shapes[0] or ())
    axis = attr(node, "axis", 1 if node.op_type == "BiasSoftmax" else -1)
    return {
        "axis": axis,
        "power": attr(node, "p", 2),
        "space": list(range(2, rank)),
        "after_channels": list(range(1, rank - 1)),
        "after_line": list(range(1, 1 + rank - axis % (rank + 1))),
        "channels_first": [0, rank - 1, *range(1, rank - 1)],
        "channels_last": [0, *range(2, rank), 1],
        "window": _passed("auto_pad: string", *(f"{name}: ints" for name in WINDOW), "group: int"),
        "product": _passed("alpha: float", "beta: float", "transA: int", "transB: int"),
        "heads": _passed("num_heads: int", "unidirectional: int", *SCALING),
        "function": f"{attr(node, 'activation', 'Identity')} {_of_activation(node)}",
        "softmax": _softmax(axis, rank, one=attr(node, "opset", 12) >= 13),
    }


WINDOW = ("dilations", "kernel_shape", "pads", "strides")
SCALING = ("scale: float", "mask_filter_value: float")


def _passed(*attributes: str) -> str:
    """Attributes that an operator of the body takes from the node, as far as it has them."""
    names = [each.partition(":")[0] for each in attributes]
    texts = (f"{each} = @{name}" for each, name in zip(attributes, names, strict=True))
    return f"<{', '.join(texts)}>"


def _of_activation(node: ir.Node) -> str:
    names = [name for name in ("alpha", "beta") if f"activation_{name}" in node.attributes]
    texts = (f"{name}: float = @activation_{name}" for name in names)
    return f"<{', '.join(texts)}>" if names else ""


def _softmax(axis: int, rank: int, *, one: bool) -> str:
    """Of s, over one axis, or over all from one on."""
    if one:
        return f"t = Softmax <axis = {axis}> (s)"
    axes = list(range(axis % max(rank, 1), rank))
    return (
        f"axes = Constant <value_ints = {axes}> () top = ReduceMax(s, axes) less = Sub(s, top) "
        "power = Exp(less) sum = ReduceSum(power, axes) t = Div(power, sum)"
    )


def _defined(
    node: ir.Node, shapes: Sequence[Shape | None], opset: int
) -> onnx.FunctionProto | None:
    """ONNX's own definition of a node, as a function."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")  # stubs lack the definitions
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        body: onnx.FunctionProto = schema.function_body
        return body
    if not schema.has_context_dependent_function:
        return None
    types = [
        _type(value, shape).SerializeToString()
        for value, shape in zip(node.inputs, shapes, strict=True)
    ]
    version = schema.context_dependent_function_opset_versions[-1]
    made = schema.get_context_dependent_function_with_opset_version(
        version, ir.to_proto(node).SerializeToString(), types
    )
    function = onnx.FunctionProto()
    function.ParseFromString(made)
    return function if function.node else None


def _type(value: ir.Value | None, shape: Shape | None) -> onnx.TypeProto:
    """Where the file states no type: the definitions are the same for all of floating point."""
    if value is None or shape is None:
        return onnx.TypeProto()
    dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
    return onnx.helper.make_tensor_type_proto(int(dtype), [None] * len(shape))


def _inlined(node: ir.Node, definition: onnx.FunctionProto) -> Body:
    function = ir.serde.deserialize_function(definition)
    inputs = [None if v is None else ir.Value(name=f"in{i}") for i, v in enumerate(node.inputs)]
    call = ir.Node(
        function.domain,
        function.name,
        [*inputs, *[None] * (len(function.inputs) - len(inputs))],
        list(node.attributes.values()),
        outputs=[ir.Value(name=f"out{i}") for i in range(len(function.outputs))],
    )
    opsets = dict(function.opset_imports)
    present = [value for value in inputs if value is not None]
    graph = ir.Graph(
        present,
        call.outputs,
        nodes=[call],
        opset_imports={**opsets, function.domain: opsets.get(function.domain, 1)},
        name=node.op_type,
    )
    graph = common.InlinePass()(ir.Model(graph, ir_version=10, functions=[function])).model.graph
    for inner in list(graph.all_nodes()):
        inner.name = node.name or node.op_type
        inner.metadata_props.update(node.metadata_props)
    _without_absent(graph)
    return Body(graph, opsets)


def _without_absent(graph: ir.Graph) -> None:
    """An absent term or factor is left out; what is made of an absent tensor is absent."""
    for node in list(graph):
        if None not in node.inputs:
            continue
        if node.inputs[0] is None:
            for out in node.outputs:
                for user, index in list(out.uses()):
                    user.replace_input_with(index, None)
            graph.remove(node)
        elif node.op_type in ("Add", "Sub", "Mul") and not node.domain:
            node.op_type = "Identity"
            node.resize_inputs(1)


def writes(*op_types: str) -> Callable[[Writer], Writer]:
    """Register what writes the bodies of some operators."""

    def register(writer: Writer) -> Writer:
        WRITERS.update(dict.fromkeys(op_types, writer))
        return writer

    return register


def _has(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _rank(shapes: Sequence[Shape | None], index: int = 0) -> int:
    return len(shapes[index] or ())


@writes("com.microsoft.EmbedLayerNormalization")
def embed_norm(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    places = "n = Shape <start = 1, end = 2> (A) p = Slice(D, zero, n)"
    count = "rows = Shape <end = 1> (A) y1 = ConstantOfShape <value = int32[1] {0}> (rows)"
    places = "p = Gather(D, I)" if _has(node, 8) else places
    count = "y1 = ReduceSum <keepdims = 0> (H, one)" if _has(node, 7) else count
    segments = "s = Gather(E, B) y2 = Add(t, s)" if _has(node, 1) else "y2 = Identity(t)"
    epsilon = float(attr(node, "epsilon", 1e-12))
    return (
        "zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> () "
        f"w = Gather(C, A) {places} t = Add(w, p) {segments} {count} "
        f"y = LayerNormalization <axis = -1, epsilon = {epsilon:e}> (y2, F, G)"
    )


@writes("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul", "Gemm")
def scaled_product(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    text, sides = "", []
    for index, side in enumerate("AB"):
        rank = _rank(shapes, index)
        order = list(range(rank))
        if attr(node, f"transBatch{side}", 0):
            order = [*order[1:-1], 0, rank - 1]
        if attr(node, f"trans{side}", 0) and rank > 1:
            order[-2:] = order[-1], order[-2]
        is_moved = order != sorted(order)
        text += f"f{index} = Transpose <perm = {order}> ({side}) " if is_moved else ""
        sides.append(f"f{index}" if is_moved else side)
    text += f"p = MatMul({', '.join(sides)}) "
    terms = ["p"]
    if _has(node, 2):
        terms.append("C")
    for index, name in enumerate(("alpha", "beta")[: len(terms)]):
        factor = float(attr(node, name, 1.0))
        if factor != 1:
            text += f"{name} = Constant <value_float = {factor:e}> () "
            text += f"t{index} = Mul({terms[index]}, {name}) "
            terms[index] = f"t{index}"
    return text + f"y = {'Add' if len(terms) > 1 else 'Identity'}({', '.join(terms)})"


@writes("MatMulInteger")
def matmul_integer(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    """In numbers of floating point: they only say which products vanish."""
    text = "a = Cast <to = 1> (A) b = Cast <to = 1> (B) k = Constant <value_ints = [-1]> () "
    if _has(node, 2):
        each_row = _rank(shapes, 2) == 1 < _rank(shapes)
        text += f"c = Cast <to = 1> (C) z = {'Unsqueeze(c, k)' if each_row else 'Identity(c)'} "
    text += "s = Sub(a, z) " if _has(node, 2) else "s = Identity(a) "
    text += "d = Cast <to = 1> (D) t = Sub(b, d) " if _has(node, 3) else "t = Identity(b) "
    return text + "p = MatMul(s, t) y = Cast <to = 6> (p)"


@writes("com.microsoft.QGemm")
def coded_gemm(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    product = _passed("alpha: float", "transA: int", "transB: int")
    return (
        f"s = DequantizeLinear(A, B, C) p = Mul(B, E) w = DequantizeLinear <axis = 0> (G, p) "
        f"u = DequantizeLinear <axis = {1 - attr(node, 'transB', 0)}> (D, E, F) "
        f"t = Gemm {product} (s, u, w) "
        + ("y = QuantizeLinear(t, H, I)" if _has(node, 7) else "y = Identity(t)")
    )


@writes("com.microsoft.QLinearConcat")
def coded_concat(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    starts = range(2, len(node.inputs), 3)
    parts = [f"s{i} = DequantizeLinear({', '.join(_names(i, i + 3))}) " for i in starts]
    joined = f"Concat <axis = {required_attr(node, 'axis')}> ({', '.join(f's{i}' for i in starts)})"
    return "".join(parts) + f"t = {joined} y = QuantizeLinear(t, A, B)"


@writes("com.microsoft.Attention")
def projected_attention(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    """Rotary angles turn features within a head, whose sums any projection mixes: left out."""
    if _has(node, 6):
        raise UnsupportedError("a shared past buffer is not followed")
    sizes = attr(node, "qkv_hidden_sizes")
    parts = ", num_outputs = 3> (t)" if sizes is None else "> (t, sizes)"
    text = "" if sizes is None else f"sizes = Constant <value_ints = {list(sizes)}> () "
    text += f"p = MatMul(A, B) t = Add(p, C) q, k, v = Split <axis = 2{parts} "
    heads = _passed("num_heads: int", "unidirectional: int", *SCALING)
    given = f"q, k, v, , {'D' if _has(node, 3) else ''}, {'F' if _has(node, 5) else ''}"
    if not _has(node, 4) and len(node.outputs) == 1:
        return text + f"y = {CONTRIB}.MultiHeadAttention {heads} ({given})"
    if _has(node, 4):
        text += "r0, s0 = Split <axis = 0, num_outputs = 2> (E) r = Squeeze(r0, o) "
        text += "s = Squeeze(s0, o) "
        given += ", r, s"
    return (
        f"o = Constant <value_ints = [0]> () {text} "
        f"y, x, z = {CONTRIB}.MultiHeadAttention {heads} ({given}) "
        "x0 = Unsqueeze(x, o) z0 = Unsqueeze(z, o) y1 = Concat <axis = 0> (x0, z0)"
    )


@writes("com.microsoft.RotaryEmbedding")
def rotary(node: ir.Node, shapes: Sequence[Shape | None]) -> str:
    """As ONNX has it; but heads may be as wide as the angles say, and a place be the first."""
    turned = "RotaryEmbedding " + _passed("interleaved: int", "rotary_embedding_dim: int")
    text, time, x, places, y = "", 1, "A", "B", "y"
    if _rank(shapes) == 4:
        time = 2
    elif attr(node, "num_heads", 0):
        turned = turned.replace("<", "<num_heads: int = @num_heads, ")
    else:
        x, y = "x", "r"
        text = (
            "w = Shape <start = 1> (C) h = Add(w, w) lead = Constant <value_ints = [0, 0, -1]> () "
            "goal = Concat <axis = 0> (lead, h) heads = Reshape(A, goal) "
            "x = Transpose <perm = [0, 2, 1, 3]> (heads) "
        )
    if _rank(shapes, 1) == 1:
        places = "p"
        text += (
            "zero = Constant <value_int = 0> () one = Constant <value_int = 1> () "
            f"n0 = Shape <start = {time}, end = {time + 1}> (A) n = Squeeze(n0) first = Squeeze(B) "
            "steps = Range(zero, n, one) own = Add(steps, first) rows = Shape <end = 1> (A) "
            "all = Concat <axis = 0> (rows, n0) p = Expand(own, all) "
        )
    text += f"{y} = {turned} ({x}, C, D, {places}) "
    if y == "r":
        text += "o = Transpose <perm = [0, 2, 1, 3]> (r) goal0 = Shape(A) y = Reshape(o, goal0)"
    return text
