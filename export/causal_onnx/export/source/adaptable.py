"""Linear layers that a low-rank adapter may change, with its matrices as inputs of the module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import ADAPTER_RANK, InputSpec
from causal_onnx.runtime.artifact.adapter import is_adapter, read_adapter
from causal_onnx.runtime.contract import AdapterPair

__all__ = ["Adaptable", "Layer", "find_layers", "with_layers"]

_EXAMPLE_RANK = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer that adapters may change."""

    name: str
    in_features: int
    out_features: int

    @property
    def pair(self) -> AdapterPair:
        """How the contract names it."""
        return AdapterPair(
            module=self.name, down=f"{self.name}.lora_down", up=f"{self.name}.lora_up"
        )


@dataclass(slots=True)
class _Hook:
    """Adds to a layer's output what the adapter of each row makes of its input."""

    name: str
    down: Tensor | None = None
    """(batch, in_features, rank) of the running call."""
    up: Tensor | None = None
    """(batch, rank, out_features) of it."""
    was_called: bool = False

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.down is None or self.up is None:
            return output
        (x,) = inputs
        if x.dim() < 2 or x.shape[0] != self.down.shape[0]:
            raise ValueError(  # as from the module itself: a call that it does not accept
                f"no adapter can change {self.name}: it reads {tuple(x.shape)} in a batch of "
                f"{self.down.shape[0]}, so that rows are not its first axis. Leave it out of "
                "adaptable"
            )
        self.was_called = True
        between = (1,) * (x.dim() - 3)  # (batch, heads, seq, width), say
        down = self.down.view(self.down.shape[0], *between, *self.down.shape[1:])
        up = self.up.view(self.up.shape[0], *between, *self.up.shape[1:])
        rows = x.unsqueeze(1) if x.dim() == 2 else x
        # y - (-h) up and not y + h up: with a rank of 0 the product is +0 everywhere, and
        # y - (+0) is y to the bit, also where y is -0. Nothing is transposed: onnxruntime before
        # 1.32 leaves the product of rank 0 unwritten where it fuses a transposition into it.
        change = torch.neg(rows @ down) @ up
        return output - (change.squeeze(1) if x.dim() == 2 else change)


@dataclass(slots=True)
class Adaptable:
    """The layers of one copy of a module, which take the last inputs of each call."""

    layers: tuple[Layer, ...]
    hooks: list[_Hook] = field(default_factory=list)

    def attach(self, module: nn.Module) -> None:
        """Change what the layers of `module`, a copy, return."""
        for layer in self.layers:
            self.hooks.append(hook := _Hook(layer.name))
            module.get_submodule(layer.name).register_forward_hook(hook)

    def take(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the adapters' inputs for the call that follows, and return the others."""
        count = len(inputs) - 2 * len(self.hooks)
        for hook, down, up in zip(
            self.hooks, inputs[count::2], inputs[count + 1 :: 2], strict=True
        ):
            hook.down, hook.up = down, up
        return inputs[:count]

    def release(self) -> None:
        """The call is over."""
        for hook in self.hooks:
            hook.down = hook.up = None

    def refuse_unused(self) -> None:
        """Check that the last calls went through every layer.

        Raises:
            ExportError: One was not called: its adapter would change nothing.
        """
        unused = [hook.name for hook in self.hooks if not hook.was_called]
        if unused:
            raise ExportError(
                f"no adapter can change {', '.join(unused[:3])}: the module does not call it as a "
                "layer (it reads its weight, or not even that). Leave it out of adaptable"
            )


def find_layers(module: nn.Module, adaptable: Collection[str | Path]) -> tuple[Layer, ...]:
    """The linear layers that the caller means, in the order of the module.

    Args:
        module: The one under export.
        adaptable: Patterns of names of layers ("*" is any text), and folders of PEFT adapters,
            which stand for the layers that they change.

    Raises:
        ExportError: A folder's adapter changes what is no linear layer of the module.
        TypeError, ValueError: An entry is of another kind, or a pattern fits no linear layer.
    """
    if isinstance(adaptable, str | Path):
        adaptable = [adaptable]
    linear = {name: part for name, part in module.named_modules() if _sizes(part) is not None}
    wanted: set[str] = set()
    for item in adaptable:
        if not isinstance(item, str | Path):
            raise TypeError(f"adaptable holds patterns and folders, got {item!r}")
        if is_adapter(item):
            wanted |= _changed_by(Path(item), module, linear)
            continue
        found = {name for name in linear if fnmatchcase(name, str(item))}
        if not found:
            raise ValueError(
                f"adaptable: {str(item)!r} is neither the name of a linear layer of "
                f"{type(module).__name__} nor the folder of an adapter; linear layers are "
                f"{_some(list(linear))}"
            )
        wanted |= found
    if not wanted:
        raise ValueError("adaptable names no layer; pass patterns such as '*.q_proj', or None")
    sizes = {name: _sizes(part) for name, part in linear.items() if name in wanted}
    return tuple(
        Layer(name=name, in_features=found[0], out_features=found[1])
        for name, found in sizes.items()
        if found is not None
    )


def _changed_by(folder: Path, module: nn.Module, linear: Collection[str]) -> set[str]:
    names = set(read_adapter(folder))
    other = sorted(names - set(linear))
    if other:
        raise ExportError(
            f"{folder} changes {_some(other)}, which {type(module).__name__} does not have as a "
            f"linear layer; those are {_some(list(linear))}"
        )
    return names


def _sizes(part: nn.Module) -> tuple[int, int] | None:
    """(features in, features out) of a linear layer; None: it is none."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    # GPT-2 in transformers: the same with its weight transposed.
    weight = getattr(part, "weight", None)
    if type(part).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return weight.shape[0], weight.shape[1]
    return None


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + rest


def with_layers(specs: Sequence[InputSpec], layers: Sequence[Layer]) -> tuple[InputSpec, ...]:
    """`specs`, and those of the adapters' inputs.

    Raises:
        ValueError: No input has a batch axis, or one has an axis or a name of the adapters'.
    """
    batch = next(
        (s.example.shape[a] for s in specs for a, label in s.axes.items() if label == "batch"), None
    )
    if batch is None:
        raise ValueError(
            "adapters are chosen row by row, and no input has a batch axis; pass an example with "
            "one: axes=[{0: 'batch', 1: 'seq'}]"
        )
    taken = {spec.name for spec in specs}
    if any(label == ADAPTER_RANK for spec in specs for label in spec.axes.values()):
        raise ValueError(
            f"the axis {ADAPTER_RANK!r} is that of adapters; give your input's another name"
        )
    generator = torch.Generator().manual_seed(0)
    added = []
    for layer in layers:
        pair, size = layer.pair, (batch, layer.in_features, _EXAMPLE_RANK)
        if {pair.down, pair.up} & taken:
            raise ValueError(f"the module has an input {pair.down!r} or {pair.up!r} of its own")
        # So large that an adapter changes the layer's output by about a third.
        down = torch.randn(size, generator=generator) / layer.in_features**0.5
        up = torch.randn((batch, _EXAMPLE_RANK, layer.out_features), generator=generator) / 6
        for name, example, axes in (
            (pair.down, down, {0: "batch", 2: ADAPTER_RANK}),
            (pair.up, up, {0: "batch", 1: ADAPTER_RANK}),
        ):
            added.append(InputSpec(name=name, example=example, axes=axes, kind="features"))
    return (*specs, *added)
