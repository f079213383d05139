"""Store a weight once that the graph holds twice, as it is and transposed (a tied head)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value

__all__ = ["share_transposed_weights"]

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
