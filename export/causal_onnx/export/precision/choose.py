"""In which precision a module is exported, and what it is then compared with."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from causal_onnx.export.precision.grid import BLOCK_SIZES, OLDEST_BLOCKS_OPSET, WIDEST_ROW, Grid
from causal_onnx.export.source.inputs import InputSpec
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.contract import ORT_FORMS

__all__ = [
    "CODED_BITS",
    "INTEGER_PRODUCTS",
    "PRECISIONS",
    "ROUNDINGS",
    "Coding",
    "FullPrecision",
    "coding_for",
    "coding_of_record",
    "default_opset",
    "in_precision",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "w8a8")
CODED_BITS = {"int8": 8, "int4": 4, "w8a8": 8}
"""Precisions of weights alone; everything else is fp32. "w8a8" multiplies in integers, by
activations of 8 bits with a scale for each row."""

INTEGER_PRODUCTS = "w8a8"

ROUNDINGS = ("nearest", "gptq")

_NAMES = {torch.float16: "fp16", torch.float64: "fp64"}


def default_opset(opset: int, precision: str) -> int:
    """The operator set to take where none was asked for: `opset`, or what the precision needs."""
    is_in_blocks = precision in CODED_BITS and precision != INTEGER_PRODUCTS
    return max(opset, OLDEST_BLOCKS_OPSET) if is_in_blocks else opset


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How the weights of a module are rounded."""

    grid: Grid
    rounding: str = "nearest"
    """One of `ROUNDINGS`."""
    keep: tuple[tuple[str, Grid | None], ...] = ()
    """Patterns of names of parameters, and how those are rounded instead; None: not at all. The
    first one that fits counts."""

    def grid_of(self, name: str) -> Grid | None:
        """How the parameter is rounded; None: it stays as it is."""
        fitting = (grid for pattern, grid in self.keep if fnmatch.fnmatchcase(name, pattern))
        return next(fitting, self.grid)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All that a weight may lie on, the narrowest first."""
        return (self.grid, *dict.fromkeys(grid for _, grid in self.keep if grid is not None))


def coding_for(
    precision: str,
    target: str,
    opset: int,
    *,
    block_size: int | None = None,
    rounding: str = "nearest",
    keep: Mapping[str, str] | None = None,
) -> Coding | None:
    """How the weights of a target are rounded; None: they are not.

    Args:
        precision: One of `PRECISIONS`.
        target: Of the export.
        opset: Of the file.
        block_size: Neighbours that share a scale; None: 32, or all of a row.
        rounding: One of `ROUNDINGS`.
        keep: Patterns of names -> "fp32", or for "int4" also "int8".

    Raises:
        ValueError: The operator set has no 4-bit numbers, and the target no operators of its own;
            or an option is for weights of few bits, and these are not, or not a value of its own.
    """
    keep = keep or {}
    bits = CODED_BITS.get(precision)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if bits is None:
        given = {"block_size": block_size is not None, "rounding": rounding != "nearest"}
        for name in (name for name, is_given in {**given, "keep": bool(keep)}.items() if is_given):
            raise ValueError(
                f"{name} is for quantised weights ({', '.join(CODED_BITS)}); "
                f"precision is {precision!r}"
            )
        return None
    has_blocks = target in ORT_FORMS or opset >= OLDEST_BLOCKS_OPSET
    if bits == 4 and not has_blocks:
        raise ValueError(
            f"precision 'int4' with target {target!r} needs opset {OLDEST_BLOCKS_OPSET} or newer, "
            f"which has 4-bit integers; got {opset}. Use precision='int8' or target='ort' there"
        )
    is_whole = precision == INTEGER_PRODUCTS or not has_blocks
    _check_block_size(block_size, precision, target, is_whole=is_whole)
    grid = Grid(
        bits=bits,
        per_row=is_whole,
        block_size=block_size or Grid(bits=bits).block_size,
        may_end_early=block_size is not None and block_size > 32 and target in ORT_FORMS,
        widest=WIDEST_ROW if precision == INTEGER_PRODUCTS else None,
    )
    return Coding(grid=grid, rounding=rounding, keep=_wider(keep, precision))


def coding_of_record(
    precision: str, target: str, opset: int, record: Mapping[str, Any]
) -> Coding | None:
    """How the weights of a file were rounded, by what its certificate says of its quantisation."""
    coding = coding_for(
        precision,
        target,
        opset,
        block_size=record.get("block_size"),
        rounding=record.get("rounding", "nearest"),
    )
    if coding is None:
        return None
    wider = record.get("wider", {}).items()
    keep = tuple((name, Grid(bits=bits) if bits < 32 else None) for name, bits in wider)
    return replace(coding, keep=keep)


def _check_block_size(size: int | None, precision: str, target: str, *, is_whole: bool) -> None:
    if size is None:
        return
    if is_whole:
        reason = "has one scale for each row" + ("" if precision == INTEGER_PRODUCTS else " there")
        raise ValueError(
            f"block_size is for weights in blocks; precision {precision!r} with target {target!r} "
            f"{reason}, got {size!r}"
        )
    if isinstance(size, bool) or size not in BLOCK_SIZES[:-1]:
        sizes = ", ".join(map(str, reversed(BLOCK_SIZES[:-1])))
        raise ValueError(f"block_size must be one of {sizes}, got {size!r}")


def _wider(keep: Mapping[str, str], precision: str) -> tuple[tuple[str, Grid | None], ...]:
    known: dict[str, Grid | None] = {"fp32": None}
    if precision == "int4":
        known["int8"] = Grid(bits=8)
    for pattern, wanted in keep.items():
        if wanted not in known:
            raise ValueError(
                f"keep[{pattern!r}] must be {' or '.join(map(repr, known))}, which is wider than "
                f"precision {precision!r}, got {wanted!r}"
            )
    return tuple((pattern, known[wanted]) for pattern, wanted in keep.items())


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
                f"precision {precision!r} needs a module in fp32 or less, and this one has float64 "
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
