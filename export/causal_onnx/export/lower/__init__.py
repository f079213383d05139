"""Lowering: write each canonical attention core in operators that a runtime has."""

from causal_onnx.export.lower.targets import lower, switching_lengths

__all__ = ["lower", "switching_lengths"]
