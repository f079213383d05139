"""Modules that compute the same, told by what they hold."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from causal_onnx.export.source.module import Source

MOST_WEIGHTS = 1 << 20
"""Larger modules are not read to be compared."""


def content_of(source: Source, module: nn.Module) -> Hashable:
    """The same for two modules of one class with the same weights, settings and call."""
    if sum(weight.numel() for weight in source.parameters()) <= MOST_WEIGHTS:
        try:
            return _digest(source)
        except (AttributeError, TypeError, RuntimeError, pickle.PicklingError):
            pass  # it holds what has no content to write, such as a weak reference
    return id(module)


def _digest(source: Source) -> bytes:
    written = io.BytesIO()
    _Contents(written, pickle.HIGHEST_PROTOCOL).dump(source)
    return hashlib.sha256(written.getvalue()).digest()


class _Contents(pickle.Pickler):
    """Writes tensors as their bytes (PyTorch: their addresses), code as its identity."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._memories: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, type | FunctionType | BuiltinFunctionType | ModuleType):
            return id(obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, MethodType):
            return getattr, (obj.__self__, obj.__name__)
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        if type(obj) not in (torch.Tensor, nn.Parameter) or obj.layout != torch.strided:
            raise TypeError(f"no bytes of a {type(obj).__name__}")
        value = obj.detach()
        memory = value.untyped_storage().data_ptr()
        shared = self._memories.setdefault(memory, len(self._memories))
        values = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        about = (str(obj.dtype), tuple(obj.shape), obj.stride(), obj.requires_grad, shared)
        return type(obj), (*about, vars(obj), values)
