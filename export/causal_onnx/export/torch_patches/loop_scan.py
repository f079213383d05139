"""One step of a loop over positions, or over blocks of them, traced as the body of a Scan.

The step is run once to see what it does: which tensors it reads at its position and which whole,
which it writes at its position, what it appends, and what it carries to the next step. Then
PyTorch's own higher-order `scan` is called with it. A loop that does anything else is run as it
stands, step by step.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.blocks import (
    Blocks,
    BlocksError,
    Numbered,
    Starts,
    Zipped,
    note_length,
    padded,
)

__all__ = ["replacements", "run", "run_blocks", "why_not"]

_Step = Callable[..., tuple[Any, ...]]


class _Unset:
    """In the place of a name that the loop assigns and that has no value yet."""

    def __repr__(self) -> str:
        return "a name that nothing was assigned to"


_UNSET = _Unset()

_original_arange = torch.arange
_original_cat = torch.cat
_original_stack = torch.stack


def replacements() -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a function of PyTorch and ours."""
    joins: list[Any] = [torch.cat, torch.concat, torch.concatenate]
    return [
        (torch.arange, _arange),
        (torch.stack, _stack),
        *((join, _cat) for join in joins),
    ]


class _NoStepError(Exception):
    """The body is no step of a Scan; says what it does instead."""


@dataclass(frozen=True)
class _Rows:
    """What stands for a list to which each step has appended one tensor."""

    stacked: Tensor
    """The steps in front."""
    size: int = 1
    """Positions of a step."""
    length: Any = None
    """Of all steps together, of which the last may have fewer positions. None: each has its own."""

    def joined(self, dim: int) -> Tensor:
        axis = dim % (self.stacked.ndim - 1)
        whole = _joined(self.stacked, axis)
        if self.length is None or self.stacked.shape[axis + 1] != self.size:
            return whole
        return whole.narrow(axis, 0, self.length)


def _joined(stacked: Tensor, axis: int) -> Tensor:
    """The steps in front become positions along an axis.

    A copy has strides that need no question: "number of blocks != 1".
    """
    moved = stacked.movedim(0, axis)
    return moved.clone(memory_format=torch.contiguous_format).flatten(axis, axis + 1)


def _arange(*ends: Any, dtype: Any = None, device: Any = None, **options: Any) -> Any:
    """`arange(start, start + size)` of a block, by way of the numbers of all positions."""
    if len(ends) == 2 and all(isinstance(end, _Position) for end in ends):
        start, end = ends
        if start.numbers is not None:
            return start.numbers[start:end].to(device=device, dtype=dtype)
    return handed_over(_original_arange, *ends, dtype=dtype, device=device, **options)


def _stack(tensors: Any, dim: int = 0, *, out: Any = None) -> Any:
    if isinstance(tensors, _Rows):
        return tensors.stacked.movedim(0, dim)
    return handed_over(_original_stack, tensors, dim, **({} if out is None else {"out": out}))


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    dim = options.pop("axis", dim)
    if isinstance(tensors, _Rows):
        return tensors.joined(dim)
    return handed_over(_original_cat, tensors, dim, **options)


def run(  # noqa: PLR0917 - what the rewritten loop hands over, in its order
    step: _Step,
    count: Any,
    known: Mapping[str, Any],
    names: Sequence[str],
    appended: Sequence[str],
    carried: Sequence[str],
    live: Sequence[str],
) -> dict[str, Any]:
    """Do what `for index in range(count)` did.

    Args:
        step: The body: (index, *values of `names`) -> their values after it.
        count: How many steps there are.
        known: The local variables before the loop.
        names: What the body assigns, then what it appends to.
        appended: What it appends to.
        carried: What a step may read of the one before.
        live: What is read after the loop.

    Returns:
        The values of `names` after the loop.
    """
    values = {name: known.get(name, _UNSET) for name in names}
    if isinstance(count, torch.SymInt) and not count.node.expr.is_number:
        try:
            loop = _Loop(step, count, values, set(appended), set(carried), set(live))
            return loop.run()
        except _NoStepError as error:  # step by step, as it stands
            code = getattr(step, "__code__", None)
            if code is not None:
                _refused[code.co_filename, code.co_firstlineno] = str(error)
    return _by_steps(step, range(count), values)


def run_blocks(  # noqa: PLR0917 - as for `run`
    step: _Step,
    items: Iterable[Any],
    known: Mapping[str, Any],
    names: Sequence[str],
    appended: Sequence[str],
    carried: Sequence[str],
    live: Sequence[str],
) -> dict[str, Any]:
    """Do what `for item in items` did, where the items may be blocks of positions.

    Args:
        step: The body: (item, *values of `names`) -> their values after it.
        items: What it goes through.
        known: As for `run`.
        names: As for `run`.
        appended: As for `run`.
        carried: As for `run`.
        live: As for `run`.

    Returns:
        The values of `names` after the loop.

    Raises:
        BlocksError: They are blocks, and the body is no step of a Scan.
    """
    values = {name: known.get(name, _UNSET) for name in names}
    if not isinstance(items, Blocks | Starts | Zipped | Numbered):
        return _by_steps(step, items, values)
    try:
        loop = _loop_over(items, step, values, set(appended), set(carried), set(live))
        return loop.run()
    except _NoStepError as error:
        raise BlocksError(str(error)) from error


def _loop_over(  # noqa: PLR0917 - those of `run_blocks`
    items: Any,
    step: _Step,
    values: dict[str, Any],
    appended: set[str],
    carried: set[str],
    live: set[str],
) -> _Loop:
    """A loop over blocks.

    Raises:
        _NoStepError: They are not alike.
    """
    first, *others = _blocks_of(items)
    size, length = first.size, first.length
    for other in others:
        if other.size != size or not statically_known_true(other.length == length):
            raise _NoStepError("its blocks are of several sizes")
    note_length(length, size)
    start = _Position(size=size, length=length, numbers=torch.arange(length))
    item = functools.partial(_item, items, start)
    return _Loop(step, None, values, appended, carried, live, item, size, length)


def _blocks_of(items: Any) -> Iterator[Blocks | Starts]:
    if isinstance(items, Zipped):
        for part in items.parts:
            yield from _blocks_of(part)
    elif isinstance(items, Numbered):
        yield from _blocks_of(items.part)
    else:
        yield items


def _item(items: Any, start: _Position) -> Any:
    """What the step over the block at `start` is given."""
    if isinstance(items, Zipped):
        return tuple(_item(part, start) for part in items.parts)
    if isinstance(items, Numbered):
        return _Position(size=0), _item(items.part, start)
    if isinstance(items, Starts):
        return start
    return items.tensor[(*(slice(None),) * items.axis, slice(start, start + start.size))]


def _by_steps(step: _Step, items: Iterable[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The loop as it stands."""
    for item in items:
        values = dict(zip(values, handed_over(step, item, *values.values()), strict=True))
    return values


_refused: dict[tuple[str, int], str] = {}
"""File and line of a loop -> why it was no Scan when it was last traced."""


def why_not(place: str | None) -> str | None:
    """Why the loop at a place, `file:line (text)`, was no Scan; None where it was, or is none."""
    for (file, line), reason in _refused.items():
        if place is not None and place.startswith(f"{file}:{line} "):
            return reason
    return None


class _Position:
    """The index of the loop: which position a step is at, or where its block of positions begins.

    It indexes tensors, and nothing else.
    """

    def __init__(
        self,
        offset: int = 0,
        *,
        size: int = 1,
        length: Any = None,
        numbers: Tensor | None = None,
    ):
        self.offset, self.size, self.length, self.numbers = offset, size, length, numbers

    def __add__(self, other: Any) -> _Position:
        if not self.offset and isinstance(other, int) and other == self.size:
            return _Position(self.size, size=self.size, length=self.length)
        raise _NoStepError("it computes with its index")

    def at_most(self, other: Any) -> _Position:
        """`min(start + size, length)`: the end of a block, of which what is there is read."""
        is_end = self.offset and self.length is not None and isinstance(other, torch.SymInt)
        # By their expressions: within a Scan's body nothing may be computed from outside of it.
        if is_end and other.node.expr == self.length.node.expr:
            return self
        raise _NoStepError("it computes with its index")

    __radd__ = __add__

    def _refuse(self, *_: Any) -> Any:
        raise _NoStepError("it computes with its index")

    __index__ = __int__ = __float__ = __bool__ = __neg__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__


@dataclass(frozen=True)
class _Place:
    """Where a tensor is indexed by the position."""

    axis: int
    keeps: bool
    """Whether the axis stays, with one entry: `x[:, t : t + 1]`."""
    rest: tuple[Any, ...]
    """The index of the entry at the position."""
    size: int = 1
    """Positions of the entry: more than one are a block, and an axis of it."""


def _place(tensor: Tensor, index: Any) -> _Place | None:
    """None where the position is no part of the index."""
    items = index if isinstance(index, tuple) else (index,)
    at = [n for n, item in enumerate(items) if _has_position(item)]
    if not at:
        return None
    if len(at) > 1 or any(isinstance(item, Tensor | list) for item in items):
        raise _NoStepError("it indexes a tensor by its position in more than one way")
    item = items[at[0]]
    keeps = isinstance(item, slice)
    size = (item.start if isinstance(item.start, _Position) else item.stop).size if keeps else 1
    own = "block" if size > 1 else "position"
    if keeps:
        ends = (item.start, item.stop)
        is_one = item.step in (None, 1) and all(isinstance(end, _Position) for end in ends)
        if not is_one or [end.offset for end in ends] != [0, size]:
            raise _NoStepError(f"it reads more than its own {own} of a tensor")
    elif item.offset or item.size != 1:
        raise _NoStepError("it reads another position than its own" + " block" * (item.size != 1))
    taking = [n for n, other in enumerate(items) if other is not None and other is not Ellipsis]
    axis = taking.index(at[0])
    if Ellipsis in items[: at[0]]:
        axis += tensor.ndim - len(taking)
    one = (slice(None),) if keeps else ()
    return _Place(axis, keeps, (*items[: at[0]], *one, *items[at[0] + 1 :]), size)


def _has_position(item: Any) -> bool:
    parts = (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)
    return any(isinstance(part, _Position) for part in parts)


class _Appended:
    """In the place of a list while a step runs."""

    def __init__(self) -> None:
        self.items: list[Tensor] = []

    def append(self, item: Any) -> None:
        if not isinstance(item, Tensor) or self.items:
            raise _NoStepError("it appends more than one tensor to a list")
        self.items.append(item)


@dataclass
class _Seen(TorchFunctionMode):
    """What a step does, seen while it runs; and the tensors that it gets in the place of others."""

    loop: _Loop
    instead: dict[int, Tensor] = field(default_factory=dict)
    """For what is read whole, by its id."""
    slices: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """For the entries at the position, by the id of the whole and the axis."""
    whole: dict[int, Tensor] = field(default_factory=dict)
    """What is read whole, as it was found."""
    scanned: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """What is read at the position."""
    written: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """What is written at the position: the whole, and the entry."""
    made: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def add(self, value: Any) -> None:
        """Take note of what the step has made itself."""
        for part in pytree.tree_leaves(value):
            if isinstance(part, Tensor):
                self.made[id(part)] = part

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and (place := _place(*args)) is not None:
            result = self._entry(args[0], place)
        elif func is Tensor.__setitem__ and (place := _place(*args[:2])) is not None:
            return self._write(args[0], place, args[2])
        elif func is torch.sym_min and (ends := [x for x in args if isinstance(x, _Position)]):
            # What `min` is while PyTorch traces.
            (other,) = (x for x in args if x is not ends[0])
            return ends[0].at_most(other)
        else:
            self._refuse_changes(func, args, kwargs)
            own_args, own_kwargs = pytree.tree_map(self._own, (args, kwargs))
            result = handed_over(func, *own_args, **own_kwargs)
            if any(isinstance(part, Tensor) for part in pytree.tree_leaves(result)):
                self._read(args, kwargs)  # what gives no tensor asks for a shape or a type
        self.add(result)
        return result

    def _own(self, value: Any) -> Any:
        """What stands in the place of `value` within the step."""
        if isinstance(value, _Position):
            raise _NoStepError("it computes with its index")
        return self.instead.get(id(value), value)

    def _read(self, *values: Any) -> None:
        for part in pytree.tree_leaves(values):
            if isinstance(part, Tensor) and id(part) not in self.made:
                self.whole[id(part)] = part

    def _entry(self, tensor: Tensor, place: _Place) -> Tensor:
        if id(tensor) in self.made:
            raise _NoStepError("it reads a position of what it has made itself")
        key = (id(tensor), place.axis)
        if key in self.written:
            entry = self.written[key][1]
        else:
            self.scanned[key] = tensor
            # Within the body of a Scan nothing may be made of what is outside of it.
            entry = self.slices[key] if self.slices else self.loop.first(tensor, place.axis)
        if place.keeps and place.size == 1:
            entry = entry.unsqueeze(place.axis)
        return entry if all(map(_is_whole, place.rest)) else entry[place.rest]

    def _write(self, tensor: Tensor, place: _Place, value: Any) -> None:
        if id(tensor) in self.made or not all(map(_is_whole, place.rest)):
            raise _NoStepError("it writes a part of a position")
        shape = list(tensor.shape)
        shape[place.axis : place.axis + 1] = [place.size] * (place.size > 1)
        if not isinstance(value, Tensor):
            value = torch.full(shape, value, dtype=tensor.dtype, device=tensor.device)
            self.add(value)
        self._read(value)
        value = self._own(value)
        if place.keeps and place.size == 1:
            value = value.expand([*shape[: place.axis], 1, *shape[place.axis :]])
            value = value.squeeze(place.axis)
        if not _have_sizes(value.shape, shape):
            value = value.expand(shape)
        entry = value.to(tensor.dtype).clone()
        self.add(entry)
        self.written[id(tensor), place.axis] = (tensor, entry)

    def _refuse_changes(self, func: Any, args: Any, kwargs: Any) -> None:
        name = getattr(func, "__name__", "")
        changes = (
            func is Tensor.__setitem__
            or (name.endswith("_") and not name.endswith("__"))
            or name in _IN_PLACE
        )
        given = [args[0]] if changes and args else []
        given += [kwargs["out"]] if kwargs.get("out") is not None else []
        if any(isinstance(part, Tensor) and id(part) not in self.made for part in given):
            raise _NoStepError(f"it changes a tensor in place ({name})")


_IN_PLACE = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "and", "or", "xor")
}


def _is_whole(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


@dataclass
class _Loop:
    """One loop as a Scan."""

    step: _Step
    count: Any
    """How many steps there are; None: one for each block."""
    values: dict[str, Any]
    appended: set[str]
    carried: set[str]
    live: set[str]
    item: Callable[[], Any] = _Position
    """What a step is given."""
    size: int = 1
    """Positions of a step."""
    length: Any = None
    """Of all steps together; None: `count`."""

    def run(self) -> dict[str, Any]:
        """Trace it; the values after the loop.

        Raises:
            _NoStepError: The body is no step of a Scan.
        """
        for name in self.appended:
            if not isinstance(self.values[name], list) or self.values[name]:
                raise _NoStepError(f"it appends to {name}, which is no empty list")
        states = {
            name: value
            for name, value in self.values.items()
            if name in self.carried and isinstance(value, Tensor)
        }
        for _ in range(3):  # a state may begin smaller than what it is from the first step on
            seen, after = self._tried(states)
            grown = {n: _like(value, after[n]) for n, value in states.items()}
            if all(grown[name] is states[name] for name in states):
                break
            states = grown
        else:
            raise _NoStepError("what it carries changes its shape")
        self._check(seen, states, after)
        return self._scan(seen, states, after)

    def _tried(self, states: Mapping[str, Tensor]) -> tuple[_Seen, dict[str, Any]]:
        seen = _Seen(self)
        return seen, self._stepped(seen, {name: value.clone() for name, value in states.items()})

    def _stepped(self, seen: _Seen, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """The values after one step that begins with `states`."""
        given = {**self.values, **states, **{name: _Appended() for name in self.appended}}
        seen.add(list(states.values()))
        with seen:
            try:
                results = handed_over(self.step, self.item(), *given.values())
            except TypeError as error:
                if _Position.__name__ not in str(error):
                    raise
                raise _NoStepError("it computes with its index") from error
        return dict(zip(given, results, strict=True))

    def _check(self, seen: _Seen, states: Mapping[str, Tensor], after: Mapping[str, Any]) -> None:
        for name, value in after.items():
            is_made = isinstance(value, Tensor) and id(value) in seen.made
            if name in self.appended:
                if len(value.items) != 1:
                    raise _NoStepError(f"it appends nothing to {name}")
            elif name in self.carried and name not in states and value is not self.values[name]:
                raise _NoStepError(f"it carries {name}, which is no tensor before the first step")
            elif name in self.live and not is_made and value is not self.values[name]:
                raise _NoStepError(f"{name}, which is read afterwards, is no tensor of its own")
            elif name in self.live and is_made and self.size > 1:
                raise _NoStepError(f"{name} is read afterwards, and the last block may be shorter")
        for key in (*seen.scanned, *seen.written):
            if key[0] in seen.whole and key in seen.written:
                raise _NoStepError("it reads as a whole what it writes by position")
        if not seen.scanned:
            raise _NoStepError("it reads nothing by position")

    def _scan(
        self, seen: _Seen, states: Mapping[str, Tensor], after: Mapping[str, Any]
    ) -> dict[str, Any]:
        own = {name for name in states if after[name] is not self.values[name]}
        starts = {name: states[name] for name in states if name in own}
        lasts = [name for name in self.live if name not in starts and _is_new(after[name], seen)]
        keys, wholes = list(seen.scanned), list(seen.whole)
        rows = sorted(self.appended)

        def body(*flat: Tensor) -> list[Tensor]:
            begun = dict(zip(starts, flat, strict=False))
            inner = _Seen(self)
            inner.slices = dict(zip(keys, flat[len(starts) :], strict=False))
            inner.instead = dict(zip(wholes, flat[len(starts) + len(keys) :], strict=True))
            inner.add(list(flat[: len(starts) + len(keys)]))
            end = self._stepped(inner, {name: begun[name].clone() for name in starts})
            results = [end[name] for name in starts]
            results += [inner.written[key][1] for key in seen.written]
            results += [end[name].items[0] for name in rows]
            results += [end[name] for name in lasts]
            return [inner.instead.get(id(x), x).clone().contiguous() for x in results]

        lines = [self.line(tensor, axis) for (_, axis), tensor in seen.scanned.items()]
        found = list(
            scan_op(
                body,
                [value.clone().contiguous() for value in starts.values()],
                lines,
                # "scan might be aliasing": parts of one tensor, as keys and values often are.
                tuple(x.clone() if x._is_view() else x for x in seen.whole.values()),
            )
        )
        values = dict(self.values)
        for name in starts:
            values[name] = found.pop(0)
        for (_, axis), (tensor, _) in seen.written.items():
            stacked = found.pop(0)
            if self.size > 1:
                stacked = _joined(stacked, axis).narrow(axis, 0, self.length)
            else:
                stacked = stacked.movedim(0, axis)
            if not statically_known_true(tensor.shape[axis] == self.positions):
                rest = tensor.narrow(axis, self.positions, tensor.shape[axis] - self.positions)
                stacked = torch.cat((stacked, rest), axis)
            tensor.copy_(stacked)
        for name in rows:
            values[name] = _Rows(found.pop(0), self.size, self.length)
        for name in lasts:
            values[name] = found.pop(0)[-1]
        return values

    def first(self, tensor: Tensor, axis: int) -> Tensor:
        """What is read at the first position, or in the first block."""
        return tensor.select(axis, 0) if self.size == 1 else self.line(tensor, axis)[0]

    @property
    def positions(self) -> Any:
        """How many there are for all steps."""
        return self.count if self.length is None else self.length

    def line(self, tensor: Tensor, axis: int) -> Tensor:
        """(count, ...), what is read at each position, or (count, ..., size, ...) in each block."""
        if not statically_known_true(tensor.shape[axis] == self.positions):
            tensor = tensor.narrow(axis, 0, self.positions)
        return tensor.movedim(axis, 0) if self.size == 1 else padded(tensor, axis, self.size)


def _is_new(value: Any, seen: _Seen) -> bool:
    return isinstance(value, Tensor) and id(value) in seen.made


def _like(start: Tensor, after: Any) -> Tensor:
    """`start` in the shape and type that it has after a step; itself where it has them."""
    if not isinstance(after, Tensor):
        raise _NoStepError("what it carries is a tensor at first only")
    if _have_sizes(start.shape, after.shape) and start.dtype == after.dtype:
        return start
    if start.ndim > after.ndim:
        raise _NoStepError("what it carries loses an axis")
    return start.to(after.dtype).expand(after.shape)


def _have_sizes(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(shape) == len(other) and all(
        statically_known_true(operator.eq(a, b)) for a, b in zip(shape, other, strict=True)
    )
