"""Running products, extremes and sums of exponentials, written as a Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.subgraphs import name_inside
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.torch_patches.recurrences import RUNNING

__all__ = ["write_running"]


def write_running(model: ir.Model) -> None:
    """Write every `RUNNING` in operators of ONNX, in place."""
    for node in [n for n in model.graph.all_nodes() if n.op_type == RUNNING]:
        graph = node.graph
        if node.domain != "causal_onnx" or not isinstance(graph, ir.Graph):
            continue
        kind, axis = node.attributes["kind"].as_string(), node.attributes["axis"].as_int()
        write, x, steps = Writer(graph, node), node.inputs[0], _STEPS[kind]
        assert x is not None
        assert x.dtype is not None
        # Of a number without positions: all of it, or its first entry would be looked for in vain.
        shape = write("Shape", write("ReduceSum", x, write.ints(axis), keepdims=0))
        least = write("Expand", constant(graph, _start(kind, x.dtype)), shape)
        place = write("Expand", write.scalar(-1), shape)
        wants_places = bool(node.outputs[1].uses()) or node.outputs[1].is_graph_output()
        states = [least, place, write.scalar(0)] if wants_places else [least]
        body = _body(write, steps, x, axis, kind=kind, wants_places=wants_places)
        count = 2 if wants_places else 1
        scan = write.node(
            "Scan",
            [*states, x],
            {
                "body": body,
                "num_scan_inputs": 1,
                "scan_input_axes": [axis],
                "scan_output_axes": [axis] * count,
            },
            outputs=len(states) + count,
        )
        for old, new in zip(node.outputs, scan.outputs[len(states) :], strict=False):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            old.name = f"{old.name}_replaced"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _start(kind: str, dtype: ir.DataType) -> np.ndarray[tuple[()], np.dtype[np.generic]]:
    """What changes nothing that it is combined with."""
    own = dtype.numpy()
    if kind == "prod":
        return np.array(1, own)
    sign = 1 if kind == "min" else -1
    if dtype.is_floating_point():
        return np.array(sign * np.inf, own)
    info = np.iinfo(own)
    return np.array(info.max if sign == 1 else info.min, own)


def _product(write: Writer, last: ir.Value, new: ir.Value) -> ir.Value:
    return write("Mul", last, new)


def _largest(write: Writer, last: ir.Value, new: ir.Value) -> ir.Value:
    return write("Max", last, new)


def _least(write: Writer, last: ir.Value, new: ir.Value) -> ir.Value:
    return write("Min", last, new)


def _sum_of_exponentials(write: Writer, last: ir.Value, new: ir.Value) -> ir.Value:
    """log(exp(last) + exp(new)), from the larger of the two on."""
    larger = write("Max", last, new)
    parts = [write("Exp", write("Sub", x, larger)) for x in (last, new)]
    total = write("Add", larger, write("Log", write("Add", *parts)))
    return write("Where", write("IsInf", larger), larger, total)


_STEPS: Mapping[str, Callable[[Writer, ir.Value, ir.Value], ir.Value]] = {
    "prod": _product,
    "max": _largest,
    "min": _least,
    "logsumexp": _sum_of_exponentials,
}


def _body(
    write: Writer,
    step: Callable[[Writer, ir.Value, ir.Value], ir.Value],
    x: ir.Value,
    axis: int,
    *,
    kind: str,
    wants_places: bool,
) -> ir.Graph:
    outer = write.graph
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(outer.opset_imports), name="running")
    inner = Writer(graph, None, outer)
    number, count = x.type, ir.TensorType(ir.DataType.INT64)
    types = [number, count, count, number] if wants_places else [number, number]
    graph.inputs.extend(ir.Value(name=f"in_{i}", type=kind) for i, kind in enumerate(types))
    last, new = graph.inputs[0], graph.inputs[-1]
    value = step(inner, last, new)
    value.type = number
    results = [value]
    if wants_places:
        # Of equal ones PyTorch takes the last.
        order = "GreaterOrEqual" if kind == "max" else "LessOrEqual"
        place = inner("Where", inner(order, new, last), graph.inputs[2], graph.inputs[1])
        after = inner("Add", graph.inputs[2], inner.scalar(1))
        place.type = after.type = count
        results += [place, after]
    copies = [inner("Identity", item) for item in results[: 2 if wants_places else 1]]
    for copy, item in zip(copies, results, strict=False):
        copy.type = item.type
    graph.outputs.extend([*results, *copies])
    # onnxruntime asks for the ranks, and finds them by itself where it knows that of x alone.
    assert x.shape is not None
    rest = [n if isinstance(n, int) else None for i, n in enumerate(x.shape) if i != axis]
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(rest)
    for value in graph.inputs[2:3] if wants_places else ():
        value.shape = ir.Shape([])
    for value in graph.outputs[2:3] if wants_places else ():
        value.shape = ir.Shape([])
    name_inside(graph, f"{x.name}_{kind}")
    return graph
