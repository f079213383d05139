"""Buffers that a module grows on demand: emptied, so that the graph computes them instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causal_onnx.export.errors import ExportError, Stage
from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source, tensors_in

__all__ = ["grows", "without_caches"]

LONGEST_CALL = 2048
"""Kept tensors larger than this are not outgrown on purpose."""

Place = tuple[str, str]  # (name of the submodule, name of the attribute)


def without_caches(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> Source:
    """A copy whose masks and tables, if it keeps any that grow with the length, are empty again.

    A module that keeps its mask from an earlier call (`if self.mask.shape[0] < n: self.mask = ...`)
    would bring that mask into the graph, good for no longer sequence. Emptied, it is made anew
    while
    tracing, from the length.

    Raises:
        ExportError: Nothing grows, or the module does not work with what grows emptied.
    """
    grown = _grown(source, specs, sizes)
    if not grown:
        raise ExportError("the module keeps nothing that grows with the length").at(Stage.NOT_TRIED)
    inputs = make_inputs(specs, sizes)
    expected = source.fresh().run(inputs)
    for empty in (_none, _shortened):
        twin = source.fresh()
        for place, (before, after) in grown.items():
            _set(twin, place, empty(before, after))
        got = ask(twin.fresh().run, inputs)
        if isinstance(got, Refusal):  # the module did not expect its cache to look like this
            continue
        if len(got) == len(expected) and all(
            a.shape == b.shape and torch.allclose(a.double(), b.double(), equal_nan=True)
            for a, b in zip(got, expected, strict=True)
        ):
            return twin
    names = ", ".join(".".join(place).removeprefix("module.") for place in grown)
    raise ExportError(
        f"the module keeps what it computed for a shorter sequence ({names}) and does not work "
        "without that; compute it in forward from x.shape"
    )


def grows(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> bool:
    """Whether a longer call leaves larger tensors in the module, wherever it keeps them."""
    twin = source.fresh()
    before = _kept(twin)
    for seq in (_longer(sizes, before), sizes.seq + 2):
        longer = make_inputs(specs, CallSizes(batch=sizes.batch, seq=seq, past=sizes.past))
        if not isinstance(ask(twin.run, longer), Refusal):
            return _kept(twin) != before
    return False


def _kept(source: Source) -> list[int]:
    """The sizes of every axis of every tensor that submodules hold, in order."""
    return [
        size
        for part in source.modules()
        for name, value in vars(part).items()
        if name not in ("_parameters", "_modules")
        for tensor in tensors_in(value)
        for size in tensor.shape
    ]


def _grown(
    source: Source, specs: Sequence[InputSpec], sizes: CallSizes
) -> dict[Place, tuple[Any, Any]]:
    twin = source.fresh()
    before = dict(_state(twin))
    kept = [size for t in before.values() if _sized(t) for size in t.shape]
    for seq in (_longer(sizes, kept), sizes.seq + 2):
        longer = make_inputs(specs, CallSizes(batch=sizes.batch, seq=seq, past=sizes.past))
        if not isinstance(ask(twin.run, longer), Refusal):
            break
    after = dict(_state(twin))
    return {
        place: (before.get(place), value)
        for place, value in after.items()
        if _differs(before.get(place), value)
    }


def _longer(sizes: CallSizes, kept: Sequence[int]) -> int:
    """A length beyond everything that is kept, as far as a run there is cheap."""
    return max([sizes.seq, *(size for size in kept if size <= LONGEST_CALL)]) + 5


def _state(module: nn.Module) -> Iterator[tuple[Place, Any]]:
    for name, part in module.named_modules():
        for key, value in {**vars(part), **part._buffers}.items():
            if isinstance(value, Tensor) or (isinstance(value, int) and key != "training"):
                yield (name, key), value


def _sized(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape != after.shape
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return True
    return bool(before != after)


def _none(before: Any, after: Any) -> Any:
    return None if isinstance(after, Tensor) else 0


def _shortened(before: Any, after: Any) -> Any:
    if not isinstance(after, Tensor):
        return 0
    if not isinstance(before, Tensor) or before.ndim != after.ndim:
        return before
    return before[
        tuple(
            slice(0, 0) if m != n else slice(None)
            for m, n in zip(before.shape, after.shape, strict=True)
        )
    ].clone()


def _set(module: nn.Module, place: Place, value: Any) -> None:
    name, key = place
    part = module.get_submodule(name)
    if key in part._buffers:
        part._buffers[key] = value
    else:
        setattr(part, key, value)
