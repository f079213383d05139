"""The errors that exporting raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causal_onnx.runtime.errors import CausalOnnxError

if TYPE_CHECKING:
    from causal_onnx.export.report import CausalityReport, DriftReport, ParityReport

__all__ = ["CausalityError", "DriftError", "ExportError", "ParityError"]


class ExportError(CausalOnnxError):
    """The module cannot be exported; the message names the submodule, the line or the operator."""


class ParityError(ExportError):
    """The artifact disagrees with its source."""

    def __init__(self, message: str, report: ParityReport) -> None:
        super().__init__(message)
        self.report = report


class DriftError(ParityError):
    """The lower precision moves the results further than the limit allows."""

    def __init__(self, message: str, report: ParityReport, drift: DriftReport) -> None:
        super().__init__(message, report)
        self.drift = drift


class CausalityError(ExportError):
    """An output depends on a later position of the input."""

    def __init__(self, message: str, report: CausalityReport) -> None:
        super().__init__(message)
        self.report = report
