"""Parts of a tensor along an axis of any size, which a loop takes one after the other.

The last part may be shorter than the others. A Scan has steps of one shape, so it is padded with
zeros, and what a step makes of the padding is cut off again. For a causal module that is the same:
what it gives at a position does not depend on whether, and how, the sequence goes on behind it.
That it is so is checked on the graph, at lengths that are no multiples of the parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from causal_onnx.export.errors import ExportError
from causal_onnx.export.torch_patches.user_code import user_line

__all__ = [
    "Blocks", "BlocksError", "Numbered", "Starts", "Zipped", "note_length", "numbered", "padded",
    "starts", "watching_blocks", "zipped",
]  # fmt: skip

_one_block: ContextVar[list[int] | None] = ContextVar("_one_block", default=None)


@contextlib.contextmanager
def watching_blocks(sizes: list[int]) -> Iterator[None]:
    """Inside, put into `sizes` that of each block which holds all positions of the example.

    PyTorch takes a number that is 1 for one that is always 1: such an example says nothing of a
    second block.
    """
    token = _one_block.set(sizes)
    try:
        yield
    finally:
        _one_block.reset(token)


def note_length(length: Any, size: int) -> None:
    """Take note where the example has one block alone."""
    found = _one_block.get()
    if found is not None and length.node.hint <= size:
        found.append(size)


class BlocksError(ExportError):
    """Blocks of positions are used otherwise than in a loop that is a Scan: no way takes that."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"a loop over blocks of positions cannot be captured at {user_line()}: {reason}. "
            "Remedy: let each step of a `for` read and write its own block alone, carry tensors of "
            "one shape to the next, and append one tensor to a list; or write it without a loop: "
            "pad with F.pad(x, (0, 0, 0, -x.shape[1] % size)), give the blocks an axis of their "
            "own with x.unflatten(1, (-1, size)), shift them along it where one reads another, and "
            "cut the result to x.shape[1]"
        )


@dataclass(frozen=True, eq=False)
class Blocks(Sequence[Tensor]):
    """What `tensor.split(size, axis)` gives, along an axis of any size: for a loop alone."""

    tensor: Tensor
    size: int
    axis: int

    @property
    def length(self) -> Any:
        """Of all blocks together."""
        return self.tensor.shape[self.axis]

    def __len__(self) -> NoReturn:
        raise BlocksError("the number of blocks depends on the length")

    def __iter__(self) -> NoReturn:
        raise BlocksError("they are read outside of such a `for`")

    def __getitem__(self, index: Any) -> NoReturn:
        raise BlocksError("one of them is read by its number")


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
    return zip(*parts, **options)  # noqa: B905 - the caller's own options


def numbered(part: Any, start: int = 0) -> Iterable[tuple[int, Any]]:
    """`enumerate(part, start)`."""
    return Numbered(part) if isinstance(part, _OURS) and not start else enumerate(part, start)


def padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    """(blocks, ..., size, ...): the blocks of a tensor along an axis, the last one padded."""
    behind = [0, 0] * (tensor.ndim - 1 - axis)
    whole = F.pad(tensor, [*behind, 0, -tensor.shape[axis] % size])
    return torch.unflatten(whole, axis, (-1, size)).movedim(axis, 0)
