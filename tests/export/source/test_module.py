"""Copies of a module: weights exist once, unless the module itself writes into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, export
from causal_onnx.export.source.module import Source, open_source
from tests.export.modules import DIM, Head, example, token_ids
from tests.export.quick import quick_export


class Clamping(Head):
    """Keeps its weights small, past PyTorch's count of writes."""

    def forward(self, x: Tensor) -> Tensor:
        self.q.weight.data.clamp_(-0.1, 0.1)
        result: Tensor = super().forward(x)
        return result


class Normed(nn.Module):
    """Rows that are looked up are scaled to a norm of at most 1, in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(31, DIM, max_norm=1.0), Head()

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(ids))
        return result


class Growing(Head):
    """Keeps a buffer that calls change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        result: Tensor = super().forward(x)
        return result


class Flat(nn.Module):
    """Two parameters in one piece of memory."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(2, DIM)
        self.a, self.b = nn.Parameter(flat[0]), nn.Parameter(flat[1])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a + self.b


def opened(module: nn.Module, given: Tensor) -> Source:
    return open_source(module.eval(), (given,), None)[0]


def places(module: nn.Module) -> list[int]:
    return [value.data_ptr() for value in module.parameters()]


def test_every_copy_holds_the_weights_of_the_callers_module() -> None:
    module = Head()
    source = opened(module, example())
    assert places(source) == places(source.fresh().fresh()) == places(module)
    assert not any(value.requires_grad for value in source.parameters())
    assert all(value.requires_grad for value in module.parameters())


def test_what_calls_keep_is_of_each_copy() -> None:
    module = Growing()
    source = opened(module, example())
    source.run([example()])
    assert source.module.seen.item() == source.fresh().module.seen.item() == 1.0
    assert module.seen.item() == 0.0
    assert places(source) == places(module)


@pytest.mark.parametrize(
    ("make", "given"), [(Clamping, example()), (Normed, token_ids()), (Flat, example())]
)
def test_weights_that_calls_write_into_or_that_overlap_are_copied(
    make: Callable[[], nn.Module], given: Tensor
) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    source = opened(module, given)
    source.fresh().run([given])
    assert not set(places(source)) & set(places(module))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_table_whose_rows_are_within_their_norm_already_is_copied_all_the_same() -> None:
    module = Normed()
    nn.init.constant_(module.table.weight, 0.01)
    assert not opened(module, token_ids()).keeps_weights


def test_a_conversion_of_a_copy_leaves_the_module_as_it_is() -> None:
    module = Head()
    narrow = opened(module, example()).fresh().half()
    assert {value.dtype for value in narrow.parameters()} == {torch.float16}
    assert {value.dtype for value in module.parameters()} == {torch.float32}


def test_rounding_to_few_bits_leaves_the_module_as_it_is(tmp_path: Path) -> None:
    module = Head(64)
    before = module.q.weight.clone()
    quick_export(module, tmp_path / "m.onnx", example=example(dim=64), precision="int8")
    assert torch.equal(module.q.weight, before)


@pytest.mark.parametrize(
    "write",
    [lambda weight: weight.mul_(1.0), lambda weight: weight.data.mul_(1.5)],
    ids=["counted by PyTorch", "past its count"],
)
def test_weights_that_are_written_into_meanwhile_are_refused(
    write: Callable[[torch.Tensor], object], tmp_path: Path
) -> None:
    module = Head()

    def train(step: str, _: float) -> None:
        if step == "proof":
            with torch.no_grad():
                write(module.q.weight)

    with pytest.raises(ExportError, match="changed while it was exported, so the file"):
        export(module, tmp_path / "m.onnx", example=example(), progress=train)
    assert list(tmp_path.iterdir()) == []
