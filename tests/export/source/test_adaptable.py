"""Linear layers whose output an adapter changes, as the module computes it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.source.adaptable import Adaptable, Layer, find_layers, with_layers
from causal_onnx.export.source.inputs import InputSpec, describe_inputs

X = torch.randn(3, 7, 8)


class Signed(nn.Linear):
    """Returns zeros of both signs."""

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(*x.shape[:-1], self.out_features)
        return torch.where(torch.arange(self.out_features) % 2 == 0, zeros, -zeros)


def attached(layer: nn.Module) -> tuple[nn.Sequential, Adaptable]:
    whole = nn.Sequential(layer)
    adaptable = Adaptable(find_layers(whole, ["0"]))
    adaptable.attach(whole)
    return whole, adaptable


def changed(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Any:
    whole, adaptable = attached(layer)
    (left,) = adaptable.take([x, down, up])
    found = whole(left)
    adaptable.release()
    return found


def test_a_rank_of_zero_keeps_the_sign_of_every_zero() -> None:
    layer = Signed(8, 6)
    found = changed(layer, X, torch.zeros(3, 8, 0), torch.zeros(3, 0, 6))
    assert torch.equal(found.signbit(), layer(X).signbit())
    assert found.signbit().any()


def test_matrices_of_zeros_keep_the_sign_of_every_zero() -> None:
    layer = Signed(8, 6)
    found = changed(layer, X, torch.zeros(3, 8, 4), torch.zeros(3, 4, 6))
    assert torch.equal(found.signbit(), layer(X).signbit())


@pytest.mark.parametrize("shape", [(3, 8), (3, 7, 8), (3, 2, 5, 8)], ids=str)
def test_each_row_is_changed_by_its_own_matrices(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(8, 6), torch.randn(shape)
    down, up = torch.randn(3, 8, 2), torch.randn(3, 2, 6)
    rows = [layer(x[i]) + x[i] @ down[i] @ up[i] for i in range(3)]
    torch.testing.assert_close(changed(layer, x, down, up), torch.stack(rows))


def test_what_has_no_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no adapter can change 0: it reads \(7, 3, 8\) in a batch"
    ):
        changed(nn.Linear(8, 6), X.transpose(0, 1), torch.zeros(3, 8, 2), torch.zeros(3, 2, 6))


def test_a_copy_is_changed_by_its_own_call() -> None:
    whole, adaptable = attached(nn.Linear(8, 6))
    twin, other = copy.deepcopy((whole, adaptable))
    other.take([X, torch.randn(3, 8, 2), torch.randn(3, 2, 6)])
    assert not torch.equal(twin(X), whole(X))
    assert other.hooks[0].was_called
    assert not adaptable.hooks[0].was_called


def specs(**axes: Any) -> tuple[InputSpec, ...]:
    return describe_inputs(["x"], [X], [axes.get("x", {0: "batch", 1: "seq"})])


def test_inputs_must_have_rows_and_leave_the_rank_alone() -> None:
    layers = [Layer(name="a", in_features=8, out_features=6)]
    found = with_layers(specs(), layers)
    assert [spec.name for spec in found] == ["x", "a.lora_down", "a.lora_up"]
    assert [tuple(spec.example.shape) for spec in found[1:]] == [(3, 8, 4), (3, 4, 6)]
    with pytest.raises(ValueError, match="the axis 'lora_rank' is that of adapters"):
        with_layers(specs(x={0: "batch", 1: "seq", 2: "lora_rank"}), layers)
    with pytest.raises(ValueError, match="no input has a batch axis; pass an example with one"):
        with_layers(specs(x={1: "seq"}), layers)
    named = (*specs(), replace(specs()[0], name="a.lora_up"))
    with pytest.raises(ValueError, match=r"has an input 'a.lora_down' or 'a.lora_up' of its own"):
        with_layers(named, layers)
