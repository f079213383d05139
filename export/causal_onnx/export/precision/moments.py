"""What the weights of a graph are multiplied by, on text that the module writes itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.graph.weights import find_uses
from causal_onnx.export.outcome import ask_onnxruntime
from causal_onnx.export.precision.carry import Moment
from causal_onnx.export.precision.smoothing import Sample
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.source.sampling import inputs_of_text, is_logits, sampled_text
from causal_onnx.runtime.contract import Contract

__all__ = ["Seen", "measure_inputs"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """By the name of a value that a weight is multiplied by."""

    moments: Mapping[str, Moment] | None
    """None: they were not asked for."""
    samples: Mapping[str, Sample] | None
    """As above."""


@dataclass(frozen=True, kw_only=True)
class _Text:
    """How much of it is written."""

    rows: int
    flops: float
    """What writing it may cost."""


LONGEST = 128
"""Tokens of a row."""
_FOR_MOMENTS = _Text(rows=32, flops=1e12)
"""A minute at worst."""
_FOR_SAMPLES = _Text(rows=8, flops=2e11)
"""The largest numbers of channels are seen soon."""

SAMPLED = 16
"""Positions of each row that are kept."""

SEED = 5
"""Not that of the drift's text: what is fitted to a text is not measured on it."""


def measure_inputs(
    model: ir.Model,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    *,
    moments: bool,
    samples: bool,
) -> Seen:
    """Run the graph in fp32 and look at all that is multiplied by a stored matrix.

    A language model reads text that it samples itself, in fp32; other modules, and those that take
    more than ids, get inputs like their example. One thread, so that equal modules give equal sums.

    Args:
        model: The captured graph, before anything is rounded; left as it is.
        source: The module in fp32.
        specs: Its inputs.
        contract: Of the module, without a cache.
        moments: Add up x x^T.
        samples: Keep some rows, and the largest magnitudes.

    Raises:
        SessionError: onnxruntime does not run the graph.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    largest: dict[str, Tensor] = {}
    text = _FOR_MOMENTS if moments else _FOR_SAMPLES
    for values in _values(model, source, specs, contract, text):
        for name, value in values.items():
            x = torch.from_numpy(np.ascontiguousarray(value).reshape(-1, value.shape[-1]))
            if moments:
                moment = x.T @ x
                sums[name] = sums[name] + moment if name in sums else moment
            if samples:
                top = x.abs().amax(0)
                largest[name] = torch.maximum(largest[name], top) if name in largest else top
                rows.setdefault(name, []).append(x[:: -(-len(x) // SAMPLED)].clone())
    # What is not finite tells nothing of other inputs.
    whole = [name for name, top in largest.items() if bool(torch.isfinite(top).all())]
    kept = {name: Sample(rows=torch.cat(rows[name]), largest=largest[name]) for name in whole}
    return Seen(moments=sums if moments else None, samples=kept if samples else None)


def _values(
    model: ir.Model,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    text: _Text,
) -> Iterator[Mapping[str, Array]]:
    """Of each call, what is multiplied by a stored matrix, by name."""
    copy = model.clone()
    watched: dict[str, ir.Value] = {}
    for use in find_uses(copy):
        value = use.node.inputs[0]
        if not use.is_lookup and value is not None and value.name and use.node.graph is copy.graph:
            watched[value.name] = value
    given = {value.name: index for index, value in enumerate(copy.graph.inputs)}
    asked = [name for name in watched if name not in given]
    for name in asked:
        if not watched[name].is_graph_output():
            watched[name].shape = None
            copy.graph.outputs.append(watched[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        ir.save(copy, path, external_data="m.data")
        session = ask_onnxruntime(plain_session, str(path))
        for inputs in _texts(source, specs, contract, text):
            arrays = [to_numpy(x) for x in inputs]
            feed = {spec.name: x for spec, x in zip(contract.inputs, arrays, strict=True)}
            # Asked for nothing, onnxruntime gives everything.
            found = ask_onnxruntime(session.run, asked, feed) if asked else []
            values = dict(zip(asked, found, strict=True))
            yield values | {name: arrays[given[name]] for name in watched if name in given}


def _texts(
    source: Source, specs: Sequence[InputSpec], contract: Contract, text: _Text
) -> Sequence[Sequence[Tensor]]:
    """Inputs of single calls."""
    longest = max(contract.min_seq_len, min(LONGEST, contract.max_seq_len or LONGEST))
    scores = next((i for i, s in enumerate(contract.outputs) if is_logits(s, contract)), None)
    if scores is not None:
        ids = sampled_text(
            source,
            specs,
            contract,
            scores,
            rows=text.rows,
            longest=longest,
            flops=text.flops,
            seed=SEED,
        )
        if ids is not None:
            rows = [ids[i : i + 1] for i in range(len(ids))] if ids.ndim > 1 else [ids]
            return [inputs_of_text(specs, row) for row in rows]
    allows = Budget(source, specs).allows
    while longest > contract.min_seq_len and not allows(CallSizes(batch=1, seq=longest)):
        longest = max(contract.min_seq_len, longest // 2)
    sizes = CallSizes(batch=1, seq=longest)
    return [make_inputs(specs, sizes, seed=SEED + index) for index in range(text.rows)]
