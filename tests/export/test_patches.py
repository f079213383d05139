"""What PyTorch's exporter refuses is captured by equal code, and PyTorch is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.export.torch_patches.patched import patched
from tests.export.modules import DIM, Head, example


class Turned(nn.Module):
    """Rotary positions by complex numbers, whose table gets an axis for the heads."""

    def __init__(self, *, indexed: bool) -> None:
        super().__init__()
        self.head, self.indexed = Head(), indexed
        angles = torch.outer(torch.arange(32.0), 0.5 ** torch.arange(DIM // 4))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor) -> Tensor:
        turns = self.turns[: x.shape[1]]
        turns = turns[:, None, :] if self.indexed else turns.unsqueeze(-2)
        pairs = torch.view_as_complex(x.unflatten(-1, (2, -1, 2)).contiguous())
        return self.head(torch.view_as_real(pairs * turns).flatten(2))


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "unsqueezed"])
def test_complex_tables_get_new_axes(indexed: bool, tmp_path: Path) -> None:
    report = export(Turned(indexed=indexed).eval(), tmp_path / "m.onnx", example=example())
    assert report.parity.passed
    assert report.contract.max_seq_len == 32


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.unsqueeze(0),
        lambda t: t.unsqueeze(-1),
        lambda t: t[:, None],
        lambda t: t[None, ..., 1:],
        lambda t: t[..., None, ::2],
        lambda t: t[1],
        lambda t: t.exp(),
        lambda t: torch.exp(t),  # noqa: PLW0108 - looked up when called
        lambda t: t * 2.5,
        lambda t: 1j * t.real,
        lambda t: t.real * (2 - 3j),
        lambda t: torch.hstack([t[0], t[1]]),
        lambda t: torch.hstack([t[0, 0], t[1, 0]]),
        lambda t: torch.hstack([t[0, 0, 0], t[1, 0]]),
        lambda t: torch.vstack((t[0, 0], t[1])),
        lambda t: torch.vstack((t[0, 0, 0], t[1, 0, :1])),
    ],
)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_the_replacement_does_what_pytorch_does(change: object, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4, 5, dtype=dtype)
    expected = change(tensor)  # type: ignore[operator]
    with patched(zero_masked_rows=False):
        got = change(tensor)  # type: ignore[operator]
    torch.testing.assert_close(got, expected)


def test_pytorch_is_left_as_it_was() -> None:
    before = {name: getattr(Tensor, name) for name in ("unsqueeze", "__getitem__", "__setitem__")}
    with patched(zero_masked_rows=True):
        assert Tensor.unsqueeze is not before["unsqueeze"]
    assert {name: getattr(Tensor, name) for name in before} == before


class ByLen(Head):
    """Asks `len` for the length of the sequence, which is the first axis."""

    def forward(self, x: Tensor) -> Tensor:
        batch_first: Tensor = super().forward(x.transpose(0, 1))
        return batch_first.transpose(0, 1) + torch.arange(len(x)).view(-1, 1, 1) * 0.1


def test_the_length_may_be_asked_for_with_len(tmp_path: Path) -> None:
    axes = {0: "seq", 1: "batch"}
    report = export(ByLen().eval(), tmp_path / "m.onnx", example=torch.randn(5, 2, DIM), axes=axes)
    assert report.parity.passed
    assert report.contract.min_seq_len == 1
    assert "len" not in globals()


def test_len_is_pythons_for_all_else_and_comes_back() -> None:
    with patched(zero_masked_rows=False, module=ByLen()):
        length = globals()["len"]
        assert (length([1, 2]), length(torch.ones(3, 4))) == (2, 3)
        with pytest.raises(TypeError, match="0-d"):
            length(torch.tensor(1.0))
    assert "len" not in globals()
