"""Graphs of which no cache can be derived, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import NONE, Elements, view
from causal_onnx.export.analysis.interpret import Run, input_elements, run
from causal_onnx.export.analysis.signature import Signature, Sizes
from causal_onnx.export.attention.canonical import CanonicalCore
from causal_onnx.export.cache.lengths import MASK
from causal_onnx.export.cache.row_lookup import RaggedError
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Layouts

__all__ = ["ALL_POSITIONS", "named", "refuse_mixing", "refuse_odd_cores", "refuse_shared_inputs"]

ALL_POSITIONS = (
    "Return the logits of all positions: a file with a cache then offers last_only, which computes "
    "those of the last position alone"
)


def refuse_odd_cores(cores: Sequence[CanonicalCore], others: Mapping[ir.Node, str]) -> None:
    """Every attention must be plainly causal, with a mask that only positions decide.

    Raises:
        NotSupportedError: One is not, or none was recognised.
    """
    if not cores:
        node, reason = next(iter(others.items()), (None, "there is no softmax over scores"))
        place = "" if node is None else f"{node.op_type} {named(node)}: "
        raise NotSupportedError(
            f"no cache can be derived: no attention was recognised ({place}{reason}). Write it as "
            "softmax(q k^T * scale + mask) v, and return no attention weights"
        )
    for core in cores:
        if core.has_data_mask:
            raise NotSupportedError(
                f"no cache can be derived: what is added to the scores of {named(core.node)} "
                "depends on data. Export without a mask of padding as input (rows of different "
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
    for spec in signature.inputs:
        if spec.name == MASK:
            raise RaggedError(f"the module has an input {MASK!r} of its own")
        if batched and "seq" in spec.axes and "batch" not in spec.axes:
            raise RaggedError(
                f"rows of different lengths cannot share a call: they share the input {spec.name!r}"
            )


def refuse_mixing(
    layouts: Layouts, cores: Sequence[CanonicalCore], others: Mapping[ir.Node, str]
) -> None:
    """Every element must depend on one position alone: the last it depends on is the first.

    Raises:
        NotSupportedError: One depends on several, or on another than its own; names the node.
    """
    sizes = layouts.sizes[0]
    first_positions = _reversed_run(layouts, sizes)
    for node in layouts.model.graph:
        if _picks_positions(layouts, node):
            raise NotSupportedError(
                f"no cache can be derived: {node.op_type} {named(node)} picks positions by their "
                "number, and a step has only the new ones"
            )
        for output in node.outputs:
            last = layouts.base.values.get(output)
            low = first_positions.values.get(output)
            if not isinstance(last, Elements) or not isinstance(low, Elements):
                continue
            ends = view(last.reach, last.shape)
            starts = sizes.seq - 1 - view(low.reach, low.shape)
            depends = ends != NONE
            if bool((ends[depends] != starts[depends]).any()):
                hint = _unrecognised(layouts, node, others)
                raise NotSupportedError(
                    f"no cache can be derived: {node.op_type} {named(node)} mixes positions "
                    f"outside the attention that was recognised{hint}"
                )
    for core in cores:
        for value in core.node.inputs[:3]:
            _refuse_shift(layouts, value, core.node)
    for value in layouts.model.graph.outputs:
        _refuse_shift(layouts, value, value.producer())


def _picks_positions(layouts: Layouts, node: ir.Node) -> bool:
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


def _reversed_run(layouts: Layouts, sizes: Sizes) -> Run:
    """The analysis with positions counted from the end: it finds the first, not the last."""
    inputs = {}
    for spec in layouts.signature.inputs:
        elements = input_elements(spec, sizes)
        reach = np.where(elements.reach == NONE, NONE, sizes.seq - 1 - elements.reach)
        inputs[spec.name] = Elements(elements.shape, reach.astype(np.int32))
    return run(layouts.model, layouts.signature, sizes, layouts.constants, inputs=inputs)


def named(node: ir.Node | None) -> str:
    """The node's name, and the module that it comes from where that is known."""
    if node is None:
        return "an input"
    place = node.metadata_props.get("causal_onnx.module", "")
    return f"{node.name!r}" + (f" in {place}" if place else "")
