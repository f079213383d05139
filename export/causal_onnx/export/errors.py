"""The errors that exporting raises."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from causal_onnx.runtime.errors import CausalOnnxError

if TYPE_CHECKING:
    from causal_onnx.export.proof.certificate import Offence
    from causal_onnx.export.report import CausalityReport, DriftReport, ParityReport

__all__ = [
    "CausalityError",
    "DriftError",
    "ExportError",
    "NotSupportedError",
    "ParityError",
    "RewriteError",
    "Stage",
]


class Stage(IntEnum):
    """How far one way of capturing a module came before it failed, the farthest last."""

    NOT_TRIED = 0
    """The way is for modules of another kind."""
    TRACE = 1
    TRANSLATE = 2
    DOMAIN = 3
    """The graph is not valid for every size that was promised."""
    FORM = 4
    """No form of the graph, or no cache, could be derived."""
    PROOF = 5
    """The file disagrees with the module."""


class ExportError(CausalOnnxError):
    """The module cannot be exported; the message names the submodule, the line or the operator."""

    stage = Stage.FORM

    def at(self, stage: Stage) -> ExportError:
        """The error itself, marked with where it happened."""
        self.stage = stage
        return self


class NotSupportedError(ExportError):
    """A rewrite cannot express something in the captured graph; the message names it.

    The one reason for writing the graph in another form. A rewrite that raises nothing and then
    disagrees with PyTorch is a defect: `RewriteError`.
    """


class ParityError(ExportError):
    """The artifact disagrees with its source."""

    stage = Stage.PROOF

    def __init__(self, message: str, report: ParityReport) -> None:
        super().__init__(message)
        self.report = report


class RewriteError(ParityError):
    """A rewritten graph disagrees with its source, and the graph as captured agrees.

    A defect of this package, not of the module: no other form is written in its place.
    """


class DriftError(ParityError):
    """The lower precision moves the results further than the limit allows."""

    def __init__(self, message: str, report: ParityReport, drift: DriftReport) -> None:
        super().__init__(message, report)
        self.drift = drift


class CausalityError(ExportError):
    """An output depends on a later position of the input."""

    def __init__(
        self, message: str, report: CausalityReport, violation: Offence | None = None
    ) -> None:
        super().__init__(message)
        self.report = report
        self.violation = violation
        """The node of the captured graph that does it; None: the static proof names none."""
