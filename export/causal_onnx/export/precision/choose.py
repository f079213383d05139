"""In which precision a module is exported, and what it is then compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from causal_onnx.export.precision.grid import OLDEST_BLOCKS_OPSET, Grid
from causal_onnx.export.source.inputs import InputSpec
from causal_onnx.export.source.module import Source

__all__ = ["CODED_BITS", "PRECISIONS", "FullPrecision", "default_opset", "grid_for", "in_precision"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
CODED_BITS = {"int8": 8, "int4": 4}
"""Precisions of weights alone; everything else is fp32."""

_NAMES = {torch.float16: "fp16", torch.float64: "fp64"}


def default_opset(opset: int, precision: str) -> int:
    """The operator set to take where none was asked for: `opset`, or what the precision needs."""
    return max(opset, OLDEST_BLOCKS_OPSET) if precision in CODED_BITS else opset


def grid_for(precision: str, target: str, opset: int) -> Grid | None:
    """How the weights of a target are rounded; None: they are not.

    Raises:
        ValueError: The operator set has no 4-bit numbers, and the target no operators of its own.
    """
    bits = CODED_BITS.get(precision)
    if bits is None:
        return None
    has_blocks = target == "ort" or opset >= OLDEST_BLOCKS_OPSET
    if bits == 4 and not has_blocks:
        raise ValueError(
            f"precision 'int4' with target {target!r} needs opset {OLDEST_BLOCKS_OPSET} or newer, "
            f"which has 4-bit integers; got {opset}. Take precision='int8' or target='ort' there"
        )
    return Grid(bits=bits, per_row=not has_blocks)


class FullPrecision(Source):
    """The module in fp32, behind the narrower inputs and outputs of its exported form."""

    def __init__(self, source: Source, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.inner = source
        self.keeps_weights = source.keeps_weights
        self._dtype = dtype

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """The caller's module."""
        return self.inner.module

    @property
    def pads(self) -> bool:
        return self.inner.pads

    @contextlib.contextmanager
    def padded(self, lengths: Sequence[int]) -> Iterator[None]:
        with self.inner.padded(lengths):
            yield

    def narrowed(self) -> Source:
        """The module in the precision of its exported form, as PyTorch itself rounds there."""
        return self.inner.fresh().to(self._dtype)

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
    bfloat16 products on the CPU, so such weights are widened, which loses nothing. Weights of few
    bits are made from fp32 ones.
    """
    dtypes = {p.dtype for p in source.parameters() if p.is_floating_point()}
    if precision == "bf16":
        narrow = source.fresh() if torch.bfloat16 in dtypes else source.fresh().bfloat16()
        reference = FullPrecision(source.fresh().float(), torch.bfloat16)
        return narrow, reference, _with_dtype(specs, torch.float32, torch.bfloat16), precision, []
    if precision in CODED_BITS:
        if torch.float64 in dtypes:
            raise ValueError(
                f"precision {precision!r} is of modules in fp32 or less, this one has float64 "
                "weights; call module.float() first"
            )
        for narrow_dtype in (torch.float16, torch.bfloat16):
            specs = _with_dtype(specs, narrow_dtype, torch.float32)
        return source.fresh().float(), source.fresh().float(), tuple(specs), precision, []
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
