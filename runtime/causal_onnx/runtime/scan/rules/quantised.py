"""Operators on numbers of few bits: scales, and products of weights in blocks."""

from __future__ import annotations

from causal_onnx.runtime.scan.numbers import anything
from causal_onnx.runtime.scan.rules.contraction import SLOW, matmul_shape
from causal_onnx.runtime.scan.sizes import Number, Size
from causal_onnx.runtime.scan.tensors import BITS
from causal_onnx.runtime.scan.values import FLOAT, UINT8, Node, Value, extent

__all__ = [
    "dequantize", "dynamic_matmul", "dynamic_quantize", "gather_block", "integer_to_float",
    "matmul_blocks", "qlinear_matmul", "quantize",
]  # fmt: skip


def _scaled(node: Node) -> Value:
    """Data with a scale: for all, for each row of an axis, or for each block along it."""
    value, scale = node.input(0), node.input(1)
    rank = len(value.shape)
    block = node.number("block_size", 0)
    axis = node.number("axis", 1)
    if len(scale.shape) > 1 or block:
        axis = node.axis(axis, rank)
        if block < 1 or len(scale.shape) != rank:
            node.refuse(f"has a scale of rank {len(scale.shape)} and blocks of {block}")
        for index, (size, groups) in enumerate(zip(value.shape, scale.shape, strict=True)):
            if index == axis and isinstance(size, Size):
                node.refuse("has blocks along an axis whose size the file does not state")
            if groups != (-(-int(size) // block) if index == axis else size):  # type: ignore[arg-type]
                node.refuse(f"has scales that are not one for each {block} along axis {axis}")
    elif scale.shape not in ((), (1,)):
        axis = node.axis(axis, rank)
        if scale.shape[0] != value.shape[axis]:
            node.refuse(f"has scales that are not one for each row of axis {axis}")
    if node.has(2) and node.input(2).shape != scale.shape:
        node.refuse("has zero points of another shape than its scales")
    return value


def quantize(node: Node) -> list[Value]:
    """Numbers of few bits, by a scale."""
    value = _scaled(node)
    dtype = node.input(2).dtype if node.has(2) else node.number("output_dtype", 0) or UINT8
    return [node.result(dtype, value.shape, anything(dtype))]


def dequantize(node: Node) -> list[Value]:
    """Numbers of few bits times a scale."""
    value = _scaled(node)
    return [node.result(node.number("output_dtype", 0) or node.input(1).dtype, value.shape)]


def dynamic_quantize(node: Node) -> list[Value]:
    """Eight bits by a scale of the data's own."""
    value = node.input(0)
    node.nonempty(value)
    number = node.result(FLOAT, ())
    return [node.result(UINT8, value.shape), number, node.result(UINT8, ())][: node.outputs]


def _zero_points(node: Node, *indices: int) -> None:
    for index in indices:
        if node.has(index):
            node.nonempty(node.ranked(index, 0, 1, 2))


def _product(node: Node, a: Value, b: Value, dtype: int) -> list[Value]:
    node.nonempty(b)
    shape, inner = matmul_shape(node, a.shape, b.shape)
    result = node.result(dtype, shape)
    node.work += result.elements * extent(inner) * SLOW
    node.scratch += result.elements * 4 + a.bytes + b.bytes
    return [result]


def qlinear_matmul(node: Node) -> list[Value]:
    """A product of matrices of 8 bits, in 8 bits."""
    _zero_points(node, 1, 2, 4, 5, 6, 7)
    for index in (6, 7):
        if node.input(index).count != 1:
            node.refuse("has a scale of the result for each row")
    for matrix, axis, indices in ((0, -2, (1, 2)), (3, -1, (4, 5))):
        value = node.input(matrix)
        for index in indices:
            if node.input(index).count not in (1, _row(value, axis)):
                node.refuse(f"has an input {index} that is not one number, or one for each row")
    return _product(node, node.input(0), node.input(3), node.input(7).dtype)


def _row(value: Value, axis: int) -> Number:
    return value.shape[axis] if len(value.shape) >= 2 else 1


def dynamic_matmul(node: Node) -> list[Value]:
    """A product of floats and a weight of 8 bits, in 8 bits."""
    node.nonempty(node.input(0))
    _columns(node, 1, 2, 3, 4)
    return _product(node, node.input(0), node.ranked(1, 2), FLOAT)


def _columns(node: Node, weight: int, *indices: int) -> None:
    """One number, or one for each column of the weight."""
    columns = node.ranked(weight, 2).shape[1]
    for index in indices:
        if node.has(index) and node.input(index).shape not in ((), (1,), (columns,)):
            node.refuse(f"has an input {index} that is not one number for each column")


def integer_to_float(node: Node) -> list[Value]:
    """A product of matrices of 8 bits, as floats by two scales."""
    node.nonempty(node.input(0))
    for index in (2, 4):
        if node.has(index) and node.input(index).count != 1:
            node.refuse("has a scale or zero point of its first matrix for each row")
    _columns(node, 1, 3, 5, 6)
    return _product(node, node.input(0), node.ranked(1, 2), FLOAT)


def matmul_blocks(node: Node) -> list[Value]:
    """MatMulNBits: a product with a weight of 2 to 8 bits, a scale for each block."""
    value = node.input(0)
    node.nonempty(value)
    inner, columns = node.number("K"), node.number("N")
    bits, block = node.number("bits", 4), node.number("block_size")
    if inner < 1 or columns < 1 or bits not in (2, 4, 8):
        node.refuse(f"has K = {inner}, N = {columns} and {bits} bits")
    if not 16 <= block <= 1 << 12 or block & (block - 1):
        node.refuse(f"has blocks of {block}, expected a power of 2 from 16 on")
    if not value.shape or value.shape[-1] != inner:
        node.refuse(f"has an input that is not {inner} wide")
    blocks = -(-inner // block)
    packed = -(-blocks * bits // 8)
    expected: dict[int, list[tuple[int, ...]]] = {
        1: [(columns, blocks, block * bits // 8)],
        2: [(columns * blocks,), (columns, blocks)],
        3: [(columns * packed,), (columns, packed), (columns * blocks,), (columns, blocks)],
        4: [(inner,), (blocks * block,)],
        5: [(columns,)],
    }
    for index, shapes in expected.items():
        if node.has(index) and node.input(index).shape not in shapes:
            node.refuse(f"has an input {index} that is not of the shape {shapes[0]}")
    if node.has(4):
        node.refuse("has the order of its groups, which exports do not have")
    if (
        node.has(3)
        and node.input(3).dtype == UINT8
        and node.input(3).shape not in ((columns * packed,), (columns, packed))
    ):
        node.refuse(f"has zero points that are not of the shape {(columns, packed)}")
    result = node.result(value.dtype, (*value.shape[:-1], columns))
    node.work += result.elements * inner * 2
    node.scratch += value.bytes * 4 + columns * inner * 4
    return [result]


def gather_block(node: Node) -> list[Value]:
    """GatherBlockQuantized: rows of a table of few bits, as floats."""
    table, indices, scales = node.ranked(0, 2), node.input(1), node.ranked(2, 2)
    node.nonempty(table)
    block, bits = node.number("block_size", 128), node.number("bits", 4)
    if node.number("gather_axis", 0) or node.number("quantize_axis", 1) not in (1, -1):
        node.refuse("takes columns, or has blocks along columns")
    if not 16 <= block <= 1 << 12 or block & (block - 1) or bits not in (4, 8):
        node.refuse(f"has blocks of {block} numbers of {bits} bits")
    if any(isinstance(size, Size) for size in (*table.shape, *scales.shape)):
        node.refuse("has a table whose shape the file does not state")
    rows, width = (int(size) for size in table.shape)  # type: ignore[arg-type]
    if table.dtype == UINT8 and bits == 4:
        width *= 2
    if BITS[table.dtype] > 8 or (table.dtype != UINT8 and bits != 4):
        node.refuse("has a table of another type than its bits")
    if scales.shape != (rows, -(-width // block)):
        node.refuse(f"has scales that are not of the shape {(rows, -(-width // block))}")
    if node.has(3):
        points = scales.shape[1]
        if node.input(3).dtype == UINT8 and bits == 4:
            points = -(-int(points) // 2)
        if node.input(3).shape != (rows, points) or node.input(3).dtype != table.dtype:
            node.refuse(f"has zero points that are not of the shape {(rows, points)}")
    return [node.result(scales.dtype, (*indices.shape, width))]
