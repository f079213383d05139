"""Choose a form for each core by the target and the opset."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.canonical import DOMAIN, is_canonical, sink_of
from causal_onnx.export.lower.attention import write_attention
from causal_onnx.export.lower.grouped import fits_grouped, write_grouped
from causal_onnx.export.lower.packed import (
    CONTRIB,
    LONGEST_SHORT,
    fits_flash,
    is_plain,
    write_packed,
)
from causal_onnx.export.lower.primitives import write_primitives
from causal_onnx.export.lower.tiled import BLOCK, write_tiled
from causal_onnx.export.lower.writer import Writer

__all__ = ["lower", "switching_lengths"]

OLDEST_ATTENTION_OPSET = 23
"""From here on ONNX has an `Attention` operator."""


def switching_lengths(target: str) -> tuple[int, ...]:
    """Lengths at which a form computes by other nodes than at short ones, or more often."""
    return {"ort": (LONGEST_SHORT + 1,), "tiled": (BLOCK + 1, 2 * BLOCK + 1)}.get(target, ())


def lower(model: ir.Model, target: str, max_seq_len: int | None = None) -> int:
    """Replace every canonical core in place; returns how many there were.

    "portable": from opset 23 on the standard `Attention` operator, below (and for cores with a
    sink, which that does not know) MatMul and Softmax. "ort": from opset 23 on, plain causal
    attention switches to onnxruntime's flash kernel where the sequence is long, and cached
    attention goes there where the call fits it. "tiled": a Loop over blocks of queries. Key/value
    heads are not repeated in any form.
    """
    opset = model.opset_imports[""]
    count = 0
    for node in list(model.graph):
        if not is_canonical(node):
            continue
        write = Writer(model.graph, node)
        results: Sequence[ir.Value]
        is_new = opset >= OLDEST_ATTENTION_OPSET
        has_sink = sink_of(node) is not None
        standard = write_attention if is_new and not has_sink else write_primitives
        if target == "tiled":
            results = write_tiled(write, node, max_seq_len)
        elif target == "ort" and is_new and is_plain(node) and not has_sink:
            switching = fits_flash(node) and (max_seq_len or LONGEST_SHORT + 1) > LONGEST_SHORT
            if switching:
                model.opset_imports[CONTRIB] = 1
            results = [write_packed(write, node, switching=switching)]
        elif target == "ort" and is_new and fits_grouped(node):
            model.opset_imports[CONTRIB] = 1
            results = write_grouped(write, node, standard)
        else:
            results = standard(write, node)
        for old, new in zip(node.outputs, results, strict=True):
            if new is old:
                continue
            new.type, new.shape = old.type, old.shape
            if old.is_graph_output():
                outputs = model.graph.outputs
                name = old.name
                outputs[list(outputs).index(old)] = new
                old.name, new.name = f"{name}_replaced", name
            old.replace_all_uses_with(new)
        model.graph.remove(node, safe=True)
        count += 1
    model.opset_imports.pop(DOMAIN, None)
    return count
