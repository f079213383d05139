"""Position matrices are computed, weights are left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.graph.edit import constant
from causal_onnx.export.passes.position_matrices import compute_position_matrices
from tests.export.captured import run_model

CONTEXT = 24


def sliced(matrix: np.ndarray, *, negative: bool = False) -> ir.Model:
    """n (int64, one element) -> the first (or last) n rows and columns of `matrix`."""
    n = ir.Value(name="n", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph = ir.Graph([n], [], nodes=[], opset_imports={"": 20}, name="g")
    stored = constant(graph, matrix, "matrix")
    rank = matrix.ndim
    axes = constant(graph, np.array([rank - 2, rank - 1], np.int64))
    zeros = constant(graph, np.zeros(2, np.int64))
    start, end = n, n
    if negative:
        end = constant(graph, np.array([1 << 40], np.int64))
        minus = ir.node("Neg", [n])
        graph.append(minus)
        start = minus.outputs[0]
        both = ir.node("Concat", [start, start], attributes={"axis": 0})
        ends = ir.node("Concat", [end, end], attributes={"axis": 0})
        graph.extend([both, ends])
        part = ir.node("Slice", [stored, both.outputs[0], ends.outputs[0], axes])
    else:
        ends = ir.node("Concat", [n, n], attributes={"axis": 0})
        graph.append(ends)
        part = ir.node("Slice", [stored, zeros, ends.outputs[0], axes])
    graph.append(part)
    out = ir.node("Identity", [part.outputs[0]])
    out.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(matrix.dtype))
    graph.append(out)
    graph.outputs.append(out.outputs[0])
    return ir.Model(graph, ir_version=10)


def stored_elements(model: ir.Model) -> int:
    return max((v.const_value.size for v in model.graph.initializers.values()), default=0)


i, j = np.arange(CONTEXT)[:, None], np.arange(CONTEXT)[None, :]
SLOPES = np.array([0.5, 0.25, 0.125], np.float32)[:, None, None]
MATRICES = {
    "triu of ones": np.triu(np.ones((CONTEXT, CONTEXT), np.float32), 1),
    "tril, bool": j <= i,
    "tril, uint8, with leading axes": (j <= i).astype(np.uint8)[None, None],
    "additive -inf": np.where(j > i, -np.inf, 0.0).astype(np.float32),
    "window": (j <= i) & (j > i - 5),
    "ALiBi with mask": np.where(j > i, -np.inf, SLOPES * (j - i)).astype(np.float32),
    "distance": (j - i).astype(np.float32),
    "one mask for several heads": np.broadcast_to(j <= i, (3, CONTEXT, CONTEXT)).copy(),
}


@pytest.mark.parametrize("negative", [False, True], ids=["from the start", "from the end"])
@pytest.mark.parametrize("name", MATRICES)
def test_matrix_is_computed_at_every_length(name: str, negative: bool) -> None:
    stored, computed = (sliced(MATRICES[name], negative=negative) for _ in range(2))
    assert compute_position_matrices(computed) == 1
    assert stored_elements(computed) < 3 * 2 * CONTEXT
    for n in (1, 2, 7, CONTEXT):
        size = [np.array([n], np.int64)]
        (expected,), (got,) = run_model(stored, size), run_model(computed, size)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def almost(matrix: np.ndarray, place: Sequence[int]) -> np.ndarray:
    changed = matrix.copy()
    changed[tuple(place)] += 1
    return changed


@pytest.mark.parametrize(
    "matrix",
    [
        np.random.default_rng(0).standard_normal((CONTEXT, CONTEXT)).astype(np.float32),
        np.zeros((CONTEXT, CONTEXT), np.float32),
        almost(MATRICES["triu of ones"], (5, 3)),
        np.eye(4, dtype=np.float32),
    ],
    ids=["a weight", "a weight of zeros", "one entry differs", "too small to matter"],
)
def test_what_is_no_position_matrix_stays(matrix: np.ndarray) -> None:
    model = sliced(matrix)
    assert compute_position_matrices(model) == 0
    assert "matrix" in model.graph.initializers
