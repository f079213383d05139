"""Read the certificate that an export stored in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime import ArtifactError

__all__ = ["Certificate", "CutCase", "ShapeCase", "read_certificate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeCase:
    """One shape at which the file was compared with its PyTorch source."""

    batch: int | None
    """None: the call had no batch axis."""
    seq: int
    error: float
    """Relative to the output's scale."""
    passed: bool
    refused: bool
    """Longer than the limit, and refused as it must be."""
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CutCase:
    """One change of everything from position `cut` on."""

    seq: int
    cut: int
    past_error: float
    """Largest change before the cut; 0 is bit-identical."""
    future_moved: bool
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What the exporter stated about the file; parts that it left out are None or empty."""

    is_causal: bool | None
    causality_summary: str
    cuts: tuple[CutCase, ...]
    is_equal: bool | None
    max_error: float
    tolerance: float
    shapes: tuple[ShapeCase, ...]
    skipped: tuple[str, ...]
    other: Mapping[str, Any]
    """Sections that this version does not know."""


def read_certificate(document: Mapping[str, Any] | None) -> Certificate | None:
    """Read the certificate as the file's metadata holds it.

    Args:
        document: `Artifact.certificate`.

    Returns:
        None where the file carries none.

    Raises:
        ArtifactError: A section is damaged.
    """
    if document is None:
        return None
    known = ("causality", "parity")
    try:
        causality = document.get("causality")
        parity = document.get("parity")
        return Certificate(
            is_causal=None if causality is None else bool(causality["is_causal"]),
            causality_summary="" if causality is None else str(causality["summary"]),
            cuts=() if causality is None else tuple(_cut(case) for case in causality["cases"]),
            is_equal=None if parity is None else bool(parity["passed"]),
            max_error=0.0 if parity is None else float(parity["max_error"]),
            tolerance=0.0 if parity is None else float(parity["tolerance"]),
            shapes=() if parity is None else tuple(_shape(case) for case in parity["cases"]),
            skipped=() if parity is None else tuple(str(text) for text in parity["skipped"]),
            other={key: value for key, value in document.items() if key not in known},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"the certificate in the file is damaged: {error!r}") from error


def _cut(case: Mapping[str, Any]) -> CutCase:
    return CutCase(
        seq=int(case["seq"]),
        cut=int(case["cut"]),
        past_error=float(case["past_error"]),
        future_moved=bool(case["future_moved"]),
        passed=bool(case["passed"]),
    )


def _shape(case: Mapping[str, Any]) -> ShapeCase:
    return ShapeCase(
        batch=None if case["batch"] is None else int(case["batch"]),
        seq=int(case["seq"]),
        error=float(case["error"]),
        passed=bool(case["passed"]),
        refused=bool(case.get("refused", False)),
        note=str(case.get("note", "")),
    )
