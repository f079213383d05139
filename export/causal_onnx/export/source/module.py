"""The module under export: a private copy in eval mode, called by position, outputs flattened."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.export.source.adaptable import Adaptable, Layer, find_layers, with_layers
from causal_onnx.export.source.encoder_decoder import example_call
from causal_onnx.export.source.inputs import Input, InputSpec, describe_inputs

__all__ = [
    "Filled",
    "Observed",
    "Source",
    "flatten_outputs",
    "mark_weights",
    "open_source",
    "tensors_in",
]

T = TypeVar("T")

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Axes = Sequence[Mapping[int, str]] | Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A padding mask among the module's inputs that is made here, not given."""

    index: int
    """Its place among the module's inputs."""
    shape: tuple[tuple[int, int] | int, ...]
    """Sizes, or (input, axis) of the others that has the size."""
    dtype: torch.dtype
    keep: float | bool
    """What it holds at a token."""
    drop: float | bool
    """What it holds at padding."""
    batch_axis: int
    seq_axis: int

    def make(
        self, inputs: Sequence[Tensor], module: nn.Module, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """The mask for the other `inputs`; `lengths`: tokens of each row, None: all are."""
        sizes = [n if isinstance(n, int) else inputs[n[0]].shape[n[1]] for n in self.shape]
        dtype = self.dtype
        if dtype.is_floating_point:  # as its weights: the copy may be of another precision
            floats = (p.dtype for p in module.parameters() if p.is_floating_point())
            dtype = next(floats, dtype)
        mask = torch.full(sizes, self.keep, dtype=dtype)
        for row, length in enumerate(lengths or ()):
            mask.select(self.batch_axis, row).narrow(
                self.seq_axis - (self.batch_axis < self.seq_axis),
                length,
                mask.shape[self.seq_axis] - length,
            ).fill_(self.drop)
        return mask

    def inserted(self, inputs: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
        """`inputs` with `mask` in its place."""
        return (*inputs[: self.index], mask, *inputs[self.index :])


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What calling the module told, and its capture must keep to."""

    output_names: tuple[str, ...]
    longest: int | None = None
    """The limit of the sequence length; None: none was found."""
    fixed_seq: int | None = None
    """The only length that the module accepts, if there is but one."""


class Source(nn.Module):
    """The caller's module as the pipeline sees it: tensors in by position, named tensors out.

    Holds a copy, so nothing that capturing does reaches the caller's module. The copy is deep, but
    for the weights of a module that only reads them (`keeps_weights`): those exist once.
    """

    def __init__(
        self,
        module: nn.Module,
        keywords: Sequence[str | None],
        fixed: dict[str, Any],
        *,
        keeps_weights: bool = False,
        layers: Sequence[Layer] = (),
    ):
        super().__init__()
        self.module = private_copy(module, shares_weights=keeps_weights)
        self.adaptable = Adaptable(tuple(layers))
        """The layers that adapters may change, by inputs after those of the module."""
        self.adaptable.attach(self.module)
        self.keeps_weights = keeps_weights
        """Calls leave the parameters as they are: copies share their memory, and nothing here may
        write into it."""
        self._keywords = tuple(keywords)
        self._fixed = fixed
        self.filled: Filled | None = None
        """The padding mask that is made here."""
        self._lengths: tuple[int, ...] | None = None
        self.alike: Sequence[Sequence[tuple[int, int]]] = ()
        """Axes of inputs, by place and axis, that are one size. A trace gives each a symbol of its
        own, and would take what is computed from two of them for a condition on both."""
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors among the module's outputs, in order."""
        for (first, first_axis), *others in self.alike:
            for place, axis in others:
                same = inputs[place].shape[axis] == inputs[first].shape[first_axis]
                torch._check(same)  # type: ignore[no-untyped-call]
        return tuple(tensor for _, tensor in flatten_outputs(self._call(inputs)))

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call on copies of `inputs` without gradients and copy what comes out.

        A module may write into its input, or return it, or return a buffer that its next call
        overwrites; none of that reaches the caller of this method.
        """
        return tuple(self.copied_by(Tensor.clone, inputs))

    def copied_by(self, copy_of: Callable[[Tensor], T], inputs: Sequence[Tensor]) -> list[T]:
        """`run`, each output copied by a function of the caller's, into a form of its own."""
        with torch.no_grad():
            return [copy_of(value) for value in self(*(x.clone() for x in inputs))]

    def name_outputs(self, inputs: Sequence[Tensor]) -> list[str]:
        """Call once and name the tensors that come out.

        Raises:
            ExportError: No tensor comes out.
        """
        with torch.no_grad():
            result = self._call([x.clone() for x in inputs])
        names = [name for name, _ in flatten_outputs(result)]
        if not names:
            raise ExportError(
                f"{type(self.module).__name__}.forward returned {type(result).__name__}, which "
                "holds no tensor; return a tensor, or a tuple, dict or dataclass of tensors"
            )
        return names

    @property
    def pads(self) -> bool:
        """Whether the module is told which positions are padding, by a mask that is made here."""
        return self.filled is not None

    @contextlib.contextmanager
    def padded(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside, row b of a call has `lengths[b]` tokens, and padding after them."""
        before, self._lengths = self._lengths, tuple(lengths)
        try:
            yield
        finally:
            self._lengths = before

    def filling(self, filled: Filled) -> Source:
        """A copy that makes one of its inputs itself."""
        twin = self.fresh()
        twin.filled = filled
        return twin

    def leaving_out(self) -> Source | None:
        """A copy that does not give the filled input at all; None: the module has no default."""
        assert self.filled is not None
        index, parameters = self.filled.index, inspect.signature(self.module.forward).parameters
        key = self._keywords[index]
        if key is None:
            place = list(parameters.values())[index : index + 1]
            optional = index == len(self._keywords) - 1 and bool(
                place and place[0].default is not inspect.Parameter.empty
            )
        else:
            has_default = key in parameters and (
                parameters[key].default is not inspect.Parameter.empty
            )
            optional = key not in parameters or has_default
        if not optional:
            return None
        twin = self.fresh()
        twin.filled = None
        twin._keywords = (*self._keywords[:index], *self._keywords[index + 1 :])
        return twin

    def _call(self, inputs: Sequence[Tensor]) -> Any:
        try:
            return self._call_adapted(self.adaptable.take(inputs))
        finally:
            self.adaptable.release()

    def _call_adapted(self, inputs: Sequence[Tensor]) -> Any:
        if self.filled is not None:
            mask = self.filled.make(inputs, self.module, self._lengths)
            inputs = self.filled.inserted(inputs, mask)
        pairs = list(zip(self._keywords, inputs, strict=True))
        args = [value for key, value in pairs if key is None]
        named = {key: value for key, value in pairs if key is not None}
        return handed_over(self.module, *args, **named, **self._fixed)

    def fresh(self) -> Source:
        """Another copy, untouched by what calls left in this one (lazily grown buffers)."""
        return copy.deepcopy(self, _shared_weights(self) if self.keeps_weights else {})


def open_source(
    module: nn.Module,
    example: Example | None,
    axes: Axes | None,
    inputs: Mapping[str, Input] | None = None,
    adaptable: Collection[str | Path] = (),
) -> tuple[Source, tuple[InputSpec, ...]]:
    """Take the caller's module and example apart.

    Args:
        module: Left as it is; a copy is exported.
        example: A tensor, a tuple of them (positional), or a dict (by keyword). None: the module
            makes its own (`example_input(batch, seq)`, or a Hugging Face `config`).
        axes: One {axis: name} per input, in the order of `example`.
        inputs: What the caller says of some inputs, by name.
        adaptable: The layers that adapters may change; see `find_layers`.

    Raises:
        ExportError: An adapter changes what is no linear layer of the module.
        TypeError: `module` is no `nn.Module`, the example is no tensor, tuple, list or dict, or
            holds something that is no tensor.
        ValueError: An example or axes are needed and missing, or do not fit.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"export takes a torch.nn.Module, got {type(module).__name__}")
    fixed = _fixed_arguments(module)
    call = example_call(module) if example is None else None
    if call is not None:
        example, axes = dict(call.example), axes or call.axes
        inputs = {**call.inputs, **(inputs or {})}
    if example is None:
        example = default_example(module)
    if not isinstance(example, Tensor | Mapping | tuple | list):
        raise TypeError(
            "example is a tensor, a tuple of tensors or a dict of them by keyword, got "
            f"{type(example).__name__}"
        )
    keywords: list[str | None]
    if isinstance(example, Mapping):
        names = list(example)
        keywords = list(names)
        tensors = list(example.values())
    else:
        tensors = [example] if isinstance(example, Tensor) else list(example)
        names = _parameter_names(module, len(tensors))
        keywords = [None] * len(tensors)
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example input {name!r} must be a tensor, got {type(tensor).__name__}")
    if isinstance(axes, Mapping):
        axes = [axes]
    specs = describe_inputs(names, tensors, axes, inputs)
    layers = find_layers(module, adaptable) if adaptable else ()
    if layers:
        specs = with_layers(specs, layers)
    alone = Source(module, keywords, fixed, layers=layers)
    if _writes_weights(alone, module, [spec.example for spec in specs]):
        return alone, specs
    return Source(module, keywords, fixed, keeps_weights=True, layers=layers), specs


def mark_weights(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """What a write into a parameter whose memory copies share changes.

    For each of them PyTorch's count of writes, and a checksum of its bytes: what is written through
    `.data` is not counted.
    """
    return tuple(
        (value._version, zlib.crc32(_bytes_of(value))) for value in _with_own_memory(module)
    )


def _bytes_of(value: Tensor) -> memoryview:
    whole = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return whole.numpy().data


def _writes_weights(copied: Source, module: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether a call of `copied`, a deep copy of `module`, writes into its parameters.

    As an embedding with `max_norm` does, and a layer that clamps its weights. A write is seen by
    PyTorch's count of them, also where it changed nothing this time, or by what it changed.
    """
    own = [(value, value._version) for value in copied.module.parameters()]
    ask(copied.run, inputs)  # what it refuses is said later
    after = list(copied.module.parameters())
    if len(own) != len(after) or any(
        value is not now or now._version != version
        for (value, version), now in zip(own, after, strict=True)
    ):
        return True
    return not all(
        torch.equal(value.detach().to("cpu"), now)
        for value, now in zip(module.parameters(), after, strict=True)
    )


def _shared_weights(module: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`: parameters of their own that hold the memory of those of `module`.

    Left out, and so copied: those that share memory with others already, and special kinds.
    """
    return {
        id(value): nn.Parameter(value.detach(), requires_grad=False)
        for value in _with_own_memory(module)
    }


def _with_own_memory(module: nn.Module) -> list[nn.Parameter]:
    whole = [
        value
        for value in module.parameters()
        if type(value) is nn.Parameter
        and not value.is_inference()
        and not value.is_meta
        and value.layout == torch.strided
        and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    ]
    places = Counter(value.untyped_storage().data_ptr() for value in whole)
    return [value for value in whole if places[value.untyped_storage().data_ptr()] == 1]


def default_example(module: nn.Module) -> Example:
    """An example that the module can make itself.

    Raises:
        ValueError: It cannot; the caller must give one.
    """
    maker = getattr(module, "example_input", None)
    if callable(maker):
        limit = getattr(module, "max_seq_len", None)
        made = maker(3, min(7, limit) if isinstance(limit, int) else 7)
        return made if isinstance(made, Tensor | Mapping) else tuple(made)
    vocab = getattr(getattr(module, "config", None), "vocab_size", None)
    if isinstance(vocab, int) and "input_ids" in inspect.signature(module.forward).parameters:
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(vocab, (3, 7), generator=generator)}
    rows = _rows_met(module, torch.zeros(2, 8, dtype=torch.int64))
    made = "torch.randn(2, 8, embed_dim)" if rows is None else f"torch.randint({rows}, (2, 8))"
    raise ValueError(
        f"{type(module).__name__} does not say what its input looks like; pass one: "
        f"export(module, path, example={made})"
    )


def _rows_met(module: nn.Module, ids: Tensor) -> int | None:
    """The rows of the embedding that the module looks its first input up in; None: it does not."""
    twin = private_copy(module)
    met: list[int] = []

    def note(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(part, nn.Embedding) and inputs and inputs[0].shape == ids.shape:
            met.append(part.num_embeddings)

    for part in twin.modules():
        part.register_forward_pre_hook(note)
    with torch.no_grad():
        answer = ask(handed_over, twin, ids)
    return met[0] if met and not isinstance(answer, Refusal) else None


def flatten_outputs(result: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a module's result with a name each, in a fixed order.

    Mappings and dataclasses give their own keys; the first of a tuple is `output`, the others
    `output_1`, `output_2`, ... Values that are no tensors are left out.
    """
    if isinstance(result, Tensor):
        yield name, result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from flatten_outputs(value, _join(name, str(key)))
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for item in dataclasses.fields(result):
            yield from flatten_outputs(getattr(result, item.name), _join(name, item.name))
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        for key in result._fields:
            yield from flatten_outputs(getattr(result, key), _join(name, key))
    elif isinstance(result, tuple | list):
        for index, value in enumerate(result):
            yield from flatten_outputs(value, f"{name}_{index}" if index else name)


def _join(prefix: str, key: str) -> str:
    return key if prefix == "output" else f"{prefix}.{key}"


def private_copy(module: nn.Module, *, shares_weights: bool = False) -> nn.Module:
    """A deep copy on the CPU in eval mode, without gradients; of the weights only if they are not
    shared.

    Tensors that hang on an autograd graph (a cache kept from a training step) cannot be deep-copied
    by PyTorch; they are detached first.
    """
    memo = _shared_weights(module) if shares_weights else {}
    for part in module.modules():
        for value in vars(part).values():
            for tensor in tensors_in(value):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
        for parameter in part.parameters(recurse=False):
            # The copy needs no gradients; mapping them to None spares their memory.
            if parameter.grad is not None:
                memo[id(parameter.grad)] = None
    copied = ask(handed_over, copy.deepcopy, module, memo)
    if isinstance(copied, Refusal):
        raise ExportError(
            f"{type(module).__name__} cannot be deep-copied ({copied.error}); export works on a "
            "copy so that your module stays as it is. Remove what cannot be copied (locks, open "
            "files, lambdas that capture them) from its attributes"
        ) from copied.error
    twin: nn.Module = copied.to("cpu").eval()
    for part in twin.modules():
        choose = getattr(part, "set_experts_implementation", None)
        if callable(choose):
            # Hugging Face's mixtures of experts: the default operator has no ONNX translation, this
            # one is made of gathers and products, each token by itself.
            choose("batched_mm")
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in an attribute: itself, or in containers and plain objects, `depth` deep."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        for item in vars(value).values():  # a cache object of the module's own
            yield from tensors_in(item, depth - 1)


def _parameter_names(module: nn.Module, count: int) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)
    if variadic is not None:
        names += [f"{variadic}_{index}" for index in range(count - len(names))]
    if len(names) < count:
        raise ValueError(
            f"the example has {count} inputs, {type(module).__name__}.forward takes {len(names)} "
            f"({', '.join(names)})"
        )
    return names[:count]


def _fixed_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that a Hugging Face model needs so that it does not return its own cache."""
    if not hasattr(getattr(module, "config", None), "use_cache"):
        return {}
    parameters = inspect.signature(module.forward).parameters
    takes = "use_cache" in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if takes else {}
