"""A module in float64 whose weights stay in fp32 until an operator reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.source.module import Source

__all__ = ["run_in_float64"]


def run_in_float64(source: Source, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """What `source` gives in float64; None: it cannot be converted.

    The same numbers as `source.double()` gives, for one weight in float64 at a time instead of all.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    if source.keeps_weights:
        answer = ask(_on_demand(source.fresh()).run, wide)
        if not isinstance(answer, Refusal):
            return answer
    # A tensor of a class of its own is not for every code.
    answer = ask(source.fresh().double().run, wide)
    return None if isinstance(answer, Refusal) else answer


def _on_demand(twin: Source) -> Source:
    """`twin` with parameters that say they are float64, and buffers that are."""
    widened: dict[int, Tensor] = {}
    for part in twin.modules():
        for name, value in part._parameters.items():
            if value is not None and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
                part._parameters[name] = widened.setdefault(id(value), _Widened(value))  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = buffer.double()
    return twin


class _Widened(Tensor):
    """A tensor that operators see in float64."""

    stored: Tensor

    @staticmethod
    def __new__(cls, stored: Tensor) -> _Widened:
        made: _Widened = torch.Tensor._make_wrapper_subclass(
            cls,
            stored.shape,
            strides=stored.stride(),
            storage_offset=stored.storage_offset(),
            dtype=torch.float64,
            device=stored.device,
            requires_grad=False,
        )
        made.stored = stored.detach()
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map_only(
            _Widened, lambda given: given.stored.double(), (args, kwargs or {})
        )
        return func(*args, **kwargs)
