"""Proof of a derived cache: any way of cutting a sequence into chunks gives the same numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from causal_onnx.export.inputs import InputSpec, Sizes, make_inputs
from causal_onnx.export.numbers import Array, to_numpy
from causal_onnx.export.parity import Session
from causal_onnx.export.report import CacheCase, CacheReport
from causal_onnx.export.source import Source
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.golden import relative_error

__all__ = ["prove_cache"]


def prove_cache(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    tolerance: float,
) -> CacheReport:
    """Compare ways of feeding a sequence through the cache with one full pass of PyTorch.

    Prefill and single steps, random chunks, and a replay after rewinding, at several lengths and
    batches.
    """
    limit = contract.max_seq_len or 41
    generator = random.Random(0)
    cases = []
    has_batch = any("batch" in spec.axes.values() for spec in specs)
    for batch in (1, 3) if has_batch else (1,):
        for seq in sorted({min(n, limit) for n in (1, 2, 7, 23, 41)}):
            inputs = make_inputs(specs, Sizes(batch=batch, seq=seq), seed=seq)
            with torch.no_grad():
                expected = [to_numpy(x) for x in source(*inputs)]
            arrays = [to_numpy(x) for x in inputs]
            for name, chunks in _chunkings(seq, generator):
                got = _fed(session, specs, contract, arrays, chunks)
                error = max(
                    (relative_error(g, e) for g, e in zip(got, expected, strict=True)),
                    default=math.inf,
                )
                cases.append(
                    CacheCase(
                        batch=batch, seq=seq, feeding=name, error=error, passed=error <= tolerance
                    )
                )
    return CacheReport(cases=tuple(cases), tolerance=tolerance)


def _chunkings(seq: int, generator: random.Random) -> list[tuple[str, list[tuple[int, int]]]]:
    """Named lists of (start, stop); a start before the last stop rewinds the cache."""
    steps = [(i, i + 1) for i in range(seq)]
    found = [("full", [(0, seq)]), ("steps", steps)]
    if seq > 1:
        found.append(("prefill + steps", [(0, seq // 2), *steps[seq // 2 :]]))
        cuts = sorted(generator.sample(range(1, seq), min(3, seq - 1)))
        bounds = [0, *cuts, seq]
        found.append(("random chunks", list(pairwise(bounds))))
        found.append(("rewind and replay", [(0, seq), (seq // 2, seq)]))
    return found


def _fed(
    session: Session,
    specs: Sequence[InputSpec],
    contract: Contract,
    inputs: Sequence[Array],
    chunks: Sequence[tuple[int, int]],
) -> list[Array]:
    """The outputs of the last pass over each position, joined along the sequence."""
    past = session.empty_past(inputs)
    axes = [next((a for a, n in spec.axes.items() if n == "seq"), None) for spec in specs]
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    pieces: list[list[Array]] = [[] for _ in results]
    done = 0
    for start, stop in chunks:
        if start < done:
            past = [p[:, :, :start] for p in past]
            joined = [[_joined(p, spec)] for p, spec in zip(pieces, results, strict=True)]
            pieces = [[_part(p[0], s, 0, start)] for p, s in zip(joined, results, strict=True)]
        feed = [
            x if axis is None else np.ascontiguousarray(x.take(range(start, stop), axis))
            for x, axis in zip(inputs, axes, strict=True)
        ]
        outputs, past = session.step(feed, [np.ascontiguousarray(p) for p in past])
        for piece, output in zip(pieces, outputs, strict=True):
            piece.append(output)
        done = stop
    return [_joined(piece, spec) for piece, spec in zip(pieces, results, strict=True)]


def _joined(pieces: Sequence[Array], spec: TensorSpec) -> Array:
    axis = spec.axis_of("seq")
    return pieces[-1] if axis is None else np.concatenate(pieces, axis)


def _part(array: Array, spec: TensorSpec, start: int, stop: int) -> Array:
    axis = spec.axis_of("seq")
    return array if axis is None else array.take(range(start, stop), axis)
