"""Parts of a tensor along an axis of any size, which a loop takes one after the other.

The last part may be shorter than the others. A Scan has steps of one shape, so it is padded with
zeros, and what a step makes of the padding is cut off again. For a causal module that is the same:
what it gives at a position does not depend on whether, and how, the sequence goes on behind it.
That it is so is checked on the graph, at lengths that are no multiples of the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from causal_onnx.export.outcome import handed_over

__all__ = ["Blocks", "Numbered", "Starts", "Zipped", "numbered", "padded", "starts", "zipped"]

_original_split = Tensor.split


@dataclass(frozen=True, eq=False)
class Blocks(Sequence[Tensor]):
    """What `tensor.split(size, axis)` gives, along an axis of any size.

    To a loop it is a Scan over them. Whatever else is done with it fixes the length, as PyTorch's
    own `split` does.
    """

    tensor: Tensor
    size: int
    axis: int

    @property
    def length(self) -> Any:
        """Of all blocks together."""
        return self.tensor.shape[self.axis]

    def _parts(self) -> Sequence[Tensor]:
        return handed_over(_original_split, self.tensor, self.size, self.axis)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._parts())

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parts())

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return self._parts()[index]


@dataclass(frozen=True)
class Starts:
    """What `range(0, length, size)` gives, for any length."""

    length: Any
    size: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, self.length, self.size))


@dataclass(frozen=True)
class Zipped:
    """What `zip` gives of several of these."""

    parts: tuple[Any, ...]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(zip(*self.parts, strict=False))


@dataclass(frozen=True)
class Numbered:
    """What `enumerate` gives of one of these."""

    part: Any

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(enumerate(self.part))


_OURS = (Blocks, Starts, Zipped, Numbered)


def starts(length: Any, size: Any) -> Iterable[int]:
    """`range(0, length, size)`."""
    if isinstance(length, torch.SymInt) and not length.node.expr.is_number and _is_size(size):
        return Starts(length, size)
    return range(0, length, size)


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 1


def zipped(*parts: Any, **options: Any) -> Iterable[tuple[Any, ...]]:
    """`zip(*parts, **options)`."""
    if parts and all(isinstance(part, _OURS) for part in parts):
        return Zipped(parts)
    return zip(*parts, **options)


def numbered(part: Any, start: int = 0) -> Iterable[tuple[int, Any]]:
    """`enumerate(part, start)`."""
    return Numbered(part) if isinstance(part, _OURS) and not start else enumerate(part, start)


def padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    """(blocks, ..., size, ...): the blocks of a tensor along an axis, the last one padded."""
    behind = [0, 0] * (tensor.ndim - 1 - axis)
    whole = F.pad(tensor, [*behind, 0, -tensor.shape[axis] % size])
    return whole.unflatten(axis, (-1, size)).movedim(axis, 0)
