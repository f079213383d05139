"""Which onnxruntime a graph needs, where it holds what the oldest one that is supported lacks."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["oldest_onnxruntime"]

_Version = tuple[int, int]

_OPERATORS: Mapping[tuple[str, str], _Version] = {
    ("com.microsoft", "LinearAttention"): (1, 30),
}
"""Domain and operator -> the first onnxruntime that has it."""

_INPUTS: Mapping[tuple[str, str, int], _Version] = {
    ("com.microsoft", "GroupQueryAttention", 16): (1, 32),
}
"""Domain, operator and place of an input -> the first onnxruntime in which it has that input."""


def oldest_onnxruntime(model: ir.Model) -> str | None:
    """`Contract.min_onnxruntime` of a graph: "1.30", say; None: every supported one runs it."""
    found: list[_Version] = []
    for node in model.graph.all_nodes():
        found.append(_OPERATORS.get((node.domain, node.op_type), (0, 0)))
        for place, value in enumerate(node.inputs):
            if value is not None:
                found.append(_INPUTS.get((node.domain, node.op_type, place), (0, 0)))
    most = max(found, default=(0, 0))
    return f"{most[0]}.{most[1]}" if any(most) else None
