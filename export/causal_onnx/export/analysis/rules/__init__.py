"""Transfer rules of the element-wise analysis, one file per family of operators."""

from causal_onnx.export.analysis.rules import (
    attention,
    contraction,
    control,
    elementwise,
    fused,
    moving,
    quantised,
    recurrent,
    reduction,
)
from causal_onnx.export.analysis.rules.registry import RULES, Context, rule

__all__ = [
    "RULES",
    "Context",
    "attention",
    "contraction",
    "control",
    "elementwise",
    "fused",
    "moving",
    "quantised",
    "recurrent",
    "reduction",
    "rule",
]
