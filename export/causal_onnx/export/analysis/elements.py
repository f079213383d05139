"""The abstract tensor of the element-wise analysis: for every element, what it may depend on.

At concrete sizes each element of each tensor of the graph carries

- `reach`: the last position of the inputs' data that the element may depend on, -1 if none;
- where its value is known without any data (a mask, a zero that masking left behind): the value;
- where it is not known but surely very negative (score + -1e9): that, with the bound.

Positions are absolute: entry p of a past is position p, token t after a past of n is n + t.
Structural operators (Reshape, Slice, Pad, ...) move these records just as they move the data, so a
proof at one size needs no insight into how a graph arranges its axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "NONE",
    "VERY_NEGATIVE",
    "Abstract",
    "Array",
    "Elements",
    "Known",
    "Ratio",
    "RefusedByOnnxError",
    "Tensor",
    "broadcast_shape",
    "compress",
    "is_low",
    "lift",
    "merge",
    "plain",
    "refusing",
    "restructure",
    "view",
]

Array: TypeAlias = npt.NDArray[Any]
IntArray: TypeAlias = npt.NDArray[np.int32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

NONE = -1
"""The reach of an element that depends on no data."""

VERY_NEGATIVE = -1e3
"""A finite score at or below this is taken to be masked: exp(-1000 + 104) is the last that is not
zero in fp32, so the other scores of the row would have to lie below -896 as well. Recorded as an
assumption wherever it is used."""


class RefusedByOnnxError(Exception):
    """ONNX itself does not run the operator on such shapes or values; the message is the reason."""


@contextmanager
def refusing() -> Iterator[None]:
    """Around numpy where it does what ONNX would: what numpy refuses, ONNX refuses.

    Around nothing else: an error in the bookkeeping of a rule is a defect of ours, and must not
    pass for a length that the graph does not take.

    Raises:
        RefusedByOnnxError: numpy raised a ValueError or an IndexError.
    """
    try:
        yield
    except (ValueError, IndexError) as error:
        raise RefusedByOnnxError(str(error) or type(error).__name__) from error


class Known:
    """A tensor whose every element is known without any data, evaluated when first asked for."""

    __slots__ = ("_load", "_value", "constant", "shape")

    def __init__(
        self,
        value: Array | None = None,
        *,
        constant: bool = False,
        shape: tuple[int, ...] | None = None,
        load: Callable[[], Array] | None = None,
    ) -> None:
        """Hold `value`, or `shape` and a function that `load`s the value.

        Args:
            value: The array itself.
            constant: Whether it is the same whatever the inputs' shapes are.
            shape: Needed with `load`.
            load: Called at most once.
        """
        if value is not None:
            shape = value.shape
        if shape is None:
            raise ValueError("a Known needs a value, or a shape and a loader")
        self._value = value
        self._load = load
        self.constant = constant
        self.shape = shape

    @property
    def value(self) -> Array:
        """The array; do not write to it."""
        if self._value is None:
            assert self._load is not None
            self._value = self._load()
            self._load = None
        return self._value

    @property
    def size(self) -> int:
        size = 1
        for dim in self.shape:
            size *= dim
        return size

    @property
    def is_loaded(self) -> bool:
        return self._value is not None


@dataclass(frozen=True, slots=True)
class Ratio:
    """What is left of a tensor's reach once a factor that its rows share has cancelled.

    A softmax weight is exp(score) over the row's sum: the sum reaches everything that the row
    sees, but drops out where masked weights are divided by their own sum.
    """

    source: int
    """Identifies the factor: equal numbers, equal factors row by row."""
    axes: tuple[int, ...]
    """The factor is the same along these."""
    reach: IntArray
    """Of the number without the factor."""


@dataclass(slots=True)
class Elements:
    """A tensor that depends on data somewhere.

    The arrays have the rank of `shape`; an axis along which all entries agree may have size 1.
    """

    shape: tuple[int, ...]
    reach: IntArray
    known: BoolArray | None = None
    """Where the value is known; `reach` is NONE there. None: nowhere."""
    value: Array | None = None
    """The value where `known`; an upper bound where `low`; anything elsewhere."""
    low: BoolArray | None = None
    """Where the value is not known but surely at most VERY_NEGATIVE."""
    maybe_low: BoolArray | None = None
    """Where the data decides whether the value is masked (very negative or -inf)."""
    ratio: Ratio | None = None
    """The value is a number of its own times one that a whole row shares."""

    @property
    def size(self) -> int:
        size = 1
        for dim in self.shape:
            size *= dim
        return size


Tensor: TypeAlias = Known | Elements
Abstract: TypeAlias = Tensor | list[Any] | None
"""What a value of the graph may be: a tensor, an ONNX sequence of tensors, or absent."""

LIFT_LIMIT = 1 << 25
"""Constants of more elements (256 MB in fp64) are weights, whose values no rule needs."""


def plain(array: Array) -> Array:
    """The same numbers in a type that numpy knows: bfloat16 as float32, int4 as int8, ..."""
    if array.dtype.kind != "V":
        return array
    return array.astype(np.int8 if "int" in array.dtype.name else np.float32)


def view(array: Array, shape: tuple[int, ...]) -> Array:
    """The array at full size, without copying."""
    return array if array.shape == shape else np.broadcast_to(array, shape)


def compress(array: Array) -> Array:
    """Shrink to size 1 each axis along which all entries agree."""
    for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        if size > 1:
            first = array[(slice(None),) * axis + (slice(0, 1),)]
            if stride == 0 or bool((array == first).all()):
                array = first
    return array


def lift(tensor: Tensor) -> Elements:
    """The same tensor as `Elements`; a huge constant loses its value."""
    if isinstance(tensor, Elements):
        return tensor
    rank = len(tensor.shape)
    empty = tuple(0 if size == 0 else 1 for size in tensor.shape)
    reach = np.full(empty, NONE, np.int32)
    if tensor.size > LIFT_LIMIT:
        return Elements(tensor.shape, reach)
    return Elements(tensor.shape, reach, known=np.ones((1,) * rank, np.bool_), value=tensor.value)


def normal(tensor: Tensor) -> Tensor:
    """Drop empty records; all elements known makes a `Known`."""
    if isinstance(tensor, Known):
        return tensor
    known = tensor.known
    if known is not None:
        if known.all():
            assert tensor.value is not None
            return Known(np.array(view(tensor.value, tensor.shape)))
        if not known.any():
            tensor.known = None
    if tensor.low is not None and not tensor.low.any():
        tensor.low = None
    if tensor.maybe_low is not None and not tensor.maybe_low.any():
        tensor.maybe_low = None
    if tensor.known is None and tensor.low is None:
        tensor.value = None
    return tensor


def is_low(tensor: Elements, *, infinite: bool = True) -> BoolArray | None:
    """Where the value is known or bounded to be at most VERY_NEGATIVE; None: nowhere."""
    found = tensor.low
    if tensor.known is not None and tensor.value is not None:
        value = tensor.value
        if value.dtype == np.bool_ or value.dtype.kind in "USO":
            return found
        below = tensor.known & (value <= VERY_NEGATIVE)
        if not infinite:
            below = below & np.isfinite(value)
        if below.any():
            found = below if found is None else found | below
    return found


def restructure(tensor: Elements, move: Callable[[Array, Any], Array]) -> Elements:
    """Apply a move of elements to every record.

    Args:
        tensor: What to move.
        move: Takes a full-size array, and the entry that new elements get, and gives the moved one.
            New elements (padding) are known; their value is set by the caller afterwards.
    """
    shape = tensor.shape

    def moved(array: Array, fill: Any) -> Array:
        return move(view(array, shape), fill)

    reach = moved(tensor.reach, NONE)
    out = Elements(reach.shape, compress(reach))
    if tensor.known is not None:
        out.known = compress(moved(tensor.known, True))
    if tensor.value is not None:
        out.value = compress(moved(tensor.value, 0))
    if tensor.low is not None:
        out.low = compress(moved(tensor.low, False))
    if tensor.maybe_low is not None:
        out.maybe_low = compress(moved(tensor.maybe_low, False))
    return out


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The ONNX (numpy) broadcast of the shapes.

    Raises:
        RefusedByOnnxError: They do not broadcast.
    """
    with refusing():
        return np.broadcast_shapes(*shapes)


def with_rank(tensor: Elements, rank: int) -> Elements:
    """The same with leading axes of size 1, as broadcasting reads it."""
    extra = rank - len(tensor.shape)
    if extra == 0:
        return tensor
    lead = (1,) * extra

    def grown(array: Array | None) -> Any:
        return None if array is None else array.reshape(lead + array.shape)

    return Elements(
        lead + tensor.shape,
        grown(tensor.reach),
        grown(tensor.known),
        grown(tensor.value),
        grown(tensor.low),
        grown(tensor.maybe_low),
    )


def merge(tensors: Sequence[Tensor], axis: int) -> Elements:
    """The concatenation of the tensors along `axis`, all records included."""
    parts = [lift(tensor) for tensor in tensors]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    whole = tuple(shape)

    def joined(arrays: Sequence[Array]) -> Array:
        sizes = [1] * len(whole)
        for array in arrays:
            sizes = [max(a, b) for a, b in zip(sizes, array.shape, strict=True)]
        full = []
        for part, array in zip(parts, arrays, strict=True):
            goal = list(sizes)
            goal[axis] = part.shape[axis]
            full.append(np.broadcast_to(array, tuple(goal)))
        return compress(np.concatenate(full, axis=axis))

    out = Elements(whole, joined([part.reach for part in parts]))
    false = np.zeros((1,) * len(whole), np.bool_)
    for name in ("known", "low", "maybe_low"):
        records = [getattr(part, name) for part in parts]
        if any(record is not None for record in records):
            arrays = [false if record is None else record for record in records]
            setattr(out, name, joined(arrays))
    if any(part.value is not None for part in parts):
        zero = np.zeros((1,) * len(whole), np.float32)
        values = [part.value for part in parts]
        kinds = {value.dtype for value in values if value is not None}
        dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)
        out.value = joined([(zero if v is None else v).astype(dtype, copy=False) for v in values])
    return out
