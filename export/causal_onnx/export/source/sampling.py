"""Text that a language model samples itself: there its probabilities are what it learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from causal_onnx.export.source.inputs import ADAPTER_RANK, CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["inputs_of_text", "is_logits", "sampled_text"]


def is_logits(spec: TensorSpec, contract: Contract) -> bool:
    """Whether an output scores the next token, over the vocabulary of the input."""
    sizes = {item.vocab_size for item in contract.inputs if item.vocab_size is not None}
    return spec.name == "logits" and spec.axes[-1] in sizes


def inputs_of_text(specs: Sequence[InputSpec], ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All inputs of a call that reads ids (batch, seq), without adapters."""
    sizes = CallSizes(batch=len(ids), seq=ids.shape[-1], free=((ADAPTER_RANK, 0),))
    return (ids, *make_inputs(specs[1:], sizes))


def sampled_text(
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    scores: int,
    *,
    rows: int,
    longest: int,
    flops: float,
    seed: int,
) -> torch.Tensor | None:
    """Ids that the module samples itself, each row from a first token of its own.

    The module has no cache here, so that a text of n tokens takes n passes.

    Args:
        source: The module, in fp32.
        specs: Its inputs.
        contract: Of its file.
        scores: The index of its logits among its outputs.
        rows: How many, where it has a batch axis; else one.
        longest: The most tokens of a row.
        flops: What all of it may cost; rows are as long as that allows.
        seed: Of the draws.

    Returns:
        Ids as the module takes them; None: they are not all it takes, or it does not score every
        position.
    """
    spec = specs[0]
    if (
        any(ADAPTER_RANK not in s.axes.values() for s in specs[1:])
        or spec.kind != "ids"
        or spec.vocab_size is None
    ):
        return None
    if "seq" not in contract.outputs[scores].axes or contract.min_seq_len > 1:
        return None
    parameters = sum(p.numel() for p in source.parameters())
    length = min(longest, math.isqrt(int(flops / (parameters * rows))) + 1)
    batched = "batch" in spec.axes.values()
    rows = rows if batched else 1
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(spec.vocab_size, (rows, 1), generator=generator)
    while True:
        given = (ids if batched else ids[0]).to(spec.example.dtype)
        if ids.shape[1] >= length:
            return given
        logits = source.run(inputs_of_text(specs, given))[scores].reshape(rows, ids.shape[1], -1)
        odds = logits[:, -1].double().softmax(-1)
        ids = torch.cat((ids, torch.multinomial(odds, 1, generator=generator)), 1)
