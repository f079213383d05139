"""Watch what a module makes of its tensors and sizes: a truth, a Python number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.replace import attribute_replaced
from causal_onnx.export.torch_patches.user_code import user_line

__all__ = ["Answer", "replaying", "watching_sizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a tensor said when the module asked for its truth."""

    truth: bool
    place: str
    """The line that asked."""


@contextlib.contextmanager
def replaying(answers: list[Answer], *, record: bool) -> Iterator[None]:
    """Record the truth of tensors in an eager run, or answer with it while tracing.

    For `if mask.any():`, `assert not x.isnan().any()`: "Could not guard on data-dependent
    expression". Questions beyond the answers that are given get the tensor's own.
    """
    original = Tensor.__bool__
    position = iter(list(answers))

    def recorded(self: Tensor) -> bool:
        truth = bool(handed_over(original, self))
        answers.append(Answer(truth=truth, place=user_line() or "in PyTorch"))
        return truth

    def replayed(self: Tensor) -> bool:
        answer = next(position, None)
        return bool(handed_over(original, self)) if answer is None else answer.truth

    with attribute_replaced(Tensor, "__bool__", recorded if record else replayed):
        yield


@contextlib.contextmanager
def watching_sizes(places: list[str]) -> Iterator[None]:
    """Note the lines that turn a dynamic size into a Python number (`range(n)`, `int(n)`)."""
    with contextlib.ExitStack() as stack:
        for name in ("__index__", "__int__"):
            original = getattr(torch.SymInt, name)

            def watched(self: torch.SymInt, original: Any = original) -> int:
                place = user_line()
                if place is not None:
                    places.append(place)
                return int(handed_over(original, self))

            stack.enter_context(attribute_replaced(torch.SymInt, name, watched))
        yield
