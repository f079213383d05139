"""Make example inputs for `export` from what the command line says about them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from causal_onnx.cli.arrays import read_arrays
from causal_onnx.cli.errors import CommandError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["make_example"]


def make_example(
    texts: Sequence[str], module: nn.Module
) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
    """Read every `[name=]SHAPE[:dtype]` or `[name=]file.npy`.

    Values for a shape are the same every time: normally distributed for floating point; for
    integers and booleans 0 and 1, or 1 alone where the input's name says that it is a mask.

    Returns:
        A dict where names were given, else a tensor or tuple in the order of `forward`.

    Raises:
        UsageError: A text cannot be read, or only some of them have a name.
        CommandError: A file cannot be read.
    """
    named = [_split_name(text) for text in texts]
    if len({name is None for name, _ in named}) > 1:
        raise UsageError("name every --example or none")
    if len({name for name, _ in named if name}) < sum(name is not None for name, _ in named):
        raise UsageError("two of --example have the same name")
    parameters = list(inspect.signature(module.forward).parameters)
    tensors = []
    for index, (name, text) in enumerate(named):
        known = name or (parameters[index] if index < len(parameters) else "")
        tensors.append(_make(text, known, seed=index))
    if named[0][0] is not None:
        return {str(name): tensor for (name, _), tensor in zip(named, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _split_name(text: str) -> tuple[str | None, str]:
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and name.isidentifier() else (None, text)


def _make(text: str, name: str, *, seed: int) -> Tensor:
    import torch  # takes a second

    if text.endswith(".npy"):
        array = read_arrays(Path(text))
        if isinstance(array, dict):
            raise CommandError(f"{text} holds several arrays; give one .npy file per input")
        try:
            return torch.from_numpy(np.ascontiguousarray(array))
        except TypeError as error:
            raise CommandError(f"PyTorch has no dtype for {text}, {array.dtype}") from error
    shape_text, _, dtype_text = text.partition(":")
    try:
        shape = [int(size) for size in shape_text.split(",")]
    except ValueError:
        shape = []
    if not shape or any(size < 1 for size in shape):
        raise UsageError(
            f"--example takes a shape such as 2,16,64 or 2,16:int64, or an .npy file; got {text!r}"
        )
    dtype = getattr(torch, dtype_text or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--example: there is no dtype {dtype_text!r}; try float32 or int64")
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    low = 1 if "mask" in name else 0
    return torch.randint(low, 2, shape, generator=generator).to(dtype)
