"""What `export` refuses before the module is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.export.capture.capture import NEWEST_OPSET
from causal_onnx.export.passes import opset17
from causal_onnx.export.precision.choose import PRECISIONS, Coding, coding_for, default_opset
from causal_onnx.export.source.budget import EFFORTS, NORMAL
from causal_onnx.runtime.artifact.drafts import check_target

__all__ = ["OPSETS", "ExportOptions", "check_file", "read_options"]

OPSETS = {"ort": 24, "ort-1.32": 24, "portable": 20, "tiled": 20}
"""Default opset per target. 24 writes SDPA as one `Attention` node, which onnxruntime >= 1.28 (all
this project runs on) computes right; 20 is read by every runtime of the last years."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Arguments of `export` that go together; what they mean is said there."""

    cache: bool = False
    target: str = "ort"
    precision: str = "fp32"
    opset: int | None = None
    max_seq_len: int | None = None
    """If given, a graph that is valid for less will not do."""
    max_drift: float | None = None
    same_bits: bool = False
    """Look for which calls a row's bits depend on what else is computed."""
    effort: str = NORMAL
    causal_block: int | None = None
    """How many positions of a block see each other; None: each sees itself and earlier ones."""
    coding: Coding | None = None
    """How weights are rounded; None: they are not."""


def read_options(
    *,
    causal: str,
    cache: bool,
    target: str,
    precision: str,
    block_size: int | None,
    rounding: str,
    keep: Mapping[str, str] | None,
    opset: int | None,
    max_seq_len: int | None,
    max_drift: float | None,
    same_bits: bool,
    effort: str,
) -> ExportOptions:
    """Refuse what no module can be exported with; the arguments are those of `export`.

    Returns:
        The options, with the target's own operator set if none is asked for.

    Raises:
        ValueError: An argument is not one of its values, or two do not go together.
    """
    causal_block = _read_causal(causal, cache=cache)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if target not in OPSETS:
        raise ValueError(f"target must be one of {', '.join(OPSETS)}, got {target!r}")
    if opset is None:
        opset = default_opset(OPSETS[target], precision)
    if not opset17.OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset must be in [{opset17.OPSET}, {NEWEST_OPSET}], got {opset}")
    if max_seq_len is not None and max_seq_len < 2:
        raise ValueError(f"max_seq_len must be at least 2, got {max_seq_len}")
    coding = coding_for(
        precision, target, opset, block_size=block_size, rounding=rounding, keep=keep
    )
    if max_drift is not None and not max_drift > 0:
        raise ValueError(f"max_drift must be positive, got {max_drift}")
    if max_drift is not None and precision == "fp32":
        raise ValueError("max_drift is for a lower precision; fp32 is always compared within 1e-5")
    if same_bits and precision == "bf16":
        raise ValueError("same_bits runs the file, and bfloat16 runs on CUDA only")
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    return ExportOptions(
        cache=cache,
        target=target,
        precision=precision,
        opset=opset,
        max_seq_len=max_seq_len,
        max_drift=max_drift,
        same_bits=same_bits,
        effort=effort,
        causal_block=causal_block,
        coding=coding,
    )


def _read_causal(causal: str, *, cache: bool) -> int | None:
    if causal == "positions":
        return None
    found = re.fullmatch(r"blocks of ([1-9][0-9]*)", causal) if isinstance(causal, str) else None
    if found is None or int(found[1]) < 2:
        raise ValueError(
            f"causal must be 'positions', or 'blocks of N' with N of at least 2, got {causal!r}"
        )
    if cache:
        raise ValueError(
            f"cache=True is for modules that are causal by positions; with causal={causal!r}, a "
            "position changes as the rest of its block arrives"
        )
    return int(found[1])


def check_file(path: Path) -> None:
    """Find out whether a file can be written, before hours of work for it.

    Raises:
        ValueError: `path` is a folder.
        OSError: The file cannot be written there.
    """
    check_target(path)
    if path.is_dir():
        raise ValueError(f"path must name a file, {path} is a folder; try {path / 'model.onnx'}")
