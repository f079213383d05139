"""Causality by perturbation: change the future, the past must stay bit-identical."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from causal_onnx.export.check.parity import Session, tolerance_for
from causal_onnx.export.errors import CausalityError
from causal_onnx.export.lower import switching_lengths
from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.report import CausalityCase, CausalityReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, changed_values, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.subject import Subject
from causal_onnx.runtime.artifact.golden import relative_error
from causal_onnx.runtime.contract import Contract

__all__ = ["leaking", "perturb", "perturb_source"]

ROUNDING = 1e-5
"""Where the source itself is causal only up to rounding (a mask after the softmax, renormalised),
the artifact may move by this much, relative to the output's scale; by the tolerance of a less
precise dtype where that is more."""

SHORT_LENGTHS = (2, 3, 7, 17)
"""Some milliseconds each in PyTorch."""


def perturb(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    *,
    budget: Budget | None = None,
) -> CausalityReport:
    """Test cuts at several lengths, a long one included, and after a past where inputs hold one.

    Inputs from the cut on are replaced by other finite values (NaN would leak through 0 x NaN in
    PyTorch and ONNX Runtime alike). No cases: no output has a sequence axis to look at. `budget`
    says which lengths may be run, and at full effort the longest is one; None: one of its own.
    """
    given = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    axes = [spec.axis_of("seq") for spec in given]
    if not any(axis is not None for axis in axes):
        return CausalityReport(cases=())
    rounding = max(ROUNDING, tolerance_for(contract, source))

    def run(inputs: Sequence[torch.Tensor]) -> list[Array]:
        return session([to_numpy(x) for x in inputs])

    shapes, skipped = _shapes(budget or Budget(source, specs), specs, contract)
    cases = [
        _case(unchanged, source, specs, axes=axes, cut=cut)
        for unchanged in (_Unchanged(run, specs, sizes) for sizes in shapes)
        for cut in _cuts(unchanged.sizes, contract)
    ]
    # A source that rounds by the future (it masks after the softmax, say) need not do so at the
    # very cut where the graph does.
    is_inexact = any(case.source_past_error for case in cases)
    # Where each position sees only those some places before it, changing the last ones moves
    # nothing, and at short lengths no change does: a length is evidence if one of its cuts moves
    # something, and from the shortest such length on every one has to be.
    moving = {case.seq for case in cases if case.future_moved}
    return CausalityReport(
        cases=tuple(
            replace(
                case,
                passed=(case.seq in moving or case.seq < min(moving, default=0))
                and (case.past_error == 0.0 or (is_inexact and case.past_error <= rounding)),
            )
            for case in cases
        ),
        skipped=tuple(skipped),
    )


def perturb_source(
    source: Source, specs: Sequence[InputSpec], contract: Contract
) -> CausalityReport | None:
    """Ask the module itself, at short lengths: a leak of its own is found before its graph is made.

    Returns:
        What was found; None: nothing moved that must not, as far as this looked.
    """
    axes = [spec.axis_of("seq") for spec in contract.outputs]
    rounding = max(ROUNDING, tolerance_for(contract, source))
    wanted = _with_block(SHORT_LENGTHS, contract)
    limit = contract.max_seq_len or max(wanted)
    lengths = sorted({min(max(n, contract.min_seq_len), limit) for n in wanted} - {1})

    def run(inputs: Sequence[torch.Tensor]) -> list[Array]:
        return [to_numpy(x) for x in source.run(inputs)]

    for sizes in (CallSizes(batch=1, seq=n) for n in lengths):
        unchanged = _Unchanged(run, specs, sizes)
        for cut in _cuts(sizes, contract):
            case = ask(_case, unchanged, source, specs, axes=axes, cut=cut)
            if isinstance(case, Refusal):
                return None  # the comparison of the file says at which shape
            if case.past_error > rounding:
                return CausalityReport(cases=(case,))
    return None


def _cuts(sizes: CallSizes, contract: Contract) -> list[int]:
    """Where blocks are causal, their ends, counted from the first position."""
    block = contract.causal_block or 1
    wanted = (max(1, block - sizes.past), sizes.seq // 2, sizes.seq - 1)
    cuts = {(n + sizes.past) // block * block - sizes.past for n in wanted}
    return sorted(n for n in cuts if 0 < n < sizes.seq)


def _with_block(lengths: Sequence[int], contract: Contract) -> list[int]:
    """`lengths`, and where blocks are causal some of two blocks and more."""
    block = contract.causal_block
    return [*lengths, *([] if block is None else [2 * block, 2 * block + 1, 3 * block - 1])]


def _shapes(
    budget: Budget, specs: Sequence[InputSpec], contract: Contract
) -> tuple[list[CallSizes], list[str]]:
    """The shapes to run, and those left out with the reason."""
    wanted = _with_block((2, 3, 7, 17, 33, 257, *switching_lengths(contract)), contract)
    least, limit = contract.min_seq_len, contract.max_seq_len or max(wanted)
    lengths = sorted({min(max(n, least), limit) for n in wanted} - {1})
    shapes = [CallSizes(batch=2, seq=n) for n in lengths]
    if any("past_seq" in spec.axes.values() for spec in specs):
        shapes += [CallSizes(batch=2, seq=n, past=3) for n in lengths if 3 + n <= limit]
    if budget.is_full and contract.max_seq_len not in (None, *lengths):
        shapes.append(CallSizes(batch=1, seq=limit))
    skipped = [budget.refusal(sizes) for sizes in shapes if not budget.allows(sizes)]
    return [sizes for sizes in shapes if budget.allows(sizes)], skipped


class _Unchanged:
    """Inputs of some sizes before anything is changed in them, and what they give: the same for
    every cut."""

    def __init__(
        self,
        run: Callable[[Sequence[torch.Tensor]], Sequence[Array]],
        specs: Sequence[InputSpec],
        sizes: CallSizes,
    ) -> None:
        self.run, self.sizes = run, sizes
        self.inputs = make_inputs(specs, sizes, seed=1)

    @cached_property
    def outputs(self) -> Sequence[Array]:
        return self.run(self.inputs)


def _case(
    unchanged: _Unchanged,
    source: Source,
    specs: Sequence[InputSpec],
    *,
    axes: Sequence[int | None],
    cut: int,
) -> CausalityCase:
    """What one cut shows; whether that passes is for all of them together to say."""
    before, sizes = unchanged.inputs, unchanged.sizes
    other = make_inputs(specs, sizes, seed=2)
    after = tuple(
        _spliced(spec, old, new, cut) for spec, old, new in zip(specs, before, other, strict=True)
    )
    past_error, moved = _compare(unchanged.outputs, unchanged.run(after), axes, cut)
    source_error = None
    if past_error > 0.0:
        a, b = source.run(before), source.run(after)
        source_error, _ = _compare([to_numpy(x) for x in a], [to_numpy(x) for x in b], axes, cut)
    return CausalityCase(
        seq=sizes.seq,
        cut=cut,
        past_error=past_error,
        source_past_error=source_error,
        future_moved=moved,
        passed=False,
    )


def _spliced(spec: InputSpec, old: torch.Tensor, new: torch.Tensor, cut: int) -> torch.Tensor:
    axis = next((a for a, label in spec.axes.items() if label == "seq"), None)
    if axis is None or not spec.is_data:
        return old
    mixed = old.clone()
    tail = old.shape[axis] - cut
    values = new.narrow(axis, cut, tail)
    if spec.kind == "flags" or not (old.is_floating_point() or old.is_complex()):
        # A new draw may repeat the old value; step to a different one where it does.
        same = values == old.narrow(axis, cut, tail)
        values = torch.where(same, changed_values(spec, values), values)
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
            worst = max(worst, relative_error(new, old), float(np.finfo(np.float32).tiny))
        moved |= not np.array_equal(a.take(tail, axis), b.take(tail, axis))
    return worst, moved


def leaking(subject: Subject, leak: CausalityReport) -> CausalityError:
    """What to raise for a module that is not causal itself."""
    return CausalityError(
        f"{subject.name} is {leak.summary()}; no file was written{_mask_wanted(subject)}", leak
    )


def _mask_wanted(subject: Subject) -> str:
    """What to do where a mask over pairs is given, and is not causal."""
    for spec in subject.specs:
        positions = [label for label in spec.axes.values() if label in ("seq", "total_seq")]
        if len(positions) == 2 and spec.kind != "pairs":
            return (
                f". The input {spec.name!r} in the example lets queries see later keys: pass a "
                "causal one, and the file is proved for causal ones"
            )
    return ""
