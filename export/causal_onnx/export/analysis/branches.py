"""The sizes at which the branches of a graph are taken.

A graph may switch its form by the length. What the usual lengths never enter is looked for at those
next to the numbers that the condition compares with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Sizes

__all__ = ["branch_of", "branch_sizes", "missed_branches", "optional_inputs"]

MAX_LENGTH = 1100
"""Longest length that is followed for the sake of a branch: scores grow with its square."""


def missed_branches(analysis: Analysis) -> list[tuple[ir.Node, bool]]:
    """Each `If` with the branch that no run entered, of those that some run came by.

    Not of those that an optional input decides: the proof is for the value that it has in the file.
    """
    optional = set(optional_inputs(analysis.model))
    found = []
    for node in analysis.model.graph.all_nodes():
        if node.op_type == "If" and node.inputs[0] not in optional:
            entered = _entered(node, analysis.runs)
            if len(entered) == 1:
                found.append((node, not entered.pop()))
    return found


def optional_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs with a value of their own, which a caller may leave out."""
    return [value for value in model.graph.inputs if value.is_initializer()]


def branch_sizes(analysis: Analysis) -> list[Sizes]:
    """The least sizes at which branches that no run entered are; none for those without such."""
    chosen: list[Sizes] = []
    entered: list[Run] = []
    for node, branch in missed_branches(analysis):
        if branch in _entered(node, entered):
            continue
        for sizes in _candidates(analysis, node):
            run = analysis.blank(sizes)
            if run is not None and branch in run.context.entered.get(node, ()):
                chosen.append(sizes)
                entered.append(run)
                break
    return chosen


def branch_of(node: ir.Node, condition: bool) -> ir.Graph:
    """The body of an `If` that runs where its condition is `condition`."""
    body: ir.Graph = attr(node, "then_branch" if condition else "else_branch")
    return body


def _entered(node: ir.Node, runs: Iterable[Run]) -> set[bool]:
    found: set[bool] = set()
    for run in runs:
        found |= run.context.entered.get(node, set())
    return found


def _candidates(analysis: Analysis, node: ir.Node) -> Iterator[Sizes]:
    """Sizes about each number behind the condition: as a length, and as a past."""
    condition = node.inputs[0]
    if condition is None or not analysis.runs or analysis.signature.fixed_seq is not None:
        return
    base = analysis.runs[0].sizes
    limit = min(analysis.signature.max_seq_len or MAX_LENGTH, MAX_LENGTH)
    numbers = set(analysis.numbers_behind([condition]))
    for length in sorted({n + step for n in numbers for step in (0, 1)} - {0}):
        if length <= limit:
            yield replace(base, seq=length, past_seq=0)
        if analysis.signature.has_past and length + 2 <= limit:
            yield replace(base, seq=2, past_seq=length)
