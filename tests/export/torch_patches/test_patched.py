"""What PyTorch's exporter refuses is captured by equal code, and PyTorch is left as it was."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.torch_patches import attention, replace, tensor_operators
from causal_onnx.export.torch_patches.patched import patched
from causal_onnx.export.torch_patches.watch import Answer, replaying, watching_sizes
from tests.export.modules import DIM, Head, example
from tests.export.quick import quick_export


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


def broken(*_: Any, **__: Any) -> Any:
    raise AssertionError("ours is called")


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns there, or what it raises."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(ask(call)))
    thread.start()
    thread.join()
    return results[0] if results else None


def attended() -> Any:
    q = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def test_another_thread_runs_pytorchs_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_attention", broken)
    expected = attended()
    with patched(zero_masked_rows=False):
        with pytest.raises(AssertionError, match="ours is called"):
            attended()
        torch.testing.assert_close(in_another_thread(attended), expected)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_get_item", lambda t: t[0]),
        ("_set_item", lambda t: t.__setitem__(0, 1.0)),
        ("_unsqueeze", lambda t: t.unsqueeze(0)),
        ("_multiply", lambda t: t * 2),
        ("_exp", lambda t: t.exp() + torch.exp(t)),
        ("_hstack", lambda t: torch.hstack([t, t])),
        ("_tril_indices", lambda t: torch.tril_indices(len(t), 2)),
    ],
)
def test_another_thread_runs_pytorchs_own_operators(
    name: str, call: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_operators, name, broken)
    with patched(zero_masked_rows=False):
        with pytest.raises(AssertionError, match="ours is called"):
            call(torch.ones(3))
        got = in_another_thread(lambda: call(torch.ones(3)))
    torch.testing.assert_close(got, call(torch.ones(3)))


def test_another_thread_keeps_the_fused_encoder() -> None:
    with patched(zero_masked_rows=False):
        here = torch.backends.mha.get_fastpath_enabled()
        assert (here, in_another_thread(torch.backends.mha.get_fastpath_enabled)) == (False, True)


def test_another_threads_refusal_is_not_ours() -> None:
    with patched(zero_masked_rows=False):
        refusal = in_another_thread(lambda: torch.exp("x"))  # type: ignore[call-overload]
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, TypeError)


def test_another_threads_questions_are_not_watched() -> None:
    asked: list[Answer] = []
    with replaying(asked, record=True):
        assert in_another_thread(lambda: bool(torch.tensor(True))) is True
        assert bool(torch.tensor(1))
    assert len(asked) == 1


def test_the_line_that_asks_is_the_callers() -> None:
    asked: list[Answer] = []
    with replaying(asked, record=True):
        assert bool(torch.tensor(1))
    assert Path(__file__).name in asked[0].place


def free_for_another_thread() -> bool:
    def take() -> bool:
        taken = replace._LOCK.acquire(blocking=False)
        if taken:
            replace._LOCK.release()
        return taken

    return bool(in_another_thread(take))


@pytest.mark.parametrize(
    "context",
    [lambda: patched(zero_masked_rows=False), lambda: replaying([], record=True)],
    ids=["patched", "replaying"],
)
def test_a_second_thread_waits_for_its_turn(context: Callable[[], Any]) -> None:
    with context(), watching_sizes([]):
        assert not free_for_another_thread()
    assert free_for_another_thread()


def test_what_was_imported_meanwhile_is_pytorchs_own_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_attention", broken)
    with patched(zero_masked_rows=False):
        taken = F.scaled_dot_product_attention
    q = torch.ones(1, 2, 3, 4)
    torch.testing.assert_close(taken(q, q, q), F.scaled_dot_product_attention(q, q, q))


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


class Windows(nn.Module):
    def __init__(self, size: int, step: int) -> None:
        super().__init__()
        self.size, self.step = size, step

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, self.size - 1, 0))
        windows = before.unfold(-2, self.size, self.step) * torch.arange(1.0, self.size + 1)
        return windows.repeat_interleave(self.step, 1)[:, : x.shape[1]]


@pytest.mark.parametrize(("size", "step"), [(1, 1), (2, 1), (5, 1), (3, 2)])
def test_windows_have_pytorchs_numbers_at_every_length(
    size: int, step: int, tmp_path: Path
) -> None:
    module, example = Windows(size, step).eval(), torch.randn(2, 5, DIM)
    model = quick_export(module, tmp_path / "m.onnx", example=example)
    for seq in (1, 2, 30):
        x = torch.randn(3, seq, DIM, generator=torch.Generator().manual_seed(seq))
        np.testing.assert_array_equal(model(x.numpy()), module(x).numpy())


def test_modules_that_were_seen_are_looked_at_again_where_they_hold_more() -> None:
    module = ModuleType("holder")
    vars(module).update(own=torch.cosh, exp=torch.exp)
    seen, original = replace.Seen(), torch.cosh

    def held(*functions: Any) -> list[tuple[str, Any]]:
        found = seen.places(frozenset(map(id, functions)))
        return sorted((name, value) for place, name, value in found if place is module)

    sys.modules[module.__name__] = module
    try:
        assert held(torch.exp) == [("exp", torch.exp)]
        vars(module).update(log=torch.log, again=torch.exp)
        assert [name for name, _ in held(torch.exp)] == ["again", "exp"]
        del module.exp
        assert [name for name, _ in held(torch.exp)] == ["again"]
        assert [name for name, _ in held(torch.exp, torch.log)] == ["again", "log"]
        module.again = torch.log
        assert held(torch.exp, torch.log) == [("again", torch.log), ("log", torch.log)]
        module.log = module.again = torch.cosh
        assert held(torch.exp, torch.log) == []
        with replace.functions_replaced([(torch.cosh, broken)], seen):
            assert module.own is module.log is torch.cosh is not original
        assert module.own is module.log is torch.cosh is original
    finally:
        del sys.modules[module.__name__]
