"""The contract: what an artifact takes and gives, as stored in the file's `metadata_props`.

Written once, here, because this side has no heavy imports; the exporter imports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json

__all__ = [
    "AXIS_NAMES",
    "CERTIFICATE_KEY",
    "CHUNKED",
    "CONTRACT_KEY",
    "CONTRIB",
    "FORMAT",
    "GOLDEN_KEY",
    "INPUT_KINDS",
    "LARGEST_AXIS",
    "LAST_ONLY",
    "MODULE_KEY",
    "ORT_FORMS",
    "SLOT_AXES",
    "SOURCE_KEY",
    "AdapterPair",
    "CachePair",
    "ComputedInput",
    "Contract",
    "FreeAxis",
    "TensorSpec",
    "describe_all",
    "read_document",
]

FORMAT = 1
"""Version of the metadata layout (CHANGELOG, "Artifact format"); a reader refuses a larger one."""

# Keys of `metadata_props`. Each value is one JSON document.
CONTRACT_KEY = "causal_onnx.contract"
SOURCE_KEY = "causal_onnx.source"
GOLDEN_KEY = "causal_onnx.golden"
CERTIFICATE_KEY = "causal_onnx.certificate"

MODULE_KEY = "causal_onnx.module"
"""In the `metadata_props` of a node: the submodule that it comes from."""

LAST_ONLY = "last_only"
"""An input, bool (), of value false where it is left out; see `Contract.last_only`."""

AXIS_NAMES = ("batch", "seq", "past_seq", "total_seq")
"""The symbolic axes that every artifact knows. Others are free axes, with names of their own, which
the contract lists; every other axis is a fixed size."""

LARGEST_AXIS = 1 << 20
"""The largest size of a symbolic axis in a call: a million positions, or sequences. The scan of
files judges up to here, so requests are held to it."""

SLOT_AXES = ("past_slots", "present_slots")
"""Besides those, in a cache that keeps only what a window needs: min(bounded, past_seq) and
min(bounded, total_seq) slots."""

DTYPES = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
)


INPUT_KINDS = (
    "features",
    "ids",
    "values",
    "flags",
    "lengths",
    "positions",
    "keep_mask",
    "hide_mask",
    "causal_mask",
    "causal_hide_mask",
    "causal_bias",
    "fixed",
)
"""What the values of an input stand for, where its dtype and axes do not say it. The causal ones
have an entry for each pair of a query and a key, and hide every key after its query: by 0 or False,
by 1 or True, or by -inf, added to the scores. That is what the certificate assumes of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output of the graph."""

    name: str
    dtype: str
    """A numpy dtype name, or "bfloat16"."""
    axes: tuple[str | int, ...]
    """One entry per axis: a symbolic name (`AXIS_NAMES`, `SLOT_AXES`, a free axis) or a fixed size.
    """
    vocab_size: int | None = None
    """For an input of token ids: every id must lie in [0, vocab_size)."""
    kind: str | None = None
    """For an input: what its values stand for (`INPUT_KINDS`); None: as dtype and axes say."""
    value_range: tuple[float, float] | None = None
    """For an input: every value v must be value_range[0] <= v < value_range[1]."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"the name of a tensor must be a non-empty text, got {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"{self.name}: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}"
            )
        for axis in self.axes:
            if isinstance(axis, bool) or not isinstance(axis, str | int):
                raise ValueError(f"{self.name}: an axis must be a name or a size, got {axis!r}")
            if isinstance(axis, int) and axis < 1:
                raise ValueError(f"{self.name}: a fixed axis must be 1 or more, got {axis}")
            if isinstance(axis, str) and not axis.isidentifier():
                raise ValueError(
                    f"{self.name}: the name of an axis must be an identifier, got {axis!r}"
                )
        for axis in ("batch", "past_seq", "total_seq", *SLOT_AXES):
            if self.axes.count(axis) > 1:
                raise ValueError(f"{self.name}: the axis {axis!r} appears twice")
        if self.kind is not None and self.kind not in INPUT_KINDS:
            raise ValueError(
                f"{self.name}: kind must be one of {', '.join(INPUT_KINDS)}, got {self.kind!r}"
            )
        self._check_range()
        vocab = self.vocab_size
        if vocab is None:
            return
        if isinstance(vocab, bool) or not isinstance(vocab, int) or vocab < 1:
            raise ValueError(f"{self.name}: vocab_size must be a positive integer, got {vocab!r}")
        if "int" not in self.dtype:
            raise ValueError(f"{self.name}: ids must be integers, but the dtype is {self.dtype}")

    def _check_range(self) -> None:
        if self.value_range is None:
            return
        numbers = [n for n in self.value_range if type(n) in (int, float)]
        if len(numbers) != 2 or len(self.value_range) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(
                f"{self.name}: value_range must be two numbers, the first one lower, got "
                f"{self.value_range!r}"
            )

    def axis_of(self, name: str) -> int | None:
        """The position of the symbolic axis `name`, or None if the tensor has no such axis."""
        return self.axes.index(name) if name in self.axes else None

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape at these sizes of the symbolic axes.

        Raises:
            KeyError: An axis has no size among them.
        """
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    @property
    def host_dtype(self) -> str:
        """The numpy dtype of its values on this side: bfloat16, which numpy lacks, is float32."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def describe(self) -> str:
        """The spec on one line, e.g. `x: float32 (batch, seq, 64)`."""
        shape = ", ".join(str(axis) for axis in self.axes)
        ids = f", ids in [0, {self.vocab_size})" if self.vocab_size is not None else ""
        kind = f", {self.kind}" if self.kind is not None and not ids else ""
        if self.value_range is not None:
            low, high = self.value_range
            kind += f" in [{low:g}, {high:g})"
        return f"{self.name}: {self.dtype} ({shape}){ids}{kind}"


def describe_all(specs: Sequence[TensorSpec]) -> list[str]:
    """Describe each tensor on a line; those that differ in a number of their name share one.

    Args:
        specs: Inputs or outputs; the tensors of a cache become two lines, keys and values.
    """
    groups: dict[tuple[str, str], list[TensorSpec]] = {}
    for spec in specs:
        pattern = re.sub(r"\d+", "{i}", spec.name)
        groups.setdefault((pattern, spec.describe().removeprefix(spec.name)), []).append(spec)
    return [
        members[0].describe() if len(members) == 1 else f"{pattern}{rest}, {len(members)} of them"
        for (pattern, rest), members in groups.items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeAxis:
    """An axis beside the batch and the positions, of any size: frames, memory, source text."""

    name: str
    largest: int | None = None
    """The largest size that the source accepts; None: no limit is known."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"the name of an axis must be an identifier, got {self.name!r}")
        if self.name in (*AXIS_NAMES, *SLOT_AXES):
            raise ValueError(f"a free axis needs a name of its own, got {self.name!r}")
        if self.largest is not None and (type(self.largest) is not int or self.largest < 1):
            raise ValueError(
                f"{self.name}: largest must be a positive integer or None, got {self.largest!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePair:
    """An input of past keys or values, and the output that is the past of the next call."""

    past: str
    present: str
    bounded: int | None = None
    """The most positions that it holds, the last ones of each row; None: all of them."""
    shared: bool = False
    """The past may be a buffer with more slots than positions are held, and the same buffer may be
    given as the present: the new positions are then written behind the held ones, and the other
    slots are left alone. That holds for a call without a past, and for one without padding that
    reads one position, or one row; any other call takes such a past too, and gives the present as
    a tensor of its own. Where `Contract.shares_every_call`, it holds for every call, and the
    present has as many slots as the past where that has room for all positions."""
    computed_from: tuple[str, ...] = ()
    """If it is no function of the positions: the inputs that it is computed from in the first call
    in which a row has a token. Later calls hand it on, and do not read these inputs of that row.
    Such a pair has one slot, `bounded` is 1, and rewinding leaves it as it is."""

    def __post_init__(self) -> None:
        bounded = self.bounded
        names = self.computed_from
        if not all(isinstance(name, str) for name in names) or (names and bounded != 1):
            raise ValueError(
                f"{self.past}: computed_from must be names of inputs, and is for pairs that are "
                f"bounded by 1, got {names!r} with bounded {bounded!r}"
            )
        if not isinstance(self.shared, bool) or (self.shared and bounded is not None):
            raise ValueError(
                f"{self.past}: shared must be true or false, and false for a bounded cache, got "
                f"{self.shared!r}"
            )
        if bounded is None:
            return
        if isinstance(bounded, bool) or not isinstance(bounded, int) or bounded < 1:
            raise ValueError(
                f"{self.past}: bounded must be a positive integer or None, got {bounded!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterPair:
    """The two inputs by which a low-rank adapter changes a linear layer y = W x + b.

    y becomes W x + b + (x down) up, for each row of the batch with matrices of its own. All pairs
    have one rank, which may be 0: then y is what it was, to the bit. A request may leave the inputs
    out, and then the rank is 0.
    """

    module: str
    """The layer, by its name in the module that was exported."""
    down: str
    """The input (batch, features in, rank)."""
    up: str
    """The input (batch, rank, features out); the adapter's scale is in it."""


CHUNKED = "ort-1.32"
"""The form whose cached attention is one operator for all calls, which came with that version."""

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""

ORT_FORMS = ("ort", CHUNKED)
"""The forms with operators of onnxruntime's own."""

COMPUTED_RULES = ("positions", "has_past", "all_logits")
RAGGED = ("packed", "packed_steps", "left", "none", "steps", "single")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputedInput:
    """An input that follows from the others: the runtime makes it where a request does not."""

    name: str
    rule: str
    """"positions": for each new position, how many tokens its row has before it, an integer
    (..., batch, seq). "has_past": whether there are past positions, bool. "all_logits": the integer
    0, by which some graphs are asked for the logits of every position."""

    def __post_init__(self) -> None:
        if self.rule not in COMPUTED_RULES:
            raise ValueError(
                f"{self.name}: rule must be one of {', '.join(COMPUTED_RULES)}, got {self.rule!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """What an artifact takes and gives: the promise that a runtime checks a request against."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_seq_len: int | None = None
    """The longest sequence that the source accepts; None: no limit is known."""
    min_seq_len: int = 1
    """The shortest; larger than 1 only for a source that takes one length alone (a mask of fixed
    size that is not sliced)."""
    unbatched: bool = False
    """The source takes inputs without the batch axis too; the runtime then adds and removes it."""
    causal_block: int | None = None
    """Causal are blocks of so many positions: an output depends on inputs up to the end of its own
    block. None: up to its own position."""
    free_axes: tuple[FreeAxis, ...] = ()
    """The symbolic axes beside `AXIS_NAMES` and `SLOT_AXES`."""
    form: str = "portable"
    """How attention is written in the graph: "ort", "ort-1.32", "portable" or "tiled"; "foreign":
    as another exporter did."""
    cache: tuple[CachePair, ...] = ()
    """The KV cache, if the graph has one: keys, then values, layer by layer. Past inputs may be
    left out of a request; they are then empty."""
    mask: str | None = None
    """For a cache whose rows may differ in length: the input, int64 or int32 (batch, total_seq),
    that is 1 where a position is a token and 0 where it is padding, past positions first. In the
    columns of each call a row's tokens come before its padding, unless `ragged` says otherwise.
    Left out of a request, it is all ones."""
    computed: tuple[ComputedInput, ...] = ()
    """Inputs beside the cache and the mask that a request may leave out."""
    ragged: str = "packed"
    """How rows of different lengths share a call, where there is a mask. "packed": the graph puts
    each row's new positions right behind its own past. "packed_steps": it does in a call without a
    past, and in one of a single new position for every row; other calls are of one row, without
    padding. "left": it appends the columns of the call as they are, so that a row's padding comes
    first, in its past. "none": rows must be equally long, and the mask all ones. "steps": that too,
    and a call with a past is of one new position, as optimum wrote its files before 1.14. "single":
    that too, and every call is of one new position. A stream keeps to all of this by itself: it
    reads one row after the other, or one position after the other, where they cannot share a
    call."""
    adapters: tuple[AdapterPair, ...] = ()
    """The layers that adapters may change, each with two inputs of its own."""
    last_only: str | None = None
    """The output that the optional input `LAST_ONLY`, where it is true, shortens to each row's last
    new token: (batch, 1, vocab)."""
    precision: str = "fp32"
    opset: int | None = None
    """Version of the default ONNX operator set that the graph uses."""
    min_onnxruntime: str | None = None
    """The first version of onnxruntime, "1.30" say, that has every operator of the graph and every
    input of one; None: each that is supported. An older one is refused when the file is loaded."""
    eos_token_ids: tuple[int, ...] = ()
    """For a language model: every id that ends a text; empty: none is known."""
    bos_token_id: int | None = None
    """The id that a text begins with; None: none is known."""
    pad_token_id: int | None = None
    """The id that its authors fill rows with; None: none is known."""

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise ValueError("a contract needs at least one input and one output")
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names must differ, got {', '.join(names)}")
        for field in ("max_seq_len", "min_seq_len", "opset", "causal_block"):
            value = getattr(self, field)
            if value is None and field != "min_seq_len":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} must be a positive integer, got {value!r}")
        for field in ("form", "precision"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field} must be a string, got {getattr(self, field)!r}")
        if not isinstance(self.unbatched, bool):
            raise ValueError(f"unbatched must be true or false, got {self.unbatched!r}")
        self._check_version()
        self._check_tokens()
        self._check_free_axes()
        inputs = {spec.name for spec in self.inputs}
        outputs = {spec.name for spec in self.outputs}
        for pair in self.cache:
            if pair.past not in inputs or pair.present not in outputs:
                raise ValueError(
                    f"the cache pairs input {pair.past!r} with output {pair.present!r}; the inputs "
                    f"are {', '.join(sorted(inputs))}, the outputs {', '.join(sorted(outputs))}"
                )
        self._check_once()
        self._check_computed(inputs)
        self._check_adapters()
        if self.last_only is not None and (
            self.last_only not in outputs or self.mask is None or LAST_ONLY in inputs
        ):
            raise ValueError(
                f"last_only must name an output of a contract with a mask and without an input "
                f"{LAST_ONLY!r} of its own, got {self.last_only!r}"
            )
        self._check_slots()
        if self.mask is not None:
            self._check_mask(self.mask)
        elif any(
            (pair.bounded is not None and not pair.computed_from) or pair.shared
            for pair in self.cache
        ):
            raise ValueError(
                "a cache that is bounded or shared needs a mask: its size does not tell how long "
                "rows are"
            )
        if self.max_seq_len is not None and self.min_seq_len > self.max_seq_len:
            raise ValueError(
                f"min_seq_len must be in [1, max_seq_len], got {self.min_seq_len} with max_seq_len "
                f"{self.max_seq_len}"
            )

    def _check_version(self) -> None:
        version = self.min_onnxruntime
        if version is not None and not (
            isinstance(version, str) and re.fullmatch(r"\d{1,6}\.\d{1,6}", version, re.ASCII)
        ):
            raise ValueError(
                f"min_onnxruntime must be a version of two numbers like '1.30', got {version!r}"
            )

    def _check_free_axes(self) -> None:
        """Every axis has a name that is known, and every free axis is one of an input."""
        names = [axis.name for axis in self.free_axes]
        known = (*AXIS_NAMES, *SLOT_AXES, *names)
        for spec in (*self.inputs, *self.outputs):
            for axis in spec.axes:
                if isinstance(axis, str) and axis not in known:
                    raise ValueError(
                        f"{spec.name}: axis names are {', '.join(known)}, got {axis!r}"
                    )
        given = {axis for spec in self.inputs for axis in spec.axes}
        if len(set(names)) != len(names) or not set(names) <= given:
            raise ValueError(f"free_axes names axes of inputs, each once, got {', '.join(names)}")

    def _check_tokens(self) -> None:
        """Special tokens are ids, and of the vocabulary where that is known."""
        vocab = max((s.vocab_size for s in self.inputs if s.vocab_size is not None), default=None)
        named = [("eos_token_ids", token) for token in self.eos_token_ids]
        for field in ("bos_token_id", "pad_token_id"):
            if getattr(self, field) is not None:
                named.append((field, getattr(self, field)))
        for field, token in named:
            if type(token) is not int or token < 0 or (vocab is not None and token >= vocab):
                most = "of at least 0" if vocab is None else f"in [0, {vocab})"
                raise ValueError(f"{field}: expected ids {most}, got {token!r}")

    def _check_computed(self, inputs: Set[str]) -> None:
        if self.ragged not in RAGGED:
            raise ValueError(f"ragged must be one of {', '.join(RAGGED)}, got {self.ragged!r}")
        if self.ragged != "packed" and self.last_only is not None:
            raise ValueError(f"last_only is for a graph that packs rows, got {self.ragged!r}")
        names = [item.name for item in self.computed]
        taken = self.past_names | {self.mask}
        if len(set(names)) != len(names) or not set(names) <= inputs - taken:
            raise ValueError(
                f"computed names inputs other than the cache and the mask, each once, got "
                f"{', '.join(names)}"
            )
        for item in self.computed:
            spec = next(spec for spec in self.inputs if spec.name == item.name)
            kind = "bool" if item.rule == "has_past" else "int"
            axes = spec.axes[-2:] if item.rule == "positions" else spec.axes
            ends = ("batch", "seq") if item.rule == "positions" else (1,) * len(axes)
            if kind not in spec.dtype or axes != ends:
                raise ValueError(f"{item.rule!r} cannot be computed for {spec.describe()}")

    def _check_adapters(self) -> None:
        """Each pair is two floating-point inputs that fit each other, of one rank for all."""
        specs = {spec.name: spec for spec in self.inputs}
        free = {axis.name for axis in self.free_axes}
        names = [name for pair in self.adapters for name in (pair.down, pair.up)]
        modules = [pair.module for pair in self.adapters]
        if len(set(names)) != len(names) or len(set(modules)) != len(modules):
            raise ValueError(f"adapters names layers and inputs, each once, got {', '.join(names)}")
        ranks = set()
        for pair in self.adapters:
            down, up = specs.get(pair.down), specs.get(pair.up)
            if down is None or up is None or len(down.axes) != 3 or len(up.axes) != 3:
                raise ValueError(f"adapters: {pair.down!r} and {pair.up!r} must be 3-D inputs")
            rank = down.axes[2]
            ranks.add(rank)
            if (
                rank not in free
                or (down.axes[0], up.axes[:2]) != ("batch", ("batch", rank))
                or not isinstance(down.axes[1], int)
                or not isinstance(up.axes[2], int)
                or "float" not in down.dtype
                or down.dtype != up.dtype
                or len(ranks) > 1
            ):
                raise ValueError(
                    f"adapters: expected (batch, features, rank) and (batch, rank, features), of "
                    f"one rank for all, got {down.describe()} and {up.describe()}"
                )

    @property
    def adapter_names(self) -> frozenset[str]:
        """The inputs that adapters are given by."""
        return frozenset(name for pair in self.adapters for name in (pair.down, pair.up))

    @property
    def rank_axis(self) -> str | None:
        """The free axis that is the rank of adapters, and may be 0; None: there is none."""
        if not self.adapters:
            return None
        down = next(spec for spec in self.inputs if spec.name == self.adapters[0].down)
        return str(down.axes[2])

    def _check_once(self) -> None:
        """What is computed once is so from inputs that have no positions."""
        derived = self.optional_names
        plain = {
            spec.name
            for spec in self.inputs
            if spec.name not in derived and not {"seq", "total_seq"} & set(spec.axes)
        }
        tells_length = self.mask is not None or any(pair.bounded is None for pair in self.cache)
        if not self.once_names <= plain or (self.once_names and not tells_length):
            raise ValueError(
                f"computed_from names inputs without positions, in a contract whose cache or mask "
                f"tells the length, got {', '.join(sorted(self.once_names))}"
            )

    def _check_slots(self) -> None:
        """What a bounded pair holds is counted in slots, and nothing else is."""
        bounded = {
            name for p in self.cache if p.bounded is not None for name in (p.past, p.present)
        }
        for spec in (*self.inputs, *self.outputs):
            if (spec.name in bounded) != any(axis in SLOT_AXES for axis in spec.axes):
                raise ValueError(
                    f"{spec.describe()}: the axes {' and '.join(SLOT_AXES)} belong to pairs of the "
                    "cache that are bounded, and to no others"
                )

    def _check_mask(self, name: str) -> None:
        spec = next((spec for spec in self.inputs if spec.name == name), None)
        if spec is None or not self.cache:
            raise ValueError(f"the mask {name!r} must be an input of a contract with a cache")
        if spec.dtype not in ("int64", "int32") or spec.axes[1:] != ("total_seq",):
            raise ValueError(
                f"a mask must be int64 or int32 (batch, total_seq), got {spec.describe()}"
            )

    @property
    def optional_names(self) -> frozenset[str]:
        """The inputs that a request may leave out: the cache, which positions are tokens, what is
        computed, and adapters."""
        return self.added_names | self.adapter_names

    @property
    def added_names(self) -> frozenset[str]:
        """The inputs that came with the cache, and are none of the module: past positions, which
        positions are tokens, and what is computed."""
        names = self.past_names | {item.name for item in self.computed}
        return names if self.mask is None else names | {self.mask}

    @property
    def past_names(self) -> frozenset[str]:
        """The inputs that hold the cache."""
        return frozenset(pair.past for pair in self.cache)

    @property
    def present_names(self) -> frozenset[str]:
        """The outputs that hold the cache."""
        return frozenset(pair.present for pair in self.cache)

    @property
    def once_names(self) -> frozenset[str]:
        """The inputs that are read in the first call of a row only (`CachePair.computed_from`).

        Adapters are not among them: a row has the same in all calls.
        """
        named = frozenset(name for pair in self.cache for name in pair.computed_from)
        return named - self.adapter_names

    @property
    def shares_every_call(self) -> bool:
        """Whether past and present may be one buffer in any call, where a pair is shared."""
        return self.form == CHUNKED

    def without_cache(self) -> Contract:
        """What is left for the caller of a stream, which keeps the cache and adapters itself."""
        optional, presents = self.optional_names, self.present_names
        rank = self.rank_axis
        return replace(
            self,
            free_axes=tuple(axis for axis in self.free_axes if axis.name != rank),
            adapters=(),
            inputs=tuple(spec for spec in self.inputs if spec.name not in optional),
            outputs=tuple(spec for spec in self.outputs if spec.name not in presents),
            cache=(),
            mask=None,
            computed=(),
            ragged="packed",
            last_only=None,
        )

    def to_json(self) -> str:
        """The contract as one JSON document, the same text for equal contracts.

        Special tokens that are not known have no key, nor has what only files of other exporters
        need, nor what inputs stand for where their dtype and axes say it: such a contract reads as
        one did before these were written down.
        """
        data = {
            key: value
            for key, value in asdict(self).items()
            if key not in _LATER or value not in ((), None, "packed")
        }
        for spec in (*data["inputs"], *data["outputs"]):
            for key in _LATER_OF_TENSORS:
                if spec[key] is None:
                    del spec[key]
        for pair in data["cache"]:
            if not pair["computed_from"]:
                del pair["computed_from"]
        return json.dumps({"format": FORMAT, **data}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: The text is not a contract, is of a newer format, or holds unknown keys.
        """
        data = read_document(text, what="contract")
        try:
            data["inputs"] = tuple(_spec(item) for item in data["inputs"])
            data["outputs"] = tuple(_spec(item) for item in data["outputs"])
            pairs = data.get("cache", ())
            data["cache"] = tuple(_pair(item) for item in pairs)
            computed = data.get("computed", ())
            data["computed"] = tuple(ComputedInput(**_known(i, ComputedInput)) for i in computed)
            free = data.get("free_axes", ())
            data["free_axes"] = tuple(FreeAxis(**_known(item, FreeAxis)) for item in free)
            pairs = data.get("adapters", ())
            data["adapters"] = tuple(AdapterPair(**_known(item, AdapterPair)) for item in pairs)
            data["eos_token_ids"] = tuple(data.get("eos_token_ids", ()))
            return cls(**_known(data, cls))
        except KeyError as error:
            raise ArtifactError(f"the contract lacks the key {error}") from error
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the contract is damaged: {error}") from error


_LATER_OF_TENSORS = ("kind", "value_range")
_LATER = (
    "eos_token_ids",
    "bos_token_id",
    "pad_token_id",
    "computed",
    "ragged",
    "free_axes",
    "adapters",
    "causal_block",
    "min_onnxruntime",
)


def read_document(text: str, *, what: str) -> dict[str, Any]:
    """Parse one metadata document and check its format number, which it removes.

    Raises:
        ArtifactError: Not a JSON object with a format number, or of a newer format.
    """
    try:
        data: Any = read_json(text)
    except ValueError as error:
        raise ArtifactError(f"the {what} in the metadata is not JSON: {error}") from error
    version = data.pop("format", None) if isinstance(data, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ArtifactError(f"the {what} in the metadata has no format number")
    if version > FORMAT:
        raise ArtifactError(
            f"the {what} is of format {version}, this version of causal-onnx reads up to "
            f"{FORMAT}. Update it: pip install -U causal-onnx"
        )
    return dict(data)


def _known(data: Mapping[str, Any], cls: type) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise ArtifactError(f"unknown keys in the contract: {', '.join(unknown)}")
    return dict(data)


def _pair(item: Mapping[str, Any]) -> CachePair:
    found = _known(item, CachePair)
    return CachePair(**{**found, "computed_from": tuple(found.get("computed_from", ()))})


def _spec(item: Mapping[str, Any]) -> TensorSpec:
    found = {**_known(item, TensorSpec), "axes": tuple(item["axes"])}
    if found.get("value_range") is not None:
        found["value_range"] = tuple(found["value_range"])
    return TensorSpec(**found)
