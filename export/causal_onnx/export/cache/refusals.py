"""Graphs of which no cache can be derived, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import NONE, Elements, view
from causal_onnx.export.analysis.signature import Signature
from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.cache.lengths import MASK, MASKS
from causal_onnx.export.cache.row_lookup import RaggedError
from causal_onnx.export.cache.spans import Spans, picks_positions
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Layouts

__all__ = [
    "ALL_POSITIONS",
    "named",
    "refuse_mixing",
    "refuse_nothing_kept",
    "refuse_odd_axes",
    "refuse_odd_cores",
    "refuse_shared_inputs",
]

ALL_POSITIONS = (
    "Return the logits of all positions: a file with a cache then offers last_only, which computes "
    "those of the last position alone"
)


def refuse_nothing_kept(
    cores: Sequence[CanonicalCore], sites: Sequence[object], others: Mapping[ir.Node, str]
) -> None:
    """There must be something that goes from call to call.

    Raises:
        NotSupportedError: Nothing mixes positions.
    """
    if cores or sites:
        return
    node, reason = next(iter(others.items()), (None, "there is no softmax over scores"))
    place = "" if node is None else f"{node.op_type} {named(node)}: "
    # One operator is attention already: what keeps it from being used is the reason alone.
    is_fused = node is not None and "Attention" in node.op_type
    remedy = "" if is_fused else ". Write it as softmax(q k^T * scale + mask) v"
    raise NotSupportedError(
        "no cache can be derived: no attention was recognised, and nothing else mixes positions "
        f"({place}{reason}){remedy}"
    )


def refuse_odd_cores(cores: Sequence[CanonicalCore]) -> None:
    """Every attention must be plainly causal, with a mask that only positions decide.

    Raises:
        NotSupportedError: One is not.
    """
    for core in cores:
        if not core.bias_is_known:
            raise NotSupportedError(
                f"no cache can be derived: what is added to the scores of {named(core.node)} "
                "depends on data. Export without a padding mask as input (rows of different "
                "lengths are the cache's own); a bias must come from positions, not from tokens"
            )
        if not core.footprint.never_later:
            raise NotSupportedError(
                f"no cache can be derived: the attention {named(core.node)} is not plainly causal "
                f"(footprint: {core.footprint.kind})"
            )


def refuse_shared_inputs(signature: Signature) -> None:
    """Rows of different lengths need inputs of their own, and a free name for the mask.

    Raises:
        RaggedError: They have not.
    """
    batched = any("batch" in spec.axes for spec in signature.inputs)
    given = {spec.name: spec for spec in signature.inputs}
    own = given.get(MASK)
    if own is not None and ({"seq", "total_seq"} & set(own.axes) or set(MASKS) <= set(given)):
        raise RaggedError(f"the module has an input {MASK!r} of its own")
    for spec in signature.inputs:
        if batched and "seq" in spec.axes and "batch" not in spec.axes:
            raise RaggedError(
                f"rows of different lengths cannot share a call: they share the input {spec.name!r}"
            )


def refuse_odd_axes(layouts: Layouts, roots: Sequence[ir.Node]) -> None:
    """Queries, keys and values must have one entry for each position.

    Raises:
        NotSupportedError: One has not.
    """
    for node in roots:
        for value in node.inputs[:3]:
            assert value is not None
            if sum(axis.is_seq for axis in layouts.axes(value)) != 1:
                raise NotSupportedError(
                    f"no cache can be derived: {value.name}, which the attention {named(node)} "
                    "reads, does not have one axis of positions"
                )


def refuse_mixing(
    spans: Spans,
    alive: Set[ir.Node],
    cores: Sequence[CanonicalCore],
    others: Mapping[ir.Node, str],
) -> None:
    """Every element must depend on one position alone: the last it depends on is the first.

    Args:
        spans: Of what is left beside the cores and what has a state of its own.
        alive: The nodes that matter.
        cores: All attention that was cut out.
        others: What was not recognised.

    Raises:
        NotSupportedError: One depends on several, or on another than its own; names the node.
    """
    layouts = spans.layouts
    for node in layouts.model.graph:
        if node not in alive:
            continue
        if picks_positions(layouts, node):
            raise NotSupportedError(
                f"no cache can be derived: {node.op_type} {named(node)} selects positions by their "
                "number, and a step has only the new ones"
            )
        if any(spans.mixes(output) for output in node.outputs):
            hint = _unrecognised(layouts, node, others)
            raise NotSupportedError(
                f"no cache can be derived: {node.op_type} {named(node)} mixes positions outside "
                f"the attention that was recognised, and not only with earlier ones{hint}"
            )
    for core in cores:
        for value in core.operands:
            _refuse_shift(layouts, value, core.node)
    for value in layouts.model.graph.outputs:
        _refuse_shift(layouts, value, value.producer())


def _unrecognised(layouts: Layouts, mixing: ir.Node, others: Mapping[ir.Node, str]) -> str:
    """What kept the softmax that follows `mixing` from being taken for attention."""
    after = False
    for node in layouts.model.graph:
        after |= node is mixing
        if after and node in others:
            return (
                f" (it may belong to {node.op_type} {named(node)}: {others[node]}). Write "
                "attention as softmax(q k^T * scale + mask) v, or with scaled_dot_product_attention"
            )
    return ""


def _refuse_shift(layouts: Layouts, value: ir.Value | None, node: ir.Node | None) -> None:
    assert value is not None
    elements = layouts.base.values.get(value)
    axes = [i for i, axis in enumerate(layouts.axes(value)) if axis.is_seq]
    if isinstance(elements, Elements) and not axes and bool((elements.reach == NONE).all()):
        return  # of no position: what comes from a memory is the same in every step
    if not isinstance(elements, Elements) or len(axes) != 1:
        hint = f". {ALL_POSITIONS}" if value.name == "logits" and not axes else ""
        raise NotSupportedError(
            f"no cache can be derived: {value.name} does not have one axis of positions{hint}"
        )
    shape = [1] * len(elements.shape)
    shape[axes[0]] = elements.shape[axes[0]]
    own = np.arange(elements.shape[axes[0]]).reshape(shape)
    reach = view(elements.reach, elements.shape)
    if bool(((reach != own) & (reach != NONE)).any()):
        raise NotSupportedError(
            f"no cache can be derived: {value.name} of {named(node)} is shifted along the sequence"
        )


def named(node: ir.Node | None) -> str:
    """The node's name, and the module that it comes from where that is known."""
    if node is None:
        return "an input"
    place = node.metadata_props.get("causal_onnx.module", "")
    return f"{node.name!r}" + (f" in {place}" if place else "")
