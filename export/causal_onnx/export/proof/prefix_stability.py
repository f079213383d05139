"""Prefix stability: does what positions alone decide change for early positions as more follow?

A rotary base or a divisor computed from the whole length is no leak of data, yet f(x)[:t] differs
from f(x[:t]), and no KV cache can be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.branches import branch_of
from causal_onnx.export.analysis.elements import Elements, Known
from causal_onnx.export.analysis.evaluate import ELEMENTWISE
from causal_onnx.export.analysis.interpret import Run

__all__ = ["length_dependent"]

Array = npt.NDArray[Any]

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Concat", "ScatterND", "ScatterElements"})
MASKED = {"Attention": (3,), "GroupQueryAttention": (10,), "MultiHeadAttention": (4, 5)}
ROTARY = {"RotaryEmbedding": (1, 2, 3)}

TOLERANCE = 1e-5
"""Relative; tables computed at other lengths may round differently."""


def length_dependent(analysis: Analysis) -> tuple[str, ...]:
    """Names of position-only values that meet data and whose first entries change with the length.

    One that only shifts whole rows of scores (which a softmax does not see) is left out.
    """
    found: dict[str, None] = {}
    for shorter, longer in _pairs(analysis.runs):
        for node, value in _meeting(analysis.model.graph, longer):
            name = value.name or node.name or node.op_type
            if name in found:
                continue
            a, b = shorter.values.get(value), longer.values.get(value)
            if isinstance(a, Known) and isinstance(b, Known) and not _is_prefix(a.value, b.value):
                if _shifts_rows(node, a.value, b.value):
                    continue
                found[name] = None
    return tuple(found)


def _pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Neighbouring lengths after the same past."""
    for past in {run.sizes.past_seq for run in runs}:
        group = sorted(
            (run for run in runs if run.sizes.past_seq == past), key=lambda run: run.sizes.seq
        )
        yield from pairwise(group)


def _meeting(graph: ir.Graph, run: Run) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Where a position-only value meets data as a value, not as a shape, an index or a choice.

    In branches too, where both runs entered them. (A loop leaves the values of its last pass, which
    stand for other positions at other lengths.)
    """
    for node in graph:
        if node.op_type == "If":
            for condition in run.context.entered.get(node, ()):
                yield from _meeting(branch_of(node, condition), run)
            continue
        indices: Sequence[int]
        if node.op_type in ELEMENTWISE or node.op_type in PRODUCTS:
            indices = range(len(node.inputs))
        else:
            indices = MASKED.get(node.op_type) or ROTARY.get(node.op_type) or ()
        if not indices:
            continue
        outputs = [run.values.get(out) for out in node.outputs]
        if not any(isinstance(out, Elements) for out in outputs):
            continue
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            known = None if value is None else run.values.get(value)
            if value is not None and isinstance(known, Known) and not known.constant:
                yield node, value


def _is_prefix(a: Array, b: Array) -> bool:
    """Whether the shorter array is the beginning of the longer along every axis."""
    if a.ndim != b.ndim or any(m > n for m, n in zip(a.shape, b.shape, strict=True)):
        return False
    part = b[tuple(slice(0, n) for n in a.shape)]
    return _close(a, part)


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    with np.errstate(invalid="ignore"):
        scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) or 1.0
        same = (a == b) | (np.abs(a - b) <= TOLERANCE * scale) | (np.isnan(a) & np.isnan(b))
    return bool(same.all())


def _shifts_rows(node: ir.Node, a: Array, b: Array) -> bool:
    """Whether the change is one number per row of scores on their way into a softmax."""
    if node.op_type not in ("Add", "Sub") or a.ndim < 2 or a.dtype.kind != "f":
        return False
    part = b[tuple(slice(0, n) for n in a.shape)]
    if part.shape != a.shape:
        return False
    finite = np.isfinite(a) & np.isfinite(part)
    if not np.array_equal(np.isfinite(a), np.isfinite(part)):
        return False
    with np.errstate(invalid="ignore"):
        change = np.where(finite, part - a, np.nan)
        rows = np.nanmax(
            np.where(finite.any(-1, keepdims=True), change, 0.0), axis=-1, keepdims=True
        )
        uniform = np.abs(change - rows) <= TOLERANCE * max(
            float(np.abs(rows).max(initial=0.0)), 1.0
        )
    return bool((uniform | ~finite).all()) and _enters_softmax(node)


def _enters_softmax(node: ir.Node) -> bool:
    value = node.outputs[0]
    for _ in range(6):
        users = [use.node for use in value.uses()]
        if any(user.op_type == "Softmax" for user in users):
            return True
        onward = [u for u in users if u.op_type in ("Add", "Sub", "Cast", "Where", "Identity")]
        if len(onward) != 1:
            return False
        value = onward[0].outputs[0]
    return False
