"""Types are promoted by what the trace recorded, and the file is the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch.onnx._internal.fx.passes import type_promotion

from causal_onnx.export import export
from causal_onnx.export.capture import capture
from causal_onnx.export.torch_patches.type_promotion import promoted_by_recorded_values
from tests.export.modules import Head, example, through


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that the exporter computes to see what type they give."""
    seen: list[str] = []
    original = fx.Interpreter.run_node

    def counted(self: fx.Interpreter, node: fx.Node) -> object:
        if isinstance(self, type_promotion._TypePromotionInterpreter):
            seen.extend([str(node.target)] * (node.op == "call_function"))
        return original(self, node)

    monkeypatch.setattr(fx.Interpreter, "run_node", counted)
    return seen


def _flags(x: Tensor) -> Tensor:
    return x * (x > 0) + torch.where(torch.arange(x.shape[-1]) > 3, 1, x)


def _whole_numbers(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[-1])
    return x * places / 7 + torch.sqrt(places) + places.to(torch.int32) * places * 0.5


def _wider(x: Tensor) -> Tensor:
    return (x + x.double() * 2).to(torch.float32) * (1 + x)


def _one_number(x: Tensor) -> Tensor:
    return x.double() * torch.tensor(2.0) + x * torch.tensor(3, dtype=torch.int64) + x.shape[1]


@pytest.mark.parametrize("then", [_flags, _whole_numbers, _wider, _one_number])
def test_the_file_is_that_of_a_program_that_was_computed_again(
    then: Callable[[Tensor], Tensor],
    tmp_path: Path,
    computed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(through(then).eval(), tmp_path / "m.onnx", example=example())
    converted = list(computed)
    monkeypatch.setattr(capture, "promoted_by_recorded_values", contextlib.nullcontext)
    export(through(then).eval(), tmp_path / "again.onnx", example=example())
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert converted
    assert "aten.softmax.int" not in converted
    assert "aten.softmax.int" in computed


def test_where_nothing_is_converted_nothing_is_computed(
    tmp_path: Path, computed: list[str]
) -> None:
    export(Head().eval(), tmp_path / "m.onnx", example=example())
    assert computed == []


def test_what_is_not_recorded_is_computed() -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() * (x > 0)

    def types(*, forget: bool) -> list[str]:
        program = torch.export.export(Mixed(), (torch.zeros(2),))
        for node in program.graph.nodes:
            if forget and "exp" in str(node.target):
                del node.meta["val"]
        type_promotion.InsertTypePromotion(program.graph_module).run()
        return [str(node.target) for node in program.graph.nodes]

    expected = types(forget=False)
    assert "prims.convert_element_type.default" in expected
    with promoted_by_recorded_values():
        assert types(forget=False) == expected
        assert types(forget=True) == expected
