"""A weight that the graph needs as it is and transposed (a tied head) is held once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value, replace_node
from causal_onnx.export.graph.writer import Writer
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["multiply_by_transposed_weights", "share_transposed_weights"]

SMALLEST_BYTES = 1 << 10
"""Below, the node that transposes is no smaller than the weight."""


def share_transposed_weights(model: ir.Model) -> int:
    """Replace each matrix that is the transpose of another by a Transpose of it; returns how many.

    The exporter folds the transpose of a tied embedding into a second copy, which for a small
    language model is a fifth of the file. Runtimes fold it again when they load the file.
    """
    graph = model.graph
    by_shape: dict[tuple[int, int], list[ir.Value]] = {}
    count = 0
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or len(tensor.shape) != 2 or tensor.nbytes < SMALLEST_BYTES:
            continue
        rows, columns = (int(str(n)) for n in tensor.shape)
        twin = _transposed_twin(value, by_shape.get((columns, rows), []))
        if twin is None:
            by_shape.setdefault((rows, columns), []).append(value)
            continue
        # A table that is looked up must stay as it is; the other one is computed.
        kept, computed = (value, twin) if _is_looked_up(value) else (twin, value)
        if computed.is_graph_output() or _is_looked_up(computed):
            continue
        node = ir.node("Transpose", [kept], attributes={"perm": [1, 0]})
        node.outputs[0].type = kept.type
        graph.insert_before(next(iter(graph)), node)
        computed.replace_all_uses_with(node.outputs[0])
        del graph.initializers[computed.name or ""]
        if computed is twin:
            by_shape[(columns, rows)].remove(twin)
            by_shape.setdefault((rows, columns), []).append(value)
        count += 1
    return count


def multiply_by_transposed_weights(model: ir.Model) -> int:
    """Write products with a matrix that is stored transposed for onnxruntime; returns how many.

    Its FusedMatMul reads the matrix as it is stored. Where a Transpose stands before a MatMul,
    onnxruntime computes it when it loads the file, and holds a second copy meanwhile: for 135M
    parameters with a vocabulary of 49,152, 113 MB and a fifth of a second. The kernel is the same.
    On the CPU it is for fp32 alone.
    """
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        rows, turned = node.inputs
        stored = _stored_transposed(turned)
        if stored is None:
            continue
        assert isinstance(node.graph, ir.Graph)
        model.opset_imports[CONTRIB] = 1
        write = Writer(node.graph, node, model.graph)
        replace_node(node, write("FusedMatMul", rows, stored, domain=CONTRIB, transB=1))
        count += 1
    return count


def _stored_transposed(value: ir.Value | None) -> ir.Value | None:
    """The fp32 matrix of the file of which a value is the transpose, or None."""
    turn = None if value is None else value.producer()
    if turn is None or turn.op_type != "Transpose":
        return None
    stored = turn.inputs[0]
    if stored is None or not stored.is_initializer() or stored.dtype != ir.DataType.FLOAT:
        return None
    return stored if stored.shape is not None and len(stored.shape) == 2 else None


def _transposed_twin(value: ir.Value, candidates: list[ir.Value]) -> ir.Value | None:
    array = constant_value(value)
    assert array is not None
    for candidate in candidates:
        other = constant_value(candidate)
        assert other is not None
        # The first row tells nearly always, and the whole is read against its order in memory.
        if other.dtype != array.dtype or not np.array_equal(other[:, 0], array[0]):
            continue
        if np.array_equal(other.T, array):
            return candidate
    return None


def _is_looked_up(value: ir.Value) -> bool:
    return any(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())
