"""Nodes that state the size of what they give, and values that grow from constants alone.

onnxruntime computes what depends on constants only while it loads a file, so a file of some hundred
bytes can ask for any amount of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from causal_onnx.runtime.scan.numbers import Known

__all__ = ["Constant", "constant_size", "stated_elements"]


def stated_elements(
    op_type: str, inputs: Sequence[Known | None], numbers: dict[str, list[int]]
) -> float:
    """How many elements a node gives at least, by what it states itself; 0: it states nothing."""
    if op_type in _SHAPE_INPUT:
        for index in _SHAPE_INPUT[op_type]:
            value = inputs[index] if index < len(inputs) else None
            if value is not None:
                return value.least_product()
        return 0
    if op_type in _SHAPE_ATTRIBUTE:
        return math.prod(max(size, 1) for size in numbers.get(_SHAPE_ATTRIBUTE[op_type], ()))
    if op_type == "Range":
        return _steps(inputs)
    if op_type in ("Pad", "CenterCropPad"):
        pads = inputs[1] if len(inputs) > 1 else None
        return _padded(pads, numbers)
    return 0


_SHAPE_INPUT = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "Resize": (3, 2),
    "Upsample": (1,),
    "OneHot": (1,),
    "Col2Im": (1,),
    "MaxUnpool": (2,),
    "DFT": (1,),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
}
"""Operator -> the inputs of which one holds a shape, or factors of it."""

_SHAPE_ATTRIBUTE = {
    "RandomNormal": "shape",
    "RandomUniform": "shape",
    "ConvTranspose": "output_shape",
}


def _steps(inputs: Sequence[Known | None]) -> float:
    bounds = [None if value is None else value.exact for value in inputs]
    if len(bounds) != 3 or any(bound is None or len(bound) != 1 for bound in bounds):
        return 0
    start, limit, delta = (bound[0] for bound in bounds if bound is not None)
    return max(0.0, (limit - start) / delta) if delta else 0


def _padded(pads: Known | None, numbers: dict[str, list[int]]) -> float:
    sizes: list[float] = [*numbers.get("pads", ())]
    if not sizes and pads is not None:
        sizes = [low for low, _ in pads.items or ()]
    half = len(sizes) // 2
    before, after = sizes[:half], sizes[half : 2 * half]
    return math.prod(1 + max(a, 0) + max(b, 0) for a, b in zip(before, after, strict=True))


@dataclass(frozen=True, slots=True)
class Constant:
    """The size of a value that depends on constants alone."""

    elements: float
    """At most."""
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Constant:
        return cls(math.prod(shape), tuple(shape))


def constant_size(
    op_type: str, inputs: Sequence[Constant], stated: float, numbers: dict[str, list[int]]
) -> Constant:
    """A bound on what a node gives whose inputs are all constant.

    Args:
        op_type: The operator.
        inputs: Their sizes.
        stated: What `stated_elements` found.
        numbers: Its integer attributes.
    """
    largest = max((value.elements for value in inputs), default=1)
    total = sum(value.elements for value in inputs)
    if op_type in ("Tile", "Expand", "Resize", "Upsample", "Pad", "OneHot"):
        first = inputs[0].elements if inputs else 1
        # An Expand to a shape that is stated gives just that, unless the value is larger.
        return Constant(max(stated, first) if op_type == "Expand" else max(stated, 1) * first)
    if op_type == "Concat":
        return Constant(total)
    if op_type in ("Identity", "Cast", "Neg", "Not", "Abs", "Sqrt", "Exp") and inputs:
        return inputs[0]
    if op_type == "Transpose" and inputs and inputs[0].shape is not None:
        shape, order = inputs[0].shape, numbers.get("perm") or range(len(inputs[0].shape))[::-1]
        if sorted(order) == list(range(len(shape))):
            return Constant.of_shape([shape[axis] for axis in order])
    if op_type == "Gather" and len(inputs) == 2:
        data, indices = inputs
        axis = numbers.get("axis", [0])[0]
        if data.shape and -len(data.shape) <= axis < len(data.shape):
            return Constant(data.elements / max(data.shape[axis], 1) * indices.elements)
        return Constant(data.elements * indices.elements)
    if op_type in _PRODUCTS and len(inputs) >= 2:
        a, b = inputs[0].shape, inputs[1].shape
        if op_type == "MatMul" and a and b and len(a) >= 2 and len(b) >= 2:
            batch = max(math.prod(a[:-2]), 1) * max(math.prod(b[:-2]), 1)
            given = batch * a[-2] * b[-1]
            return Constant(max(given, given * a[-1] / PRODUCTS_PER_ELEMENT))
        return Constant(math.prod(max(value.elements, 1) for value in inputs[:2]))
    if op_type in _BROADCASTING:
        return _broadcast(inputs)
    # Everything else reorders, selects or reduces.
    return Constant(max(largest, stated, total if op_type in _JOINING else 0))


PRODUCTS_PER_ELEMENT = 64
"""Multiplications that take as long as writing one element, roughly: a product of constants is paid
for while a file loads."""

_PRODUCTS = frozenset(
    {
        "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "ConvInteger", "MatMulInteger",
        "QLinearMatMul", "QLinearConv", "Attention", "MultiHeadAttention", "GroupQueryAttention",
        "FusedMatMul", "MatMulNBits", "MatMulBnb4", "LSTM", "GRU", "RNN",
    }
)  # fmt: skip
"""Operators that can cost as much as the product of their inputs' sizes."""

_BROADCASTING = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "And", "Or",
        "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "PRelu", "BitwiseAnd",
        "BitwiseOr", "BitwiseXor", "BitShift",
    }
)  # fmt: skip
_JOINING = frozenset(("SequenceConstruct", "ConcatFromSequence", "SequenceInsert"))


def _broadcast(inputs: Sequence[Constant]) -> Constant:
    shapes = [value.shape for value in inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) == len(inputs):
        rank = max(map(len, known))
        padded = [(1,) * (rank - len(shape)) + shape for shape in known]
        return Constant.of_shape([max(sizes) for sizes in zip(*padded, strict=True)])
    # Of one element, the other's size is the result's.
    return Constant(math.prod(max(value.elements, 1) for value in inputs))
