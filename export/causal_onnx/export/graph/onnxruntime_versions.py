"""Which onnxruntime a graph needs, where it holds what the oldest one that is supported lacks."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from causal_onnx.export.errors import NotSupportedError
from causal_onnx.runtime.session.ort import import_onnxruntime, is_older

__all__ = ["oldest_onnxruntime", "refuse_unknown"]

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
    return _text(most) if any(most) else None


def refuse_unknown(domain: str, op_type: str) -> None:
    """See that the onnxruntime that a file is proved with has an operator.

    Raises:
        NotSupportedError: It is older.
    """
    needed, version = _text(_OPERATORS[domain, op_type]), str(import_onnxruntime().__version__)
    if is_older(version, needed):
        raise NotSupportedError(f"onnxruntime {version} has no {op_type}, {needed} has it")


def _text(version: _Version) -> str:
    return f"{version[0]}.{version[1]}"
