"""Compare an existing file with a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from causal_onnx.export.arguments import ExportOptions
from causal_onnx.export.capture.isolation import isolated, with_callers_threads
from causal_onnx.export.captures import farthest, simplified, valid_captures
from causal_onnx.export.check.parity import Session, compare
from causal_onnx.export.errors import ExportError
from causal_onnx.export.precision.choose import PRECISIONS, coding_of_record
from causal_onnx.export.precision.rounding import round_module
from causal_onnx.export.precision.smoothing import exponents_of_text
from causal_onnx.export.report import ParityReport, Progress
from causal_onnx.export.source.inputs import Input
from causal_onnx.export.source.module import Axes, Example
from causal_onnx.export.subject import Subject, prepare
from causal_onnx.runtime import load
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["verify"]


def verify(
    module: nn.Module,
    path: str | Path,
    *,
    example: Example | None = None,
    axes: Axes | None = None,
    inputs: Mapping[str, Input] | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare an existing file with a module over a grid of shapes.

    Args:
        module: The source that the file should equal; left as it is.
        path: A file with a contract, as `export` writes it.
        example: As for `export`.
        axes: As for `export`.
        inputs: As for `export`.
        progress: Called with (step, fraction done).

    Raises:
        ArtifactError: The file has no contract or is damaged.
        DeviceError: The file is in bfloat16, which the CPU cannot run.
        ValueError: Module and contract differ in their inputs or outputs.
        ExportError: The weights were rounded by "gptq", and the module cannot be captured.
    """
    path = Path(path)
    model = load(path)
    contract = model.contract
    tell = progress or (lambda step, fraction: None)
    found = (model.certificate or {}).get("quantisation") or {}
    with isolated():
        subject = prepare(
            module,
            example,
            axes,
            inputs,
            adaptable=[pair.module for pair in contract.adapters],
            options=ExportOptions(
                cache=bool(contract.cache),
                max_seq_len=contract.max_seq_len,
                target=contract.form,
                precision=contract.precision if contract.precision in PRECISIONS else "fp32",
                opset=contract.opset,
                coding=coding_of_record(
                    contract.precision, contract.form, contract.opset or 0, found
                ),
            ),
        )
        _refuse_another_interface(contract, subject.contract)
        subject = _rounded(subject, found)
        session = Session(path, contract)
        with with_callers_threads():
            return compare(
                session,
                subject.reference.fresh(),
                subject.specs,
                contract,
                lambda i, n: tell("compare", i / n),
            )


def _rounded(subject: Subject, record: Mapping[str, Any]) -> Subject:
    """The subject with a reference whose weights are rounded as the file's are."""
    coding = subject.options.coding
    if coding is None:
        return subject
    if coding.rounding == "nearest":
        texts = record.get("smoothing", {})
        smoothing = {name: exponents_of_text(text) for name, text in texts.items()}
        axes = record.get("axes", {})
        round_module(subject.reference.module, axes, coding, smoothing=smoothing)
        return subject
    # What the weights are multiplied by shows in a captured graph.
    errors: list[ExportError] = []
    for capture, within in valid_captures(subject, errors):
        return simplified(capture, within)[1]
    raise farthest(errors)


def _refuse_another_interface(contract: Contract, expected: Contract) -> None:
    for kind in ("inputs", "outputs"):
        derived = contract.added_names | contract.present_names  # by the export, not the module
        specs = [spec for spec in getattr(contract, kind) if spec.name not in derived]
        ours = [(spec.name, spec.dtype, spec.axes) for spec in specs]
        theirs = [(spec.name, spec.dtype, spec.axes) for spec in getattr(expected, kind)]
        if ours != theirs:
            raise ValueError(
                f"the file's {kind} are {_listed(getattr(contract, kind))}; the module's are "
                f"{_listed(getattr(expected, kind))}. Pass the example and axes of the export"
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(spec.describe() for spec in specs)
