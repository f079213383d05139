"""What later tokens move in the module itself is left out of a comparison, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.check.later_tokens import LaterTokens
from causal_onnx.export.source.inputs import describe_inputs
from causal_onnx.export.source.module import open_source
from causal_onnx.runtime.contract import Contract, TensorSpec

RESULT = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 4))


class Averaging(nn.Module):
    """Running means over the positions that are not 0; over all where there is none yet."""

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        hidden = torch.ones(n, n).triu(1).bool() | (ids == 0)[:, None]
        weights = torch.zeros(n, n).masked_fill(hidden, -1e9).softmax(-1)
        return weights @ (ids[..., None] * torch.arange(1.0, 5))


def compared(ids: Tensor, wrong_at: int | None) -> tuple[float, int, bool]:
    module, example = Averaging(), torch.randint(0, 9, (2, 5))
    specs = describe_inputs(["ids"], [example], None)
    spec = TensorSpec(name="ids", dtype="int64", axes=("batch", "seq"))
    contract = Contract(inputs=(spec,), outputs=(RESULT,))
    comparison = LaterTokens(open_source(module, (example,), None)[0], specs, contract, 1e-5)
    expected = module(ids).numpy()
    got = expected.copy()
    if wrong_at is not None:
        got[:, wrong_at] += 1.0
    error, left = comparison.error([got], [expected], [RESULT], [ids])
    return error, left, comparison.is_too_much


def test_a_position_that_sees_no_key_is_left_out() -> None:
    assert compared(torch.tensor([[0, 3, 4, 5]]), wrong_at=0) == (0.0, 1, False)


@pytest.mark.parametrize("first", [0, 2])
def test_an_error_anywhere_else_remains(first: int) -> None:
    error, _, _ = compared(torch.tensor([[first, 3, 4, 5]]), wrong_at=2)
    assert error > 1e-2


def test_equal_results_are_all_compared() -> None:
    assert compared(torch.tensor([[0, 0, 4, 5]]), wrong_at=None) == (0.0, 0, False)


def test_a_comparison_that_leaves_most_of_it_out_says_so() -> None:
    error, left, is_too_much = compared(torch.tensor([[0, 0, 0, 5]]), wrong_at=1)
    assert np.isclose(error, 0)
    assert left == 3
    assert is_too_much
