"""Lowering: write each canonical attention core in operators that a runtime has."""

from causal_onnx.export.lower.packed import LONGEST_SHORT
from causal_onnx.export.lower.targets import lower

__all__ = ["LONGEST_SHORT", "lower"]
