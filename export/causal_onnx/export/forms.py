"""The forms in which one captured graph can be written, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from causal_onnx.export.analysis.interpret import SizesRefusedError, StuckError
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.cache.derive import DerivedCache, derive_cache
from causal_onnx.export.cache.last_logits import offer_last_only
from causal_onnx.export.cache.row_lookup import RaggedError
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.cleanup import tidy
from causal_onnx.export.graph.onnxruntime_versions import oldest_onnxruntime
from causal_onnx.export.lower import lower, shared_pasts, write_depthwise
from causal_onnx.export.passes import opset17
from causal_onnx.export.passes.fuse import fuse
from causal_onnx.export.passes.length_limit import enforce_max_seq_len
from causal_onnx.export.passes.position_matrices import compute_position_matrices
from causal_onnx.export.passes.tied_weights import (
    multiply_by_transposed_weights,
    share_transposed_weights,
)
from causal_onnx.export.passes.transposed_products import part_transposes
from causal_onnx.export.precision.codes import quantise
from causal_onnx.export.precision.grid import Grid
from causal_onnx.export.report import Fallback
from causal_onnx.runtime.contract import ORT_FORMS, CachePair, Contract, TensorSpec

__all__ = ["Form", "forms_of", "say_consequence"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way of writing a captured graph."""

    name: str
    model: ir.Model
    contract: Contract
    left: tuple[Fallback, ...] = ()
    """Attention that stays as captured, and what has no smaller state than all its inputs."""


_AGAIN = "all its inputs are kept, and its results are computed from them again in each call"
_DECODED = "onnxruntime does not find coded weights that are decoded inside a branch"
_EVERY_CALL = "what inputs without positions decide is computed in every call"
_REWRITTEN, _RAGGED = "attention rewritten", "cache for rows of different lengths"
_CONSEQUENCES = {
    _REWRITTEN: "attention is left as captured",
    _RAGGED: "rows of one call must be equally long",
}


def say_consequence(fallback: Fallback) -> str:
    """What it means for the file that the next form was taken, and why it was."""
    return f"{_CONSEQUENCES[fallback.form]}: {fallback.reason}"


def forms_of(
    model: ir.Model, contract: Contract, *, cache: bool, grids: Sequence[Grid] = ()
) -> Iterator[Form | Fallback]:
    """The forms to try, best first; in the place of one that is not supported, why it is not.

    Without a cache: the captured graph with its attention rewritten; then as it is. With one: for
    rows of different lengths; then, where that is what is not supported, for rows of one length.

    A form is left out on a typed refusal alone: whatever else a rewrite raises is a defect.

    Args:
        model: The captured graph, simplified; the last form takes it over.
        contract: Of the module, without a cache.
        cache: Whether one is derived.
        grids: On which rounded weights lie.
    """
    best = _RAGGED if cache else _REWRITTEN
    refusals = (NotSupportedError, SizesRefusedError, StuckError)
    try:
        yield _rewritten(best, model.clone(), contract, grids, cache=cache, ragged=True)
    except refusals as error:
        yield Fallback(form=best, reason=_reason(error))
        if cache and not isinstance(error, RaggedError):
            return
    try:
        if cache:
            name = "cache for rows of one length"
            yield _rewritten(name, model.clone(), contract, grids, cache=True)
        else:
            contract = _finish(model, contract, grids)
            yield Form(name="the graph as captured, made smaller", model=model, contract=contract)
    except refusals as error:
        yield Fallback(form="", reason=_reason(error))


def _reason(error: Exception) -> str:
    is_typed = isinstance(error, NotSupportedError)
    return str(error) if is_typed else f"not analysable: {error}"


def _rewritten(
    name: str,
    model: ir.Model,
    contract: Contract,
    grids: Sequence[Grid],
    *,
    cache: bool = False,
    ragged: bool = False,
) -> Form:
    """Write attention anew, for the target, with a cache or without; changes `model`."""
    again: list[Fallback] = []
    fuse(model, contract.form, contract.max_seq_len)
    cores, others = canonicalise(model, contract.max_seq_len, for_cache=cache)
    if cache:
        derived = derive_cache(
            model,
            cores,
            others,
            max_seq_len=contract.max_seq_len,
            ragged=ragged,
            use_contrib=contract.form in ORT_FORMS,
            steady=[spec.name for spec in contract.inputs if _is_steady(spec)],
            unfit=_DECODED if _decodes(contract.form, grids) else None,
        )
        cores = [*derived.cores]
        contract = _with_cache(contract, derived, shared_pasts(model, cores, contract.form))
        order = [value.name for value in model.graph.outputs]
        assert order == [spec.name for spec in contract.outputs], order
        again += [Fallback(form=f"the state of {node}", reason=_AGAIN) for node in derived.again]
        if derived.not_once is not None:
            again.append(Fallback(form=_EVERY_CALL, reason=derived.not_once))
        last = offer_last_only(model, contract, derived.row_past, derived.row_total)
        contract = replace(contract, last_only=last)
    left = tuple(
        Fallback(form=f"attention at {node.op_type} {node.name!r}", reason=reason)
        for node, reason in others.items()
    )
    lower(model, cores, contract.form, contract.max_seq_len)
    if cache:
        write_depthwise(model)
    contract = _finish(model, contract, grids)
    return Form(name=name, model=model, contract=contract, left=(*left, *again))


def _with_cache(contract: Contract, derived: DerivedCache, shared: frozenset[str]) -> Contract:
    mask = derived.mask
    pairs = zip(derived.past, derived.present, derived.bounded, strict=True)
    return replace(
        contract,
        inputs=(*contract.inputs, *([] if mask is None else [mask]), *derived.past),
        outputs=(*(_over_keys(spec, derived) for spec in contract.outputs), *derived.present),
        cache=tuple(
            CachePair(
                past=past.name,
                present=present.name,
                bounded=bounded,
                shared=past.name in shared,
                computed_from=derived.computed_from.get(past.name, ()),
            )
            for past, present, bounded in pairs
        ),
        mask=None if mask is None else mask.name,
    )


def _decodes(form: str, grids: Sequence[Grid]) -> bool:
    """Whether coded weights are decoded by a node of their own."""
    return bool(grids) and (form not in ORT_FORMS or any(grid.per_row for grid in grids))


def _is_steady(spec: TensorSpec) -> bool:
    """Whether a sequence has one value of an input: lengths mean more with each call."""
    return spec.kind != "lengths" and not {"seq", "past_seq", "total_seq"} & set(spec.axes)


def _over_keys(spec: TensorSpec, derived: DerivedCache) -> TensorSpec:
    """Attention weights have a row for each new position and a column for each position so far."""
    keys = derived.weights.get(spec.name)
    if keys is None:
        return spec
    return replace(spec, axes=(*spec.axes[:keys], "total_seq", *spec.axes[keys + 1 :]))


def _finish(model: ir.Model, contract: Contract, grids: Sequence[Grid]) -> Contract:
    """Run the last passes, the same for every form; the contract with what the graph then needs."""
    compute_position_matrices(model)
    share_transposed_weights(model)
    part_transposes(model)
    if grids:
        quantise(model, contract.form, grids)
    if contract.form in ORT_FORMS:
        multiply_by_transposed_weights(model)
    if contract.max_seq_len is not None:
        _limit(model, contract, contract.max_seq_len)
    if contract.opset == opset17.OPSET:
        opset17.to_opset_17(model)
    tidy(model)
    return replace(contract, min_onnxruntime=oldest_onnxruntime(model))


def _limit(model: ir.Model, contract: Contract, limit: int) -> None:
    """Let the graph refuse more than `limit` positions, wherever it reads the length."""
    past = None
    if contract.mask is not None:
        named = next(spec for spec in contract.inputs if spec.name == contract.mask)
        axis = named.axis_of("total_seq")
    else:
        named = next(spec for spec in contract.inputs if spec.axis_of("seq") is not None)
        axis = named.axis_of("seq")
        pasts = (s for s in contract.inputs if "past_seq" in s.axes)
        past = next(((s.name, s.axes.index("past_seq")) for s in pasts), None)
    assert axis is not None
    enforce_max_seq_len(model, input_name=named.name, axis=axis, limit=limit, past=past)
