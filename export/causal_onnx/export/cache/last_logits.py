"""Let a caller ask a language model for the logits of each row's last position only.

A prompt needs no others, and they cost more than they are worth: 2048 positions of a vocabulary of
49152 are 400 MB and, in a model of 135M parameters, a fifth of all products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from causal_onnx.export.graph.edit import constant_value
from causal_onnx.export.graph.subgraphs import name_inside
from causal_onnx.export.graph.weights import find_uses
from causal_onnx.export.graph.writer import Writer
from causal_onnx.runtime.contract import LAST_ONLY, Contract

__all__ = ["offer_last_only"]

_BEHIND_HEAD = frozenset({"Add", "Mul", "Div", "Tanh", "Cast", "Identity"})
"""What may stand between the product with the head's weight and the logits: a bias, a scale, a
cap."""


def offer_last_only(
    model: ir.Model, contract: Contract, row_past: ir.Value | None, row_total: ir.Value | None
) -> str | None:
    """Add the optional input `LAST_ONLY`: with true, the head sees each row's last new position.

    Args:
        model: With a derived cache; changed in place.
        contract: Its inputs and outputs.
        row_past: int64 (batch,), the tokens of each row in the cache.
        row_total: int64 (batch,), those and the new ones.

    Returns:
        The name of the output that it shortens to (batch, 1, vocab); None where the module is no
        language model, or its head is not a product with a stored matrix.
    """
    presents = contract.present_names
    outputs = [spec for spec in contract.outputs if spec.name not in presents]
    reads_ids = any(spec.vocab_size for spec in contract.inputs)
    is_free = all(spec.name != LAST_ONLY for spec in contract.inputs)
    if row_past is None or row_total is None or not reads_ids or not is_free:
        return None
    spec = next((s for s in outputs if s.name == "logits"), outputs[0])
    if spec.axes[:2] != ("batch", "seq") or len(spec.axes) != 3:
        return None
    graph = model.graph
    head = _head(model, next(value for value in graph.outputs if value.name == spec.name))
    if head is None:
        return None
    hidden = head.inputs[0]
    assert hidden is not None
    flag = ir.Value(name=LAST_ONLY, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    # An input with a value of its own may be left out: https://onnx.ai/onnx/repo-docs/IR.html
    flag.const_value = ir.tensor(np.array(False), name=LAST_ONLY)
    graph.inputs.append(flag)
    graph.register_initializer(flag)
    chosen = _choice(Writer(graph, head), flag, hidden, row_past, row_total)
    chosen.type = hidden.type
    head.replace_input_with(0, chosen)
    return spec.name


def _head(model: ir.Model, logits: ir.Value) -> ir.Node | None:
    """The product with the head's weight, if what it reads goes nowhere else after it."""
    products = {use.node for use in find_uses(model) if not use.is_lookup}
    node = logits.producer()
    while node is not None and node not in products:
        if node.op_type not in _BEHIND_HEAD or any(len(out.uses()) > 1 for out in node.outputs):
            return None
        fed = [x for x in node.inputs if x is not None and constant_value(x) is None]
        if len(fed) != 1:
            return None
        node = fed[0].producer()
    if node is None or len(node.outputs[0].uses()) > 1 or node.graph is not model.graph:
        return None
    return node


def _choice(
    write: Writer, flag: ir.Value, hidden: ir.Value, row_past: ir.Value, row_total: ir.Value
) -> ir.Value:
    """(batch, seq, width) or, if the flag is true, (batch, 1, width)."""
    branches = []
    for name in ("last", "all"):
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(write.graph.opset_imports), name=name)
        inner = Writer(graph, None, write.graph)
        if name == "last":
            last = inner("Sub", inner("Sub", row_total, row_past), inner.ints(1))
            places = inner("Unsqueeze", inner("Max", last, inner.ints(0)), inner.ints(1, 2))
        else:
            batch, seq = (inner("Shape", hidden, start=i, end=i + 1) for i in (0, 1))
            steps = inner("Range", inner.scalar(0), inner("Squeeze", seq), inner.scalar(1))
            shape = inner("Concat", batch, seq, inner.ints(1), axis=0)
            places = inner("Expand", inner("Unsqueeze", steps, inner.ints(0, 2)), shape)
        places.type = ir.TensorType(ir.DataType.INT64)
        graph.outputs.append(places)
        name_inside(graph, f"{hidden.name}_{name}")
        branches.append(graph)
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    # Not the rows themselves from the branches: one that gives all would give what it was given.
    places = write.node("If", [flag], attributes).outputs[0]
    return write("GatherND", hidden, places, batch_dims=1)
