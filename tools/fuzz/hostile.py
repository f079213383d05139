"""Graphs made to harm: operators of the allow list with extreme attributes, numbers and sizes.

Each file comes from a seed. It is a valid model with a contract, of one input x (batch, seq, 8),
and of some nodes on which the output y depends. Numbers are at the ends of their types, sizes 0,
1, odd or huge, values are used by later nodes, and some graphs repeat a node that doubles.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import CONTRACT_KEY
from causal_onnx.runtime.scan.rules import ALLOWED, CONTRIB

__all__ = ["OPERATORS", "WIDTH", "hostile_model"]

OPERATORS: tuple[tuple[str, str], ...] = (*sorted(ALLOWED), ("", "If"), ("", "Loop"))

Array = np.ndarray[Any, Any]
WIDTH = 8

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    64,
    -(2**63),
    2**63 - 1,
    2**62,
    -(2**62),
    2**31,
    2**32,
    -(2**31),
)
"""What whole numbers are: most of them wrong everywhere."""

REALS = (0.0, -0.0, 1.0, -1.0, 1e-38, 3e38, float("nan"), float("inf"), -float("inf"), 0.5, 1e30)

SMALL = (1, 2, 3, 4, 8)


class _Graph:
    """One graph under construction."""

    def __init__(self, rng: random.Random, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: dict[str, list[str]] = {"float": ["x"], "int": [], "bool": []}
        self.count = 0
        self.calm = rng.random() < 0.4
        """Mostly sensible numbers, so that a good part of the graphs pass the scan and run."""

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, array: Any, dtype: Any = None) -> str:
        name = self.name()
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def integer(self) -> int:
        return self.rng.choice(SMALL if self.calm else INTEGERS)

    def small(self) -> int:
        """An attribute: sensible, or one that its 32 bits hold."""
        return self.rng.choice(SMALL if self.calm else (*SMALL, 0, -1, 2**31 - 1, -(2**31), 2**20))

    def ints(self, *values: int) -> str:
        """A constant vector; now and then one of its numbers is another."""
        numbers = list(values)
        if numbers and self.rng.random() < (0.05 if self.calm else 0.5):
            numbers[self.rng.randrange(len(numbers))] = self.rng.choice(INTEGERS)
        return self.constant(numbers, np.int64)

    def floats(self, *shape: int) -> str:
        array = np.asarray(np.random.default_rng(self.rng.getrandbits(32)).standard_normal(shape))
        if not self.calm and array.size:
            array.flat[self.rng.randrange(array.size)] = self.rng.choice(REALS)
        return self.constant(array, np.float32)

    def whole(self, shape: Sequence[int] = (3,)) -> str:
        count = int(np.prod(shape))
        numbers = [self.integer() for _ in range(count)]
        return self.constant(np.asarray(numbers, np.int64).reshape(shape))

    def tensor(self) -> str:
        """A float tensor: the input, what a node gave, or a constant with odd sizes."""
        if self.rng.random() < 0.6:
            return self.rng.choice(self.values["float"])
        sizes = (1, 2, 3, 8) if self.calm else (0, 1, 2, 3, 8, 33)
        return self.floats(*(self.rng.choice(sizes) for _ in range(self.rng.choice((1, 2, 3, 4)))))

    def integers(self) -> str:
        if self.values["int"] and self.rng.random() < 0.5:
            return self.rng.choice(self.values["int"])
        return self.whole(self.rng.choice(((), (1,), (3,), (2, 3))))

    def size(self) -> str:
        """One of the sizes that a caller chooses, as a vector of one number."""
        start = self.rng.choice((0, 1, 2))
        return self.add("Shape", ["x"], start=start, end=start + 1)

    def add(
        self, op: str, inputs: Sequence[str], outputs: int = 1, kind: str = "", *, domain: str = "",
        **attributes: Any,
    ) -> str:  # fmt: skip
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        if kind:
            self.values[kind].append(names[0])
        return names[0]


Maker = Callable[[_Graph, str, str], str]


def _unary(g: _Graph, op: str, domain: str) -> str:
    return g.add(op, [g.tensor()], kind="float", domain=domain)


def _arithmetic(g: _Graph, op: str, domain: str) -> str:
    more: dict[str, Any]
    if op in ("Div", "Mod") and not g.calm and g.rng.random() < 0.6:
        # What ends a process: the least number by -1, and anything by 0.
        pair = [g.constant([-(2**63)], np.int64), g.constant([g.rng.choice((-1, 0))], np.int64)]
        if g.rng.random() < 0.3:
            pair[1] = g.add("Sub", [g.size(), g.constant([2], np.int64)])
        return g.add(op, pair, kind="int")
    if g.rng.random() < 0.5 and op not in ("Mean", "PRelu"):
        other = g.size() if g.rng.random() < 0.4 else g.integers()
        pair = [g.integers(), other]
        g.rng.shuffle(pair)
        more = {"direction": g.rng.choice(("LEFT", "RIGHT"))} if op == "BitShift" else {}
        if op == "Mod" and g.rng.random() < 0.3:
            more["fmod"] = 1
        if op == "BitShift":
            pair = [g.add("Cast", [x], to=TensorProto.UINT64) for x in pair]
            return g.add(op, pair, **more)
        return g.add(op, pair, kind="int", **more)
    if op.startswith("Bit"):
        if op == "BitShift":
            return _arithmetic(g, op, domain)
        return g.add(op, [g.integers(), g.integers()], kind="int")
    first = g.tensor()
    more = {"fmod": 1} if op == "Mod" else {}
    return g.add(
        op,
        [first, g.rng.choice((first, g.floats(1), g.tensor()))],
        kind="float",
        **more,
    )


def _compare(g: _Graph, op: str, domain: str) -> str:
    if op in ("And", "Or", "Xor"):
        left, right = (g.add("Cast", [g.integers()], to=TensorProto.BOOL) for _ in range(2))
        return g.add(op, [left, right], kind="bool")
    return g.add(op, [g.integers(), g.integers()], kind="bool")


def _sizes(g: _Graph, rank: int) -> str:
    """A vector of that many sizes, some of the caller's choice."""
    if g.rng.random() < 0.4:
        parts = [g.size() if g.rng.random() < 0.4 else g.ints(g.integer()) for _ in range(rank)]
        return g.add("Concat", parts, axis=0)
    return g.ints(*(g.integer() for _ in range(rank)))


def _shapes(g: _Graph, op: str, domain: str) -> str:
    x = g.tensor()
    rank = g.rng.choice((1, 2, 3, 4))
    if op == "Reshape":
        goal = g.rng.choice((g.ints(0, -1), g.ints(-1), g.ints(0, 0, -1), _sizes(g, rank)))
        return g.add(op, [x, goal], kind="float", allowzero=int(g.rng.random() < 0.2))
    if op in ("Expand", "Tile"):
        return g.add(op, [g.rng.choice(("x", x)), _sizes(g, 3)], kind="float")
    if op == "ConstantOfShape":
        return g.add(op, [_sizes(g, rank)], kind="float")
    if op == "Range":
        ends = [g.constant(g.integer(), np.int64) for _ in range(3)]
        if g.rng.random() < 0.5:
            ends[1] = g.add("Squeeze", [g.size()])
        return g.add(op, ends, kind="int")
    if op == "OneHot":
        depth = g.constant([g.integer()], np.int64)
        return g.add(
            op, [g.integers(), depth, g.floats(2)], kind="float", axis=g.rng.choice((-1, 0))
        )
    if op == "EyeLike":
        return g.add(op, [g.floats(3, g.rng.choice((0, 1, 3)))], kind="float", k=g.small())
    if op == "Trilu":
        return g.add(op, ["x", g.constant(g.integer(), np.int64)], kind="float")
    if op == "Pad":
        pads = g.ints(*((g.integer() if g.rng.random() < 0.5 else 0) for _ in range(6)))
        mode = g.rng.choice(
            ("constant", "reflect", "edge", "wrap")
            if g.opset >= 19
            else ("constant", "reflect", "edge")
        )
        return g.add(op, ["x", pads], kind="float", mode=mode)
    if op in ("RandomNormal", "RandomUniform"):
        return g.add(op, [], kind="float", shape=[abs(g.small()) % 2**31 for _ in range(rank)])
    return g.add(op, [x], kind="float")


def _moves(g: _Graph, op: str, domain: str) -> str:
    x = g.tensor()
    if op == "Constant":
        return g.add(
            op, [], kind="int", value_ints=[g.integer() for _ in range(g.rng.choice((1, 3)))]
        )
    if op == "Shape":
        return g.size()
    if op == "Size":
        return g.add(op, [x], kind="int")
    if op == "Flatten":
        return g.add(op, ["x"], kind="float", axis=g.rng.choice((0, 1, 2, 3)))
    if op == "Squeeze":
        return g.add(op, [g.size(), g.ints(0)], kind="int")
    if op == "Unsqueeze":
        return g.add(op, [x, g.ints(g.rng.choice((0, 1)))], kind="float")
    if op == "Transpose":
        return g.add(op, ["x"], kind="float", perm=g.rng.choice(([0, 2, 1], [2, 1, 0], [1, 0, 2])))
    if op == "Concat":
        doubled = g.rng.choice(("x", x))
        return g.add(
            op,
            [doubled, doubled],
            kind="float",
            axis=g.rng.choice((0, 1, -1)) if doubled == "x" else 0,
        )
    if op == "Split":
        parts: dict[str, Any] = {"num_outputs": 2} if g.opset >= 18 else {}
        if g.rng.random() < 0.5:
            return g.add(op, ["x", g.ints(3, 5)], 2, "float", axis=2)
        return g.add(op, ["x"], 2, "float", axis=2, **parts)
    if op == "Slice":
        bounds = [g.ints(g.integer()) for _ in range(2)]
        steps = g.ints(g.rng.choice((1, 2, -1))) if g.calm else g.ints(g.integer())
        return g.add(op, ["x", *bounds, g.ints(g.rng.choice((0, 1, 2))), steps], kind="float")
    if op == "Gather":
        return g.add(op, [x, g.integers()], kind="float", axis=0)
    if op == "GatherElements":
        return g.add(op, ["x", g.whole((1, 1, 1))], kind="float", axis=g.rng.choice((0, 1, 2)))
    if op == "GatherND":
        return g.add(op, ["x", g.whole((2, g.rng.choice((1, 2, 3))))], kind="float")
    if op == "ScatterND":
        return g.add(op, [g.floats(8, 3), g.whole((1, 1)), g.floats(1, 3)], kind="float")
    if op == "ScatterElements":
        return g.add(
            op,
            [g.floats(8, 3), g.whole((1, 1)), g.floats(1, 1)],
            kind="float",
            axis=g.rng.choice((0, 1)),
        )
    if op == "TensorScatter":
        past = g.floats(1, 2, 16, 4)
        where = g.whole((1,))
        return g.add(
            op,
            [past, g.floats(1, 2, 3, 4), where],
            kind="float",
            mode=g.rng.choice(("linear", "circular")),
        )
    if op == "Compress":
        flags = g.constant(np.array([True, False, True]))
        along: dict[str, Any] = {"axis": 0} if g.rng.random() < 0.5 else {}
        return g.add(op, [x, flags], kind="float", **along)
    if op == "ReverseSequence":
        return g.add(op, [g.floats(4, 2), g.whole((2,))], kind="float")
    if op in ("DepthToSpace", "SpaceToDepth"):
        return g.add(op, [g.floats(1, 16, 4, 4)], kind="float", blocksize=g.small())
    if op == "NonZero":
        return g.add(op, [x], kind="int")
    return g.add(op, [x], kind="float")


def _sequences(g: _Graph, op: str, domain: str) -> str:
    first = g.tensor()
    if op == "SplitToSequence":
        made = g.add(op, [g.floats(6, 3), g.ints(2)], axis=0)
    else:
        made = g.add("SequenceConstruct", [first, first])
    if op == "SequenceLength":
        return g.add(op, [made], kind="int")
    if op == "SequenceAt":
        return g.add(
            op, [made, g.constant(g.rng.choice((0, 1, -1, g.integer())), np.int64)], kind="float"
        )
    return g.add(
        "ConcatFromSequence", [made], kind="float", axis=0, new_axis=int(g.rng.random() < 0.5)
    )


def _reductions(g: _Graph, op: str, domain: str) -> str:
    x = g.rng.choice(("x", g.tensor()))
    if op in ("ArgMax", "ArgMin"):
        return g.add(op, [x], kind="int", axis=g.rng.choice((0, -1, g.small())))
    if op in ("CumSum", "CumProd"):
        return g.add(
            op, [x, g.constant(g.rng.choice((0, -1, g.integer())), np.int64)], kind="float"
        )
    if op == "TopK":
        return g.add(
            op,
            ["x", g.ints(g.rng.choice((1, g.integer())))],
            2,
            "float",
            axis=g.rng.choice((-1, 1)),
        )
    if op in ("Softmax", "LogSoftmax", "Hardmax"):
        return g.add(op, [x], kind="float", axis=g.rng.choice((0, -1)))
    if op == "LpNormalization":
        return g.add(op, [x], kind="float", axis=-1, p=g.rng.choice((1, 2)))
    if op == "Dropout":
        return g.add(op, [x], 2, "float")
    if op == "DFT":
        source = g.add("Unsqueeze", ["x", g.ints(3)])
        length = g.constant(g.integer(), np.int64)
        if g.opset >= 20:
            return g.add(op, [source, length, g.constant(1, np.int64)], kind="float")
        return g.add(op, [source, length], kind="float", axis=1)
    if g.rng.random() < 0.3 and op in ("ReduceMax", "ReduceSum", "ReduceProd", "ReduceMean"):
        return g.add(op, [g.integers()], kind="int", keepdims=0)
    if g.opset >= 18 or op == "ReduceSum":
        return g.add(
            op, [x, g.ints(g.rng.choice((0, -1)))], kind="float", keepdims=g.rng.choice((0, 1))
        )
    return g.add(op, [x], kind="float", axes=[g.rng.choice((0, -1))])


def _norms(g: _Graph, op: str, domain: str) -> str:
    width = WIDTH if g.rng.random() < 0.8 else g.rng.choice((0, 1, 7, 16))
    if op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        more = [g.floats(width)] if op == "LayerNormalization" and g.rng.random() < 0.5 else []
        axis = -1 if g.rng.random() < 0.8 else g.small()
        return g.add(op, ["x", g.floats(width), *more], kind="float", domain=domain, axis=axis)
    if op.startswith("Skip"):
        skip = g.rng.choice(("x", g.tensor()))
        return g.add(op, ["x", skip, g.floats(width)], kind="float", domain=domain)
    channels = g.rng.choice((1, 4, 8))
    image = g.floats(2, channels, 3, g.rng.choice((1, 3)))
    if op == "BatchNormalization":
        return g.add(
            op,
            [image, *(g.floats(channels if g.rng.random() < 0.9 else 3) for _ in range(4))],
            kind="float",
        )
    if op == "GroupNormalization":
        return (
            g.add(
                op,
                [image, *(g.floats(channels) for _ in range(2))],
                kind="float",
                num_groups=abs(g.small()) or 1,
            )
            if g.opset >= 21
            else g.add(op, [image, g.floats(1), g.floats(1)], kind="float", num_groups=1)
        )
    if op == "InstanceNormalization":
        return g.add(op, [image, g.floats(channels), g.floats(channels)], kind="float")
    return g.add(op, [image], kind="float", size=g.rng.choice((1, 3, g.small())))


def _products(g: _Graph, op: str, domain: str) -> str:
    if op == "MatMulInteger":
        a = g.constant(np.ones((3, 8), np.uint8))
        b = g.constant(np.ones((g.rng.choice((8, 8, 0)), 4), np.int8))
        return g.add("Cast", [g.add(op, [a, b])], kind="float", to=1)
    if op == "Gemm":
        return g.add(
            op,
            [g.floats(3, 8), g.floats(8, g.rng.choice((0, 1, 4))), g.floats(1)],
            kind="float",
            transA=0,
        )
    if op == "Einsum":
        part = "x"
        if g.rng.random() < 0.4:
            part = g.add(
                "Slice",
                ["x", g.ints(0), g.ints(g.rng.choice((0, 1, 2))), g.ints(g.rng.choice((0, 1, 2)))],
            )
        equation = g.rng.choice(
            (
                "bij,bkj->bik",
                "bij,bij->bi",
                "abc,dbc->ad",
                "...ij,...kj->...ik",
                "bij,cdk->bijcdk",
                "iij,ikj->k",
                "bij,bkj",
            )
        )
        return g.add(op, [part, part], kind="float", equation=equation)
    if op in (
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalMaxPool",
        "GlobalAveragePool",
    ):
        image = g.rng.choice(
            (
                g.floats(1, 4, 9),
                g.floats(1, 4, g.rng.choice((0, 1, 5))),
                g.add("Transpose", ["x"], perm=[0, 2, 1]),
            )
        )
        if op.startswith("Global"):
            return g.add(op, [image], kind="float")
        channels = WIDTH if g.nodes and image == g.nodes[-1].output[0] else 4
        window: dict[str, Any] = {
            name: [g.small()] for name in ("strides", "dilations") if g.rng.random() < 0.5
        }
        if op == "AveragePool" and g.opset < 19:
            window.pop("dilations", None)
        if g.rng.random() < 0.5:
            window["pads"] = [g.small() - 1 if g.small() < 100 else g.small(), 0]
        if op.endswith("Pool"):
            return g.add(op, [image], kind="float", kernel_shape=[g.small()], **window)
        group = g.rng.choice((1, 1, channels, g.small()))
        if op == "Conv":
            weight = g.floats(channels, max(channels // max(group, 1), 1), g.rng.choice((1, 2, 3)))
        else:
            weight = g.floats(channels, 2, g.rng.choice((1, 2, 3)))
        return g.add(op, [image, weight], kind="float", group=group, **window)
    if op in ("LSTM", "GRU", "RNN"):
        gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], g.rng.choice((1, 4))
        stated = hidden if g.rng.random() < 0.7 else g.small()
        weights = [g.floats(1, gates * hidden, WIDTH), g.floats(1, gates * hidden, hidden)]
        bias = [g.floats(1, 2 * gates * hidden)] if g.rng.random() < 0.5 else [""]
        lengths = (
            [g.constant(np.array([g.integer()], np.int32))]
            if g.rng.random() < 0.1 and g.calm
            else []
        )
        return g.add(op, ["x", *weights, *bias, *lengths], kind="float", hidden_size=stated)
    left = g.tensor()
    right = g.rng.choice(
        (left, g.add("Transpose", ["x"], perm=[0, 2, 1]) if left == "x" else g.floats(WIDTH, 4))
    )
    more: dict[str, Any] = {"transB": 1} if op == "FusedMatMul" and right == left else {}
    return g.add(op, [left, right], kind="float", domain=domain, **more)


def _heads(g: _Graph) -> int:
    return g.rng.choice((1, 2, 4)) if g.calm else g.rng.choice((1, 2, 3, 4, 8, 2**14, g.small()))


def _attentions(g: _Graph, op: str, domain: str) -> str:
    heads = _heads(g)
    if op == "RotaryEmbedding":
        tables = [g.floats(g.rng.choice((4, 16)), g.rng.choice((2, 4))) for _ in range(2)]
        positions = g.constant(np.array([[g.integer() for _ in range(2)]], np.int64))
        if domain:
            return g.add(
                op, ["x", positions, *tables], kind="float", domain=domain, num_heads=heads
            )
        if g.rng.random() < 0.5:
            tables = [g.floats(1, 2, 4) for _ in range(2)]
            return g.add(op, ["x", *tables], kind="float", num_heads=heads)
        return g.add(op, ["x", *tables, positions], kind="float", num_heads=heads)
    if op == "Attention" and not domain:
        mask = (
            []
            if g.rng.random() < 0.6
            else [g.floats(g.rng.choice((1, 2)), g.rng.choice((0, 1, 2)))]
        )
        return g.add(
            op,
            ["x", "x", "x", *mask],
            kind="float",
            q_num_heads=heads,
            kv_num_heads=g.rng.choice((heads, 1)),
            is_causal=1,
        )
    if op == "Attention":
        weight = g.floats(WIDTH, g.rng.choice((24, 24, 12)))
        return g.add(op, ["x", weight, g.floats(24)], kind="float", domain=domain, num_heads=heads)
    if op == "MultiHeadAttention":
        return g.add(op, ["x", "x", "x"], kind="float", domain=domain, num_heads=heads)
    if op == "LinearAttention":
        rule = "linear" if g.calm else g.rng.choice(("linear", "gated", "delta", "gated_delta"))
        more = []
        if not g.calm:
            widths = [g.rng.choice((1, 2, 4, WIDTH)) for _ in range(2)]
            past = g.floats(g.rng.choice((0, 1, 2)), g.rng.choice((1, 2, 4)), *widths)
            more = [g.rng.choice(("", past)), g.rng.choice(("", "x")), g.rng.choice(("", "x"))]
        return g.add(
            op,
            ["x", "x", "x", *more],
            2,
            "float",
            domain=domain,
            q_num_heads=heads,
            kv_num_heads=heads if g.calm else g.rng.choice((heads, 1)),
            update_rule=rule,
        )
    batch = g.add("Shape", ["x"], start=0, end=1)
    if g.calm:
        seq = g.add("Shape", ["x"], start=1, end=2)
        last = g.add("Sub", [seq, g.ints(1)])
        lengths = g.add("Expand", [g.add("Cast", [last], to=6), batch])
        total = g.add("Squeeze", [g.add("Cast", [seq], to=6)])
    else:
        lengths = g.add(
            "Expand", [g.constant(np.array([g.rng.choice((0, -1, 2**31 - 1, 5))], np.int32)), batch]
        )
        total = g.constant(np.array(g.rng.choice((0, 1, -1, 2**31 - 1, 2**20)), np.int32))
    inputs = ["x", "x", "x", "", "", lengths, total]
    if not g.calm and g.rng.random() < 0.5:
        sizes = [g.rng.choice(some) for some in ((0, 1, 2), (1, 2, 4), (0, 1, 5), (2, 4, WIDTH))]
        inputs[3:5] = [g.floats(*sizes) for _ in range(2)]
        new = g.constant(np.array([g.rng.choice((0, 1, 2, -1, 2**31 - 1))], np.int32))
        inputs += [*[""] * 9, g.add("Expand", [new, batch])]  # query_seqlens
    return g.add(
        op,
        inputs,
        3,
        "float",
        domain=domain,
        num_heads=heads,
        kv_num_heads=g.rng.choice((heads, heads, 1)),
        local_window_size=g.rng.choice((-1, -1, 0, 1, 2**31 - 1)),
    )


def _few_bits(g: _Graph, op: str, domain: str) -> str:
    if op == "DynamicQuantizeLinear":
        g.add(op, [g.tensor()], 3)
        return g.add("Cast", [g.nodes[-1].output[0]], kind="float", to=1)
    scale = g.constant(np.float32(g.rng.choice(REALS if not g.calm else (0.5, 1.0))))
    if op == "QuantizeLinear":
        zero = g.constant(np.array(3, np.uint8))
        return g.add(
            "Cast", [g.add(op, [g.tensor(), scale, zero], domain=domain)], kind="float", to=1
        )
    if op == "DequantizeLinear":
        data = g.constant(np.ones((4, 32), np.int8))
        if domain or g.opset < 21 or g.rng.random() < 0.5:
            return g.add(op, [data, scale], kind="float", domain=domain)
        block = g.rng.choice((16, 32, g.small()))
        return g.add(
            op, [data, g.floats(4, g.rng.choice((1, 2)))], kind="float", axis=1, block_size=block
        )
    if op in ("MatMulNBits", "GatherBlockQuantized"):
        block, rows = g.rng.choice((16, 16, 32, g.small())), 4
        width = g.rng.choice((16, 32))
        if op == "MatMulNBits":
            blocks = -(-WIDTH // max(block, 1))
            weight = g.constant(
                np.ones((rows, blocks, max(block, 1) // 2 if block < 1000 else 8), np.uint8)
            )
            stated = {"K": WIDTH, "N": rows, "block_size": block, "bits": 4}
            if g.rng.random() < 0.3:
                stated[g.rng.choice(sorted(stated))] = g.small()
            return g.add(
                op, ["x", weight, g.floats(rows * blocks)], kind="float", domain=domain, **stated
            )
        table = g.constant(np.ones((rows, width // 2), np.uint8))
        scales = g.floats(rows, -(-width // max(block, 1)))
        indices = g.whole((3,))
        return g.add(
            op,
            [table, indices, scales],
            kind="float",
            domain=domain,
            gather_axis=0,
            quantize_axis=1,
            block_size=block,
            bits=4,
        )
    a = g.constant(np.ones((3, 8), np.uint8))
    b = g.constant(np.ones((8, 4), np.int8))
    one, zero, minus = (
        g.constant(np.float32(1)),
        g.constant(np.array(0, np.uint8)),
        g.constant(np.array(0, np.int8)),
    )
    if op == "QLinearMatMul":
        made = g.add(op, [a, one, zero, b, one, minus, scale, zero])
        return g.add("Cast", [made], kind="float", to=1)
    if op == "MatMulIntegerToFloat":
        return g.add(op, [a, b, one, scale, zero, minus], kind="float", domain=domain)
    return g.add(op, ["x", b, scale, minus], kind="float", domain=domain)


def _others(g: _Graph, op: str, domain: str) -> str:
    if op == "Where":
        condition = g.add("Cast", [g.integers()], to=9)
        return g.add(op, [condition, g.constant(g.integer(), np.int64), g.integers()], kind="int")
    if op == "Clip":
        return g.add(op, [g.integers(), g.constant(g.integer(), np.int64)], kind="int")
    if op == "Cast":
        to = g.rng.choice((1, 6, 7, 9, 10, 11))
        return g.add("Cast", [g.add(op, [g.tensor()], to=to)], kind="int", to=7)
    if op == "CastLike":
        return g.add(op, [g.tensor(), g.integers()], kind="int")
    if op in ("Not", "IsNaN", "IsInf"):
        source = g.add("Cast", [g.integers()], to=9) if op == "Not" else g.tensor()
        return g.add(op, [source], kind="bool")
    if op == "BitwiseNot":
        return g.add(op, [g.integers()], kind="int")
    if op == "BiasGelu":
        return g.add(op, ["x", g.floats(WIDTH)], kind="float", domain=domain)
    if op in ("Abs", "Neg") and g.rng.random() < 0.5:
        return g.add(op, [g.integers()], kind="int")
    return g.add(op, [g.tensor()], kind="float", domain=domain)


def _control(g: _Graph, op: str, domain: str) -> str:
    source = g.rng.choice(g.values["float"])
    inner = helper.make_node("Identity", [source], ["inner"])
    true = g.constant(np.array(True))
    if op == "If":
        sides = []
        for side in ("then", "else"):
            out = helper.make_tensor_value_info(f"{side}{g.count}", 1, None)
            body = helper.make_node("Concat", [source, source], [out.name], axis=0)
            sides.append(helper.make_graph([body], side, [], [out]))
        return g.add(op, [true], kind="float", then_branch=sides[0], else_branch=sides[1])
    count = (
        g.add("Squeeze", [g.size()]) if g.rng.random() < 0.5 else g.constant(g.integer(), np.int64)
    )
    inputs = [
        helper.make_tensor_value_info("step", 7, []),
        helper.make_tensor_value_info("going", 9, []),
    ]
    outputs = [
        helper.make_tensor_value_info("on", 9, []),
        helper.make_tensor_value_info("inner", 1, None),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), inner], "body", inputs, outputs
    )
    return g.add(op, [count, true], kind="float", body=body)


_FAMILIES: tuple[tuple[str, Maker], ...] = (
    (
        "Add Sub Mul Div Mod Max Min Sum Mean Pow PRelu BitShift BitwiseAnd BitwiseOr BitwiseXor",
        _arithmetic,
    ),
    (
        "And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual",
        _compare,
    ),
    (
        "Reshape Expand Tile ConstantOfShape Range OneHot EyeLike Trilu Pad RandomNormal "
        "RandomUniform",
        _shapes,
    ),
    (
        "Constant Shape Size Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather "
        "GatherElements GatherND ScatterND ScatterElements TensorScatter Compress "
        "ReverseSequence DepthToSpace SpaceToDepth NonZero Identity",
        _moves,
    ),
    (
        "SequenceConstruct SequenceAt SequenceLength ConcatFromSequence SplitToSequence",
        _sequences,
    ),
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare ArgMax ArgMin CumSum CumProd TopK Softmax "
        "LogSoftmax Hardmax LpNormalization Dropout DFT",
        _reductions,
    ),
    (
        "LayerNormalization RMSNormalization SimplifiedLayerNormalization "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization BatchNormalization "
        "InstanceNormalization GroupNormalization LRN",
        _norms,
    ),
    (
        "MatMul MatMulInteger Gemm Einsum FusedMatMul Conv ConvTranspose AveragePool MaxPool "
        "GlobalAveragePool GlobalMaxPool GRU LSTM RNN",
        _products,
    ),
    (
        "Attention RotaryEmbedding GroupQueryAttention MultiHeadAttention LinearAttention",
        _attentions,
    ),
    (
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearMatMul "
        "DynamicQuantizeMatMul MatMulIntegerToFloat MatMulNBits GatherBlockQuantized",
        _few_bits,
    ),
    (
        "Where Clip Cast CastLike Not IsNaN IsInf BitwiseNot BiasGelu Abs Neg",
        _others,
    ),
    (
        "If Loop",
        _control,
    ),
)
MAKERS: dict[str, Maker] = {name: make for names, make in _FAMILIES for name in names.split()}


def _of_rank(g: _Graph, name: str, kind: str) -> str:
    """Any value as one number, which is added to the output: it is computed then."""
    if kind != "float":
        name = g.add("Cast", [name], to=1)
    flat = g.add("Reshape", [name, g.constant([-1], np.int64)])
    joined = g.add("Concat", [flat, g.constant([0.0], np.float32)], axis=0)
    return g.add("ReduceMax", [joined], keepdims=0)


def hostile_model(seed: int) -> bytes:
    """The file of a seed, which is about the operator `OPERATORS[seed % len(OPERATORS)]`."""
    rng = random.Random(seed)
    domain, op = OPERATORS[seed % len(OPERATORS)]
    since = max(ALLOWED[domain, op].since if (domain, op) in ALLOWED else 13, 13)
    g = _Graph(rng, rng.choice([n for n in (13, 17, 18, 20, 21, 23, 24) if n >= since] or [since]))
    kinds = ("int", "float")
    for _ in range(rng.choice((0, 0, 1, 2))):
        other_domain, other = rng.choice(OPERATORS)
        rule = ALLOWED.get((other_domain, other))
        if rule is None or rule.since <= g.opset:
            MAKERS.get(other, _unary)(g, other, other_domain)
    MAKERS.get(op, _unary)(g, op, domain)
    if rng.random() < 0.15:
        # Again and again, from what it gave.
        doubling = rng.choice(("Concat", "MatMul", "Mul"))
        value = g.rng.choice(g.values["float"])
        for _ in range(rng.choice((3, 12, 40))):
            more: dict[str, Any] = {"axis": 0} if doubling == "Concat" else {}
            value = g.add(doubling, [value, value], kind="float", **more)
    if rng.random() < 0.2:
        stated = _sizes(g, 2)
        g.add("ConstantOfShape", [stated], kind="float")
    parts = []
    for kind in kinds:
        parts += [(name, kind) for name in g.values[kind][-3:] if name != "x"]
    sums = [_of_rank(g, name, kind) for name, kind in parts]
    total = sums[0] if sums else g.constant(np.float32(0))
    for part in sums[1:]:
        total = g.add("Add", [total, part])
    g.nodes.append(helper.make_node("Add", ["x", total], ["y"]))
    return _written(g)


def _written(g: _Graph) -> bytes:
    axes = ("batch", "seq", WIDTH)
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=axes),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=axes),),
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy"]
    graph = helper.make_graph(g.nodes, "g", values[:1], values[1:], g.initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", g.opset), helper.make_opsetid(CONTRIB, 1)],
        ir_version=10,
    )
    helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
    content: bytes = model.SerializeToString()
    return content
