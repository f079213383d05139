"""Export a PyTorch causal attention module to a proven ONNX file."""

from causal_onnx.export.errors import CausalityError, ExportError, ParityError
from causal_onnx.export.pipeline import export, verify
from causal_onnx.export.report import (
    CausalityCase,
    CausalityReport,
    ExportReport,
    ParityCase,
    ParityReport,
)

__all__ = [
    "CausalityCase",
    "CausalityError",
    "CausalityReport",
    "ExportError",
    "ExportReport",
    "ParityCase",
    "ParityError",
    "ParityReport",
    "export",
    "verify",
]
