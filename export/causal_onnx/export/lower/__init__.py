"""Lowering: write each canonical attention core in operators that a runtime has."""

from causal_onnx.export.lower.depthwise import write_depthwise
from causal_onnx.export.lower.targets import LOOPED, lower, shared_pasts, switching_lengths

__all__ = ["LOOPED", "lower", "shared_pasts", "switching_lengths", "write_depthwise"]
