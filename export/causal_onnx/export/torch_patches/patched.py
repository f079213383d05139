"""Reversible replacements, during capture only, for what the exporter refuses or gets wrong.

Each was measured: the error it answers stands beside it. Outside `patched()`, and in every other
thread, PyTorch is untouched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches import (
    attention,
    chunked,
    flex_attention,
    loop_scan,
    recurrences,
    tensor_operators,
)
from causal_onnx.export.torch_patches.loops import functions_of, rewritten
from causal_onnx.export.torch_patches.replace import (
    Seen,
    attribute_replaced,
    code_replaced,
    functions_replaced,
)

__all__ = ["patched"]


@contextlib.contextmanager
def patched(
    *, zero_masked_rows: bool, module: torch.nn.Module | None = None, seen: Seen | None = None
) -> Iterator[None]:
    """Replace what cannot be captured by equal code that can; restore everything on leaving.

    A second thread that comes here waits until the first has left.

    Args:
        zero_masked_rows: Write out that a row which may attend to nothing gives 0, as PyTorch has
            it. Needed below opset 23, where the exported softmax gives the mean of every value,
            later positions included; the `Attention` operator of opset 23 gives 0 itself.
        module: What is captured: `len` of a tensor is replaced in its code. None: nowhere.
        seen: Of earlier calls for the same module; None: every loaded module is looked through.
    """
    functions = [
        *attention.replacements(zero_masked_rows=zero_masked_rows),
        *flex_attention.replacements(),
        *tensor_operators.replacements(),
        *recurrences.replacements(),
        *loop_scan.replacements(),
        # ConversionError: aten._transformer_encoder_layer_fwd - the fused inference path.
        (torch.backends.mha.get_fastpath_enabled, lambda: False),
    ]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(functions_replaced(functions, seen))
        if module is not None:
            enter(_lengths_kept(module))
            enter(_loops_rewritten(module))
        for name, method in (tensor_operators.methods() | recurrences.methods()).items():
            enter(attribute_replaced(Tensor, name, method))
        layers, own = recurrences.layers()
        for name, function in own.items():
            enter(attribute_replaced(layers, name, function))
        # TypeError: unhashable type: non-nested SymInt - caches keyed by the length.
        enter(attribute_replaced(torch.SymInt, "__hash__", lambda s: hash(str(s.node.expr))))
        enter(
            attribute_replaced(
                torch.nn.modules.transformer,
                "_detect_is_causal_mask",
                # The original compares the mask with a causal one value by value, which a trace
                # cannot do; without the hint the mask itself is applied, with equal results.
                lambda mask, is_causal=None, size=None: bool(is_causal),
            )
        )
        yield


@contextlib.contextmanager
def _lengths_kept(module: torch.nn.Module) -> Iterator[None]:
    """Let `len(x)` be `x.shape[0]` in the code of `module` and its parts.

    "Constraints violated": Python wants a number from `len`, and that fixes the length. Only the
    modules' own globals are touched, never PyTorch's nor what Python itself calls.
    """
    own = {sys.modules.get(type(part).__module__) for part in module.modules()}
    with contextlib.ExitStack() as stack:
        for place in own:
            if place is None or place.__name__.split(".")[0] in ("torch", "builtins"):
                continue
            if "len" not in vars(place):
                stack.enter_context(attribute_replaced(place, "len", _length))
        yield


@contextlib.contextmanager
def _loops_rewritten(module: torch.nn.Module) -> Iterator[None]:
    """Let loops over positions, and over chunks, in the code of `module` be traced as a Scan."""
    with contextlib.ExitStack() as stack:
        functions = list(functions_of(module))
        stack.enter_context(functions_replaced(chunked.replacements(functions)))
        for function in functions:
            code = rewritten(function)
            if code is not None:
                stack.enter_context(code_replaced(function, code))
        yield


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else handed_over(len, value)
