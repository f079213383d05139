"""What a source gives is computed once for several comparisons, and kept out of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.check import expected as expected_outputs
from causal_onnx.export.check.expected import Expected
from causal_onnx.export.outcome import Refusal
from causal_onnx.export.source.inputs import CallSizes
from causal_onnx.export.source.module import open_source
from tests.export.modules import example

SIZES = CallSizes(batch=2, seq=6)


class Counting(nn.Module):
    """Twice its input, and how often it was called; takes 8 positions at most."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] > 8:
            raise ValueError("too long")
        self.calls += 1
        return 2 * x, x[:, :0]


def made(folder: Path | None) -> Expected:
    return Expected(
        open_source(Counting(), (example(),), None)[0], folder, keeps=folder is not None
    )


@pytest.mark.parametrize("keeps", [True, False])
def test_it_is_computed_once_where_it_can_be_kept(tmp_path: Path, keeps: bool) -> None:
    expected = made(tmp_path if keeps else None)
    before = expected.source.module.calls
    first, second = (expected.at(SIZES, "none", [example()]) for _ in range(2))
    assert not isinstance(first, Refusal)
    assert not isinstance(second, Refusal)
    assert expected.source.module.calls - before == (1 if keeps else 2)
    for found in (first, second):
        assert np.array_equal(found[0], (2 * example()).numpy())
        assert found[1].shape == (2, 0, 16)


def test_a_large_output_lies_in_a_file_without_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected_outputs, "_LARGE", 500)
    expected = Expected(open_source(Counting(), (example(),), None)[0], tmp_path)
    before = expected.source.module.calls
    first, _ = (expected.at(SIZES, "none", [example()]) for _ in range(2))
    assert expected.source.module.calls - before == 2
    assert not isinstance(first, Refusal)
    assert isinstance(first[0], np.memmap)
    assert not isinstance(first[1], np.memmap)  # an empty one
    assert np.array_equal(first[0], (2 * example()).numpy())
    assert list(tmp_path.iterdir()) == []


def test_sizes_and_padding_are_kept_apart(tmp_path: Path) -> None:
    expected = made(tmp_path)
    expected.at(SIZES, "none", [example()])
    other = expected.at(SIZES, "left", [torch.zeros(2, 6, 16)])
    assert not isinstance(other, Refusal)
    assert not other[0].any()


def test_a_refusal_is_said_each_time_and_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    expected = made(tmp_path)
    expected.at(SIZES, "none", [example()])
    for _ in range(2):
        answer = expected.at(CallSizes(batch=1, seq=9), "none", [example(1, 9)])
        assert "too long" in str(answer)
    assert list(tmp_path.iterdir()) == []
