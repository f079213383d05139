"""Operators on tensors that the exporter refuses, by way of others that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.blocks import Blocks

__all__ = ["methods", "replacements"]

_original_chunk = torch.chunk
_original_diff = torch.diff
_original_exp = torch.exp
_original_flatten = torch.flatten
_original_max_pool1d = F.max_pool1d
_original_get_item = Tensor.__getitem__
_original_multiply = Tensor.__mul__
_original_set_item = Tensor.__setitem__
_original_split = Tensor.split
_original_unflatten = Tensor.unflatten
_original_unfold = Tensor.unfold


def replacements() -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a function of PyTorch and ours."""
    return [
        (torch.exp, _exp),
        (torch.hstack, _hstack),
        (torch.vstack, _vstack),
        (torch.max_pool1d, _max_pool1d),
        (F.max_pool1d, _max_pool1d),
        (torch.triu_indices, _triu_indices),
        (torch.tril_indices, _tril_indices),
        (torch.chunk, _chunk),
        (torch.diff, _diff),
        (torch.flatten, _flatten),
    ]


def methods() -> dict[str, Callable[..., Any]]:
    """Ours for methods of a tensor, by name."""
    return {
        "__setitem__": _set_item,
        "unsqueeze": _unsqueeze,
        "__getitem__": _get_item,
        "__mul__": _multiply,
        "__rmul__": _multiply,
        "exp": _exp,
        "chunk": _chunk,
        "diff": _diff,
        "flatten": _flatten,
        "expand_as": _expand_as,
        "split": _split,
        "unflatten": _unflatten,
        "unfold": _unfold,
    }


def _max_pool1d(  # noqa: PLR0917 - the signature of what it replaces
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`max_pool1d` by way of two axes: "Constraints violated", a shape is asked for its size."""
    if return_indices:
        given = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return handed_over(_original_max_pool1d, input, *given)
    one = [n[0] if isinstance(n, tuple | list) else n for n in (kernel_size, padding, dilation)]
    kernel, before, apart = one
    step = (stride[0] if isinstance(stride, tuple | list) else stride) or kernel
    pairs = ((kernel, 1), (step, 1), (before, 0), (apart, 1))
    return torch.max_pool2d(input.unsqueeze(-1), *pairs, ceil_mode).squeeze(-1)


def _triu_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.long, device: Any = None, **_: Any
) -> Tensor:
    # "conflicts ... inferred a static shape of 7": the operator needs a number for its own shape.
    i = torch.arange(row, device=device).unsqueeze(-1)
    j = torch.arange(col, device=device).unsqueeze(0)
    return (j - i >= offset).nonzero().t().to(dtype)


def _tril_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.long, device: Any = None, **_: Any
) -> Tensor:
    i = torch.arange(row, device=device).unsqueeze(-1)
    j = torch.arange(col, device=device).unsqueeze(0)
    return (j - i <= offset).nonzero().t().to(dtype)


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    """`chunk` of an axis of any size by way of the sizes: the translation's `Split` does not load.

    "Type (tensor(float)) of output arg (split) does not match expected type (seq(tensor(float)))"
    """
    length = input.shape[dim]
    if not isinstance(length, torch.SymInt):
        return handed_over(_original_chunk, input, chunks, dim)  # type: ignore[no-any-return]
    if statically_known_true(length % chunks == 0):
        return handed_over(_original_split, input, [length // chunks] * chunks, dim)
    size = (length + chunks - 1) // chunks
    sizes = [size] * (chunks - 1)
    return handed_over(_original_split, input, [*sizes, length - size * (chunks - 1)], dim)


def _diff(
    input: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """`diff` by way of slices: for want of a translation, all of a program is traced once more."""
    if n != 1:
        return handed_over(_original_diff, input, n, dim, prepend, append)  # type: ignore[no-any-return]
    parts = [part for part in (prepend, input, append) if part is not None]
    joined = torch.cat(parts, dim) if len(parts) > 1 else input
    later: Tensor = torch.ops.aten.slice(joined, dim, 1)
    earlier: Tensor = torch.ops.aten.slice(joined, dim, 0, -1)
    return later ^ earlier if joined.dtype == torch.bool else later - earlier


def _flatten(input: Tensor, start_dim: Any = 0, end_dim: Any = -1, **named: Any) -> Tensor:
    """`flatten` by way of the sizes, for the same reason."""
    if named or not input.ndim or not isinstance(start_dim, int):
        return handed_over(_original_flatten, input, start_dim, end_dim, **named)  # type: ignore[no-any-return]
    first, last = range(input.ndim)[start_dim], range(input.ndim)[end_dim]
    if first > last:
        return handed_over(_original_flatten, input, start_dim, end_dim)  # type: ignore[no-any-return]
    shape = input.shape
    return input.reshape(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


def _unflatten(input: Tensor, dim: Any, sizes: Any) -> Tensor:
    """`unflatten` by way of the sizes, for the same reason."""
    if not isinstance(dim, int) or not input.ndim:
        return handed_over(_original_unflatten, input, dim, sizes)  # type: ignore[no-any-return]
    axis = range(input.ndim)[dim]
    return input.reshape(*input.shape[:axis], *sizes, *input.shape[axis + 1 :])


def _expand_as(input: Tensor, other: Tensor) -> Tensor:
    """`expand_as` by way of the sizes, for the same reason."""
    return input.expand(other.shape)


def _split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Sequence[Tensor]:
    """`split` into pieces of a size along an axis of any size, for the same reason."""
    length, size = tensor.shape[dim], split_size_or_sections
    is_open = isinstance(length, torch.SymInt) and isinstance(size, int | torch.SymInt)
    if is_open and statically_known_true(length % size == 0):
        count = length // size
        if isinstance(count, int) or count.node.expr.is_number:
            return handed_over(_original_split, tensor, [size] * int(count), dim)  # type: ignore[no-any-return]
    if is_open and isinstance(size, int) and size > 1:
        return Blocks(tensor, size, dim % tensor.ndim)
    return handed_over(_original_split, tensor, size, dim)  # type: ignore[no-any-return]


def _unfold(tensor: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """`unfold` of an axis of any size by way of slices: the file's has other numbers."""
    axis = dimension % tensor.ndim if tensor.ndim else 0
    length = tensor.shape[axis] if tensor.ndim else 1
    if not isinstance(length, torch.SymInt):
        return handed_over(_original_unfold, tensor, dimension, size, step)  # type: ignore[no-any-return]
    torch._check(length >= size)  # as its own operator would ask
    index = (slice(None),) * axis
    ends = [length - size + 1 + first for first in range(size)]
    parts = [tensor[(*index, slice(first, end, step))] for first, end in enumerate(ends)]
    return torch.stack(parts, -1)


def _unsqueeze(tensor: Tensor, dim: int) -> Tensor:
    """`unsqueeze` by way of real numbers: "No decompositions registered for the complex-valued"."""
    if not tensor.is_complex():
        return torch.unsqueeze(tensor, dim)
    parts = torch.view_as_real(tensor)  # one more axis, the last
    return torch.view_as_complex(torch.unsqueeze(parts, dim if dim >= 0 else dim - 1))


def _multiply(tensor: Tensor, other: Any) -> Any:
    """A real tensor times a complex number (`1j * angle`): aten.mul.Scalar takes no 1j."""
    if isinstance(other, complex) and not tensor.is_complex():
        return torch.complex(tensor * other.real, tensor * other.imag)
    return handed_over(_original_multiply, tensor, other)


def _exp(tensor: Tensor) -> Tensor:
    """`exp`, of a complex number by its parts, for the same reason."""
    if not tensor.is_complex():
        return handed_over(_original_exp, tensor)  # type: ignore[no-any-return]
    real, imaginary = torch.view_as_real(tensor).unbind(-1)
    length = _original_exp(real)
    return torch.complex(length * imaginary.cos(), length * imaginary.sin())


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    """`hstack` by way of `cat`: the exporter's has types that do not fit (atleast_1d)."""
    parts = [tensor if tensor.ndim else tensor.reshape(1) for tensor in tensors]
    return torch.cat(parts, dim=0 if parts[0].ndim == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    """`vstack` by way of `cat`, for the same reason (atleast_2d)."""
    return torch.cat([t if t.ndim > 1 else t.reshape(1, -1) for t in tensors])


def _get_item(tensor: Tensor, index: Any) -> Tensor:
    """Indexing by way of real numbers, for the same reason: `turns[:, :, None]` unsqueezes."""
    items = index if isinstance(index, tuple) else (index,)
    if not tensor.is_complex() or not any(item is None for item in items):
        return handed_over(_original_get_item, tensor, index)  # type: ignore[no-any-return]
    last = (slice(None),) if any(item is Ellipsis for item in items) else (Ellipsis, slice(None))
    return torch.view_as_complex(_original_get_item(torch.view_as_real(tensor), (*items, *last)))


def _set_item(self: Tensor, index: Any, value: Any) -> None:
    """`scores[:, mask] = -inf` as a masked fill: "ConversionError ... aten.index_put"."""
    parts = list(index) if isinstance(index, tuple) else [index]
    masks = [i for i, p in enumerate(parts) if isinstance(p, Tensor) and p.dtype == torch.bool]
    plain = isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)
    others = [p for p in parts if not isinstance(p, Tensor)]
    if len(masks) == 1 and plain and len(others) == len(parts) - 1 and all(map(_is_whole, others)):
        mask = parts[masks[0]]
        if Ellipsis not in others:
            parts.append(Ellipsis)
        where = next(i for i, p in enumerate(parts) if p is Ellipsis)
        free = self.ndim - mask.ndim - (len(parts) - 2)  # axes that the Ellipsis stands for
        before = masks[0] + (free - 1 if where < masks[0] else 0)
        after = self.ndim - mask.ndim - before
        shape = (1,) * before + tuple(mask.shape) + (1,) * after
        self.masked_fill_(mask.reshape(shape), value)
        return
    handed_over(_original_set_item, self, index, value)


def _is_whole(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))
