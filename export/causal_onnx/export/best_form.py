"""From one capture to a verified file: the best form that supports what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from causal_onnx.export.capture.capture import Capture
from causal_onnx.export.captures import simplified
from causal_onnx.export.check.blame import blamed
from causal_onnx.export.check.check_file import prove_and_write
from causal_onnx.export.errors import (
    CausalityError,
    DriftError,
    ExportError,
    NotSupportedError,
)
from causal_onnx.export.forms import forms_of, say_consequence
from causal_onnx.export.report import ExportReport, Fallback, Progress
from causal_onnx.export.subject import Subject

__all__ = ["write_in_best_form"]


def write_in_best_form(
    capture: Capture, subject: Subject, path: Path, tell: Progress
) -> ExportReport:
    """Turn one capture into a verified file, in the best form that supports what is in it.

    Raises:
        NotSupportedError: No form does.
        RewriteError: A form disagrees with the module, and the capture does not.
        ParityError: The capture itself disagrees with the module.
    """
    # The last folders of the path are made with the file.
    folder = next(place for place in path.absolute().parents if place.is_dir())
    captured, subject = simplified(capture, subject, folder)
    fallbacks: list[Fallback] = []
    options = subject.options
    grids = options.coding.grids if options.coding is not None else ()
    for form in forms_of(capture.model, subject.contract, cache=options.cache, grids=grids):
        if isinstance(form, Fallback):
            fallbacks.append(form)
            continue
        try:
            report = prove_and_write(form, subject, path, tell)
        except (CausalityError, DriftError):
            raise  # no form changes what the module computes, nor what the weights are
        except ExportError as error:
            cause = blamed(error, form, captured, subject, path)
            if cause is error:
                raise
            raise cause from error
        warnings = (*subject.warnings, *map(say_consequence, fallbacks))
        return replace(report, warnings=warnings, fallbacks=(*fallbacks, *form.left))
    raise NotSupportedError(fallbacks[0].reason)
