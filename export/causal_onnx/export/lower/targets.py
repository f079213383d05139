"""Choose a form for each core by the target and the opset."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import DOMAIN, CanonicalCore, is_canonical
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.attention import write_attention
from causal_onnx.export.lower.by_length import LONGEST_SHORT, LONGEST_SHORT_HALF, write_by_length
from causal_onnx.export.lower.grouped import (
    fits_grouped,
    shares_buffers,
    write_chunked,
    write_grouped,
)
from causal_onnx.export.lower.primitives import write_primitives
from causal_onnx.export.lower.tiled import BLOCK, write_tiled
from causal_onnx.runtime.contract import CHUNKED, CONTRIB, ORT_FORMS, Contract

__all__ = ["LOOPED", "lower", "shared_pasts", "switching_lengths"]

OLDEST_ATTENTION_OPSET = 23
"""From here on ONNX has an `Attention` operator."""


LOOPED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(ORT_FORMS, (LONGEST_SHORT + 1,)),
    "tiled": (BLOCK + 1, 2 * BLOCK + 1),
}
"""Lengths at which a form has several blocks of queries."""


def switching_lengths(contract: Contract) -> tuple[int, ...]:
    """Lengths at which a form computes by other nodes than at short ones, or more often."""
    dtypes = {spec.dtype for spec in (*contract.inputs, *contract.outputs)}
    is_half = contract.precision in ("fp16", "bf16") or dtypes & {"float16", "bfloat16"}
    half = (LONGEST_SHORT_HALF + 1,) if contract.form in ORT_FORMS and is_half else ()
    return (*LOOPED.get(contract.form, ()), *half)


def shared_pasts(model: ir.Model, cores: Sequence[CanonicalCore], target: str) -> frozenset[str]:
    """The inputs of past keys and values that `lower` will let be shared (`CachePair.shared`)."""
    return frozenset(
        value.name or ""
        for core in cores
        if _is_grouped(core, target, model) and (target == CHUNKED or shares_buffers(core))
        for value in core.past or ()
    )


def _is_grouped(core: CanonicalCore, target: str, model: ir.Model) -> bool:
    is_new = model.opset_imports[""] >= OLDEST_ATTENTION_OPSET
    return target in ORT_FORMS and is_new and fits_grouped(core)


def lower(
    model: ir.Model,
    cores: Sequence[CanonicalCore],
    target: str,
    max_seq_len: int | None = None,
) -> int:
    """Replace every canonical core in place; returns how many there were.

    `cores` holds all that are in the graph.

    "portable": from opset 23 on the standard `Attention` operator, below (and for cores with a
    sink, which that does not know) MatMul and Softmax. "ort": from opset 23 on that too where the
    sequence is short, else onnxruntime's flash kernel or blocks of queries; cached attention goes
    to that kernel where the call fits it, and with "ort-1.32" in every call. "tiled": a Loop over
    blocks of queries. Key/value heads are not repeated in any form.
    """
    opset = model.opset_imports[""]
    known, count = {core.node: core for core in cores}, 0
    for node in list(model.graph):
        if not is_canonical(node):
            continue
        core = known[node]
        write = Writer(model.graph, node)
        results: Sequence[ir.Value]
        is_new = opset >= OLDEST_ATTENTION_OPSET
        standard = write_attention if is_new and core.sink is None else write_primitives
        if target == "tiled":
            results = write_tiled(write, core, max_seq_len)
        elif _is_grouped(core, target, model) and target == CHUNKED:
            results = write_chunked(write, core)
        elif _is_grouped(core, target, model):
            results = write_grouped(write, core, standard)
        elif target in ORT_FORMS and is_new and (core.rows is not None or core.past is None):
            results = write_by_length(write, core, max_seq_len)
        else:
            results = standard(write, core)
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
    if any(node.domain == CONTRIB for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        model.opset_imports[CONTRIB] = 1
    return count
