"""In which precision a module is exported, and what it is then compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from causal_onnx.export.inputs import InputSpec
from causal_onnx.export.source import Source

__all__ = ["PRECISIONS", "FullPrecision", "in_precision"]

PRECISIONS = ("fp32", "fp16")
_NAMES = {torch.float16: "fp16", torch.float64: "fp64"}


class FullPrecision(Source):
    """The module in fp32, behind the narrower inputs and outputs of its exported form."""

    def __init__(self, source: Source, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.inner = source
        self._dtype = dtype

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """The caller's module."""
        return self.inner.module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute in fp32; round what goes in and what comes out."""
        wide = [x.float() if x.dtype == self._dtype else x for x in inputs]
        return tuple(
            y.to(self._dtype) if y.dtype == torch.float32 else y for y in self.inner(*wide)
        )


def in_precision(
    source: Source, specs: Sequence[InputSpec], precision: str
) -> tuple[Source, Source, tuple[InputSpec, ...], str, list[str]]:
    """The module to capture, the one to compare with, the inputs, the precision, and warnings.

    "fp32" leaves a module of another precision as it is, except bfloat16: onnxruntime has no
    bfloat16 products on the CPU, so such weights are widened, which loses nothing.
    """
    dtypes = {p.dtype for p in source.parameters() if p.is_floating_point()}
    if torch.bfloat16 in dtypes:
        widened = source.fresh().float()
        note = "bfloat16 weights were widened to fp32: onnxruntime has no bfloat16 products on CPU"
        specs = _with_dtype(specs, torch.bfloat16, torch.float32)
        source, warnings = widened, [note]
    else:
        warnings = []
    if precision == "fp16" and dtypes != {torch.float16}:
        narrow = source.fresh().half()
        reference = FullPrecision(source, torch.float16)
        specs = _with_dtype(specs, torch.float32, torch.float16)
        return narrow, reference, tuple(specs), "fp16", warnings
    own = next((_NAMES[d] for d in dtypes if d in _NAMES), "fp32") if len(dtypes) == 1 else "fp32"
    return source, source, tuple(specs), own, warnings


def _with_dtype(
    specs: Sequence[InputSpec], old: torch.dtype, new: torch.dtype
) -> tuple[InputSpec, ...]:
    return tuple(
        replace(spec, example=spec.example.to(new)) if spec.example.dtype == old else spec
        for spec in specs
    )
