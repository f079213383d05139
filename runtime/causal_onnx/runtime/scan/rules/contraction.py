"""Operators that multiply and add: products of matrices, convolutions, pools, recurrences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from causal_onnx.runtime.scan.rules.elementwise import broadcast
from causal_onnx.runtime.scan.sizes import (
    Number,
    Size,
    add,
    between,
    divide,
    high_of,
    multiply,
    subtract,
)
from causal_onnx.runtime.scan.values import FLOAT, INT32, Node, Shape, Value, extent

__all__ = [
    "conv", "conv_transpose", "einsum", "fused_matmul", "gemm", "global_pool", "matmul",
    "matmul_shape", "pool", "recurrent",
]  # fmt: skip

SLOW = 8
"""Multiplications of whole numbers and of doubles, and such as need no packed kernel."""


def _same(node: Node, a: Number, b: Number, what: str) -> None:
    if not isinstance(a, Size) and not isinstance(b, Size) and a != b:
        node.refuse(f"multiplies {what} of the sizes {a} and {b}, which do not fit")


def matmul_shape(node: Node, a: Shape, b: Shape) -> tuple[Shape, Number]:
    """The shape of a product of (stacks of) matrices, and over how many numbers it sums."""
    if not a or not b:
        node.refuse("multiplies a scalar")
    rows, columns = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    _same(node, rows[-1], columns[-2], "matrices")
    stack = broadcast(node, [rows[:-2], columns[:-2]])
    shape = (*stack, *(rows[-2:-1] if len(a) > 1 else ()), *(columns[-1:] if len(b) > 1 else ()))
    # Whichever is larger: where they differ, it is an error.
    inner = rows[-1] if extent(rows[-1]) >= extent(columns[-2]) else columns[-2]
    return shape, inner


def _cost(dtype: int) -> float:
    return 1 if dtype == FLOAT else SLOW


def _product(node: Node, a: Value, b: Value, dtype: int) -> list[Value]:
    shape, inner = matmul_shape(node, a.shape, b.shape)
    result = node.result(dtype, shape)
    node.work += result.elements * extent(inner) * _cost(a.dtype)
    node.scratch += b.bytes  # packed once more
    return [result]


def matmul(node: Node) -> list[Value]:
    """A product of (stacks of) matrices."""
    a, b = node.input(0), node.input(1)
    return _product(node, a, b, a.dtype if node.op_type == "MatMul" else INT32)


def fused_matmul(node: Node) -> list[Value]:
    """A product of matrices, each transposed or not."""
    sides = []
    for index, name in ((0, "transA"), (1, "transB")):
        value = node.input(index)
        shape = list(value.shape)
        if node.number(f"transBatch{name[-1]}", 0):
            node.refuse("moves the axes of a stack")
        if node.number(name, 0) and len(shape) > 1:
            shape[-2:] = shape[:-3:-1]
        sides.append(node.result(value.dtype, shape))
    left, right = sides
    return _product(node, left, right, left.dtype)


def gemm(node: Node) -> list[Value]:
    """A product of two matrices, and a sum."""
    a, b = (node.ranked(index, 2).shape for index in (0, 1))
    rows, inner = reversed(a) if node.number("transA", 0) else a
    other, columns = reversed(b) if node.number("transB", 0) else b
    _same(node, inner, other, "matrices")
    result = node.result(node.input(0).dtype, (rows, columns))
    if node.has(2):
        broadcast(node, [result.shape, node.ranked(2, 0, 1, 2).shape])
    node.work += result.elements * max(extent(inner), extent(other)) * _cost(result.dtype)
    node.scratch += node.input(1).bytes
    return [result]


def einsum(node: Node) -> list[Value]:
    """Einstein's sums; empty tensors end the process (SIGFPE)."""
    text = node.attributes.get("equation", {}).get("text", b"").decode("ascii", "replace")
    equation = text.replace(" ", "")
    term = r"[A-Za-z]*(?:\.\.\.)?[A-Za-z]*"
    match = re.fullmatch(rf"({term}(?:,{term})*)(?:->({term}))?", equation)
    terms = [] if match is None else match[1].split(",")
    if match is None or len(terms) != len(node.inputs):
        node.refuse(f"has {len(node.inputs)} inputs and the equation {text[:80]!r}")
    # The axes of "..." by other letters: digits, which an equation has not.
    hidden = len(node.input(0).shape) - len(terms[0].replace("...", ""))
    if not 0 <= hidden <= 9 or len({"..." in part for part in terms}) != 1:
        node.refuse(f"has the equation {text[:80]!r}, expected '...' in all terms or in none")
    dots = "0123456789"[:hidden]
    sizes: dict[str, Number] = {}
    terms = [part.replace("...", dots) for part in terms]
    for index, letters in enumerate(terms):
        value = node.ranked(index, len(letters))
        node.nonempty(value)
        for letter, size in zip(letters, value.shape, strict=True):
            before = sizes.get(letter)
            if before not in (None, size) and 1 in (before, size) and letter not in dots:
                node.refuse(f"broadcasts the axis {letter!r}")
            if before is None or extent(size) > extent(before):
                sizes[letter] = size
    joined = "".join(terms)
    last = match[2]
    if last is None:
        last = "..." * ("..." in match[1]) + "".join(
            sorted(x for x in sizes if joined.count(x) == 1 and x not in dots)
        )
    last = last.replace("...", dots)
    if len(set(last)) != len(last) or not set(last) <= set(sizes):
        node.refuse(f"has the equation {text[:80]!r}, whose result is none of its axes, once each")
    result = node.result(node.input(0).dtype, [sizes[letter] for letter in last])
    # Tensors are multiplied one after the other. An axis is summed over with the last tensor that
    # has it, if the result has not. Each tensor and product may be there in two orders of its axes.
    node.transient += 2 * sum(node.input(index).bytes for index in range(len(terms)))
    kept = terms[0]
    for place, letters in enumerate(terms[1:] or [""], 1):
        both = set(kept + letters)
        node.work += math.prod(extent(sizes[x]) for x in both) * _cost(result.dtype)
        kept = "".join(sorted(both.intersection("".join([last, *terms[place + 1 :]]))))
        node.transient += 2 * node.result(result.dtype, [sizes[x] for x in kept]).bytes
    node.transient -= result.bytes  # which is one of the last two
    return [result]


def _window(node: Node, rank: int, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads of a convolution or pool over `rank` axes."""
    strides = node.several("strides") or [1] * rank
    dilations = node.several("dilations") or [1] * rank
    pads = node.several("pads") or [0] * (2 * rank)
    if not (len(kernel) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank):
        node.refuse(f"has a kernel, strides, dilations or pads of another rank than {rank}")
    if min((*kernel, *strides, *dilations)) < 1 or min(pads) < 0:
        node.refuse("has a kernel, stride or dilation below 1, or a pad below 0")
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        # More than that is never read; onnxruntime computes with 32 bits here and there.
        if reach >= 1 << 24 or strides[axis] >= 1 << 24:
            node.refuse(f"has a window of {reach} positions with the stride {strides[axis]}")
        if max(pads[axis], pads[axis + rank]) >= reach:
            node.refuse(
                f"has the pads {pads[axis]} and {pads[axis + rank]} around a window of {reach}"
            )
    return strides, dilations, pads


def _slid(node: Node, places: Sequence[Number], kernel: Sequence[int]) -> list[Number]:
    """How often a window fits along each axis."""
    rank = len(places)
    strides, dilations, pads = _window(node, rank, kernel)
    mode = node.attributes.get("auto_pad", {}).get("text", b"NOTSET")
    shape: list[Number] = []
    for axis, size in enumerate(places):
        if mode != b"NOTSET":
            shape.append(between((0,), high_of(add(size, 1))))
            continue
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        room = add(size, pads[axis] + pads[axis + rank] - reach)
        if strides[axis] == 1:
            shape.append(add(room, 1))
        elif isinstance(room, Size):
            shape.append(
                between((0,), high_of(add(divide(add(size, sum(pads)), strides[axis]), 1)))
            )
        else:
            spare = strides[axis] - 1 if node.number("ceil_mode", 0) else 0
            shape.append((int(room) + spare) // strides[axis] + 1)
    return [_positive(node, size) for size in shape]


def _positive(node: Node, size: Number) -> Number:
    if not isinstance(size, Size) and size < 1:
        node.refuse("has a window that is larger than its input")
    return size


def conv(node: Node) -> list[Value]:
    """A convolution over 1 to 3 axes."""
    value = node.ranked(0, 3, 4, 5)
    weight = node.ranked(1, len(value.shape))
    node.nonempty(value)
    groups = node.number("group", 1)
    sizes = [*weight.shape, value.shape[1]]
    if any(isinstance(size, Size) for size in sizes):
        node.refuse("has a kernel or channels whose sizes the file does not state")
    filters, depth, *kernel, channels = (int(size) for size in sizes)  # type: ignore[arg-type]
    if groups < 1 or channels != depth * groups or filters % groups or filters < 1 or depth < 1:
        node.refuse(
            f"has {groups} groups, {filters} kernels of {depth} channels and {channels} channels"
        )
    if (node.several("kernel_shape") or kernel) != kernel:
        node.refuse("states another shape of its kernel than it has")
    if node.has(2) and node.ranked(2, 1).shape[0] != filters:
        node.refuse("has another number of biases than of kernels")
    places = _slid(node, value.shape[2:], kernel)
    result = node.result(value.dtype, (value.shape[0], filters, *places))
    each = depth * math.prod(kernel)
    node.work += result.elements * each * (_cost(value.dtype) + 1)
    # The input unfolded, once for each kernel position.
    node.transient += math.prod(map(extent, places)) * depth * groups * math.prod(kernel) * 4
    return [result]


def conv_transpose(node: Node) -> list[Value]:
    """The transpose of a convolution: longer by its stride."""
    value = node.ranked(0, 3, 4, 5)
    weight = node.ranked(1, len(value.shape))
    node.nonempty(value)
    if any(name in node.attributes for name in ("output_shape", "auto_pad")):
        node.refuse("states the shape of its result, or pads by itself")
    sizes = [*weight.shape, value.shape[1]]
    if any(isinstance(size, Size) for size in sizes):
        node.refuse("has a kernel or channels whose sizes the file does not state")
    depth, filters, *kernel, channels = (int(size) for size in sizes)  # type: ignore[arg-type]
    groups = node.number("group", 1)
    if groups < 1 or channels != depth or channels % groups or filters < 1 or channels < 1:
        node.refuse(f"has {groups} groups, kernels of {depth} channels and {channels} channels")
    if (node.several("kernel_shape") or kernel) != kernel:
        node.refuse("states another shape of its kernel than it has")
    if node.has(2) and node.ranked(2, 1).shape[0] != filters * groups:
        node.refuse("has another number of biases than of kernels")
    rank = len(kernel)
    strides, dilations, pads = _window(node, rank, kernel)
    more = node.several("output_padding") or [0] * rank
    if len(more) != rank or any(
        not 0 <= x < max(s, d) for x, s, d in zip(more, strides, dilations, strict=True)
    ):
        node.refuse(f"has the output padding {more}")
    places: list[Number] = []
    for axis, size in enumerate(value.shape[2:]):
        reach = (kernel[axis] - 1) * dilations[axis] + 1 + more[axis]
        apart = subtract(size, 1)
        whole = add(multiply(apart, strides[axis]), reach - pads[axis] - pads[axis + rank])
        places.append(_positive(node, whole))
    result = node.result(value.dtype, (value.shape[0], filters * groups, *places))
    node.work += value.elements * filters * math.prod(kernel) * (_cost(value.dtype) + 1)
    node.transient += value.elements * filters * math.prod(kernel) * 4
    return [result]


def pool(node: Node) -> list[Value]:
    """The largest or the mean of each window."""
    value = node.ranked(0, 3, 4, 5)
    node.nonempty(value)
    kernel = node.several("kernel_shape") or []
    places = _slid(node, value.shape[2:], kernel)
    result = node.result(value.dtype, (*value.shape[:2], *places))
    node.work += result.elements * math.prod(kernel) * 2
    where = node.result(7, result.shape)
    return [result, where][: max(node.outputs, 1)]


def global_pool(node: Node) -> list[Value]:
    """The largest or the mean of all places."""
    value = node.ranked(0, 3, 4, 5)
    node.nonempty(value)
    return [node.result(value.dtype, (*value.shape[:2], *(1 for _ in value.shape[2:])))]


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(node: Node) -> list[Value]:
    """LSTM, GRU and RNN over (seq, batch, features)."""
    gates = GATES[node.op_type]
    value, weight, recurrence = (node.ranked(index, 3) for index in range(3))
    for part in (value, weight, recurrence):
        node.nonempty(part)
    hidden = node.number("hidden_size")
    mode = node.attributes.get("direction", {}).get("text", b"forward")
    both = 2 if mode == b"bidirectional" else 1
    if mode not in (b"forward", b"reverse", b"bidirectional") or node.number("layout", 0):
        node.refuse("has a direction or a layout that exports do not have")
    own = {"activation_alpha", "activation_beta", "clip"}
    if node.op_type != "RNN":
        own.add("activations")  # of a plain RNN there are two, and onnxruntime checks the name
    if own & node.attributes.keys():
        node.refuse("has functions of its own")
    width = value.shape[2]
    if weight.shape != (both, gates * hidden, width) or hidden < 1:
        node.refuse(f"has weights that are not ({both}, {gates * hidden}, {width})")
    if recurrence.shape != (both, gates * hidden, hidden):
        node.refuse(f"has recurrent weights that are not ({both}, {gates * hidden}, {hidden})")
    if node.has(3) and node.input(3).shape != (both, 2 * gates * hidden):
        node.refuse(f"has biases that are not ({both}, {2 * gates * hidden})")
    if node.has(4) and node.ranked(4, 1).dtype != INT32:  # the kernel checks its shape and values
        node.refuse("has lengths of rows that are not int32")
    seq, batch = value.shape[:2]
    for index in (5, 6):
        if node.has(index):
            start = node.ranked(index, 3)
            node.nonempty(start)
            if start.shape[0] != both or start.shape[2] != hidden:
                node.refuse(f"has a first state that is not ({both}, batch, {hidden})")
    if node.has(7) and node.input(7).shape != (both, 3 * hidden):
        node.refuse(f"has peepholes that are not ({both}, {3 * hidden})")
    full = node.result(value.dtype, (seq, both, batch, hidden))
    last = node.result(value.dtype, (both, batch, hidden))
    node.work += full.elements * gates * (extent(width) + hidden + 32)
    node.transient += full.bytes * gates * 4
    node.scratch += weight.bytes + recurrence.bytes
    return [full, last, last][: max(node.outputs, 1)]
