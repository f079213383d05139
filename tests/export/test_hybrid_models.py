"""Models of transformers that carry states beside keys and values: greedy is the library's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.runtime import Model
from tests.export.quick import quick_export
from tests.zoo import entry

STEPS = 12


def wanted(module: nn.Module, ids: Tensor) -> list[int]:
    """What the library goes on with, each token from a full pass."""
    for _ in range(STEPS):
        with torch.no_grad():
            logits = module(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return [int(n) for n in ids[0, -STEPS:]]


def got(model: Model, ids: Tensor) -> list[int]:
    stream, new, found = model.stream(), ids.numpy(), []
    for _ in range(STEPS):
        new = stream(new)[:, -1:].argmax(-1).astype(np.int64)
        found.append(int(new[0, 0]))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "bamba_sdpa",  # Mamba-2's chunks
        "jamba_eager",  # a loop that appends, and experts
        "qwen3_next_sdpa",  # the gated delta rule's chunks
        "recurrent_gemma_eager",  # a loop that writes
        "rwkv_eager",  # a loop that carries three
    ],
)
def test_a_cached_file_goes_on_like_the_library_with_states_that_do_not_grow(
    name: str, tmp_path: Path
) -> None:
    module = entry(f"hf_{name}").factory().eval()
    ids = torch.tensor([[5, 9, 2, 44, 17, 17, 30]])
    model = quick_export(module, tmp_path / "m.onnx", example=ids, cache=True)
    assert got(model, ids) == wanted(module, ids)
    states = [pair for pair in model.contract.cache if pair.past.startswith("past_state")]
    assert states
    assert all(pair.bounded is not None for pair in states)
