"""Golden vectors: small inputs with PyTorch's own outputs, recorded for the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from causal_onnx.export.source.arrays import to_numpy
from causal_onnx.export.source.inputs import ADAPTER_RANK, CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.artifact.golden import GoldenCase, GoldenSet
from causal_onnx.runtime.contract import Contract

__all__ = ["record_goldens"]


def record_goldens(
    source: Source, specs: Sequence[InputSpec], contract: Contract, *, tolerance: float
) -> GoldenSet:
    """Three calls: one position, one row of five, two rows of three."""
    least, limit = contract.min_seq_len, contract.max_seq_len or 5
    has_past = any("past_seq" in spec.axes.values() for spec in specs)
    shapes = [CallSizes(batch=1, seq=least), CallSizes(batch=1, seq=max(least, min(5, limit)))]
    shapes.append(CallSizes(batch=2, seq=max(least, min(3, limit)), past=2 if has_past else 0))
    if not any("batch" in spec.axes.values() for spec in specs):
        shapes = shapes[:2]
    taken = [spec for spec in contract.inputs if spec.name not in contract.added_names]
    given = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    cases = []
    for sizes in dict.fromkeys(shapes):
        # Without adapters, which a call may leave out: those of a model are some megabytes.
        inputs = make_inputs(specs, replace(sizes, free=((ADAPTER_RANK, 0),)), seed=7)
        outputs = source.run(inputs)
        cases.append(
            GoldenCase.record(
                {
                    s.name: to_numpy(x)
                    for s, x in zip(taken, inputs, strict=True)
                    if s.name not in contract.adapter_names
                },
                {s.name: to_numpy(x) for s, x in zip(given, outputs, strict=True)},
            )
        )
    return GoldenSet(cases=cases, tolerance=tolerance)
