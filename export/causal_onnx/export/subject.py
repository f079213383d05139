"""The module under export, and what calling it told: inputs, outputs, lengths; so the contract."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from causal_onnx.export.arguments import ExportOptions
from causal_onnx.export.cache.lengths import MASK
from causal_onnx.export.cache.refusals import ALL_POSITIONS
from causal_onnx.export.capture.capture import capture_sizes
from causal_onnx.export.errors import ExportError, NotSupportedError
from causal_onnx.export.precision.choose import in_precision
from causal_onnx.export.precision.rounding import Rounded
from causal_onnx.export.source import probe
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import ADAPTER_RANK, CallSizes, Input, InputSpec, free_axes
from causal_onnx.export.source.language import special_tokens, trained_length
from causal_onnx.export.source.meaning import find_meanings
from causal_onnx.export.source.module import (
    Axes,
    Example,
    Observed,
    Source,
    mark_weights,
    open_source,
)
from causal_onnx.export.source.outputs import describe_outputs, dtype_name
from causal_onnx.export.source.padding_mask import fill_padding
from causal_onnx.runtime.contract import LARGEST_AXIS, Contract, FreeAxis, TensorSpec

__all__ = ["Subject", "crops", "other_sizes", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A module under export, and what calling it told."""

    module: nn.Module
    """The caller's; only looked at."""
    mark: tuple[tuple[int, int], ...]
    """Of its weights when it was opened."""
    source: Source
    """What is captured."""
    reference: Source
    """What the file must equal."""
    full: Source | None = None
    """In fp32, where the file's precision is lower: what drift is measured from."""
    options: ExportOptions
    """What the caller asked for."""
    rounded: Rounded | None = None
    """The weights that `reference` and the captured graph hold rounded."""
    specs: tuple[InputSpec, ...]
    observed: Observed
    contract: Contract
    sizes: CallSizes
    """To capture at."""
    trained_len: int | None = None
    """The positions that the module was trained on, by its configuration."""
    budget: Budget
    """Of the checks; what it found for one holds for the others."""
    excluded: tuple[CallSizes, ...] = ()
    """Sizes that the guards of the capture exclude; the file is compared there, too."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The module's class."""
        return type(self.module).__name__


def prepare(
    module: nn.Module,
    example: Example | None,
    axes: Axes | None,
    inputs: Mapping[str, Input] | None = None,
    *,
    adaptable: Collection[str | Path] = (),
    options: ExportOptions,
) -> Subject:
    """Open the module and learn from calling it what the contract must say.

    The arguments are those of `export`.

    Raises:
        ExportError: It is random in eval mode, keeps state, or has no dynamic sequence axis.
        TypeError, ValueError: Arguments that do not fit the module.
    """
    mark = mark_weights(module) if isinstance(module, nn.Module) else ()
    opened = _open(
        module,
        example,
        axes,
        inputs,
        adaptable=adaptable,
        options=options,
    )
    source = opened.source
    # Every look goes to a copy: what a call leaves behind (a grown mask) must not be captured.
    specs = _look_at_inputs(source, opened.specs, is_batch_given=axes is not None)
    trained = trained_length(module)
    lengths = _find_lengths(source, specs, options.max_seq_len, trained)
    fixed_seq = lengths.fixed_seq
    sizes = capture_sizes(source.fresh(), specs, lengths.limit, fixed_seq)
    probe.refuse_random(source.fresh(), specs, sizes)
    probe.refuse_unused_layers(source.fresh(), specs, sizes)
    other = other_sizes(source.fresh(), specs, sizes, fixed_seq)
    outputs = describe_outputs(source.fresh(), specs, sizes, other, fixed_seq)
    if options.cache:
        _refuse_own_cache(module, specs, outputs)
    tokens = special_tokens(module, specs)
    warnings = [*opened.warnings, *lengths.warnings, *tokens.warnings]
    if not any(spec.axis_of("seq") is not None for spec in outputs):
        hint = f". {ALL_POSITIONS}" if any(spec.name == "logits" for spec in outputs) else ""
        warnings.append(
            f"no output has a sequence axis, so causality cannot be tested from outside{hint}"
        )
    return Subject(
        module=module,
        mark=mark,
        source=source,
        reference=opened.reference,
        full=opened.full,
        options=options,
        specs=specs,
        observed=Observed(
            output_names=tuple(spec.name for spec in outputs),
            longest=lengths.longest,
            fixed_seq=fixed_seq,
        ),
        contract=Contract(
            inputs=tuple(map(_described, specs)),
            outputs=outputs,
            max_seq_len=lengths.limit,
            free_axes=opened.free_axes,
            adapters=tuple(layer.pair for layer in source.adaptable.layers),
            causal_block=options.causal_block,
            min_seq_len=fixed_seq or 1,
            unbatched=probe.takes_unbatched(source.fresh(), specs, sizes),
            form=options.target,
            precision=opened.precision,
            opset=options.opset,
            eos_token_ids=tokens.eos,
            bos_token_id=tokens.bos,
            pad_token_id=tokens.pad,
        ),
        sizes=sizes,
        budget=Budget(opened.reference, specs, options.effort),
        trained_len=trained,
        warnings=tuple(warnings),
    )


def _refuse_own_cache(
    module: nn.Module, specs: Sequence[InputSpec], outputs: Sequence[TensorSpec]
) -> None:
    """A cache is derived for a module that has none.

    Raises:
        NotSupportedError: It takes past positions, and returns all of them.
    """
    past = [spec.name for spec in specs if "past_seq" in spec.axes.values()]
    present = [spec.name for spec in outputs if spec.axis_of("total_seq") is not None]
    if past:
        raise NotSupportedError(
            f"{type(module).__name__} has a cache already: it takes {', '.join(past)}"
            + (f" and returns {', '.join(present)}" if present else "")
            + ". Export it without cache=True, and stream with its own cache: start with a past of "
            "no positions, and pass to each call what the one before returned"
        )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The module taken apart, in the precision asked for."""

    source: Source
    reference: Source
    full: Source | None
    specs: tuple[InputSpec, ...]
    free_axes: tuple[FreeAxis, ...]
    precision: str
    warnings: list[str]


def _open(
    module: nn.Module,
    example: Example | None,
    axes: Axes | None,
    inputs: Mapping[str, Input] | None,
    *,
    adaptable: Collection[str | Path],
    options: ExportOptions,
) -> _Opened:
    precision = options.precision
    whole, specs = open_source(module, example, axes, inputs, adaptable)
    probe.refuse_broken(whole.fresh(), specs)
    specs = find_meanings(whole.fresh(), specs)
    free = tuple(
        FreeAxis(
            name=name,
            largest=None if name == ADAPTER_RANK else probe.find_free_limit(whole, specs, name),
        )
        for name in free_axes(specs)
    )
    filled = None
    if options.cache:
        whole, specs, filled = fill_padding(whole, specs)
    source, reference, specs, found, warnings = in_precision(whole, specs, precision)
    if filled is not None and filled != MASK:
        warnings.append(
            f"the padding mask {filled!r} is no input: the cache's {MASK!r} replaces it"
        )
    if options.max_drift is not None and whole is source:
        raise ValueError(f"the module is in {precision} already, so max_drift has nothing to bound")
    is_lower = precision != "fp32" and whole is not source
    return _Opened(
        source=source,
        reference=reference,
        full=whole.fresh().float() if is_lower else None,
        specs=specs,
        free_axes=free,
        precision=found,
        warnings=warnings,
    )


def _look_at_inputs(
    source: Source, specs: tuple[InputSpec, ...], *, is_batch_given: bool
) -> tuple[InputSpec, ...]:
    """`specs` with the batch axis that the module takes."""
    if not is_batch_given:
        specs = probe.with_batch(source.fresh(), specs)
    probe.refuse_rigid(source.fresh(), specs)
    return specs


@dataclass(frozen=True, kw_only=True)
class _FoundLengths:
    """Which lengths the module accepts."""

    longest: int | None
    """Its limit, or a lower one: what was asked for, or what it was trained on."""
    fixed_seq: int | None
    warnings: list[str]

    @property
    def limit(self) -> int | None:
        """What the contract says."""
        return self.longest if self.fixed_seq is None else self.fixed_seq


def _find_lengths(
    source: Source, specs: Sequence[InputSpec], max_seq_len: int | None, trained: int | None
) -> _FoundLengths:
    warnings = []
    limit = probe.find_max_seq_len(source.fresh(), specs)
    if max_seq_len is not None:
        if limit is not None and max_seq_len > limit:
            raise ValueError(
                f"max_seq_len is {max_seq_len}, but the module accepts at most {limit} positions"
            )
        limit = max_seq_len
        if trained is not None and limit > trained:
            warnings.append(
                f"max_seq_len is {limit}, but its configuration says that the module was trained "
                f"on {trained} positions: beyond them it may write nonsense"
            )
    elif trained is not None and trained < min(limit or LARGEST_AXIS, LARGEST_AXIS):
        limit = trained
    elif limit is not None:
        beyond = probe.at_length(source, specs, CallSizes(batch=1, seq=limit + 1))
        if beyond.takes is False and beyond.error is None:
            warnings.append(crops(source, limit))
    fixed = probe.find_fixed_seq(source.fresh(), specs)
    if fixed is not None:
        warnings.append(f"the module accepts sequences of {fixed} positions only, not shorter ones")
    return _FoundLengths(longest=limit, fixed_seq=fixed, warnings=warnings)


def crops(source: Source, limit: int) -> str:
    """The warning about a module that takes longer sequences and crops them."""
    return (
        f"the file refuses more than {limit} positions; {type(source.module).__name__} itself "
        "crops a longer sequence"
    )


def other_sizes(
    source: Source, specs: Sequence[InputSpec], sizes: CallSizes, fixed_seq: int | None = None
) -> CallSizes:
    """Sizes that differ from `sizes` in every axis that may, and that the module accepts.

    Raises:
        ExportError: It accepts no other length.
    """
    free = tuple((name, size - 1) for name, size in sizes.free)
    if fixed_seq is not None:
        return replace(sizes, batch=sizes.batch - 1, free=free)
    for seq in (sizes.seq - 1, sizes.seq - 2, sizes.seq + 1, 1):
        past = max(sizes.past - 2, 0)
        other = CallSizes(batch=sizes.batch - 1, seq=seq, past=past, free=free)
        if seq >= 1 and seq != other.batch and probe.runs(source, specs, other):
            return other
    raise ExportError(
        f"the module accepts a length of {sizes.seq}, but neither {sizes.seq - 1} nor "
        f"{sizes.seq + 1}; its sequence axis is not dynamic"
    )


def _described(spec: InputSpec) -> TensorSpec:
    axes = tuple(spec.axes.get(axis, size) for axis, size in enumerate(spec.example.shape))
    return TensorSpec(
        name=spec.name,
        dtype=dtype_name(spec.example.dtype),
        axes=axes,
        vocab_size=spec.vocab_size,
        kind=spec.contract_kind,
        value_range=spec.value_range,
    )
