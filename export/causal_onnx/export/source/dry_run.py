"""Run a module without paying for its large tensors: is a length accepted, and what would it cost.

Small tensors are computed, so that positions, ids and the checks on them are real; large ones are
only followed in their shape. A table that is too short, a mask that does not fit and a check in
Python code all show, at 8192 positions and a dozen heads, in milliseconds and megabytes.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry

from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.torch_patches.patched import patched
from causal_onnx.export.torch_patches.replace import Seen

__all__ = ["DryRun", "dry_run"]

SMALL_ELEMENTS = 1 << 20
"""Tensors up to here are computed; a mask of 1024 x 1024 still is."""
SMALL_FLOPS = 2e7
"""Products up to here are computed: some milliseconds each."""

MOST_STEPS = 10_000
"""Operators of one call: loops over positions are not followed further."""
SHORT_CALL = 8
MORE_STEPS = 4
"""What does not loop takes nearly as many operators for many positions as for few, so `MORE_STEPS`
times those of a call of `SHORT_CALL` positions are followed in any case. Some layers have 100
operators, and some modules hundreds of layers."""

_short_steps: WeakKeyDictionary[Source, int] = WeakKeyDictionary()
"""Operators of a short call, of sources that had more than `MOST_STEPS` in a longer one."""

_seen: WeakKeyDictionary[Source, Seen] = WeakKeyDictionary()
"""What modules hold of the functions that are replaced, as the runs of each source found it; they
follow soon after one another."""

_aten = torch.ops.aten

# What the shape-only tensors cannot do; anything else that is raised is the module's own answer.
_UNSUPPORTED = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,
)
_UNSUPPORTED_TEXTS = ("FakeTensor", "numpy", "data pointer", "data_ptr", "storage", "subclass")


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a call would have done."""

    accepted: bool | None
    """Whether the module takes the inputs; None: only a real run can tell."""
    largest: int
    """Elements of the largest tensor it makes (the scores of every attention are one), up to where
    it stopped."""
    flops: float
    """Multiplications and additions of its matrix products, up to where it stopped."""
    is_real: bool
    """Nothing was large: this was a real run."""
    error: Exception | None = None
    """What the module raised, where it does not take the inputs."""
    shapes: tuple[torch.Size, ...] = ()
    """Of the outputs, where it does."""


def dry_run(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> DryRun:
    """Call a copy of `source` on inputs of `sizes`, computing small tensors only."""
    short = _shortened(sizes)
    if short == sizes:
        return _followed(source, specs, sizes, math.inf)[0]
    most = max(MOST_STEPS, MORE_STEPS * _short_steps.get(source, 0))
    found, steps = _followed(source, specs, sizes, most)
    if steps <= most or source in _short_steps:
        return found
    # It loops over positions, or it is deep.
    _short_steps[source] = _followed(source, specs, short, math.inf)[1]
    most = MORE_STEPS * _short_steps[source]
    return _followed(source, specs, sizes, most)[0] if most > MOST_STEPS else found


def _shortened(sizes: CallSizes) -> CallSizes:
    """Sizes at which no loop is long."""
    return replace(
        sizes,
        seq=min(sizes.seq, SHORT_CALL),
        past=min(sizes.past, SHORT_CALL),
        free=tuple((axis, min(size, SHORT_CALL)) for axis, size in sizes.free),
    )


def _followed(
    source: Source, specs: Sequence[InputSpec], sizes: CallSizes, most_steps: float
) -> tuple[DryRun, int]:
    """What a call does in its first `most_steps` operators, and how many it has, if not more."""
    mode = _ShapesOfLarge(most_steps)
    accepted: bool | None = True
    error: Exception | None = None
    shapes: tuple[torch.Size, ...] = ()
    module, inputs = source.fresh(), make_inputs(specs, sizes)
    seen = _seen.setdefault(source, Seen())
    try:
        # The replacements make plain tensors of what cannot be followed (flex_attention, biases).
        with torch.no_grad(), _silent(), patched(zero_masked_rows=False, seen=seen), mode:
            outcome = ask(module, *(x.clone() for x in inputs))
        if isinstance(outcome, Refusal):
            error = outcome.error
            doubtful = isinstance(error, _UNSUPPORTED) or any(
                text in str(error) for text in _UNSUPPORTED_TEXTS
            )
            accepted = None if mode.followed and doubtful else False
        else:
            shapes = tuple(value.shape for value in outcome)
    except _TooManyStepsError:
        accepted, mode.flops = None, math.inf  # nobody should run it to see
    found = DryRun(
        accepted=accepted,
        largest=mode.largest,
        flops=mode.flops,
        is_real=not mode.followed,
        error=error if accepted is False else None,
        shapes=shapes,
    )
    return found, mode.steps


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A mismatch is an answer here; PyTorch would log it with a traceback before it raises it."""
    logger = logging.getLogger(fake_tensor.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _TooManyStepsError(BaseException):
    """Ends a dry run; no `except Exception` of the module's may hold it."""


class _ShapesOfLarge(TorchDispatchMode):
    """Computes operators on small tensors and infers the shapes of the others."""

    def __init__(self, most_steps: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most_steps = most_steps
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self.followed = False
        """Some tensor was followed in its shape only."""
        self.largest = 0
        self.flops = 0.0
        self.steps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.steps += 1
        if self.steps > self._most_steps:
            raise _TooManyStepsError
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        has_shapes = any(isinstance(x, FakeTensor) for x in given)
        if not has_shapes and _is_small(func, given):
            small = handed_over(func, *args, **kwargs)
            self.largest = max(self.largest, 0 if func.is_view else _elements(small))
            return small
        followed: Any = (args, kwargs)
        if not has_shapes and not func._schema.is_mutable:
            # Of tensors that hold values alone, PyTorch computes sums and products, whatever the
            # size of the result, to look whether it is a constant.
            followed = ask(handed_over, tree_map_only, Tensor, self._shapes.from_tensor, followed)
        result = followed
        if not isinstance(followed, Refusal):
            with self._shapes:
                result = ask(handed_over, func, *followed[0], **followed[1])
        if isinstance(result, Refusal):
            if has_shapes:
                raise result.error
            # The operator depends on values (`nonzero`), or the module is wrong: run it and see.
            return handed_over(func, *args, **kwargs)
        if func.is_view:  # a part of something that exists already, at no cost
            return result if has_shapes else func(*args, **kwargs)
        elements = _elements(result)
        flops = 0.0
        if func.overloadpacket in flop_registry:
            flops = float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=result))
        elif func is _aten._scaled_dot_product_flash_attention_for_cpu.default:
            query, key = args[0], args[1]
            flops = 4.0 * query.numel() * key.shape[-2]
            # PyTorch does not hold the scores here; onnxruntime does.
            elements = query.numel() // query.shape[-1] * key.shape[-2]
        self.largest, self.flops = max(self.largest, elements), self.flops + flops
        if not has_shapes and elements <= SMALL_ELEMENTS and flops <= SMALL_FLOPS:
            return handed_over(func, *args, **kwargs)
        self.followed = True
        _check_indices(func, args)
        return result


def _is_small(func: Any, given: Sequence[Tensor]) -> bool:
    """Whether what `func` gives for tensors that hold values is small whatever its shape turns out.

    A loop over positions has thousands of these, and following the shapes of each takes longer than
    to compute them.
    """
    if func.is_view:
        return bool(given)
    return torch.Tag.pointwise in func.tags and bool(given) and _bound(given) <= SMALL_ELEMENTS


def _bound(given: Sequence[Tensor]) -> int:
    """The most elements to which tensors can be broadcast."""
    return math.prod(max(x.numel(), 1) for x in given)


def _elements(result: Any) -> int:
    return max((x.numel() for x in tree_iter(result) if isinstance(x, Tensor)), default=0)


def _check_indices(func: Any, args: Any) -> None:
    """Shapes know nothing of values; indices that were computed are compared with their table.

    Raises:
        IndexError: One is out of range, as PyTorch would say.
    """
    if func is _aten.embedding.default:
        table, axis, indices = args[0], 0, args[1]
    elif func in (_aten.index_select.default, _aten.gather.default):
        table, axis, indices = args[0], args[1], args[2]
    elif func is _aten.index.Tensor:
        known = [i for i, index in enumerate(args[1]) if index is not None]
        if len(known) != 1:
            return
        table, axis, indices = args[0], known[0], args[1][known[0]]
    else:
        return
    if isinstance(indices, FakeTensor) or indices.dtype == torch.bool or not indices.numel():
        return
    if int(indices.max()) >= table.shape[axis]:
        raise IndexError(f"index {int(indices.max())} in a table of {table.shape[axis]} rows")
