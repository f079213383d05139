"""Judge a file before onnxruntime sees it: what could harm whoever loads it is refused."""

from causal_onnx.runtime.scan.limits import Limits
from causal_onnx.runtime.scan.scan import scan

__all__ = ["Limits", "scan"]
