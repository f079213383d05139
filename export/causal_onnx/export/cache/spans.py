"""The first and the last position that each element of a graph depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import NONE, Array, Elements, view
from causal_onnx.export.analysis.interpret import input_elements
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Axis, Layouts

__all__ = ["BATCH", "Spans", "own_axis", "picks_positions", "state_order"]

BATCH = Axis(1, 1, 0)
"""The axis of rows."""

FARTHEST = 2048
"""The farthest look back, in positions, for which the analysis is made long enough to see it."""


def own_axis(layouts: Layouts, value: ir.Value) -> int | None:
    """The axis of positions of a value that has one, beside the batch and fixed axes; else None."""
    axes = layouts.axes(value)
    seqs = [index for index, axis in enumerate(axes) if axis.is_seq]
    batches = [axis for axis in axes if axis == BATCH]
    has_batch = layouts.signature.has_batch
    if len(seqs) != 1 or len(batches) != has_batch:
        return None
    return seqs[0] if sum(axis.is_fixed for axis in axes) == len(axes) - 1 - has_batch else None


def state_order(layouts: Layouts, value: ir.Value) -> tuple[int, ...]:
    """The axes of a value with positions of its own as they lie in a state: batch, seq, others."""
    axes, seq = layouts.axes(value), own_axis(layouts, value)
    assert seq is not None
    lead = (*(n for n, axis in enumerate(axes) if axis == BATCH), seq)
    return (*lead, *(n for n in range(len(axes)) if n not in lead))


class Spans:
    """Two runs of the analysis: one finds the last position, one, counted from the end, the first.

    They are long enough to see every convolution, pool, shift and crop of the graph look back.
    """

    def __init__(self, layouts: Layouts, *, max_seq_len: int | None, more: int = 0):
        """Analyse the graph of `layouts`, `more` positions longer than needed.

        Raises:
            NotSupportedError: Something looks back farther than can be analysed.
        """
        self.layouts = layouts
        base = layouts.sizes[0]
        seq = base.seq + _farthest(layouts) + more
        self.sizes = replace(base, seq=min(seq, max_seq_len or seq))
        inputs = {}
        for spec in layouts.signature.inputs:
            elements = input_elements(spec, self.sizes)
            reach = np.where(elements.reach == NONE, NONE, self.sizes.seq - 1 - elements.reach)
            inputs[spec.name] = Elements(elements.shape, reach.astype(np.int32))
        self._last = layouts.analysis.follow(self.sizes).values
        self._first = layouts.analysis.follow(self.sizes, inputs).values

    def of(self, value: ir.Value) -> tuple[Array, Array] | None:
        """(first, last), each of the value's shape, NONE where an element depends on no position.

        None: no data decides the value.
        """
        last, first = self._last.get(value), self._first.get(value)
        if not isinstance(last, Elements) or not isinstance(first, Elements):
            return None
        ends, back = view(last.reach, last.shape), view(first.reach, first.shape)
        starts = np.where(back == NONE, NONE, self.sizes.seq - 1 - back)
        return starts, ends

    def is_free(self, value: ir.Value) -> bool:
        """Whether data decides the value, but none that belongs to a position."""
        span = self.of(value)
        return span is not None and not (span[1] != NONE).any()

    def mixes(self, value: ir.Value) -> bool:
        """Whether an element depends on several positions."""
        span = self.of(value)
        return span is not None and bool((span[0] != span[1]).any())

    def reach_back(self, value: ir.Value) -> tuple[int, int] | None:
        """How far an element looks back, and ahead, from its own position, at most.

        None: the value has no axis of positions of its own.
        """
        axis, span = own_axis(self.layouts, value), self.of(value)
        if axis is None or span is None:
            return None
        starts, ends = span
        shape = [1] * starts.ndim
        shape[axis] = starts.shape[axis]
        own = np.arange(shape[axis]).reshape(shape)
        depends = ends != NONE
        if not depends.any():
            return 0, 0
        return int((own - starts)[depends].max()), int((ends - own)[depends].max())


def picks_positions(layouts: Layouts, node: ir.Node) -> bool:
    """Whether the node reads data along the sequence by numbers that come from positions."""
    if node.op_type not in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"):
        return False
    data, numbers = node.inputs[0], node.inputs[1]
    if data is None or numbers is None or not isinstance(layouts.base.values.get(data), Elements):
        return False
    axes = layouts.axes(data)
    axis = attr(node, "axis", 0)
    along = axes if node.op_type.endswith("ND") else axes[axis : axis + 1 or None]
    return any(item.is_seq for item in along) and any(x.is_seq for x in layouts.axes(numbers))


def _farthest(layouts: Layouts) -> int:
    """As many positions as its nodes shift or look back together, or the most of one of them."""
    extents = [
        _extent(layouts, node)
        for node in layouts.model.graph
        if any(layouts.is_tainted(out) for out in node.outputs)
    ]
    most = max(extents, default=0)
    if most > FARTHEST:
        raise NotSupportedError(
            f"no cache can be derived: a node looks back {most} positions, more than the "
            f"{FARTHEST} that are analysed"
        )
    return max(most, min(sum(extents), FARTHEST))


def _extent(layouts: Layouts, node: ir.Node) -> int:
    source = node.inputs[0] if node.inputs else None
    if source is None or not layouts.is_tainted(source):
        return 0
    if node.op_type in ("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"):
        kernel: Sequence[int] = attr(node, "kernel_shape") or _kernel(layouts, node)
        dilations = attr(node, "dilations") or [1] * len(kernel)
        pads = attr(node, "pads") or [0]
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        return max(int(n) for n in (*reach, *pads))
    if node.op_type not in ("Pad", "Slice"):
        return 0
    axes = layouts.axes(source)
    place = 3  # of the input that says which axes, of both operators
    along = layouts.known(node.inputs[place]) if len(node.inputs) > place else None
    chosen = range(len(axes)) if along is None else [int(a) for a in along.reshape(-1)]
    amounts = [
        _whole(layouts, node, index) for index in ((1,) if node.op_type == "Pad" else (1, 2))
    ]
    pairs = len(chosen)
    found = [0]
    for numbers in amounts:
        for index, number in enumerate(numbers):
            if axes[chosen[index % pairs]].seqs:
                found.append(number)
    return max(found)


def _kernel(layouts: Layouts, node: ir.Node) -> Sequence[int]:
    weight = node.inputs[1]
    assert weight is not None
    known = layouts.constant(weight)
    return [1] if known is None else known.shape[2:]


def _whole(layouts: Layouts, node: ir.Node, place: int) -> list[int]:
    """The sizes of the whole numbers that an input holds, whatever the length; 0 for no end."""
    known = layouts.known(node.inputs[place]) if len(node.inputs) > place else None
    if known is None:
        return []
    numbers = (abs(int(n)) for n in known.reshape(-1))
    return [n if n < 1 << 30 else 0 for n in numbers]
