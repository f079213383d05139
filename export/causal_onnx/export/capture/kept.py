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

__all__ = ["Kept", "captures_of", "reusing_captures"]


@dataclass
class _Tried:
    """The ways tried so far for one module and opset, and the rest of them."""

    held: tuple[Source, nn.Module]
    """What the key is of: identities in it stay their own while it is held."""
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


def _by_identity(source: Source, module: nn.Module) -> Hashable:
    return id(module)


@dataclass(frozen=True)
class Kept:
    """What was captured so far, and when a module counts as captured before."""

    key_of: Callable[[Source, nn.Module], Hashable] = _by_identity
    """Of the copy that is captured and the caller's module: equal where their graphs are."""
    tried: dict[Hashable, _Tried] = field(default_factory=dict)
    """In the order in which they were first captured."""

    def forget_all_but(self, count: int) -> None:
        """Let go of what was captured first."""
        for key in list(self.tried)[:-count]:
            del self.tried[key]


_kept: ContextVar[Kept | None] = ContextVar("kept captures", default=None)


@contextlib.contextmanager
def reusing_captures(kept: Kept | None = None) -> Iterator[None]:
    """Inside, an export of a module that was exported before takes its captured graph.

    Capturing is most of the time of an export, and the same for every form of one opset, and for
    all weights of few bits: they are rounded in the captured graph. The module must not be changed
    meanwhile.

    Args:
        kept: Where captures are kept; None: until the end of the block, by the module's identity.
    """
    token = _kept.set(kept or Kept())
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
    own = kept.key_of(source, module)
    key = (own, _described(specs), sizes, opset, observed, dtypes)
    known = kept.tried.get(key)
    if known is None or kept.key_of(*known.held) != own:  # a graph shares its module's weights
        rest = attempts(source, specs, sizes, observed, opset=opset)
        kept.tried[key] = _Tried((source, module), rest)
    yield from _each(kept.tried[key].get)


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
