"""Types are promoted by the values that the trace recorded, without computing them again.

The exporter writes conversions where an operator of PyTorch takes operands of several types, which
none of ONNX does. To learn the types it runs the whole program once more on tensors without data,
although the trace kept one for every operator: a tenth of a small export.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.onnx._internal.fx.passes import type_promotion

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.replace import attribute_replaced

__all__ = ["promoted_by_recorded_values"]


@contextlib.contextmanager
def promoted_by_recorded_values() -> Iterator[None]:
    """Let `torch.onnx.export` compute what a node gives only where that is not recorded.

    A node with converted operands is computed in any case, and its record renewed.
    """
    interpreter = type_promotion._TypePromotionInterpreter

    def run_node(self: Any, node: fx.Node) -> Any:
        rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        recorded = node.meta.get("val") if node.op == "call_function" else None
        if recorded is not None:
            return recorded
        return handed_over(fx.Interpreter.run_node, self, node)

    with attribute_replaced(interpreter, "run_node", run_node):
        yield
