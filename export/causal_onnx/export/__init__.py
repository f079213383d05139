"""Export a PyTorch causal attention module to a proven ONNX file.

Names are loaded when they are first used, so that `attest`, `adopt` and the analysis behind them
need no PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causal_onnx.export.adoption import adopt
    from causal_onnx.export.attestation import attest
    from causal_onnx.export.check.verify import verify
    from causal_onnx.export.checkpoint.export import export_checkpoint
    from causal_onnx.export.errors import (
        CausalityError,
        DriftError,
        ExportError,
        ParityError,
    )
    from causal_onnx.export.pipeline import export
    from causal_onnx.export.proof.certificate import Certificate
    from causal_onnx.export.report import (
        BitsCase,
        BitsReport,
        CacheCase,
        CacheReport,
        CausalityCase,
        CausalityReport,
        DriftReport,
        ExportReport,
        ParityCase,
        ParityReport,
        QuantisationReport,
    )
    from causal_onnx.export.source.inputs import Input

__all__ = [
    "BitsCase",
    "BitsReport",
    "CacheCase",
    "CacheReport",
    "CausalityCase",
    "CausalityError",
    "CausalityReport",
    "Certificate",
    "DriftError",
    "DriftReport",
    "ExportError",
    "ExportReport",
    "Input",
    "ParityCase",
    "ParityError",
    "ParityReport",
    "QuantisationReport",
    "adopt",
    "attest",
    "export",
    "export_checkpoint",
    "verify",
]

_HOMES = {
    "adoption": ("adopt",),
    "attestation": ("attest",),
    "errors": ("CausalityError", "DriftError", "ExportError", "ParityError"),
    "pipeline": ("export",),
    "proof.certificate": ("Certificate",),
    "source.inputs": ("Input",),
    "check.verify": ("verify",),
    "checkpoint.export": ("export_checkpoint",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "report")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


class _Former(ModuleType):
    """A module by its former path, for who still imports from there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what looks through all modules asks for these
            raise AttributeError(name)
        return getattr(importlib.import_module(f"{__name__}.attestation"), name)


# Not a file: importing it would bind the module where `attest` is the function.
sys.modules[f"{__name__}.attest"] = _Former(f"{__name__}.attest")
