"""The pipeline: module -> graph -> proof -> file. Reads top to bottom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from causal_onnx.export.analysis.analyse import LENGTHS
from causal_onnx.export.analysis.interpret import SizesRefusedError, StuckError
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.attest import attest
from causal_onnx.export.cache.derive import MASK, derive_cache
from causal_onnx.export.cache.last_logits import offer_last_only
from causal_onnx.export.cache.row_lookup import RaggedError
from causal_onnx.export.capture.capture import (
    NEWEST_OPSET,
    OLDEST_OPSET,
    Capture,
    capture_sizes,
)
from causal_onnx.export.capture.isolation import isolated, with_callers_threads
from causal_onnx.export.capture.kept import captures_of
from causal_onnx.export.check.blame import AsCaptured, changes_as_it_grows
from causal_onnx.export.check.cache_chunks import prove_cache
from causal_onnx.export.check.causality import perturb, perturb_source
from causal_onnx.export.check.drift import measure_drift
from causal_onnx.export.check.goldens import record_goldens
from causal_onnx.export.check.parity import Session, compare, compare_unbatched
from causal_onnx.export.errors import (
    CausalityError,
    DriftError,
    ExportError,
    NotSupportedError,
    ParityError,
    RewriteError,
    Stage,
)
from causal_onnx.export.graph.bfloat16 import compute_wide, contract_of_twin, make_twin
from causal_onnx.export.graph.cleanup import simplify, tidy
from causal_onnx.export.lower import LOOPED, lower, shared_pasts
from causal_onnx.export.outcome import short
from causal_onnx.export.passes import opset17
from causal_onnx.export.passes.fuse import fuse
from causal_onnx.export.passes.length_limit import enforce_max_seq_len
from causal_onnx.export.passes.position_matrices import compute_position_matrices
from causal_onnx.export.passes.tied_weights import share_transposed_weights
from causal_onnx.export.precision.choose import (
    CODED_BITS,
    PRECISIONS,
    default_opset,
    grid_for,
    in_precision,
)
from causal_onnx.export.precision.codes import FAST_LEVEL, quantise, set_accuracy_level
from causal_onnx.export.precision.rounding import Rounded, round_module, round_weights
from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.export.report import (
    CacheReport,
    CausalityReport,
    DriftReport,
    ExportReport,
    Fallback,
    ParityReport,
    QuantisationReport,
)
from causal_onnx.export.source import probe
from causal_onnx.export.source.inputs import InputSpec, Sizes
from causal_onnx.export.source.module import Axes, Example, Source, open_source
from causal_onnx.export.source.outputs import describe_outputs, dtype_name
from causal_onnx.export.source.padding_mask import fill_padding
from causal_onnx.export.torch_patches.user_code import line_of_error, quoted_line
from causal_onnx.export.write import describe_source, source_document, staged, write_model
from causal_onnx.runtime import load
from causal_onnx.runtime.artifact.drafts import check_target
from causal_onnx.runtime.contract import (
    CERTIFICATE_KEY,
    CONTRACT_KEY,
    GOLDEN_KEY,
    CachePair,
    Contract,
    TensorSpec,
)

__all__ = ["export", "verify"]

Progress = Callable[[str, float], None]
"""Called with the name of the step and how much of it is done, 0.0 to 1.0."""

OPSETS = {"ort": 24, "portable": 20, "tiled": 20}
"""Default opset per target. 24 writes SDPA as one `Attention` node, which onnxruntime >= 1.28 (all
this project runs on) computes right; 20 is read by every runtime of the last years."""


def export(
    module: nn.Module,
    path: str | Path,
    *,
    example: Example | None = None,
    axes: Axes | None = None,
    cache: bool = False,
    target: str = "ort",
    precision: str = "fp32",
    opset: int | None = None,
    max_seq_len: int | None = None,
    max_drift: float | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a causal attention module to one ONNX file, verified before the file appears.

    Args:
        module: Any module with causal self-attention. It is left exactly as it is: a copy in eval
            mode is exported.
        path: Where the file goes. Written whole or not at all; an older file stays on failure.
        example: A tensor, a tuple of tensors, or a dict of them by keyword; any sizes will do.
            None: the module has a method `example_input(batch, seq)`, or is a Hugging Face decoder.
        axes: One {axis: name} per input, names "batch" and "seq" ("past_seq", "total_seq" for
            modules with a cache of their own). None: integer 2-D is (batch, seq), float 3-D
            (batch, seq, features), float 2-D (seq, features).
        cache: Derive a KV cache: the file takes `past_key_values.{i}.key` and `.value` and gives
            `present.{i}.key` and `.value`, and serves prefill and decoding alike.
        target: "ort" (onnxruntime), "portable" (any ONNX runtime) or "tiled" (any, in blocks of
            queries: memory linear in the length).
        precision: "fp32", which leaves a module of another precision as it is (bfloat16 is widened
            to fp32); "fp16": weights, inputs, outputs and computation in half precision, compared
            with the module in fp32; "bf16": the same in bfloat16, to be run on CUDA, checked here
            on the CPU step by step in fp32 with each result rounded to bfloat16; "int8" or "int4":
            weights of few bits, compared with the module of the same rounded weights
            (docs/precision.md).
        opset: ONNX operator set, 17 to 25. None: 24 for "ort", 20 for the others.
        max_seq_len: A limit lower than the module's own. None: the module's own, found by its
            guards and by calling it.
        max_drift: How far a lower precision may move the results from fp32: mean KL divergence in
            nats of the next token for language models, else the relative error. None: 0.01 and
            0.02 for "fp16", 0.1 and 0.1 for "bf16", 0.05 and 0.1 for "int8", 0.5 and 0.5 for
            "int4".
        progress: Called with (step, fraction done).

    Returns:
        What was written and what was found.

    Raises:
        ExportError: The module cannot be captured, is random in eval mode, or has no dynamic
            sequence axis; names the line and the remedy.
        ParityError: The graph disagrees with the module; carries the table. No file appears. A
            RewriteError among them is a defect of this package: the graph as captured agrees.
        DriftError: A ParityError: the precision costs more than `max_drift`. No file appears.
        CausalityError: A later input moves an earlier output; carries the cuts. No file appears.
        TypeError, ValueError: Arguments that do not fit.
        OSError: The file cannot be written there; the module was not called.
    """
    path = Path(path)
    opset = _check_arguments(path, target, precision, opset, max_seq_len)
    _check_max_drift(max_drift, precision)
    tell = progress or (lambda step, fraction: None)
    with isolated():
        tell("probe", 0.0)
        subject = _prepare(
            module,
            example,
            axes,
            cache=cache,
            max_seq_len=max_seq_len,
            target=target,
            precision=precision,
            opset=opset,
            max_drift=max_drift,
        )
        leak = perturb_source(subject.reference.fresh(), subject.specs, subject.contract)
        errors: list[ExportError] = []
        tell("capture", 0.0)
        for capture, within in _valid_captures(subject, module, precision, opset, errors):
            plain = capture.model.clone()
            try:
                if leak is not None:
                    raise CausalityError(
                        f"{type(module).__name__} is {leak.summary()}; no file was written", leak
                    )
                return _finish(capture, within, path, module, cache=cache, tell=tell)
            except CausalityError as error:  # another capture of the same module would do the same
                raise _naming_the_node(error, plain, within.contract) from None
            except (DriftError, RewriteError):
                raise  # as would this, or it would hide a defect
            except ExportError as error:
                errors.append(error)
    raise _farthest(errors)


def _valid_captures(
    subject: _Subject,
    module: nn.Module,
    precision: str,
    opset: int,
    errors: list[ExportError],
) -> Iterator[tuple[Capture, _Subject]]:
    """Captures, each with the subject as far as it is valid; those valid for less come last.

    Args:
        subject: What is captured.
        module: The caller's.
        precision: As asked for.
        opset: As asked for.
        errors: Takes what the other ways ended in.
    """
    lesser: list[tuple[Capture, _Subject]] = []
    for attempt in captures_of(
        subject.source,
        subject.specs,
        subject.sizes,
        opset=max(opset, OLDEST_OPSET),
        module=module,
        precision=precision,
    ):
        if isinstance(attempt, ExportError):
            errors.append(attempt)
            continue
        try:
            within, is_less = _within_domain(attempt, subject)
        except ExportError as error:
            errors.append(error.at(Stage.DOMAIN))
            continue
        if is_less:
            lesser.append((attempt, within))
        else:
            yield attempt, within
    yield from sorted(lesser, key=lambda item: -(item[1].contract.max_seq_len or 0))


def _farthest(errors: Sequence[ExportError]) -> ExportError:
    """The error of the way that came farthest, with what the others said as notes."""
    chosen = max(errors, key=lambda error: error.stage)  # of equals the first
    said = {str(chosen)}
    for other in errors:
        text = str(other)
        if other.stage is not Stage.NOT_TRIED and text not in said:
            chosen.add_note(f"another way of capturing it: {text.splitlines()[0][:300]}")
            said.add(text)
    return chosen


def _naming_the_node(error: CausalityError, plain: ir.Model, contract: Contract) -> CausalityError:
    """`error` with the node of the captured graph, its operator and line, where the proof finds it.

    `plain` is the graph as captured, in which nodes still have the names and lines of the source.
    """
    if not any(case.past_error for case in error.report.cases if not case.passed):
        return error  # nothing moved at all, which no node does
    found = attest(plain, max_seq_len=contract.max_seq_len)
    violation = found.offence if found.verdict == "not_causal" else None
    if violation is not None:
        # A trace ends in PyTorch's own layers, and begins in the wrapper that is captured.
        node = next((n for n in plain.graph if n.name == violation.node), None)
        trace = "" if node is None else node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
        place = violation.module.removeprefix("module").removeprefix(".")
        violation = replace(violation, module=place, line=quoted_line(trace) or violation.line)
    if violation is None:
        text = f"the static proof of the captured graph names no node (it says {found.verdict})"
    else:
        text = f"the first node that mixes positions is {violation}: {violation.reason}"
    return CausalityError(f"{error}. In the graph, {text}", error.report, violation)


def verify(
    module: nn.Module,
    path: str | Path,
    *,
    example: Example | None = None,
    axes: Axes | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare an existing file with a module over a grid of shapes.

    Args:
        module: The source that the file should equal; left as it is.
        path: A file with a contract, as `export` writes it.
        example: As for `export`.
        axes: As for `export`.
        progress: Called with (step, fraction done).

    Raises:
        ArtifactError: The file has no contract or is damaged.
        DeviceError: The file is in bfloat16, which the CPU cannot run.
        ValueError: Module and contract differ in their inputs or outputs.
    """
    path = Path(path)
    model = load(path)
    contract = model.contract
    tell = progress or (lambda step, fraction: None)
    with isolated():
        subject = _prepare(
            module,
            example,
            axes,
            cache=bool(contract.cache),
            max_seq_len=contract.max_seq_len,
            target=contract.form,
            precision=contract.precision if contract.precision in PRECISIONS else "fp32",
            opset=contract.opset,
        )
        _check_same_interface(contract, subject.contract)
        grid = grid_for(contract.precision, contract.form, contract.opset or 0)
        if grid is not None:
            found = (model.certificate or {}).get("quantisation") or {}
            round_module(subject.reference.module, found.get("axes", {}), grid)
        session = Session(path, contract)
        with with_callers_threads():
            return compare(
                session,
                subject.reference.fresh(),
                subject.specs,
                contract,
                lambda i, n: tell("compare", i / n),
            )


def _check_arguments(
    path: Path, target: str, precision: str, opset: int | None, max_seq_len: int | None
) -> int:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if target not in OPSETS:
        raise ValueError(f"target must be one of {', '.join(OPSETS)}, got {target!r}")
    if opset is None:
        opset = default_opset(OPSETS[target], precision)
    if not opset17.OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset must be in [{opset17.OPSET}, {NEWEST_OPSET}], got {opset}")
    if max_seq_len is not None and max_seq_len < 2:
        raise ValueError(f"max_seq_len must be at least 2, got {max_seq_len}")
    grid_for(precision, target, opset)
    check_target(path)
    if path.is_dir():
        raise ValueError(f"path must name a file, {path} is a folder; try {path / 'model.onnx'}")
    return opset


def _check_max_drift(max_drift: float | None, precision: str) -> None:
    if max_drift is not None and not max_drift > 0:
        raise ValueError(f"max_drift must be positive, got {max_drift}")
    if max_drift is not None and precision == "fp32":
        raise ValueError("max_drift is for a lower precision; fp32 is compared within 1e-5 anyway")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A module under export, and what calling it told."""

    source: Source
    """What is captured."""
    reference: Source
    """What the file must equal."""
    full: Source | None = None
    """In fp32, where the file's precision is lower: what drift is measured from."""
    rounded: Rounded | None = None
    """The weights that `reference` and the captured graph hold rounded."""
    max_drift: float | None = None
    specs: tuple[InputSpec, ...]
    contract: Contract
    sizes: Sizes
    """To capture at."""
    is_limit_asked: bool
    """The caller gave `max_seq_len`: a graph that is valid for less will not do."""
    excluded: tuple[Sizes, ...] = ()
    """Sizes that the guards of the capture exclude; the file is compared there, too."""
    warnings: tuple[str, ...]


def _prepare(
    module: nn.Module,
    example: Example | None,
    axes: Axes | None,
    *,
    cache: bool,
    max_seq_len: int | None,
    target: str,
    precision: str,
    opset: int | None,
    max_drift: float | None = None,
) -> _Subject:
    """Open the module and learn from calling it what the contract must say."""
    source, specs = open_source(module, example, axes)
    filled = None
    if cache:
        probe.refuse_broken(source.fresh(), specs)
        source, specs, filled = fill_padding(source, specs)
    asked, full = precision, source
    source, reference, specs, precision, warnings = in_precision(source, specs, precision)
    if filled is not None and filled != MASK:
        warnings.append(
            f"the padding mask {filled!r} is no input: the cache's {MASK!r} replaces it"
        )
    if max_drift is not None and full is source:
        raise ValueError(f"the module is in {asked} already, so max_drift has nothing to bound")
    # Every look goes to a copy: what a call leaves behind (a grown mask) must not be captured.
    probe.refuse_broken(source.fresh(), specs)
    if axes is None:
        specs = probe.with_batch(source.fresh(), specs)
    probe.refuse_rigid(source.fresh(), specs)
    specs = probe.find_vocabularies(source.fresh(), specs)
    limit = probe.find_max_seq_len(source.fresh(), specs)
    if max_seq_len is not None:
        if limit is not None and max_seq_len > limit:
            raise ValueError(
                f"max_seq_len is {max_seq_len}, but the module accepts at most {limit} positions"
            )
        limit = max_seq_len
    elif limit is not None:
        beyond = probe.at_length(source, specs, Sizes(batch=1, seq=limit + 1))
        if beyond.takes is False and beyond.error is None:
            warnings.append(_crops(source, limit))
    source.longest = limit
    source.fixed_seq = probe.find_fixed_seq(source.fresh(), specs)
    if source.fixed_seq is not None:
        limit = source.fixed_seq
        warnings.append(f"the module accepts sequences of {limit} positions only, not shorter ones")
    sizes = capture_sizes(source.fresh(), specs, limit)
    probe.refuse_random(source.fresh(), specs, sizes)
    other = _other_sizes(source.fresh(), specs, sizes)
    outputs = describe_outputs(source.fresh(), specs, sizes, other)
    source.output_names = tuple(spec.name for spec in outputs)
    contract = Contract(
        inputs=tuple(
            TensorSpec(
                name=spec.name,
                dtype=dtype_name(spec.example.dtype),
                axes=tuple(
                    spec.axes.get(axis, size) for axis, size in enumerate(spec.example.shape)
                ),
                vocab_size=spec.vocab_size,
            )
            for spec in specs
        ),
        outputs=outputs,
        max_seq_len=limit,
        min_seq_len=source.fixed_seq or 1,
        unbatched=probe.takes_unbatched(source.fresh(), specs, sizes),
        form=target,
        precision=precision,
        opset=opset,
    )
    if not any(spec.axis_of("seq") is not None for spec in outputs):
        warnings.append("no output has a sequence axis, so causality cannot be tested from outside")
    return _Subject(
        source=source,
        reference=reference,
        full=full.fresh().float() if asked != "fp32" and full is not source else None,
        max_drift=max_drift,
        specs=specs,
        contract=contract,
        sizes=sizes,
        is_limit_asked=max_seq_len is not None,
        warnings=tuple(warnings),
    )


def _other_sizes(source: Source, specs: Sequence[InputSpec], sizes: Sizes) -> Sizes:
    """Sizes that differ from `sizes` in every axis, and that the module accepts."""
    if source.fixed_seq is not None:
        return replace(sizes, batch=sizes.batch - 1)
    for seq in (sizes.seq - 1, sizes.seq - 2, sizes.seq + 1, 1):
        other = Sizes(batch=sizes.batch - 1, seq=seq, past=max(sizes.past - 2, 0))
        if seq >= 1 and seq != other.batch and probe.runs(source, specs, other):
            return other
    raise ExportError(
        f"the module accepts a length of {sizes.seq}, but neither {sizes.seq - 1} nor "
        f"{sizes.seq + 1}; its sequence axis is not dynamic"
    )


def _finish(
    capture: Capture,
    subject: _Subject,
    path: Path,
    module: nn.Module,
    *,
    cache: bool,
    tell: Progress,
) -> ExportReport:
    """Turn one capture into a verified file, in the best form that supports what is in it.

    Raises:
        NotSupportedError: No form does.
        RewriteError: A form disagrees with the module, and the capture does not.
        ParityError: The capture itself disagrees with the module.
    """
    contract = subject.contract
    untouched = capture.model.clone()
    simplify(capture.model)
    if contract.precision != "bf16":
        for model in (untouched, capture.model):
            compute_wide(model)  # some modules of fp32 make a bias in bfloat16
    grid = grid_for(contract.precision, contract.form, contract.opset or 0)
    if grid is not None:
        reference = subject.reference.fresh()
        rounded = round_weights(capture.model, reference.module, grid)
        if not rounded.axes:
            raise ExportError(
                f"{type(module).__name__} has no weight to store in {grid.bits} bits: "
                f"{'; '.join(rounded.kept) or 'it multiplies by none'}"
            )
        subject = replace(subject, reference=reference, rounded=rounded)
        untouched = (
            capture.model.clone()
        )  # which weights are rounded is read off the simplified one
    fallbacks: list[Fallback] = []
    for form in _forms(capture, contract, cache=cache):
        if isinstance(form, Fallback):
            fallbacks.append(form)
            continue
        try:
            report = _prove_and_write(form, subject, path, module, tell)
        except (CausalityError, DriftError):
            raise  # no form changes what the module computes, nor what the weights are
        except ExportError as error:
            as_captured = AsCaptured(
                model=untouched,
                contract=contract,
                source=subject.reference,
                specs=subject.specs,
            )
            blamed = _blamed(error, form, as_captured, path, module)
            if blamed is error:
                raise
            raise blamed from error
        notes = [f"{_CONSEQUENCES[fallback.form]}: {fallback.reason}" for fallback in fallbacks]
        found = (*subject.warnings, *notes)
        return replace(report, warnings=found, fallbacks=(*fallbacks, *form.left))
    raise NotSupportedError(fallbacks[0].reason)


def _blamed(
    error: ExportError, form: _Form, as_captured: AsCaptured, path: Path, module: nn.Module
) -> ExportError:
    """What to raise for a form that failed its proof: `error`, if the capture fails it too."""
    if not as_captured.agrees(path):
        return error
    name, target = type(module).__name__, form.contract.form
    parity = error.report if isinstance(error, ParityError) else ParityReport(cases=(), tolerance=0)
    if form.contract.cache and parity.passed:
        growth = changes_as_it_grows(
            as_captured.source.fresh(), as_captured.specs, as_captured.contract
        )
        if growth:
            return ParityError(
                f"no cache can be derived: {name} changes earlier outputs as a sequence grows "
                f"({growth}); no file was written. Positions counted from the end, or a division "
                f"by the length, must go\n{error}",
                parity,
            )
    place = as_captured.first_difference(form.model, form.contract, parity)
    other = next(name for name in ("portable", "ort") if name != target)
    return RewriteError(
        f"a defect of causal-onnx, please report it: {form.name} for target={target!r} disagrees "
        f"with {name}, and the graph as captured does not"
        f"{f'; first at {place}' if place else ''}. No file was written. "
        f"Until then try target={other!r}: other operators, under the same proof\n{error}",
        parity,
    )


@dataclass(frozen=True, kw_only=True)
class _Form:
    """One way of writing a captured graph."""

    name: str
    model: ir.Model
    contract: Contract
    left: tuple[Fallback, ...] = ()
    """Attention that stays as captured."""


_REWRITTEN, _RAGGED = "attention rewritten", "cache for rows of different lengths"
_CONSEQUENCES = {
    _REWRITTEN: "attention is written as captured",
    _RAGGED: "rows of one call must be equally long",
}


def _forms(capture: Capture, contract: Contract, *, cache: bool) -> Iterator[_Form | Fallback]:
    """The forms to try, best first; in the place of one that is not supported, why it is not.

    Without a cache: the captured graph with its attention rewritten; then as it is. With one: for
    rows of different lengths; then, where that is what is not supported, for rows of one length.

    A form is left out on a typed refusal alone: whatever else a rewrite raises is a defect.
    """
    best = _RAGGED if cache else _REWRITTEN
    refusals = (NotSupportedError, SizesRefusedError, StuckError)
    try:
        yield _rewritten(best, capture.model.clone(), contract, cache=cache, ragged=True)
    except refusals as error:
        yield Fallback(form=best, reason=_reason(error))
        if cache and not isinstance(error, RaggedError):
            return
    try:
        if cache:
            name = "cache for rows of one length"
            yield _rewritten(name, capture.model.clone(), contract, cache=True)
        else:
            model = _finished(capture.model, contract)
            yield _Form(name="the graph as captured, made smaller", model=model, contract=contract)
    except refusals as error:
        yield Fallback(form="", reason=_reason(error))


def _reason(error: Exception) -> str:
    is_typed = isinstance(error, NotSupportedError)
    return str(error) if is_typed else f"not analysable: {error}"


def _rewritten(
    name: str, model: ir.Model, contract: Contract, *, cache: bool = False, ragged: bool = False
) -> _Form:
    fuse(model, contract.form, contract.max_seq_len)
    cores, others = canonicalise(model, contract.max_seq_len)
    if cache:
        derived = derive_cache(
            model, cores, others, max_seq_len=contract.max_seq_len, ragged=ragged
        )
        mask = derived.mask
        shared = shared_pasts(model, contract.form)
        contract = replace(
            contract,
            inputs=(*contract.inputs, *([] if mask is None else [mask]), *derived.past),
            outputs=(*contract.outputs, *derived.present),
            cache=tuple(
                CachePair(
                    past=past.name,
                    present=present.name,
                    bounded=bounded,
                    shared=past.name in shared,
                )
                for past, present, bounded in zip(
                    derived.past, derived.present, derived.bounded, strict=True
                )
            ),
            mask=None if mask is None else mask.name,
        )
        last = offer_last_only(model, contract, derived.row_past, derived.row_total)
        contract = replace(contract, last_only=last)
    left = tuple(
        Fallback(form=f"attention at {node.op_type} {node.name!r}", reason=reason)
        for node, reason in others.items()
    )
    lower(model, contract.form, contract.max_seq_len)
    return _Form(name=name, model=_finished(model, contract), contract=contract, left=left)


def _finished(model: ir.Model, contract: Contract) -> ir.Model:
    """The last passes, the same for every form."""
    compute_position_matrices(model)
    share_transposed_weights(model)
    grid = grid_for(contract.precision, contract.form, contract.opset or 0)
    if grid is not None:
        quantise(model, contract.form, grid)
    if contract.max_seq_len is not None:
        if contract.mask is not None:
            named = next(spec for spec in contract.inputs if spec.name == contract.mask)
            axis, past = named.axis_of("total_seq"), None
        else:
            named = next(spec for spec in contract.inputs if spec.axis_of("seq") is not None)
            axis = named.axis_of("seq")
            past = next(
                (
                    (s.name, s.axes.index("past_seq"))
                    for s in contract.inputs
                    if "past_seq" in s.axes
                ),
                None,
            )
        assert axis is not None
        enforce_max_seq_len(
            model, input_name=named.name, axis=axis, limit=contract.max_seq_len, past=past
        )
    if contract.opset == opset17.OPSET:
        opset17.to_opset_17(model)
    tidy(model)
    return model


def _prove_and_write(
    form: _Form,
    subject: _Subject,
    path: Path,
    module: nn.Module,
    tell: Progress,
) -> ExportReport:
    """Prove the graph equal and causal, then let the file appear.

    Raises:
        ParityError: It differs from the source, or the cache from a full pass.
        CausalityError: A later input moves an earlier output.
        DriftError: It is further from fp32 than allowed.
    """
    model, contract, specs = form.model, form.contract, subject.specs
    with staged(path) as draft:
        metadata = {CONTRACT_KEY: contract.to_json()}
        quantisation = None
        if subject.rounded is not None:
            quantisation = _prove_codes(form, subject, draft, subject.rounded, tell)
            set_accuracy_level(model, FAST_LEVEL)
        # What the CPU runs in the checks; bfloat16 it cannot.
        is_twin = contract.precision == "bf16"
        runnable = make_twin(model) if is_twin else model
        ran = contract_of_twin(contract) if is_twin else contract
        write_model(runnable, draft, metadata | {CONTRACT_KEY: ran.to_json()})
        session = Session(draft, ran)
        with with_callers_threads():
            parity = compare(
                session,
                subject.reference.fresh(),
                specs,
                contract,
                lambda i, n: tell("compare", i / n),
                also=subject.excluded,
            )
            if contract.unbatched and parity.passed:
                parity = compare_unbatched(load(draft), subject.reference.fresh(), specs, parity)
        if not parity.passed:
            raise ParityError(
                f"the graph disagrees with {type(module).__name__}; no file was written\n"
                f"{parity.to_table()}",
                parity,
            )
        cached = None
        if contract.cache:
            with with_callers_threads():
                cached = prove_cache(
                    session,
                    subject.reference.fresh(),
                    specs,
                    contract,
                    tolerance=parity.tolerance,
                    progress=lambda i, n: tell("cache", i / n),
                )
            if not cached.passed:
                raise ParityError(
                    f"{type(module).__name__}: {cached.summary()}; no file was written", parity
                )
        del session
        # Of what follows the file keeps figures: they must not depend on the number of threads.
        session = Session(draft, ran, threads=1)
        drift = None
        if subject.full is not None:
            tell("drift", 0.0)
            full = subject.full.fresh()
            drift = measure_drift(session, full, specs, contract, subject.max_drift)
            if not drift.passed:
                raise DriftError(
                    f"{type(module).__name__} in {contract.precision}: {drift.summary()}; no file "
                    "was written",
                    parity,
                    drift,
                )
        tell("causality", 0.0)
        causality = perturb(session, subject.reference.fresh(), specs, contract)
        if causality.cases and not causality.is_causal:
            raise CausalityError(
                f"{type(module).__name__} is {causality.summary()}; no file was written",
                causality,
            )
        tell("proof", 0.0)
        if is_twin:
            write_model(model, draft, metadata)
        # No time: equal modules give equal files.
        found = attest(draft, dynamic=False, lengths=_lengths_to_follow(contract))
        if found.verdict == "not_causal":
            raise CausalityError(
                f"{type(module).__name__}: the graph is not causal: {found.reason}"
                + (f" ({found.offence.witness})" if found.offence is not None else "")
                + "; no file was written",
                causality,
            )
        certificate = replace(found, static_seconds=0.0)
        goldens = record_goldens(
            subject.reference.fresh(), specs, contract, tolerance=2 * parity.tolerance
        )
        described = describe_source(module)
        metadata |= source_document(described)
        metadata[GOLDEN_KEY] = goldens.to_json()
        metadata[CERTIFICATE_KEY] = _certificate(
            certificate,
            parity=parity,
            causality=causality,
            cached=cached,
            quantisation=quantisation,
            drift=drift,
        )
        write_model(runnable, draft, metadata | {CONTRACT_KEY: ran.to_json()})
        replayed = load(draft).selftest()
        size = write_model(model, draft, metadata)
        if not replayed.passed:
            raise ParityError(
                f"the written file fails its own golden vectors (error {replayed.max_error:.1e})",
                parity,
            )
    tell("done", 1.0)
    return ExportReport(
        path=path,
        contract=contract,
        parity=parity,
        causality=causality,
        certificate=certificate,
        cache=cached,
        quantisation=quantisation,
        drift=drift,
        source=described,
        size_bytes=size,
        nodes=sum(1 for _ in model.graph.all_nodes()),
    )


def _prove_codes(
    form: _Form, subject: _Subject, draft: Path, rounded: Rounded, tell: Progress
) -> QuantisationReport:
    """Compare the graph as tightly as one in fp32, with activations left as they are.

    Raises:
        ParityError: It differs from the source with the same rounded weights.
    """
    exact = replace(form.contract, precision="fp32")
    write_model(form.model, draft, {CONTRACT_KEY: exact.to_json()})
    with with_callers_threads():
        parity = compare(
            Session(draft, exact, exact=True),
            subject.reference.fresh(),
            subject.specs,
            exact,
            lambda i, n: tell("compare", i / n),
        )
    if not parity.passed:
        raise ParityError(
            "the graph with coded weights disagrees with PyTorch with the same rounded weights; no "
            f"file was written\n{parity.to_table()}",
            parity,
        )
    bits = CODED_BITS[form.contract.precision]
    return QuantisationReport(bits=bits, axes=rounded.axes, kept=rounded.kept, parity=parity)


def _within_domain(capture: Capture, subject: _Subject) -> tuple[_Subject, bool]:
    """`subject` as far as the guards of `capture` allow, and whether the module itself goes on.

    Guards that are a plain upper bound on the length become the limit of the file.

    Raises:
        ExportError: They allow less in another way, or less than the caller asked for; names the
            guard, and what the module says at the sizes in question.
    """
    contract, module = subject.contract, type(subject.source.module).__name__
    top = contract.max_seq_len
    bound = capture.domain.bound(least=contract.min_seq_len, top=top)
    if bound is not None:
        beyond = probe.at_length(subject.source, subject.specs, bound.sizes)
        place = beyond.error and line_of_error(beyond.error)
        said = {
            None: f"too dear to ask {module} itself",
            True: f"{module} itself takes that",
            False: f"{module} itself does not take that whole"
            if beyond.error is None
            else f"{module} itself raises {short(beyond.error)}"
            + (f" at {place}" if place else ""),
        }[beyond.takes]
        where = f"batch {bound.sizes.batch}, seq {bound.sizes.seq}"
        if bound.sizes.past:
            where += f", past {bound.sizes.past}"
        text = f"the captured graph is not valid at {where} ({bound.guard}); {said}"
        if not bound.is_plain or bound.largest < max(2, contract.min_seq_len):
            raise ExportError(
                f"{text}. A file takes any batch and every length up to its limit. Remedy: build "
                "masks and positions from x.shape, without Python branches on the batch or length"
            )
        if subject.is_limit_asked:
            raise ExportError(
                f"max_seq_len is {top}, but {text}. Remedy: ask for at most {bound.largest}, or "
                "build masks and positions from x.shape, without Python branches on the length"
            )
        contract = replace(contract, max_seq_len=bound.largest)
    warnings, is_less = list(subject.warnings), bound is not None and beyond.takes is not False
    if capture.is_warm:
        warnings.append(
            f"the module grows buffers on demand; they were filled to {contract.max_seq_len} "
            "positions and stand in the file"
        )
    elif is_less:
        warnings.append(f"the file takes at most {contract.max_seq_len} positions: {text}")
    elif bound is not None and beyond.error is None:
        warnings.append(_crops(subject.source, bound.largest))
    limit = contract.max_seq_len
    excluded = [s for s in capture.domain.excluded if limit is None or s.past + s.seq < limit]
    within = replace(subject, contract=contract, warnings=tuple(warnings), excluded=tuple(excluded))
    return within, is_less


def _crops(source: Source, limit: int) -> str:
    return (
        f"the file refuses more than {limit} positions; {type(source.module).__name__} itself "
        "crops a longer sequence"
    )


def _lengths_to_follow(contract: Contract) -> list[int] | None:
    """Lengths for the proof of a form in blocks: the usual ones, and those of more blocks."""
    top = contract.max_seq_len
    more = [n for n in LOOPED.get(contract.form, ()) if top is None or n <= top]
    return [*LENGTHS, *more] if more else None


def _certificate(
    certificate: Certificate,
    *,
    parity: ParityReport,
    causality: CausalityReport,
    cached: CacheReport | None,
    quantisation: QuantisationReport | None,
    drift: DriftReport | None,
) -> str:
    document = {
        **certificate.to_dict(),
        "parity": parity.to_record(),
        "causality": causality.to_record(),
        "cache": cached.to_record() if cached else None,
        "quantisation": quantisation.to_record() if quantisation else None,
        "drift": drift.to_record() if drift else None,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _check_same_interface(contract: Contract, expected: Contract) -> None:
    for kind in ("inputs", "outputs"):
        derived = contract.optional_names | contract.present_names  # by the export, not the module
        specs = [spec for spec in getattr(contract, kind) if spec.name not in derived]
        ours = [(spec.name, spec.dtype, spec.axes) for spec in specs]
        theirs = [(spec.name, spec.dtype, spec.axes) for spec in getattr(expected, kind)]
        if ours != theirs:
            raise ValueError(
                f"the file's {kind} are {_listed(getattr(contract, kind))}; the module's are "
                f"{_listed(getattr(expected, kind))}. Pass the example and axes of the export"
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(spec.describe() for spec in specs)
