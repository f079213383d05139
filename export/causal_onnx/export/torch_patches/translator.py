"""What the exporter's translator does again and again is done once, or where it can matter.

onnxscript 0.7 tries each of its rewrite rules at each node. For a rule whose pattern ends in
several nodes it lists the whole graph first, and then pairs the node with every other of the
operator: the time grows with the square of the nodes, and was most of the capture of a model with
32 layers.
For each export it also parses the source of all its 500 translations, a quarter of a second, and
reads their signatures, half as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import MatchResult, SimplePatternMatcher
from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]
from torch.onnx._internal.exporter import _schemas

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.replace import attribute_replaced

__all__ = ["listed_once", "tried_where_they_can_match"]


@cache
def _translations(list_them: Callable[[], Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(handed_over(list_them))


@cache
def _signature(read: Callable[..., Any], function: Any, *rest: Any, **options: Any) -> Any:
    return handed_over(read, function, *rest, **options)


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """Keep the list of translations and their signatures for later exports of this process.

    Neither ever changes.
    """
    list_them, read = onnxscript_apis.get_torchlib_ops, _schemas.op_signature_from_function
    with (
        attribute_replaced(
            onnxscript_apis, "get_torchlib_ops", lambda: [*_translations(list_them)]
        ),
        attribute_replaced(_schemas, "op_signature_from_function", partial(_signature, read)),
    ):
        yield


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
