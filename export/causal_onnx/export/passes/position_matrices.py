"""Replace stored position matrices (masks, distance biases) by nodes that compute them.

A module that keeps a context x context mask buffer would carry it in the file, once per layer: 50
MB for 12 layers of 1024 positions. Such a matrix is constant along its diagonals, so it is written
as a function of `column - row` on just the rows and columns that are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.evaluate import evaluate_elementwise
from causal_onnx.export.graph.edit import constant, constant_value

__all__ = ["compute_position_matrices"]

_EXACT = {"Abs", "Add", "And", "Cast", "Equal", "Greater", "GreaterOrEqual", "Identity", "Less"}
_EXACT |= {"LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sub", "Where", "Xor"}
"""Element-wise operators whose result is the same in numpy, to the last bit."""

SMALLEST = 64
"""Elements from which a matrix is worth computing; below, the nodes are larger than the data."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _Diagonals:
    """A matrix M[..., i, j] = table[..., j - i + rows - 1], constant along its diagonals."""

    table: Array
    shape: tuple[int, ...]

    @property
    def offset(self) -> int:
        return self.shape[-2] - 1

    def band(self) -> tuple[int | None, int | None, Any, Any] | None:
        """(lowest, highest, inside, outside) if one interval of diagonals holds one value.

        A bound of None is the matrix's own edge. None: more than two values, or no interval.
        """
        rows = self.table.reshape(-1, self.table.shape[-1])
        row = rows[0]
        values = np.unique(row)
        if len(values) != 2 or np.isnan(values.astype(np.float64)).any():
            return None
        if not (rows == row).all():
            return None
        for inside, outside in (values, values[::-1]):
            where = np.flatnonzero(row == inside)
            if len(where) == where[-1] - where[0] + 1:
                low = None if where[0] == 0 else int(where[0]) - self.offset
                high = None if where[-1] == len(row) - 1 else int(where[-1]) - self.offset
                return low, high, inside, outside
        return None


@dataclass(frozen=True, kw_only=True)
class _View:
    """The part of a stored matrix that a chain of Slices selects: its row and column numbers."""

    rows: ir.Value
    columns: ir.Value


def compute_position_matrices(model: ir.Model) -> int:
    """Rewrite every stored position matrix; returns how many there were."""
    graph = model.graph
    count = 0
    for value in list(graph.initializers.values()):
        if value.is_graph_output() or not value.uses():
            continue
        matrix = _diagonals(value)
        if matrix is None:
            continue
        rows = _Writer(graph, _first_user(graph, value)).range(matrix.shape[-2])
        columns = _Writer(graph, _first_user(graph, value)).range(matrix.shape[-1])
        _rewrite(graph, value, matrix, _View(rows=rows, columns=columns))
        del graph.initializers[value.name or ""]
        count += 1
    return count


def _first_user(graph: ir.Graph, value: ir.Value) -> ir.Node:
    """The first node of `graph` that reads `value`, itself or in a branch it holds."""
    users = {use.node for use in value.uses()}
    return next(
        node for node in graph if node in users or any(inner in users for inner in _nested(node))
    )


def _nested(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _diagonals(value: ir.Value) -> _Diagonals | None:
    shape = value.shape
    if shape is None or len(shape) < 2 or not all(isinstance(n, int) for n in shape):
        return None
    rows, columns = int(shape[-2]), int(shape[-1])  # type: ignore[arg-type]
    if rows < 2 or columns < 2 or rows * columns < SMALLEST or value.const_value is None:
        return None
    array = value.const_value.numpy()
    if array.dtype.kind not in "bfiu":
        return None
    if not (array[..., 1, 1] == array[..., 0, 0]).all():
        return None  # weights: told from a corner, without reading them
    if not (array[..., 1:, 1:] == array[..., :-1, :-1]).all():
        return None
    if (array == array.flat[0]).all():
        return None  # a zero-initialised weight, not a function of positions
    table = np.concatenate([array[..., :0:-1, 0], array[..., 0, :]], axis=-1)
    return _Diagonals(table=table, shape=tuple(array.shape))


def _rewrite(graph: ir.Graph, value: ir.Value, matrix: _Diagonals, view: _View) -> None:
    """Give every user of `value` a computed matrix; follow nodes that make another one of it.

    A mask is cut, compared and lifted before it meets the scores; computing it before that would
    hold it whole, context x context, in memory.
    """
    others: list[tuple[ir.Node, int]] = []
    for use in list(value.uses()):
        node = use.node
        followed = None
        if node.graph is graph and not node.domain and not node.outputs[0].is_graph_output():
            followed = _follow(graph, node, use.idx, matrix, view)
        if followed is None:
            others.append((node, use.idx))
            continue
        _rewrite(graph, node.outputs[0], *followed)
        graph.remove(node, safe=False)
    if others:
        computed = _compute(graph, _first_user(graph, value), matrix, view)
        computed.type = value.type
        for node, index in others:
            node.replace_input_with(index, computed)


def _follow(
    graph: ir.Graph, node: ir.Node, index: int, matrix: _Diagonals, view: _View
) -> tuple[_Diagonals, _View] | None:
    """What `node` makes of the matrix, if that is constant along its diagonals again."""
    rank = len(matrix.shape)
    if node.op_type in _EXACT:
        return _elementwise(node, index, matrix, view)
    if index != 0:
        return None
    if node.op_type == "Slice":
        selected = _slice(graph, node, rank, view)
        return None if selected is None else (matrix, selected)
    if node.op_type in ("Unsqueeze", "Squeeze"):
        axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        whole = rank + axes.size if node.op_type == "Unsqueeze" else rank
        places = tuple(sorted(int(axis) % whole for axis in axes.reshape(-1)))
        if any(axis >= whole - 2 for axis in places):
            return None
        change = np.expand_dims if node.op_type == "Unsqueeze" else np.squeeze
        return _with_table(matrix, change(matrix.table, places)), view
    if node.op_type == "Gather":
        attribute = node.attributes.get("axis")
        axis = (attribute.as_int() if attribute is not None else 0) % rank
        return _gather(graph, node, axis, matrix, view)
    if node.op_type == "GatherND" and rank == 2:  # mask[positions]: each in a list of its own
        wrapped = node.inputs[1].producer() if node.inputs[1] is not None else None
        if wrapped is not None and wrapped.op_type == "Unsqueeze" and _is_vector(wrapped.inputs[0]):
            rows = _Writer(graph, node)("Gather", view.rows, wrapped.inputs[0])
            return matrix, replace(view, rows=rows)
    return None


def _elementwise(
    node: ir.Node, index: int, matrix: _Diagonals, view: _View
) -> tuple[_Diagonals, _View] | None:
    """The same operator on the table; the other operands must be single numbers."""
    operands: list[Array] = []
    for position, value in enumerate(node.inputs):
        if position == index:
            operands.append(matrix.table)
            continue
        found = constant_value(value)
        if found is None or found.size != 1 or found.ndim > len(matrix.shape):
            return None
        operands.append(found.reshape(()))
    return _with_table(matrix, evaluate_elementwise(node, operands)), view


def _gather(
    graph: ir.Graph, node: ir.Node, axis: int, matrix: _Diagonals, view: _View
) -> tuple[_Diagonals, _View] | None:
    """A choice of one leading index, or of rows or columns by a vector of positions."""
    rank = len(matrix.shape)
    if axis < rank - 2:
        chosen = constant_value(node.inputs[1])
        if chosen is None or chosen.ndim > 1:
            return None
        return _with_table(matrix, np.take(matrix.table, chosen, axis=axis)), view
    if not _is_vector(node.inputs[1]):
        return None
    write = _Writer(graph, node)
    if axis == rank - 2:
        return matrix, replace(view, rows=write("Gather", view.rows, node.inputs[1]))
    return matrix, replace(view, columns=write("Gather", view.columns, node.inputs[1]))


def _is_vector(value: ir.Value | None) -> bool:
    """Whether `value` is certainly 1-D: the numbers of an `arange`."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Cast", "Identity"):
        assert producer.inputs[0] is not None
        producer = producer.inputs[0].producer()
    if producer is not None and producer.op_type == "Reshape":
        shape = constant_value(producer.inputs[1])
        return shape is not None and shape.size == 1
    return producer is not None and producer.op_type == "Range"


def _with_table(matrix: _Diagonals, table: Array) -> _Diagonals:
    return _Diagonals(table=table, shape=(*table.shape[:-1], *matrix.shape[-2:]))


def _slice(graph: ir.Graph, node: ir.Node, rank: int, view: _View) -> _View | None:
    """`view` after a Slice of the last two axes, or None for any other Slice."""
    inputs = list(node.inputs) + [None] * (5 - len(node.inputs))
    starts, ends, steps = inputs[1], inputs[2], inputs[4]
    axes = constant_value(inputs[3])
    if inputs[3] is None or axes is None or starts is None or ends is None:
        return None
    positions = [int(axis) % rank for axis in axes.reshape(-1)]
    if any(axis < rank - 2 for axis in positions):
        return None
    write = _Writer(graph, node)
    rows, columns = view.rows, view.columns
    for index, axis in enumerate(positions):
        parts = [
            None if part is None else write.element(part, index, len(positions))
            for part in (starts, ends, steps)
        ]
        vector = rows if axis == rank - 2 else columns
        zero = constant(graph, np.array([0], np.int64))
        sliced = write("Slice", vector, parts[0], parts[1], zero, *([parts[2]] if parts[2] else []))
        if axis == rank - 2:
            rows = sliced
        else:
            columns = sliced
    return _View(rows=rows, columns=columns)


def _compute(graph: ir.Graph, before: ir.Node, matrix: _Diagonals, view: _View) -> ir.Value:
    write = _Writer(graph, before)
    rank = len(matrix.shape)
    rows = write("Unsqueeze", view.rows, constant(graph, np.array([1], np.int64)))
    columns = write("Unsqueeze", view.columns, constant(graph, np.array([0], np.int64)))
    band = matrix.band()
    if band is None:
        distance = write("Sub", columns, rows)
        index = write("Add", distance, constant(graph, np.array(matrix.offset, np.int64)))
        return write("Gather", constant(graph, matrix.table), index, axis=rank - 2)
    low, high, inside, outside = band
    # Compared as a row against a column, so that no seq x seq integers are held.
    tests = []
    if low is not None:
        least = write("Add", rows, constant(graph, np.array(low, np.int64)))
        tests.append(write("GreaterOrEqual", columns, least))
    if high is not None:
        most = write("Add", rows, constant(graph, np.array(high, np.int64)))
        tests.append(write("LessOrEqual", columns, most))
    allowed = tests[0] if len(tests) == 1 else write("And", *tests)
    if matrix.table.dtype == np.bool_:
        result = allowed if inside else write("Not", allowed)
    else:
        dtype = matrix.table.dtype
        # onnxruntime has `Where` for some integers only.
        wide = np.dtype(np.int64) if dtype.kind in "iu" else dtype
        yes, no = constant(graph, np.array(inside, wide)), constant(graph, np.array(outside, wide))
        result = write("Where", allowed, yes, no)
        if wide != dtype:
            result = write("Cast", result, to=int(ir.DataType.from_numpy(dtype)))
    lead = matrix.shape[:-2]
    if any(n != 1 for n in lead):
        sizes = np.array([*lead, 1, 1], np.int64)
        return write("Expand", result, constant(graph, sizes))
    if lead:
        return write("Unsqueeze", result, constant(graph, np.arange(len(lead), dtype=np.int64)))
    return result


class _Writer:
    """Writes nodes before one node of the graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node):
        self._graph, self._before = graph, before

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes)
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def range(self, stop: int) -> ir.Value:
        ends = [constant(self._graph, np.array(n, np.int64)) for n in (0, stop, 1)]
        return self("Range", *ends)

    def element(self, vector: ir.Value, index: int, length: int) -> ir.Value:
        """`vector[index : index + 1]`."""
        if length == 1:
            return vector
        bounds = [constant(self._graph, np.array([n], np.int64)) for n in (index, index + 1)]
        return self("Slice", vector, *bounds)
