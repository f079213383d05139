"""Masks and tables that a module grows on demand are emptied, and made anew by the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causal_onnx.export.capture.grown_buffers import grows, without_caches
from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source, open_source
from tests.export.modules import Head, example, future

SIZES = CallSizes(batch=2, seq=6)


class Keeps(Head):
    """Keeps its mask, and makes a larger one for a longer sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def masked(self, scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        if self.mask is None or self.mask.shape[0] < n:
            self.mask = future(n)
        return scores.masked_fill(self.mask[:n, :n], float("-inf"))


class KeepsRows(Keeps):
    """Takes a mask without rows for an empty one, and does not know None."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = future(4)

    def masked(self, scores: Tensor) -> Tensor:
        assert self.mask is not None, "the mask was never None"
        return super().masked(scores)


class KeepsForGood(KeepsRows):
    """Needs its first mask, which holds a number that nothing computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((4,), 3.0)

    def masked(self, scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        if self.scale.shape[0] < n:
            self.scale = self.scale[0].expand(n)
        return super().masked(scores) * self.scale[:n]


def opened(module: Head) -> tuple[Source, tuple[InputSpec, ...]]:
    return open_source(module.eval(), (example(),), None)


def test_a_longer_call_shows_what_is_kept() -> None:
    assert grows(*opened(Keeps()), SIZES)
    assert not grows(*opened(Head()), SIZES)


@pytest.mark.parametrize("kind", [Keeps, KeepsRows])
def test_what_is_kept_is_emptied_and_the_module_is_right_without_it(kind: type[Keeps]) -> None:
    source, specs = opened(kind())
    source.run(make_inputs(specs, SIZES))
    twin = without_caches(source, specs, SIZES)
    kept = twin.module.get_submodule("").mask
    assert kept is None or kept.numel() == 0
    inputs = make_inputs(specs, CallSizes(batch=1, seq=11))
    assert torch.equal(twin.run(inputs)[0], kind().eval()(*inputs))


def test_what_cannot_be_made_anew_is_named() -> None:
    with pytest.raises(ExportError, match=r"\(mask, scale\) and does not work without that"):
        without_caches(*opened(KeepsForGood()), SIZES)


def test_a_module_that_keeps_nothing_has_no_such_copy() -> None:
    with pytest.raises(ExportError, match="keeps nothing that grows"):
        without_caches(*opened(Head()), SIZES)
