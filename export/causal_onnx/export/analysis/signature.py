"""What the axes of a graph's inputs mean, and which sizes to try them at."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from causal_onnx.runtime.contract import AXIS_NAMES, CONTRACT_KEY, Contract
from causal_onnx.runtime.errors import ArtifactError

__all__ = [
    "CAUSAL_ROLES",
    "CONTROL_ROLES",
    "InputAxes",
    "Signature",
    "Sizes",
    "axis_name",
    "read_signature",
]

Axis = str | int

CAUSAL_ROLES = ("causal_mask", "causal_hide_mask", "causal_bias")
"""What has an entry for each pair of a query and a key, and hides every later key."""

CONTROL_ROLES = ("mask", "positions", "lengths", *CAUSAL_ROLES)
"""What says which tokens count, and where they stand."""

ROLES = ("tokens", *CONTROL_ROLES, "past", "other")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """One choice of the free sizes."""

    batch: int
    seq: int
    past_seq: int = 0
    other: tuple[tuple[str, int], ...] = ()
    """Sizes of axes that are neither."""
    block: int = 1
    """So many positions see each other; 1: each sees itself and earlier ones."""

    @property
    def total_seq(self) -> int:
        return self.past_seq + self.seq

    def of(self, axis: Axis) -> int:
        """The size of an axis.

        Raises:
            KeyError: The axis has no size here.
        """
        if isinstance(axis, int):
            return axis
        if axis in AXIS_NAMES:
            return int(getattr(self, axis))
        bound = slots_bound(axis)
        if bound is not None:
            return min(bound, self.past_seq)
        return dict(self.other)[axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputAxes:
    """One input of the graph."""

    name: str
    role: str
    """tokens: data of positions; mask, positions, lengths: what says which tokens count and where
    they stand; causal_mask, causal_hide_mask, causal_bias: which keys a query may see; past: keys
    and values of earlier positions; other: data without a position."""
    axes: tuple[Axis, ...]
    dtype: ir.DataType
    guessed: bool = False
    """The position axis was chosen by rank, no name said so."""

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(sizes.of(axis) for axis in self.axes)

    @property
    def position_axis(self) -> int | None:
        """The axis whose entries stand for positions; None if the data belongs to none."""
        for index, axis in enumerate(self.axes):
            if axis in ("seq", "total_seq", "past_seq") or slots_bound(axis) is not None:
                return index
        return None

    @property
    def pair_axes(self) -> tuple[int, int]:
        """The axes of queries and keys of a causal mask."""
        found = [i for i, axis in enumerate(self.axes) if axis in ("seq", "total_seq")]
        return found[-2], found[-1]

    def first_position(self, sizes: Sizes) -> int:
        """The absolute position of entry 0 of the position axis."""
        if any(slots_bound(axis) is not None for axis in self.axes):
            return sizes.past_seq - min(
                sizes.of(a) for a in self.axes if slots_bound(a) is not None
            )
        return sizes.past_seq if "seq" in self.axes else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """All inputs of a graph."""

    inputs: tuple[InputAxes, ...]
    max_seq_len: int | None = None
    symbols: tuple[str, ...] = ()
    """Axes that are neither batch nor positions."""
    names: Mapping[str, str]
    """The graph's own names of its axes -> ours."""
    row_mask: str | None = None
    """The input by which the rows of a derived cache find their place (`Contract.mask`)."""
    block: int = 1
    """How many positions see each other, blocks of them being causal (`Contract.causal_block`)."""
    free_axes: tuple[str, ...] = ()
    """Those of `symbols` that the contract lists, or the caller names."""
    fixed_seq: int | None = None
    """The one length of a graph that was exported without a free length."""

    @property
    def has_past(self) -> bool:
        return any("past_seq" in spec.axes or "total_seq" in spec.axes for spec in self.inputs)

    @property
    def slot_bounds(self) -> tuple[int, ...]:
        """How many positions the bounded caches keep, least first."""
        found = {slots_bound(axis) for spec in self.inputs for axis in spec.axes}
        return tuple(sorted(bound for bound in found if bound is not None))

    @property
    def has_batch(self) -> bool:
        return any("batch" in spec.axes for spec in self.inputs)


SLOTS = re.compile(r"^past_slots_(\d+)$")
"""The axis of a cache that keeps only the last so many positions."""


def slots_bound(axis: Axis) -> int | None:
    """The most positions that an axis of a bounded cache holds; None for other axes."""
    found = SLOTS.match(axis) if isinstance(axis, str) else None
    return None if found is None else int(found.group(1))


KINDS = {
    "features": "tokens",
    "ids": "tokens",
    "values": "tokens",
    "flags": "tokens",
    "keep_mask": "mask",
    "hide_mask": "tokens",
    "fixed": "other",
}
"""The kind of an input in a contract -> its role, where that has another name. Nothing is assumed
of what hides by being 1: it is data of positions, as others are."""

_BATCH = re.compile(r"^(batch|batch_size|batchsize|bsz|bs|b|n|n_batch|num_batch)$")
_SEQ = re.compile(
    r"^(seq|sequence|seq_len|seqlen|seq_length|sequence_len|sequence_length|decoder_sequence_length|s|t|l|time|"
    r"length|len|tokens|num_tokens|n_tokens|n_ctx|steps|chunk|query_length|q_len)$"
)
_PAST = re.compile(r"past|(kv|cache)_?(len|seq)|history")
_TOTAL = re.compile(r"total|\+")


def axis_name(text: str) -> str | None:
    """Our name of an axis that somebody else named; None where the name says nothing."""
    text = text.strip().lower()
    if text.startswith("?") or slots_bound(text) is not None:
        return None
    if _TOTAL.search(text):
        return "total_seq"
    if text in AXIS_NAMES:
        return text
    if _PAST.search(text):
        return "past_seq"
    if _BATCH.match(text):
        return "batch"
    if _SEQ.match(text):
        return "seq"
    return None


def role_of(name: str, rank: int) -> str:
    """What an input is for, by its name."""
    text = name.lower().rsplit("/", 1)[-1]
    if rank >= 3 and re.search(
        r"past|cache_k|cache_v|(key|value|k|v)_(cache|buffer)|key_values", text
    ):
        return "past"
    if "position" in text or re.search(r"(^|[_.])pos([_.]|$)", text):
        return "positions"
    if "seqlen" in text or "length" in text or text in ("lens", "seq_lens"):
        return "lengths"
    if "mask" in text:
        return "mask"
    return "tokens"


def read_signature(
    model: ir.Model, axes: Mapping[str, Mapping[int, str]] | None = None
) -> Signature:
    """Decide what each axis of each input is.

    The caller's `axes` come first, then the contract in the file, then the graph's own names of its
    axes, and last the rank: integers (batch, seq), floats (batch, seq, width) or (seq, width).

    Args:
        model: The graph.
        axes: Input -> {axis: name}, names as in the contract, or others for free axes; an axis not
            named is as in the graph.

    Raises:
        ValueError: `axes` names an input or an axis that the graph does not have, or no input has
            an axis that could be the positions; or the name of a free axis reads as one of ours.
    """
    graph_inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    names = [value.name or "" for value in graph_inputs]
    for name, words in (axes or {}).items():
        if name not in names:
            raise ValueError(f"axes names an input {name!r}; the graph has {', '.join(names)}")
        for word in words.values():
            ours = axis_name(word)
            if not word.isidentifier() or (ours is not None and word not in AXIS_NAMES):
                meant = "" if ours is None else f"; should it be {ours!r}?"
                raise ValueError(
                    f"axes[{name!r}]: an axis is one of {', '.join(AXIS_NAMES)}, or has a name of "
                    f"its own, such as 'memory', got {word!r}{meant}"
                )
    contract = _contract(model)
    dims = {value.name or "": _dims(value) for value in graph_inputs}
    aliases = _aliases(dims)
    specs = []
    for value in graph_inputs:
        name = value.name or ""
        own = dims[name]
        given = (axes or {}).get(name)
        if given is not None and any(not -len(own) <= axis < len(own) for axis in given):
            raise ValueError(f"axes[{name!r}]: {dict(given)} for a tensor of rank {len(own)}")
        specs.append(_spec(value, own, given, contract, aliases))
    given_names = [word for named in (axes or {}).values() for word in named.values()]
    listed = () if contract is None else contract.free_axes
    free_names = [*(axis.name for axis in listed), *(w for w in given_names if w not in AXIS_NAMES)]
    free = tuple(dict.fromkeys(free_names))
    _unify(specs, dims, aliases, free)
    if not any("seq" in spec.axes for spec in specs):
        specs = [_by_rank(spec) for spec in specs]
    if not any(spec.position_axis is not None for spec in specs):
        raise ValueError(
            "no input has an axis of positions: the inputs are "
            + ", ".join(f"{spec.name}{list(dims[spec.name])}" for spec in specs)
            + ". Name it, for example axes={'"
            + (names[0] if names else "x")
            + "': {1: 'seq'}}"
        )
    symbols = sorted(
        {
            a
            for spec in specs
            for a in spec.axes
            if isinstance(a, str) and a not in AXIS_NAMES and slots_bound(a) is None
        }
    )
    fixed = [
        int(own)
        for spec in specs
        for own, axis in zip(dims[spec.name], spec.axes, strict=True)
        if axis == "seq" and isinstance(own, int)
    ]
    return Signature(
        inputs=tuple(specs),
        fixed_seq=fixed[0] if fixed else None,
        max_seq_len=None if contract is None else contract.max_seq_len,
        row_mask=None if contract is None else contract.mask,
        symbols=tuple(symbols),
        free_axes=free,
        block=1 if contract is None else contract.causal_block or 1,
        names=aliases,
    )


def _contract(model: ir.Model) -> Contract | None:
    text = model.metadata_props.get(CONTRACT_KEY)
    if text is None:
        return None
    try:
        return Contract.from_json(text)
    except ArtifactError:
        return None


def _dims(value: ir.Value) -> tuple[Axis, ...]:
    """Sizes, or names; a nameless free axis gets a name from its place."""
    if value.shape is None:
        raise ValueError(f"input {value.name}: its rank is not declared in the graph")
    found: list[Axis] = []
    for index, dim in enumerate(value.shape):
        if isinstance(dim, int):
            found.append(dim)
        else:
            found.append(dim.value or f"?{value.name}.{index}")
    return tuple(found)


def _aliases(dims: Mapping[str, Sequence[Axis]]) -> dict[str, str]:
    """The graph's axis names that say what they are."""
    found = {}
    for own in dims.values():
        for dim in own:
            if isinstance(dim, str):
                name = axis_name(dim)
                if name is not None:
                    found[dim] = name
    # Two names for one thing (two inputs, each with its own batch) are fine; "t" beside "seq" is
    # not: the longer, plainer name wins.
    plain = [dim for dim, name in found.items() if name == "seq" and len(dim) > 1]
    if plain:
        for dim in [d for d, name in found.items() if name == "seq" and len(d) == 1]:
            del found[dim]
    return found


def _spec(
    value: ir.Value,
    dims: tuple[Axis, ...],
    given: Mapping[int, str] | None,
    contract: Contract | None,
    aliases: Mapping[str, str],
) -> InputAxes:
    name = value.name or ""
    role = role_of(name, len(dims))
    dtype = value.dtype or ir.DataType.FLOAT
    axes: list[Axis] = [aliases.get(dim, dim) if isinstance(dim, str) else dim for dim in dims]
    if contract is not None and given is None:
        for spec in contract.inputs:
            if spec.name == name and len(spec.axes) == len(dims):
                axes = list(spec.axes)
                if spec.kind is not None:
                    role = KINDS.get(spec.kind, spec.kind)
                for pair in contract.cache:
                    if pair.past == name and pair.bounded is not None:
                        axes[axes.index("past_slots")] = f"past_slots_{pair.bounded}"
    if given is not None:
        axes = list(dims)
        for axis, word in given.items():
            axes[axis % len(dims)] = word
    return InputAxes(name=name, role=role, axes=tuple(axes), dtype=dtype)


def _unify(
    specs: list[InputAxes],
    dims: Mapping[str, Sequence[Axis]],
    aliases: dict[str, str],
    free: Collection[str],
) -> None:
    """A name that is ours in one input is the same axis in the others; then the roles decide."""
    for spec in specs:
        for own, axis in zip(dims[spec.name], spec.axes, strict=True):
            if isinstance(own, str) and (axis in AXIS_NAMES or axis in free):
                aliases.setdefault(own, str(axis))
    for index, spec in enumerate(specs):
        axes = tuple(aliases.get(a, a) if isinstance(a, str) else a for a in spec.axes)
        specs[index] = _replace(spec, axes)
    has_past = any(spec.role == "past" and _free(spec) for spec in specs)
    if any("seq" in spec.axes for spec in specs):
        # A mask over what another input holds: of the memory, not of the positions.
        tokens = [spec for spec in specs if spec.role == "tokens"]
        free = {*free, *(axis for spec in tokens for axis in spec.axes if isinstance(axis, str))}
    for index, spec in enumerate(specs):
        specs[index] = _by_role(spec, has_past=has_past, free=free)


def _replace(spec: InputAxes, axes: Sequence[Axis], *, guessed: bool | None = None) -> InputAxes:
    return InputAxes(
        name=spec.name,
        role=spec.role,
        axes=tuple(axes),
        dtype=spec.dtype,
        guessed=spec.guessed if guessed is None else guessed,
    )


def _free(spec: InputAxes) -> list[int]:
    return [i for i, axis in enumerate(spec.axes) if isinstance(axis, str)]


def _by_role(spec: InputAxes, *, has_past: bool, free: Collection[str]) -> InputAxes:
    """Name the axes that only the role of the input tells."""
    axes = list(spec.axes)
    rank = len(axes)

    def name(index: int, word: str) -> None:
        own = axes[index]
        if own in free:
            return
        if isinstance(own, str) and own not in AXIS_NAMES and slots_bound(own) is None:
            axes[index] = word

    if spec.role == "past" and rank >= 4:
        name(rank - 4, "batch")
        name(rank - 2, "past_seq")
    if spec.role == "mask" and rank == 2:
        name(0, "batch")
        name(1, "total_seq" if has_past else "seq")
    if spec.role == "mask" and rank == 4:
        name(0, "batch")
        name(2, "seq")
        name(3, "total_seq" if has_past else "seq")
    if spec.role == "positions":
        name(rank - 1, "seq")
        if rank > 1:
            name(0, "batch")
    if spec.role == "lengths" and rank == 1:
        name(0, "batch")
    if not has_past:
        axes = ["seq" if axis == "total_seq" else axis for axis in axes]
    return _replace(spec, axes)


def _by_rank(spec: InputAxes) -> InputAxes:
    """The usual layouts, for inputs whose axes have no telling names.

    A fixed size counts as a position axis too, for a graph exported at one length.
    """
    if spec.role != "tokens":
        return spec
    axes: list[Axis] = list(spec.axes)
    rank = len(axes)
    is_integer = spec.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    if rank == 1 and not is_integer:
        return spec
    time = {1: 0, 2: 1 if is_integer else 0, 3: 1, 4: 2}.get(rank)
    if time is None:
        return spec
    axes[time] = "seq"
    if time > 0 and isinstance(axes[0], str):
        axes[0] = "batch"
    return _replace(spec, axes, guessed=True)
