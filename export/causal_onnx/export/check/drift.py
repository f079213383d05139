"""Drift: how far a file of lower precision is from the module in full precision, on real text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pydoc_data.topics import topics

import numpy as np
import torch

from causal_onnx.export.check.parity import Session
from causal_onnx.export.report import DriftReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["DRIFT_LIMITS", "measure_drift"]

DRIFT_LIMITS = {
    "fp16": (0.01, 0.02),
    "bf16": (0.1, 0.1),
    "int8": (0.05, 0.1),
    "int4": (0.5, 0.5),
}
"""Precision -> the largest mean KL divergence in nats, and the largest relative error where there
are no tokens. Meant to stop what is broken, not what is coarse: half a nat is what a language model
of some hundred million parameters may lose to 4 bits."""

POSITIONS, LONGEST = 1024, 128
"""Tokens that are compared in all, and in one sequence."""

SEED = 11


def measure_drift(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    limit: float | None = None,
) -> DriftReport:
    """Compare the file with the module in fp32 on the same inputs.

    A language model (ids in, `logits` over the same vocabulary out) reads the manual of Python,
    which every Python carries, one byte a token, taken modulo the vocabulary. Other modules get
    normal inputs.

    Args:
        session: The file.
        source: The module in full precision.
        specs: The inputs as the file takes them.
        contract: Of the file.
        limit: Instead of the one for the file's precision: mean KL divergence in nats for language
            models, else the relative error.
    """
    shapes = _shapes(Budget(source, specs), contract)
    default = DRIFT_LIMITS[contract.precision]
    names = list(session.output_names)
    scores = next(
        (names.index(spec.name) for spec in contract.outputs if _is_logits(spec, contract)), None
    )
    squares = scale = 0.0
    kl: list[Array] = []
    worst, flips, positions = 0.0, 0, 0
    for index, sizes in enumerate(shapes):
        inputs = _with_text(specs, make_inputs(specs, sizes, seed=SEED + index), index)
        wide = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in inputs]
        expected = [to_numpy(x).astype(np.float64) for x in source.run(wide)]
        got = [x.astype(np.float64) for x in session([to_numpy(x) for x in inputs])]
        positions += sizes.seq * sizes.batch
        for a, b in zip(got, expected, strict=True):
            finite = np.isfinite(b)
            squares += float(np.square(a[finite] - b[finite]).sum())
            scale += float(np.square(b[finite]).sum())
        if scores is not None:
            a, b = got[scores], expected[scores]
            worst = max(worst, float(np.abs(a - b).max()))
            flips += int((a.argmax(-1) != b.argmax(-1)).sum())
            kl.append(_divergence(b, a).reshape(-1))
    error = float(np.sqrt(squares / scale)) if scale else 0.0
    if scores is None:
        return DriftReport(
            positions=positions,
            relative_error=error,
            limit=default[1] if limit is None else limit,
        )
    divergence = np.concatenate(kl)
    return DriftReport(
        positions=positions,
        relative_error=error,
        limit=default[0] if limit is None else limit,
        max_logit_error=worst,
        mean_kl=float(divergence.mean()),
        max_kl=float(divergence.max()),
        argmax_flips=flips,
    )


def _divergence(expected: Array, got: Array) -> Array:
    """KL(expected || got) in nats of the softmax over the last axis, in float64."""
    p, q = _log_softmax(expected), _log_softmax(got)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _is_logits(spec: TensorSpec, contract: Contract) -> bool:
    sizes = {item.vocab_size for item in contract.inputs if item.vocab_size is not None}
    return spec.name == "logits" and spec.axes[-1] in sizes


def _shapes(budget: Budget, contract: Contract) -> list[CallSizes]:
    """Single rows, as long as the module and the machine allow."""
    seq = max(contract.min_seq_len, min(LONGEST, contract.max_seq_len or LONGEST))
    while seq > contract.min_seq_len and not budget.allows(CallSizes(batch=1, seq=seq)):
        seq = max(contract.min_seq_len, seq // 2)
    return [CallSizes(batch=1, seq=seq)] * max(4, min(64, POSITIONS // seq))


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
