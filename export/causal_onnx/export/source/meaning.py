"""What the integers that a module takes stand for, found by what it does with them.

An id is looked up in a table that the module holds. A length is compared with 0, 1, 2, ..., or
picks a position of the data. What neither happens to is a number in its own right, of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source

__all__ = ["find_meanings"]

FARTHEST = 1 << 40
"""No table has as many rows: an id as large as this is accepted only where none is refused."""


def find_meanings(source: Source, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Say of every integer input what it stands for, with the range of ids.

    What the caller declared stays, except that ids without a range get that of their table.
    """
    watched = [i for i, spec in enumerate(specs) if _is_open(spec)]
    if not watched:
        return tuple(specs)
    found = list(specs)
    # Drawn values, as those of an example may look like positions (0, 1, 2, ...) by chance; and as
    # the lengths among them are not known yet, those of the example in another order.
    drawn = list(make_inputs(specs, CallSizes(batch=2, seq=_example_seq(specs)), seed=11))
    for i in watched:
        if specs[i].kind != "ids":
            drawn[i] = _shuffled(specs[i], drawn[i])
    uses = _watch(source, drawn, watched, is_drawn=True)
    if uses is None:
        uses = _watch(source, [spec.example for spec in specs], watched, is_drawn=False)
    if uses is None:  # it runs, but not under the eyes of a mode
        uses = [_Uses() for _ in watched]
    for i, use in zip(watched, uses, strict=True):
        found[i] = _named(source, found, i, use)
    return tuple(found)


def _is_open(spec: InputSpec) -> bool:
    if spec.example.is_floating_point() or spec.example.is_complex() or not spec.axes:
        return False
    if spec.is_declared:
        return spec.kind == "ids" and spec.vocab_size is None
    return spec.kind in ("ids", "lengths")


def _example_seq(specs: Sequence[InputSpec]) -> int:
    return next(
        (s.example.shape[axis] for s in specs for axis, name in s.axes.items() if name == "seq"), 1
    )


def _shuffled(spec: InputSpec, like: Tensor) -> Tensor:
    """The example's values in another order, the largest first: lengths pad to the longest."""
    pool = spec.example.flatten().sort(descending=True).values
    return pool[torch.arange(like.numel()) % pool.numel()].view(like.shape)


@dataclass
class _Uses:
    """What happened to one input."""

    rows: list[int] = field(default_factory=list)
    """Of the tables that it indexes as it is."""
    is_computed: bool = False
    """A table is indexed by something that is computed from it."""
    counts: bool = False
    """It met 0, 1, 2, ..., or picked an entry of the data."""
    leaves: bool = False
    """Its numbers were read by Python or numpy."""
    seen: bool = False
    """It met some function."""


def _watch(
    source: Source, inputs: Sequence[Tensor], watched: Sequence[int], *, is_drawn: bool
) -> list[_Uses] | None:
    given = [x.clone() for x in inputs]
    mode = _Watching(source, given, [given[i] for i in watched], is_drawn=is_drawn)

    def call() -> object:
        with torch.no_grad(), mode:
            return source.fresh()(*given)

    return None if isinstance(ask(call), Refusal) else mode.uses


class _Watching(TorchFunctionMode):
    """Notes what is done with some of the inputs, and with what is computed from them."""

    def __init__(
        self, source: Source, inputs: Sequence[Tensor], watched: Sequence[Tensor], *, is_drawn: bool
    ) -> None:
        super().__init__()
        self._watched = watched
        self._is_drawn = is_drawn
        self._origins: MutableMapping[Tensor, frozenset[int]]
        self._origins = WeakIdKeyDictionary()
        """Tensor -> the watched inputs that it comes from."""
        self._data: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()
        """Tensor -> True: it comes from any input."""
        self._lengths = {n for x in inputs for n in x.shape}
        for x in inputs:
            self._data[x] = True
        for index, x in enumerate(watched):
            self._origins[x] = frozenset({index})
        self.uses = [_Uses() for _ in watched]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        tensors = [x for x in tree_iter((args, named)) if isinstance(x, Tensor)]
        origins = frozenset().union(*(self._origins.get(x, frozenset()) for x in tensors))
        lookups = list(_lookups(func, args, named))
        for table, rows, index in lookups:
            for place in range(len(self._watched)):
                self._note_lookup(place, table, rows, index)
        for place in origins:
            self.uses[place].seen = True
        if origins and not lookups:
            self._note_others(func, tensors, origins)
        is_data = any(x in self._data for x in tensors)
        for out in tree_iter(result):
            if isinstance(out, Tensor) and is_data:
                self._data[out] = True
                if origins and not lookups:
                    self._origins[out] = origins | self._origins.get(out, frozenset())
        return result

    def _note_lookup(self, place: int, table: Tensor | None, rows: int, index: Tensor) -> None:
        use, given = self.uses[place], self._watched[place]
        is_same = _same_values(index, given)
        comes_from = place in self._origins.get(index, frozenset())
        if not comes_from and not (is_same and self._is_drawn):
            return
        is_made_here = table is not None and not isinstance(table, nn.Parameter)
        if table is not None and table in self._data:
            use.counts = True
        elif is_made_here and given.ndim == 1 and rows in self._lengths:
            use.counts = True  # a row for each position
        elif is_same:
            use.rows.append(rows)
            # A clamp, say, may have left these values and will not leave others.
            use.is_computed |= index.data_ptr() != given.data_ptr()
        else:
            use.is_computed = True

    def _note_others(self, func: Any, tensors: Sequence[Tensor], origins: frozenset[int]) -> None:
        name = getattr(func, "__name__", "").strip("_")
        counting = any(
            not self._origins.get(x, frozenset()) and _counts_up(x, self._lengths, name)
            for x in tensors
        )
        for place in origins:
            self.uses[place].counts |= counting
            self.uses[place].leaves |= name in ("numpy", "tolist", "item", "int", "index")


def _counts_up(value: Tensor, lengths: set[int], name: str) -> bool:
    """Whether a tensor is a, a + 1, a + 2, ... for the positions, or is asked for an order."""
    flat = value.flatten()
    if flat.numel() < 2 or flat.dtype == torch.bool or flat.is_complex():
        return False
    if flat.numel() not in lengths and name not in ORDERED:
        return False
    return bool((flat[1:] - flat[:-1] == 1).all())


ORDERED = ("lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal")


def _lookups(func: Any, args: Any, named: Any) -> Iterator[tuple[Tensor | None, int, Tensor]]:
    """(table, its rows, indices) of what a call looks up; the table of a one-hot code is None."""
    if func in (nn.functional.embedding, nn.functional.embedding_bag):  # indices first
        ids, table = [*args, *(named[key] for key in ("input", "weight") if key in named)][:2]
        yield table, table.shape[0], ids
    elif func is torch.embedding:
        yield args[0], args[0].shape[0], args[1]
    elif func in (torch.index_select, torch.Tensor.index_select):
        table, axis, ids = [*args, *(named[key] for key in ("dim", "index") if key in named)][:3]
        yield table, table.shape[axis], ids
    elif func is nn.functional.one_hot:
        ids, classes = [*args, named.get("num_classes", -1)][:2]
        if isinstance(classes, int) and classes > 0:
            yield None, classes, ids
    elif func is torch.Tensor.__getitem__ and len(args) > 1:
        table, index = args[0], args[1]
        parts = list(index) if isinstance(index, tuple) else [index]
        axis = 0
        for number, part in enumerate(parts):
            if part is Ellipsis:
                axis = table.ndim - sum(p is not None for p in parts[number + 1 :])
                continue
            if isinstance(part, Tensor) and part.dtype != torch.bool and axis < table.ndim:
                yield table, table.shape[axis], part
            axis += part is not None


def _same_values(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and bool((a.flatten() == b.flatten()).all())


def _named(source: Source, specs: Sequence[InputSpec], index: int, use: _Uses) -> InputSpec:
    """The input with the kind that its uses show."""
    spec = specs[index]
    if use.rows and not (use.is_computed and _accepts(source, specs, index, min(use.rows))):
        rows = min(use.rows)
        reason = f"they are looked up in a table of {rows} rows"
        if use.counts and spec.kind == "lengths":
            return replace(spec, reason="they are compared with positions")
        return replace(spec, kind="ids", vocab_size=rows, reason=reason)
    if use.is_computed and not (use.counts and spec.kind == "lengths"):
        return _tried(source, specs, index)
    if spec.is_declared:
        return spec
    if spec.kind == "lengths":
        named = "len" in spec.name
        if use.counts or use.leaves or named or not use.seen:
            return replace(spec, reason="they are compared with positions" if use.counts else "")
    reason = "no table is indexed by them"
    ones = bool(((spec.example == 0) | (spec.example == 1)).all())
    return replace(spec, kind="flags" if ones else "values", reason=reason)


def _tried(source: Source, specs: Sequence[InputSpec], index: int) -> InputSpec:
    """Where something computed from the ids is looked up: the range that the module accepts."""
    spec = specs[index]
    reason = "what is computed from them is looked up in a table"

    def accepts(value: int) -> bool:
        return _accepts(source, specs, index, value)

    least, most = int(spec.example.min()), int(spec.example.max())
    if accepts(min(FARTHEST, torch.iinfo(spec.example.dtype).max)):
        return replace(spec, kind="values", reason=f"{reason}, and none is too large")
    high = _last(accepts, most, 1)
    if accepts(0):
        if spec.is_declared or least >= 0:
            return replace(spec, kind="ids", vocab_size=high + 1, reason=reason)
        return replace(spec, kind="values", value_range=(least, high + 1), reason=reason)
    low = _last(accepts, least, -1)
    return replace(spec, kind="values", value_range=(low, high + 1), reason=reason)


def _accepts(source: Source, specs: Sequence[InputSpec], index: int, value: int) -> bool:
    """Whether the module runs with `value` as the last one of an input."""
    valid = torch.iinfo(specs[index].example.dtype)
    if not valid.min <= value <= valid.max:
        return False
    given = [other.example.clone() for other in specs]
    given[index].flatten()[-1:].fill_(value)
    return not isinstance(ask(source.fresh().run, given), Refusal)


def _last(accepts: Callable[[int], bool], good: int, sign: int) -> int:
    """The last accepted value from `good` on, upwards or downwards."""
    step = 1
    while abs(good + sign * step) < FARTHEST and accepts(good + sign * step):
        good, step = good + sign * step, step * 2
    while step > 1:
        step //= 2
        if accepts(good + sign * step):
            good += sign * step
    return good
