"""Drift: how far a file of lower precision is from the module in full precision, on real text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pydoc_data.topics import topics

import numpy as np
import torch

from causal_onnx.export.check.parity import Session
from causal_onnx.export.report import DriftReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import NORMAL, Budget
from causal_onnx.export.source.inputs import ADAPTER_RANK, CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.source.sampling import inputs_of_text, is_logits, sampled_text
from causal_onnx.runtime.contract import Contract

__all__ = ["DRIFT_LIMITS", "measure_drift"]

DRIFT_LIMITS = {
    "fp16": (0.01, 0.02),
    "bf16": (0.1, 0.1),
    "int8": (0.05, 0.1),
    "int4": (0.5, 0.5),
    "w8a8": (0.05, 0.1),
}
"""Precision -> the largest mean KL divergence in nats, and the largest relative error where there
are no tokens. Meant to stop what is broken, not what is coarse: half a nat is what a language model
of some hundred million parameters may lose to 4 bits."""

POSITIONS, LONGEST = 1024, 128
"""Tokens that are compared in all, and in one sequence."""

SAMPLED_ROWS = 8
SAMPLING_FLOPS = 2e11
"""Rows that the module writes itself, and what that may cost: some seconds."""

WIDENED_AT_ONCE = 1 << 19
"""Numbers: 4 MB in float64, of which a few copies are needed."""

SEED = 11


def measure_drift(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    limit: float | None = None,
    *,
    effort: str = NORMAL,
) -> DriftReport:
    """Compare the file with the module in fp32 on the same inputs.

    A language model (ids in, `logits` over the same vocabulary out) reads text that it samples
    itself, in fp32: there its probabilities are what it was trained for. It also reads the manual
    of Python, which every Python carries, one byte a token, taken modulo the vocabulary; the larger
    divergence of both decides. Other modules get normal inputs.

    Args:
        session: The file.
        source: The module in full precision.
        specs: The inputs as the file takes them.
        contract: Of the file.
        limit: Instead of the one for the file's precision: mean KL divergence in nats for language
            models, else the relative error.
        effort: With "quick", fewer samples are taken.
    """
    budget = Budget(source, specs, effort)
    shapes, skipped = _shapes(budget, contract)
    default = DRIFT_LIMITS[contract.precision]
    names = list(session.output_names)
    scores = next(
        (names.index(spec.name) for spec in contract.outputs if is_logits(spec, contract)), None
    )
    given = _Comparison(session, source, scores)
    for index, sizes in enumerate(shapes):
        inputs = make_inputs(specs, sizes, seed=SEED + index)
        given.add(_with_text(specs, inputs, index), sizes.batch * sizes.seq)
    if scores is None:
        return DriftReport(
            positions=given.positions,
            relative_error=given.relative_error,
            limit=default[1] if limit is None else limit,
            skipped=skipped,
        )
    sampled = _Comparison(session, source, scores)
    written = sampled_text(
        source,
        specs,
        contract,
        scores,
        rows=SAMPLED_ROWS,
        longest=shapes[0].seq,
        flops=SAMPLING_FLOPS * budget.of_samples,
        seed=SEED,
    )
    if written is not None:
        sampled.add(inputs_of_text(specs, written), written.numel())
    return DriftReport(
        positions=given.positions,
        relative_error=given.relative_error,
        limit=default[0] if limit is None else limit,
        max_logit_error=given.largest,
        mean_kl=given.mean_kl,
        max_kl=given.max_kl,
        argmax_flips=given.flips,
        sampled_positions=sampled.positions,
        sampled_mean_kl=sampled.mean_kl if written is not None else None,
        sampled_argmax_flips=sampled.flips if written is not None else None,
        skipped=skipped,
    )


class _Comparison:
    """The file beside the module in fp32 on the same inputs, added up."""

    def __init__(self, session: Session, source: Source, scores: int | None) -> None:
        """Compare all outputs; the one at `scores`, if any, as scores of the next token."""
        self._session, self._source, self._scores = session, source, scores
        self._squares = self._scale = 0.0
        self._divergences: list[Array] = []
        self.largest = 0.0
        self.flips, self.positions = 0, 0

    def add(self, inputs: Sequence[torch.Tensor], positions: int) -> None:
        """Run both on inputs of so many positions."""
        self.positions += positions
        expected = self._source.copied_by(to_numpy, _widened(inputs))
        got = self._session([to_numpy(x) for x in inputs])
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            for ours, theirs in _widened_blocks(a, b):
                self._add_errors(ours.reshape(-1), theirs.reshape(-1))
                if index == self._scores:
                    self._add_scores(ours, theirs)

    def _add_errors(self, ours: Array, theirs: Array) -> None:
        finite = np.isfinite(theirs)
        if not finite.all():  # to select takes longer than all the rest
            ours, theirs = ours[finite], theirs[finite]
        self._squares += float(np.square(ours - theirs).sum())
        self._scale += float(np.square(theirs).sum())

    def _add_scores(self, ours: Array, theirs: Array) -> None:
        self.largest = max(self.largest, float(np.abs(ours - theirs).max()))
        self.flips += int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        self._divergences.append(_divergence(theirs, ours))

    @property
    def relative_error(self) -> float:
        return float(np.sqrt(self._squares / self._scale)) if self._scale else 0.0

    @property
    def mean_kl(self) -> float:
        return float(np.concatenate(self._divergences).mean())

    @property
    def max_kl(self) -> float:
        return float(np.concatenate(self._divergences).max())


def _widened(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in inputs]


def _widened_blocks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Rows of the last axis, some at a time, in float64: whole logits are too large for that."""
    shape = math.prod(a.shape[:-1]), *(a.shape[-1:] or (1,))
    ours, theirs = a.reshape(shape), b.reshape(shape)
    rows = max(WIDENED_AT_ONCE // max(shape[-1], 1), 1)
    for start in range(0, len(ours), rows):
        part = slice(start, start + rows)
        yield ours[part].astype(np.float64), theirs[part].astype(np.float64)


def _divergence(expected: Array, got: Array) -> Array:
    """KL(expected || got) in nats of the softmax over the last axis, in float64."""
    p, q = _log_softmax(expected), _log_softmax(got)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _shapes(budget: Budget, contract: Contract) -> tuple[list[CallSizes], tuple[str, ...]]:
    """Single rows, as long as the module and the machine allow; and what is left out of them."""
    seq = max(contract.min_seq_len, min(LONGEST, contract.max_seq_len or LONGEST))
    while seq > contract.min_seq_len and not budget.allows(CallSizes(batch=1, seq=seq)):
        seq = max(contract.min_seq_len, seq // 2)
    rows = max(4, min(64, POSITIONS // seq))
    taken = math.ceil(rows * budget.of_samples)
    skipped = () if taken == rows else (f"{taken} of {rows} texts of {seq} positions were read",)
    # Without adapters: what they add is computed in no lower precision.
    return [CallSizes(batch=1, seq=seq, free=((ADAPTER_RANK, 0),))] * taken, skipped


def _with_text(
    specs: Sequence[InputSpec], inputs: Sequence[torch.Tensor], index: int
) -> list[torch.Tensor]:
    """`inputs` with the first input of ids replaced by the piece of text number `index`."""
    filled = list(inputs)
    for place, spec in enumerate(specs):
        if spec.kind == "ids" and spec.vocab_size is not None:
            count = filled[place].numel()
            start = index * count % (len(_text()) - count)
            piece = np.frombuffer(_text()[start : start + count], np.uint8).astype(np.int64)
            ids = torch.from_numpy(piece % spec.vocab_size)
            filled[place] = ids.reshape(filled[place].shape).to(filled[place].dtype)
            break
    return filled


@cache
def _text() -> bytes:
    return "\n".join(_pages()).encode()


def _pages() -> Iterator[str]:
    for name in sorted(topics):
        yield topics[name]
