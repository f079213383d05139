"""Products in fp16 of rows that were transposed, written so that onnxruntime can load them."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.graph.writer import Writer

__all__ = ["part_transposes"]


def part_transposes(model: ir.Model) -> int:
    """Put a Reshape, which copies nothing, between such a Transpose and the product, in place.

    For a product in fp16, onnxruntime's CPU provider casts to fp32, and then tries to fuse the
    Transpose behind the cast. Where the first axis has become the last but one and the other
    operand is a matrix, versions from 1.24 to 1.32 change the graph, do not fuse, and end the
    process. nn.MultiheadAttention transposes so.
    Source: https://github.com/microsoft/onnxruntime/issues/28392.

    Returns:
        How many there are; none in graphs without fp16.
    """
    graph = model.graph
    values = (*graph.inputs, *graph.initializers.values())
    if all(value.dtype != ir.DataType.FLOAT16 for value in values):
        return 0
    count = 0
    for node in list(graph.all_nodes()):
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        rows, other = node.inputs
        assert rows is not None
        assert other is not None
        rank = _moves_first_axis(rows.producer())
        if rank and (other.shape is None or len(other.shape) == 2):
            assert isinstance(node.graph, ir.Graph)
            write = Writer(node.graph, node, graph)
            node.replace_input_with(0, write("Reshape", rows, write.ints(*[0] * (rank - 1), -1)))
            count += 1
    return count


def _moves_first_axis(node: ir.Node | None) -> int:
    """The rank of what a Transpose of more than a matrix moves so; 0: none, or another."""
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return 0
    perm = tuple(node.attributes["perm"].as_ints())
    last = len(perm) - 1
    middle = range(1, last)
    moved = ((*middle, 0, last), (*middle, last, 0))
    return len(perm) if last > 1 and perm in moved else 0
