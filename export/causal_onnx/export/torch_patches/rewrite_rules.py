"""The rewrite rules of the exporter's optimizer, tried only where they can match.

onnxscript 0.7 tries each of its rules at each node. For a rule whose pattern ends in several nodes
it lists the whole graph first, and then pairs the node with every other of the operator: the time
grows with the square of the nodes, and was most of the capture of a model with 32 layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import MatchResult, SimplePatternMatcher

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.replace import attribute_replaced

__all__ = ["tried_where_they_can_match"]


@contextlib.contextmanager
def tried_where_they_can_match() -> Iterator[None]:
    """Let a rule give up at once at a node that its pattern cannot end in; the same rules apply."""
    original = SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        if _can_end_in(self.pattern.output_nodes[0], node):
            return handed_over(original, self, model, graph, node, **options)
        return MatchResult().fail("the pattern ends in another operator")

    with attribute_replaced(SimplePatternMatcher, "match", match):
        yield


def _can_end_in(last: Any, node: ir.Node) -> bool:
    """Whether `last`, of a pattern, has the operator of `node` and places for its inputs."""
    return bool(
        last.op.matches(node.op_type)
        and last.domain.matches(node.domain)
        and (last.allow_other_inputs or len(node.inputs) <= len(last.inputs))
    )
