"""Causality by perturbation: change the future, the past must stay bit-identical."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from causal_onnx.export.inputs import InputSpec, Sizes, make_inputs
from causal_onnx.export.lower import LONGEST_SHORT
from causal_onnx.export.numbers import Array, to_numpy
from causal_onnx.export.parity import Session
from causal_onnx.export.report import CausalityCase, CausalityReport
from causal_onnx.export.source import Source
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.golden import relative_error

__all__ = ["perturb"]

ROUNDING = 1e-5
"""Where the source itself is causal only up to rounding (masked after the softmax and renormalised),
the artifact may move by this much, relative to the output's scale."""


def perturb(
    session: Session, source: Source, specs: Sequence[InputSpec], contract: Contract
) -> CausalityReport:
    """Test cuts at several lengths.

    Inputs from the cut on are replaced by other finite values (NaN would leak through 0 x NaN in
    PyTorch and ONNX Runtime alike).
    """
    limit = contract.max_seq_len or LONGEST_SHORT + 1
    wanted = [2, 3, 7, 17, 33, *([LONGEST_SHORT + 1] if contract.form == "ort" else [])]
    lengths = sorted({min(max(n, contract.min_seq_len), limit) for n in wanted} - {1})
    batch = 2
    cases = []
    for seq in lengths:
        sizes = Sizes(batch=batch, seq=seq)
        for cut in sorted({1, seq // 2, seq - 1} - {0}):
            cases.append(_case(session, source, specs, contract, sizes, cut))
    return CausalityReport(cases=tuple(cases))


def _case(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    sizes: Sizes,
    cut: int,
) -> CausalityCase:
    before = make_inputs(specs, sizes, seed=1)
    other = make_inputs(specs, sizes, seed=2)
    after = tuple(
        _spliced(spec, old, new, cut) for spec, old, new in zip(specs, before, other, strict=True)
    )
    first = session([to_numpy(x) for x in before])
    second = session([to_numpy(x) for x in after])
    axes = [
        spec.axis_of("seq") for spec in contract.outputs if spec.name not in contract.present_names
    ]
    past_error, moved = _compare(first, second, axes, cut)
    source_error = None
    if past_error > 0.0:
        with torch.no_grad():
            a, b = source(*before), source(*after)
        source_error, _ = _compare([to_numpy(x) for x in a], [to_numpy(x) for x in b], axes, cut)
    passed = moved and (
        past_error == 0.0
        or (source_error is not None and source_error > 0.0 and past_error <= ROUNDING)
    )
    return CausalityCase(
        seq=sizes.seq,
        cut=cut,
        past_error=past_error,
        source_past_error=source_error,
        future_moved=moved,
        passed=passed,
    )


def _spliced(spec: InputSpec, old: torch.Tensor, new: torch.Tensor, cut: int) -> torch.Tensor:
    axis = next((a for a, label in spec.axes.items() if label == "seq"), None)
    if axis is None or spec.kind not in ("features", "ids"):
        return old
    mixed = old.clone()
    tail = old.shape[axis] - cut
    values = new.narrow(axis, cut, tail)
    if spec.kind == "ids":
        # A new draw may repeat the old id; step to a different one where it does.
        assert spec.vocab_size is not None
        same = values == old.narrow(axis, cut, tail)
        values = torch.where(same, (values + 1) % spec.vocab_size, values)
    mixed.narrow(axis, cut, tail).copy_(values)
    return mixed


def _compare(
    first: Sequence[Array], second: Sequence[Array], axes: Sequence[int | None], cut: int
) -> tuple[float, bool]:
    """(largest relative change before the cut, whether anything from the cut on changed)."""
    worst, moved = 0.0, False
    for a, b, axis in zip(first, second, axes, strict=True):
        if axis is None:
            continue
        head = np.arange(cut)
        tail = np.arange(cut, a.shape[axis])
        old, new = a.take(head, axis), b.take(head, axis)
        if not np.array_equal(old, new, equal_nan=a.dtype.kind == "f"):
            worst = max(worst, relative_error(new, old), np.finfo(np.float32).tiny)
        moved |= not np.array_equal(a.take(tail, axis), b.take(tail, axis))
    return worst, moved
