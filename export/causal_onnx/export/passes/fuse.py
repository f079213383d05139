"""Which fusions a graph gets, and in which order."""

from __future__ import annotations

import onnx_ir as ir

from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.passes.activation import fuse_activations
from causal_onnx.export.passes.rms_norm import fuse_rms_norms
from causal_onnx.export.passes.skip_norm import fuse_skip_norms
from causal_onnx.runtime.contract import CONTRIB, ORT_FORMS

__all__ = ["fuse"]

OLDEST_OPSET = 23
"""From here on ONNX has `RMSNormalization`, which the skip form is found by."""


def fuse(model: ir.Model, target: str, max_seq_len: int | None = None) -> int:
    """Rewrite a captured graph in place; returns how many places were rewritten.

    Only for `ORT_FORMS`: the other targets keep to operators that every runtime has.
    """
    if target not in ORT_FORMS or model.opset_imports[""] < OLDEST_OPSET:
        return 0
    # The residual sum is found beside the norm that reads it, so norms come first.
    passes = (fuse_rms_norms, fuse_skip_norms, fuse_activations)
    layouts = Layouts(model, max_seq_len)
    count = sum(one(model, layouts) for one in passes)
    if any(node.domain == CONTRIB for node in model.graph):
        model.opset_imports[CONTRIB] = 1
    return count
