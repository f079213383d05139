"""Capture a module once for several files: with and without a cache, in one form and another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from torch import nn

from causal_onnx.export.capture.capture import Capture, attempts
from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes, InputSpec
from causal_onnx.export.source.module import Observed, Source

__all__ = ["captures_of", "reusing_captures"]


@dataclass
class _Tried:
    """The ways tried so far for one module and opset, and the rest of them."""

    module: nn.Module
    """The caller's; held, so that the key (its identity) stays its own."""
    rest: Iterator[Capture | ExportError]
    results: list[Capture | ExportError] = field(default_factory=list)

    def get(self, index: int) -> Capture | ExportError | None:
        """Result `index`, tried now if it was not before; None past the last way."""
        while index >= len(self.results):
            result = next(self.rest, None)
            if result is None:
                return None
            self.results.append(result)
        result = self.results[index]
        return result if isinstance(result, ExportError) else _copied(result)


_kept: ContextVar[dict[Hashable, _Tried] | None] = ContextVar("kept captures", default=None)


@contextlib.contextmanager
def reusing_captures() -> Iterator[None]:
    """Inside, an export of a module that was exported before takes its captured graph.

    Capturing is most of the time of an export, and the same for every form of one opset, and for
    all weights of few bits: they are rounded in the captured graph. The module must not be changed
    meanwhile.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def captures_of(
    source: Source,
    specs: Sequence[InputSpec],
    sizes: CallSizes,
    observed: Observed,
    *,
    opset: int,
    module: nn.Module,
) -> Iterator[Capture | ExportError]:
    """`attempts`, from what was captured before where `reusing_captures` is on.

    `source` is a copy of the caller's `module`, its weights narrowed or widened.
    """
    kept = _kept.get()
    if kept is None:
        yield from attempts(source, specs, sizes, observed, opset=opset)
        return
    dtypes = tuple(value.dtype for value in (*source.parameters(), *source.buffers()))
    key = (id(module), _described(specs), sizes, opset, observed, dtypes)
    if key not in kept:
        kept[key] = _Tried(module, attempts(source, specs, sizes, observed, opset=opset))
    yield from _each(kept[key].get)


def _each(get: Callable[[int], Capture | ExportError | None]) -> Iterator[Capture | ExportError]:
    index = 0
    while (result := get(index)) is not None:
        yield result
        index += 1


def _copied(capture: Capture) -> Capture:
    """A copy whose graph may be rewritten; the weights are shared."""
    return replace(capture, model=capture.model.clone())


def _described(specs: Sequence[InputSpec]) -> Hashable:
    return tuple(
        (spec.name, tuple(sorted(spec.axes.items())), spec.example.dtype, tuple(spec.example.shape))
        for spec in specs
    )
