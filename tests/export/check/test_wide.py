"""A module in float64, one weight at a time: the numbers are those of the whole in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.check import wide
from causal_onnx.export.check.wide import run_in_float64
from causal_onnx.export.source.module import Source, open_source
from tests.export.modules import DIM, Head, example


class Casting(Head):
    """Computes in the type of its weights, has a buffer, uses one weight twice and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((DIM,), 0.1))
        self.k.weight = self.q.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.q.weight.dtype) + self.shift + self.v.weight[0] * self.v.weight.sum()
        result: Tensor = super().forward(x)
        return result


class Fixed(Head):
    """Has a type written into it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x.float())


class Writing(Head):
    """Writes into its weights."""

    def forward(self, x: Tensor) -> Tensor:
        self.q.weight.data.mul_(1.0)
        self.q.bias.data.zero_()
        result: Tensor = super().forward(x)
        return result


def opened(module: nn.Module) -> Source:
    return open_source(module.eval(), (example(),), None)[0]


@pytest.mark.parametrize("make", [Head, Casting, Writing])
def test_the_numbers_are_those_of_the_module_in_float64(make: type[nn.Module]) -> None:
    source = opened(make())
    found = run_in_float64(source, [example()])
    assert found is not None
    expected = source.fresh().double().run([example().double()])
    assert [x.dtype for x in found] == [torch.float64]
    assert torch.equal(found[0], expected[0])
    assert {value.dtype for value in source.parameters()} == {torch.float32}


def test_no_copy_of_all_weights_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Source) -> Source:
        raise AssertionError("all weights were widened")

    monkeypatch.setattr(Source, "double", refuse)
    assert run_in_float64(opened(Casting()), [example()]) is not None


def test_where_an_operator_does_not_take_such_weights_all_are_widened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("no")

    source = opened(Head())
    expected = run_in_float64(source, [example()])
    monkeypatch.setattr(wide._Widened, "__torch_dispatch__", classmethod(refuse))
    found = run_in_float64(source, [example()])
    assert found is not None
    assert expected is not None
    assert torch.equal(found[0], expected[0])


def test_a_module_that_cannot_be_in_float64_has_no_numbers_there() -> None:
    assert run_in_float64(opened(Fixed()), [example()]) is None
