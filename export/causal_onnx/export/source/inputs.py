"""The inputs of a module: names, axes, and how to make valid ones at any batch and length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from causal_onnx.export.analysis.signature import axis_name
from causal_onnx.runtime.contract import AXIS_NAMES

__all__ = [
    "ADAPTER_RANK",
    "CallSizes",
    "Input",
    "InputSpec",
    "changed_values",
    "describe_inputs",
    "free_axes",
    "infer_axes",
    "make_inputs",
]

Kind = Literal[
    "features", "ids", "values", "flags", "mask", "pairs", "positions", "lengths", "fixed"
]
CausalKind = Literal["causal_mask", "causal_hide_mask", "causal_bias"]
Declared = Literal[
    "features", "ids", "values", "flags", "keep_mask", "hide_mask", "positions", "lengths", "fixed",
    CausalKind,
]  # fmt: skip
Padding = Literal["none", "left", "right"]

FREE_SIZES = (4, 9, 1, 6, 2, 17, 3)
"""Of axes that are neither the batch nor positions. A module must take all of them."""

ADAPTER_RANK = "lora_rank"
"""The free axis that is the rank of the adapters of a call; 0: none of its rows has one."""
_RANKS = (4, 0, 9, 1, 6, 2, 17)


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What an input of the module under export is, where its example does not say it."""

    axes: Mapping[int, str] | None = None
    """{axis: name}, as in `axes` of `export`; None: as given there, or guessed."""
    kind: Declared | None = None
    """"ids": rows of a table are looked up by them. "values": numbers in their own right, integers
    too (a time, a count). "flags": 0 or 1. "lengths": how many positions of each row count.
    "positions": 0, 1, 2, ... along the sequence. "keep_mask": 1, True or, added to scores, 0 where
    a position may be attended to. "hide_mask": the other way round. "causal_mask": one entry for
    each pair of a query and a key, 1 or True where the query may see the key, which is no later
    one. "causal_hide_mask": the other way round. "causal_bias": such a mask that is added to the
    scores, with -inf, or a very negative number, for every later key. "features": floating-point
    data. "fixed": the example itself, in every call of the checks. None: found out by what the
    module does with it."""
    range: tuple[float, float] | None = None
    """Valid values are those v with range[0] <= v < range[1]: the checks draw from these, and the
    file refuses others. None: for ids, the rows of the table; for others, none are refused."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Declared):
            kinds = ", ".join(get_args(Declared))
            raise ValueError(f"kind must be one of {kinds}, got {self.kind!r}")
        if self.range is None:
            return
        if self.kind not in (None, "ids", "values", "features"):
            raise ValueError(f"range is for ids, values and features, got kind {self.kind!r}")
        try:
            low, high = self.range
        except (TypeError, ValueError):
            raise ValueError(f"range is (low, high), got {self.range!r}") from None
        if not low < high:
            raise ValueError(f"range must be (low, high) with low < high, got {self.range!r}")
        if self.kind == "ids" and (low != 0 or high != int(high)):
            raise ValueError(f"the range of ids is (0, rows of the table), got {self.range!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallSizes:
    """Sizes of the symbolic axes for one call."""

    batch: int
    seq: int
    past: int = 0
    free: tuple[tuple[str, int], ...] = ()
    """Sizes of axes with names of their own; what is not among them goes with the length, up and
    down, so that calls of several lengths have several sizes."""

    def of(self, axis: str) -> int:
        """The size of the axis `axis`; `total_seq` is `past_seq + seq`."""
        match axis:
            case "batch":
                return self.batch
            case "seq":
                return self.seq
            case "past_seq":
                return self.past
            case "total_seq":
                return self.past + self.seq
        pool = _RANKS if axis == ADAPTER_RANK else FREE_SIZES
        usual = pool[(self.seq + sum(axis.encode())) % len(pool)]
        return dict(self.free).get(axis, usual)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One tensor input of the module under export."""

    name: str
    example: Tensor
    axes: Mapping[int, str]
    kind: Kind
    vocab_size: int | None = None
    """For ids: the rows of the table they look up; None: not found out yet, or there is none."""
    value_range: tuple[float, float] | None = None
    """[low, high) of valid values, where the caller or the module says so."""
    is_declared: bool = False
    """The caller said what kind it is."""
    mask_values: tuple[float | bool, float | bool] | None = None
    """For masks: the values of what may be attended to and of what is hidden; None: as the example
    suggests."""
    reason: str = ""
    """How it is known what kind it is."""

    @property
    def contract_kind(self) -> str | None:
        """What the contract says of it; None: its dtype, axes and vocabulary say it all."""
        if self.kind == "mask" and (self.mask_values is not None or free_axes([self])):
            values = self.mask_values or _mask_values(self.example)
            return "hide_mask" if values == (False, True) else "keep_mask"
        if self.kind == "pairs":
            return _causal_kind(self.mask_values)
        says_more = self.is_declared or self.kind in ("values", "flags")
        return self.kind if says_more and self.kind != "mask" else None

    @property
    def assumption(self) -> str | None:
        """What was assumed of its values, in one sentence; None: nothing to speak of."""
        is_row = "seq" not in self.axes.values() and self.kind in ("ids", "lengths")
        speaks = is_row or self.kind in ("values", "flags", "pairs")
        if not self.reason or self.is_declared or not speaks:
            return None
        words = {
            "ids": "ids",
            "values": "numbers",
            "flags": "0 or 1",
            "lengths": "lengths",
            "pairs": "a mask that hides every later key from its query",
        }
        low, high = self.value_range or (0, self.vocab_size)
        valid = f" in [{low:g}, {high:g})" if high is not None else ""
        return f"{self.name}: {words[self.kind]}{valid}, as {self.reason}"

    @property
    def is_data(self) -> bool:
        """Its values may be any: another one at a later position must not move earlier outputs."""
        return self.kind in ("features", "ids", "values", "flags")

    @property
    def drawn_from(self) -> tuple[float, float]:
        """[low, high) of the values that the checks draw, for ids and values."""
        if self.value_range is not None:
            return self.value_range
        if self.vocab_size is not None:
            return 0, self.vocab_size
        if not self.example.numel():
            return 0, 2
        low, high = int(self.example.min()), int(self.example.max()) + 1
        return (0 if self.kind == "ids" else low), max(high, low + 2)

    def shape(self, sizes: CallSizes) -> tuple[int, ...]:
        return tuple(
            sizes.of(self.axes[axis]) if axis in self.axes else size
            for axis, size in enumerate(self.example.shape)
        )

    def make(
        self, sizes: CallSizes, generator: torch.Generator, padding: Padding = "none"
    ) -> Tensor:
        """A valid input of `sizes`, in the dtype of the example.

        Values follow the example's: features its mean and spread (and its sign, where no feature is
        negative), ids its vocabulary, masks its "may attend" value with `padding` on one side,
        positions 0, 1, 2, ...
        """
        shape, dtype = self.shape(sizes), self.example.dtype
        if self.kind == "fixed":
            return self.example.clone()
        if self.kind in ("ids", "values") and not dtype.is_floating_point:
            low, high = map(int, self.drawn_from)
            high = min(high, torch.iinfo(dtype).max + 1)
            return torch.randint(low, high, shape, generator=generator).to(dtype)
        if self.value_range is not None:
            least, most = self.value_range
            unit = torch.rand(shape, generator=generator, dtype=torch.float64)
            return (least + unit * (most - least)).to(dtype)
        if self.kind == "flags":
            return self._flags(shape, generator)
        if self.kind == "mask":
            return self._mask(shape, padding)
        if self.kind == "pairs":
            return self._pairs(shape, generator)
        if self.kind == "positions":
            return self._positions(shape, sizes)
        if self.kind == "lengths":
            lengths = torch.randint(1, sizes.seq + 1, shape, generator=generator)
            lengths[..., 0] = sizes.seq  # code written for lengths pads to the longest of them
            return lengths.to(dtype)
        example = self.example.detach().double()
        mean = float(example.mean()) if example.numel() else 0.0
        spread = float(example.std()) if example.numel() > 1 else 0.0
        is_positive = example.numel() > 1 and spread > 0.0 and bool((example >= 0).all())
        if not spread > 0.0 or not torch.isfinite(torch.tensor([mean, spread])).all():
            mean, spread = 0.0, 1.0
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + mean
        if is_positive:
            drawn = drawn.abs()  # lengths, energies, what a logarithm is taken of
        return drawn.to(dtype)

    def _flags(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """One in four is unlike most of the example, and never the first position."""
        usual = int(bool(self.example.numel()) and float(self.example.double().mean()) > 0.5)
        raised = torch.rand(shape, generator=generator) < 0.25
        for axis, label in self.axes.items():
            if label in ("seq", "total_seq"):
                raised.select(axis, 0).fill_(False)
        return (raised ^ bool(usual)).to(self.example.dtype)

    def _pairs(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Every later key hidden, and at random some earlier ones, but never the query's own.

        The others have the values that those have in the example.
        """
        queries, keys = _pair_axes(self.axes)
        _, hide = self.mask_values or (True, False)
        pool = self.example.movedim((queries, keys), (-2, -1))
        kept = torch.unique(pool[(pool != hide) & ~_later(*pool.shape[-2:])])
        mask = torch.full(shape, hide, dtype=self.example.dtype).movedim((queries, keys), (-2, -1))
        # One value is not drawn for each of all pairs: of the longest sequence there are many.
        is_one = kept.numel() == 1
        drawn = kept if is_one else kept[torch.randint(len(kept), mask.shape, generator=generator)]
        later = _later(mask.shape[-2], mask.shape[-1])
        own = _later(mask.shape[-2], mask.shape[-1], ahead=-1) & ~later
        seen = own | (torch.rand(mask.shape, generator=generator) < 0.8)
        mask.copy_(torch.where(seen & ~later, drawn, mask))
        return mask.movedim((-2, -1), (queries, keys)).contiguous()

    def _mask(self, shape: tuple[int, ...], padding: Padding) -> Tensor:
        keep, drop = self.mask_values or _mask_values(self.example)
        mask = torch.full(shape, keep, dtype=self.example.dtype)
        # The last one: a (batch, 1, seq, seq) mask has its keys there.
        axis = max((a for a, n in self.axes.items() if n in ("seq", "total_seq")), default=None)
        batch_axis = next((a for a, n in self.axes.items() if n == "batch"), None)
        if padding == "none" or axis is None:
            return mask
        for row in range(shape[batch_axis] if batch_axis is not None else 1):
            # Row 0 stays whole, row b loses b tokens but never the last one that is left.
            count = min(row, shape[axis] - 1)
            view = mask if batch_axis is None else mask.select(batch_axis, row)
            rest = axis - 1 if batch_axis is not None and batch_axis < axis else axis
            start = 0 if padding == "left" else shape[axis] - count
            view.narrow(rest, start, count).fill_(drop)
        return mask

    def _positions(self, shape: tuple[int, ...], sizes: CallSizes) -> Tensor:
        axis = next(a for a, n in self.axes.items() if n in ("seq", "total_seq"))
        start = sizes.past if self.axes[axis] == "seq" else 0
        steps = torch.arange(start, start + shape[axis], dtype=self.example.dtype)
        view = [1] * len(shape)
        view[axis] = shape[axis]
        return steps.view(view).expand(shape).clone()


def make_inputs(
    specs: Sequence[InputSpec], sizes: CallSizes, *, seed: int = 0, padding: Padding = "none"
) -> tuple[Tensor, ...]:
    """One valid set of inputs; the same `seed` and `sizes` give the same values."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.make(sizes, generator, padding) for spec in specs)


def changed_values(spec: InputSpec, old: Tensor) -> Tensor:
    """Other valid values than `old`, one by one; for floats that is for the caller to make."""
    if spec.kind == "flags":
        return (1 - old.to(torch.int8)).to(old.dtype)
    low, high = map(int, spec.drawn_from)
    return ((old.long() - low + 1) % (high - low) + low).to(old.dtype)


def free_axes(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """The axes of the inputs that are neither the batch nor positions."""
    names = (label for spec in specs for label in spec.axes.values() if label not in AXIS_NAMES)
    return tuple(dict.fromkeys(names))


def describe_inputs(
    names: Sequence[str],
    examples: Sequence[Tensor],
    axes: Sequence[Mapping[int, str]] | None,
    inputs: Mapping[str, Input] | None = None,
) -> tuple[InputSpec, ...]:
    """Name the axes of every input and guess what its values mean.

    Args:
        names: Of the inputs.
        examples: One each.
        axes: One {axis: name} per input; None: guessed.
        inputs: What the caller says of some of them.

    Raises:
        TypeError: `axes` is not one {axis: name} per input.
        ValueError: `axes` or `inputs` do not fit the examples, or are needed and missing.
    """
    declared = _declared(names, inputs)
    named = _infer_all(names, examples, declared) if axes is None else _given(names, examples, axes)
    specs = []
    for name, example, labels in zip(names, examples, named, strict=True):
        said = declared[name]
        if said.axes is not None:
            if axes is not None and dict(said.axes) != labels:
                raise ValueError(
                    f"the axes of input {name!r} are {labels} in axes and {dict(said.axes)} in "
                    "inputs; name them once"
                )
            labels = dict(said.axes)  # noqa: PLW2901 - what the caller says counts
        _check_axes(name, example, labels)
        spec = InputSpec(
            name=name,
            example=example.detach().cpu().clone(memory_format=torch.contiguous_format),
            axes={axis % example.ndim: label for axis, label in labels.items()},
            kind=(kind := _kind(name, example, labels)),
            reason="the example holds nothing else" if kind == "flags" else "",
        )
        specs.append(_as_said(_with_pairs(spec), said))
    if not any("seq" in spec.axes.values() for spec in specs):
        raise ValueError(
            f"no input has a sequence axis (inputs: {', '.join(names)}); "
            "name it: axes=[{0: 'batch', 1: 'seq'}]"
        )
    for spec in specs:
        if not spec.example.numel() and "past_seq" not in spec.axes.values():
            raise ValueError(
                f"the example of input {spec.name!r} is empty, shape {tuple(spec.example.shape)}; "
                "pass one with at least one row and one position"
            )
    _check_agreement(specs)
    return tuple(specs)


def _given(
    names: Sequence[str], examples: Sequence[Tensor], axes: Sequence[Mapping[int, str]]
) -> list[dict[int, str]]:
    for labels in axes:
        if not isinstance(labels, Mapping) or not all(isinstance(axis, int) for axis in labels):
            raise TypeError(
                "axes is one {axis: name} per input with integer axes, e.g. "
                f"[{{0: 'batch', 1: 'seq'}}], got {axes!r}"
            )
    if len(axes) != len(examples):
        raise ValueError(
            f"axes has {len(axes)} entries for {len(examples)} inputs ({', '.join(names)}); "
            "give one {axis: name} per input, {} for an input of fixed shape"
        )
    return [dict(labels) for labels in axes]


def _declared(names: Sequence[str], inputs: Mapping[str, Input] | None) -> dict[str, Input]:
    for name, said in (inputs or {}).items():
        if name not in names:
            raise ValueError(f"inputs names {name!r}; the module's inputs are {', '.join(names)}")
        if not isinstance(said, Input):
            raise TypeError(f"inputs[{name!r}] must be an Input, got {type(said).__name__}")
    return {name: (inputs or {}).get(name, Input()) for name in names}


def _as_said(spec: InputSpec, said: Input) -> InputSpec:
    """`spec` with what the caller says of it.

    Raises:
        ValueError: The example is not of that kind, or not in that range.
    """
    kind, example = said.kind, spec.example
    if said.range is not None and example.numel():
        low, high = said.range
        least, most = float(example.min()), float(example.max())
        if not low <= least <= most < high:
            raise ValueError(
                f"inputs[{spec.name!r}]: the example holds {least:g} to {most:g}, outside of its "
                f"range [{low:g}, {high:g})"
            )
    if kind is None:
        return spec if said.range is None else replace(spec, value_range=said.range)
    is_float = example.is_floating_point()
    wrong = {
        "ids": is_float or example.dtype == torch.bool,
        "lengths": is_float or example.dtype == torch.bool,
        "positions": is_float or example.dtype == torch.bool,
        "values": example.dtype == torch.bool,
        "features": not is_float and not example.is_complex(),
        "flags": not bool(((example == 0) | (example == 1)).all()),
    }
    if wrong.get(kind, False):
        raise ValueError(
            f"inputs[{spec.name!r}]: the example, {example.dtype} {tuple(example.shape)}, is not "
            f"of kind {kind!r}"
        )
    if kind == "positions" and not {"seq", "total_seq"} & set(spec.axes.values()):
        raise ValueError(
            f"inputs[{spec.name!r}]: positions must have the axis 'seq' or 'total_seq'"
        )
    if kind in get_args(CausalKind):
        if spec.kind != "pairs" or _causal_kind(spec.mask_values) != kind:
            raise ValueError(
                f"inputs[{spec.name!r}]: the example is not of kind {kind!r}, which has two axes "
                "of positions, queries before keys, and one value for every key after its query"
            )
        return replace(spec, is_declared=True, reason="declared")
    spec = replace(spec, is_declared=True, reason="declared", mask_values=None)
    if kind in ("keep_mask", "hide_mask"):
        return replace(spec, kind="mask", mask_values=_declared_values(example, kind))
    if kind == "ids":
        rows = None if said.range is None else int(said.range[1])
        return replace(spec, kind="ids", vocab_size=rows)
    return replace(spec, kind=cast("Kind", kind), value_range=said.range)


def _declared_values(example: Tensor, kind: str) -> tuple[float | bool, float | bool]:
    """(the value of what may be attended to, the value of what is hidden) in a declared mask."""
    if kind == "keep_mask" and example.is_floating_point() and not bool((example == 1).any()):
        return _mask_values(example)  # added to the scores
    keep = kind == "keep_mask"
    return (keep, not keep) if example.dtype == torch.bool else (float(keep), float(not keep))


def _infer_all(
    names: Sequence[str], examples: Sequence[Tensor], declared: Mapping[str, Input]
) -> list[dict[int, str]]:
    """Axes of every input; beside batched ones, 1-D integers are one per row, 2-D masks batched."""
    named = [
        dict(said.axes or {})
        if (said := declared[name]).axes is not None or said.kind == "fixed"
        else infer_axes(name, example)
        for name, example in zip(names, examples, strict=True)
    ]
    sizes = {
        label: example.shape[axis]
        for name, example, labels in zip(names, examples, named, strict=True)
        if example.ndim > 1 and "mask" not in name
        for axis, label in labels.items()
    }
    batch, seq = sizes.get("batch"), sizes.get("seq")
    for index, (name, example) in enumerate(zip(names, examples, strict=True)):
        if declared[name].axes is not None:
            continue
        if example.ndim == 2 and "mask" in name and batch is not None:
            named[index] = {0: "batch", 1: "seq"}  # a float mask looks like features without batch
        elif (
            example.ndim == 1
            and example.shape[0] == batch
            and not _is_positions(name)
            and (batch != seq or "len" in name)
        ):
            named[index] = {0: "batch"}
    return named


def infer_axes(name: str, example: Tensor) -> dict[int, str]:
    """Axis names by rank and dtype, for callers that give none.

    Raises:
        ValueError: The rank says nothing; the caller must name the axes.
    """
    integer = not example.is_floating_point()
    if example.ndim == 2 and integer:
        return {0: "batch", 1: "seq"}
    if example.ndim == 3 and not integer:
        return {0: "batch", 1: "seq"}
    if (example.ndim == 2 and not integer) or (example.ndim == 1 and integer):
        return {0: "seq"}
    if example.ndim == 4 and not integer and "past" in name:
        return {0: "batch", 2: "past_seq"}
    if example.ndim == 0:
        return {}
    raise ValueError(
        f"cannot tell which axes of input {name!r} ({example.dtype}, shape {tuple(example.shape)}) "
        "are batch and sequence; name them, one entry per input: axes=[{0: 'batch', 1: 'seq'}]"
    )


def _check_axes(name: str, example: Tensor, axes: Mapping[int, str]) -> None:
    for axis, label in axes.items():
        if not -example.ndim <= axis < example.ndim:
            raise ValueError(f"axes of {name!r}: axis {axis} is out of range for {example.ndim}-D")
        if label in AXIS_NAMES:
            continue
        meant = axis_name(label) if isinstance(label, str) else None
        if meant is not None or not isinstance(label, str) or not label.isidentifier():
            raise ValueError(
                f"axes of {name!r}: names are {', '.join(AXIS_NAMES)}, or one of your own for an "
                f"axis that is none of these (frames, memory), got {label!r} for axis {axis}"
                + (f"; write {meant!r}" if meant is not None else "")
            )
    if len({axis % max(example.ndim, 1) for axis in axes}) != len(axes):
        raise ValueError(f"axes of {name!r} names one axis twice: {dict(axes)}")


def _check_agreement(specs: Sequence[InputSpec]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for spec in specs:
        for axis, label in spec.axes.items():
            size = spec.example.shape[axis]
            first, expected = seen.setdefault(label, (spec.name, size))
            if size != expected:
                raise ValueError(
                    f"the examples disagree on {label}: {first!r} has {expected}, "
                    f"{spec.name!r} has {size} (axis {axis})"
                )


def _kind(name: str, example: Tensor, axes: Mapping[int, str]) -> Kind:
    if not axes:
        return "fixed"
    labels = set(axes.values())
    if example.dtype == torch.bool:
        return "mask"
    if example.is_floating_point() and "mask" in name and _is_mask(example):
        return "mask"
    if example.is_floating_point() and _are_flags(example, axes):
        return "flags"
    if example.is_floating_point() or example.is_complex():
        return "features"
    if labels == {"batch"}:
        return "lengths"
    if "mask" in name and bool(((example == 0) | (example == 1)).all()):
        return "mask"
    if labels & {"seq", "total_seq"} and _is_positions(name):
        return "positions"
    return "ids"


def _pair_axes(axes: Mapping[int, str]) -> tuple[int, int]:
    """The axes of queries and of keys: the last two of positions."""
    found = sorted(axis for axis, label in axes.items() if label in ("seq", "total_seq"))
    return found[-2], found[-1]


def _later(queries: int, keys: int, ahead: int = 0) -> Tensor:
    """Where the key comes after the query, by more than `ahead`; both end at the last position."""
    return torch.ones(queries, keys, dtype=torch.bool).triu_(keys - queries + ahead + 1)


def _with_pairs(spec: InputSpec) -> InputSpec:
    """`spec` as a causal mask, where its example is one: a value of its own for all later keys."""
    positions = [label for label in spec.axes.values() if label in ("seq", "total_seq")]
    example = spec.example
    if len(positions) != 2 or example.is_complex() or not example.numel():
        return spec
    pairs = example.movedim(_pair_axes(spec.axes), (-2, -1))
    queries, keys = pairs.shape[-2:]
    if keys < queries or queries < 2:
        return spec
    hidden = set(pairs[_later(queries, keys).expand(pairs.shape)].tolist())
    own = pairs[..., torch.arange(queries), torch.arange(queries) + keys - queries]
    if len(hidden) != 1:
        return spec
    hide = hidden.pop()
    if bool((own == hide).any()):
        return spec
    is_bias = example.is_floating_point() and hide <= -1e4
    kept = set(pairs[pairs != hide].tolist())
    if not is_bias and (len(kept) != 1 or {hide, *kept} != {0, 1}):
        return spec
    values = (0.0, hide) if is_bias else (kept.pop(), hide)
    return replace(spec, kind="pairs", mask_values=values, reason="the example is one")


def _causal_kind(values: tuple[float | bool, float | bool] | None) -> CausalKind:
    keep, hide = values or (True, False)
    if hide not in (0, 1):
        return "causal_bias"
    return "causal_mask" if keep else "causal_hide_mask"


def _are_flags(example: Tensor, axes: Mapping[int, str]) -> bool:
    """Whether a floating-point example is of zeros and ones.

    One of a single value may also stand for anything: it is flags where it has no axis of features.
    """
    zeros, ones = example == 0, example == 1
    if not example.numel() or not bool((zeros | ones).all()):
        return False
    if bool(zeros.any() and ones.any()):
        return True
    return all(axis in axes or size == 1 for axis, size in enumerate(example.shape))


def _is_positions(name: str) -> bool:
    return re.search(r"(^|_)pos(_|$|ition)", name) is not None


def _is_mask(example: Tensor) -> bool:
    """Whether a floating-point example is a mask: 0 and 1, or 0 and something very negative."""
    one, hidden = example == 1, example <= -1e4
    return bool(((example == 0) | one | hidden).all()) and not bool(one.any() and hidden.any())


def _mask_values(example: Tensor) -> tuple[float | bool, float | bool]:
    """(the value of what may be attended to, the value of what is hidden) in a mask's example."""
    if example.dtype == torch.bool:
        usual = bool(example.flatten().mode().values)
        return usual, not usual
    if example.is_floating_point() and not bool((example == 1).any()):
        # Added to the scores.
        hidden = float(example.min()) if example.numel() else 0.0
        return 0.0, hidden if hidden < 0 else torch.finfo(example.dtype).min
    keep = float(example.flatten().mode().values)
    return keep, 1 - keep
