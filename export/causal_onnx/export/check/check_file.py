"""The file: proved equal and causal as a draft, then let appear."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from causal_onnx.export.analysis.analyse import LENGTHS
from causal_onnx.export.attestation import attest
from causal_onnx.export.capture.isolation import (
    settled,
    trim_memory,
    with_callers_threads,
    without_gaps,
)
from causal_onnx.export.check.cache_chunks import prove_cache
from causal_onnx.export.check.causality import perturb
from causal_onnx.export.check.drift import measure_drift
from causal_onnx.export.check.expected import Expected
from causal_onnx.export.check.goldens import record_goldens
from causal_onnx.export.check.parity import Session, compare, compare_unbatched
from causal_onnx.export.check.same_bits import compare_bits
from causal_onnx.export.errors import CausalityError, DriftError, ExportError, ParityError
from causal_onnx.export.forms import Form
from causal_onnx.export.graph.bfloat16 import contract_of_twin, make_twin
from causal_onnx.export.lower import LOOPED
from causal_onnx.export.precision.activations import round_activations
from causal_onnx.export.precision.choose import CODED_BITS, INTEGER_PRODUCTS
from causal_onnx.export.precision.codes import FAST_LEVEL, set_accuracy_level
from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.export.report import (
    BitsReport,
    CacheReport,
    CausalityReport,
    DriftReport,
    ExportReport,
    ParityReport,
    Progress,
    QuantisationReport,
)
from causal_onnx.export.source.module import mark_weights
from causal_onnx.export.subject import Subject
from causal_onnx.export.write import (
    describe_source,
    read_back,
    source_document,
    staged,
    weights_in_memory,
    write_mapped,
    write_model,
)
from causal_onnx.runtime import load
from causal_onnx.runtime.contract import CERTIFICATE_KEY, CONTRACT_KEY, GOLDEN_KEY, Contract

__all__ = ["prove_and_write"]

PRODUCTS_NAMED = 3
"""In a report of drift: those that lose most."""

LARGE_FILE = 1 << 26
"""Bytes of a file for which it matters how it is loaded."""


def prove_and_write(form: Form, subject: Subject, path: Path, tell: Progress) -> ExportReport:
    """Prove the graph equal and causal, then let the file appear.

    Raises:
        ParityError: It differs from the source, or the cache from a full pass.
        CausalityError: A later input moves an earlier output.
        DriftError: It is further from fp32 than allowed.
    """
    with settled(), staged(path) as place:
        expected = Expected(
            subject.reference.fresh(), place.parent, keeps=subject.rounded is not None
        )
        quantisation = _check_codes(form, subject, place, expected, tell)
        draft = _drafted(form, subject, place, expected, tell)
        draft.write_for_checks()
        parity, cached = _check_equal(draft)
        # Of what follows the file keeps figures: they must not depend on the number of threads.
        session = draft.session(threads=1)
        drift = _check_drift(draft, session, parity)
        causality = _check_by_perturbing(draft, session)
        del session  # which holds the weights; the file is loaded once more
        bits = compare_bits(place, subject.specs, draft.ran) if subject.options.same_bits else None
        certificate = _check_by_proof(draft, causality)
        described = describe_source(subject.module)
        found = _Found(
            certificate=certificate,
            parity=parity,
            causality=causality,
            cache=cached,
            quantisation=quantisation,
            drift=drift,
            bits=bits,
        )
        tell("write", 0.0)
        size = _write_whole(draft, found, source_document(described))
        _refuse_changed(subject)
    tell("write", 1.0)
    return ExportReport(
        path=path,
        contract=form.contract,
        parity=parity,
        causality=causality,
        certificate=certificate,
        cache=cached,
        quantisation=quantisation,
        drift=drift,
        bits=bits,
        effort=subject.budget.effort,
        trained_len=subject.trained_len,
        assumed=tuple(text for spec in subject.specs if (text := spec.assumption) is not None),
        source=described,
        size_bytes=size,
        nodes=sum(1 for _ in form.model.graph.all_nodes()),
    )


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A form as a file that nobody reads yet."""

    form: Form
    subject: Subject
    path: Path
    runnable: ir.Model
    """What the CPU runs in the checks; bfloat16 it cannot."""
    ran: Contract
    """Of `runnable`."""
    expected: Expected
    tell: Progress

    @property
    def is_twin(self) -> bool:
        """What runs here is not what will appear."""
        return self.runnable is not self.form.model

    def write_for_checks(self) -> None:
        """Write what runs here, with weights that a session maps."""
        write_mapped(self.runnable, self.path, {CONTRACT_KEY: self.ran.to_json()})

    def session(self, *, threads: int | None = None) -> Session:
        """What was written for the checks, in onnxruntime, beside its weights in memory."""
        weights = weights_in_memory(self.runnable)
        return Session(self.path, self.ran, threads=threads, weights=weights)

    def write_runnable(self, metadata: dict[str, str]) -> int:
        """Write what runs here; returns its size in bytes."""
        contract = {CONTRACT_KEY: self.ran.to_json()}
        return write_model(self.runnable, self.path, metadata | contract)

    def write(self, metadata: dict[str, str]) -> int:
        """Write what will appear; returns its size in bytes."""
        contract = {CONTRACT_KEY: self.form.contract.to_json()}
        return write_model(self.form.model, self.path, metadata | contract)


def _drafted(
    form: Form, subject: Subject, path: Path, expected: Expected, tell: Progress
) -> _Draft:
    model, contract = form.model, form.contract
    is_twin = contract.precision == "bf16"
    return _Draft(
        form=form,
        subject=subject,
        path=path,
        runnable=make_twin(model) if is_twin else model,
        ran=contract_of_twin(contract) if is_twin else contract,
        expected=expected,
        tell=tell,
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the checks found, for the file to keep."""

    certificate: Certificate
    parity: ParityReport
    causality: CausalityReport
    cache: CacheReport | None
    quantisation: QuantisationReport | None
    drift: DriftReport | None
    bits: BitsReport | None

    def to_json(self) -> str:
        document = {
            **self.certificate.to_dict(),
            "parity": self.parity.to_record(),
            "causality": self.causality.to_record(),
            "cache": self.cache.to_record() if self.cache else None,
            "quantisation": self.quantisation.to_record() if self.quantisation else None,
            "drift": self.drift.to_record() if self.drift else None,
        }
        if self.bits is not None:
            document["bits"] = self.bits.to_dict()
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _check_codes(
    form: Form, subject: Subject, path: Path, expected: Expected, tell: Progress
) -> QuantisationReport | None:
    """Compare coded weights as tightly as fp32, with activations left alone; None: there are none.

    Afterwards the graph may round activations, too.

    Raises:
        ParityError: It differs from the source with the same rounded weights.
    """
    rounded = subject.rounded
    if rounded is None:
        return None
    exact = replace(form.contract, precision="fp32")
    write_mapped(form.model, path, {CONTRACT_KEY: exact.to_json()})
    with with_callers_threads():
        parity = compare(
            Session(path, exact, exact=True, weights=weights_in_memory(form.model)),
            expected.source,
            subject.specs,
            exact,
            lambda i, n: tell("compare", i / n),
            budget=subject.budget,
            expected=expected,
        )
    if not parity.passed:
        raise ParityError(
            "the graph with rounded weights disagrees with PyTorch with the same weights; no "
            f"file was written\n{parity.to_table()}",
            parity,
        )
    set_accuracy_level(form.model, FAST_LEVEL)
    if form.contract.precision == INTEGER_PRODUCTS:
        round_activations(form.model, form.contract.form)
    return QuantisationReport(
        bits=CODED_BITS[form.contract.precision],
        axes=rounded.axes,
        kept=rounded.kept,
        options=rounded.options,
        parity=parity,
    )


def _check_equal(draft: _Draft) -> tuple[ParityReport, CacheReport | None]:
    """Compare with the module in one pass, and in chunks where there is a cache."""
    session = draft.session()
    parity = _check_parity(draft, session)
    return parity, _check_cache(draft, session, parity) if draft.form.contract.cache else None


def _check_parity(draft: _Draft, session: Session) -> ParityReport:
    subject, contract = draft.subject, draft.form.contract
    with with_callers_threads():
        parity = compare(
            session,
            draft.expected.source,
            subject.specs,
            contract,
            lambda i, n: draft.tell("compare", i / n),
            also=subject.excluded,
            budget=subject.budget,
            expected=draft.expected,
        )
        if contract.unbatched and parity.passed:
            model = load(draft.path, huge_pages=False)
            parity = compare_unbatched(model, subject.reference.fresh(), subject.specs, parity)
    if contract.precision in CODED_BITS and _is_rounding(parity):
        drift = _measured_drift(draft, session)
        raise DriftError(
            f"{subject.name} in {contract.precision}: with activations rounded too, results are "
            f"off by {parity.max_error:.1e} of their scale, more than {parity.tolerance:g}; "
            f"{drift.summary()}; no file was written. {drift.remedy()}",
            parity,
            drift,
        )
    if not parity.passed:
        raise ParityError(
            f"the graph disagrees with {subject.name}; no file was written\n{parity.to_table()}",
            parity,
        )
    return parity


def _is_rounding(parity: ParityReport) -> bool:
    """Whether numbers alone differ in a file of coded weights: with activations left alone it was
    equal, so that their rounding did it."""
    errors = [case.error for case in parity.cases if not case.passed]
    return bool(errors) and all(map(math.isfinite, errors))


def _check_cache(draft: _Draft, session: Session, parity: ParityReport) -> CacheReport:
    subject = draft.subject
    with with_callers_threads():
        cached = prove_cache(
            session,
            subject.reference.fresh(),
            subject.specs,
            draft.form.contract,
            tolerance=parity.widest_tolerance,
            progress=lambda i, n: draft.tell("cache", i / n),
            budget=subject.budget,
        )
    if not cached.passed:
        raise ParityError(f"{subject.name}: {cached.summary()}; no file was written", parity)
    return cached


def _check_drift(draft: _Draft, session: Session, parity: ParityReport) -> DriftReport | None:
    """Bound the distance from fp32; None: the file is as precise as the module."""
    subject, contract = draft.subject, draft.form.contract
    if subject.full is None:
        return None
    draft.tell("drift", 0.0)
    drift = _measured_drift(draft, session)
    if not drift.passed:
        raise DriftError(
            f"{subject.name} in {contract.precision}: {drift.summary()}; no file was written"
            + (f". {drift.remedy()}" if contract.precision in CODED_BITS else ""),
            parity,
            drift,
        )
    return drift


def _measured_drift(draft: _Draft, session: Session) -> DriftReport:
    subject = draft.subject
    assert subject.full is not None
    full, contract = subject.full.fresh(), draft.form.contract
    drift = measure_drift(
        session,
        full,
        subject.specs,
        contract,
        subject.options.max_drift,
        effort=subject.budget.effort,
    )
    if subject.rounded is None:
        return drift
    errors = sorted(subject.rounded.errors.items(), key=lambda item: (-item[1], item[0]))
    return replace(drift, products=tuple(errors[:PRODUCTS_NAMED]))


def _check_by_perturbing(draft: _Draft, session: Session) -> CausalityReport:
    """Change later inputs: earlier outputs must stay."""
    subject, contract = draft.subject, draft.form.contract
    draft.tell("causality", 0.0)
    causality = perturb(
        session, subject.reference.fresh(), subject.specs, contract, budget=subject.budget
    )
    if causality.cases and not causality.is_causal:
        raise CausalityError(
            f"{subject.name} is {causality.summary()}; no file was written"
            f"{_weights_to_keep(subject, contract)}",
            causality,
        )
    return causality


def _weights_to_keep(subject: Subject, contract: Contract) -> str:
    """What to do where the activations that are rounded together may be of several positions.

    A weight that is multiplied by positions is as wide as the only length that its module takes.
    """
    length = contract.max_seq_len
    if subject.rounded is None or contract.min_seq_len != length:
        return ""
    parameters = dict(subject.reference.module.named_parameters())
    axes = subject.rounded.axes.items()
    names = [name for name, axis in axes if parameters[name].shape[axis] == length]
    if not names:
        return ""
    keep = ", ".join(f"{name!r}: 'fp32'" for name in names)
    those = "the weight" if len(names) == 1 else "those of the weights"
    return (
        f". The module itself is causal, but {contract.precision} rounds the activations before a "
        f"weight together, by the largest, and {those} {length} wide may multiply "
        f"positions: keep {'it' if len(names) == 1 else 'them'} wider, keep={{{keep}}}"
    )


def _check_by_proof(draft: _Draft, causality: CausalityReport) -> Certificate:
    """Read the graph as it is written: no node may let a later input reach an earlier output."""
    contract = draft.form.contract
    draft.tell("proof", 0.0)
    read = read_back(draft.form.model, {CONTRACT_KEY: contract.to_json()})
    found = attest(read, dynamic=False, lengths=_lengths_to_follow(contract))
    if found.verdict == "not_causal" or found.confirmation is not None:
        # What is said against it is said of the file, which is run then.
        draft.write({})
        found = attest(draft.path, dynamic=False, lengths=_lengths_to_follow(contract))
    if found.verdict == "not_causal":
        witness = f" ({found.offence.witness})" if found.offence is not None else ""
        raise CausalityError(
            f"{draft.subject.name}: the graph is not causal: {found.reason}{witness}; no file was "
            "written",
            causality,
        )
    return replace(found, static_seconds=0.0)  # no time: equal modules give equal files


def _refuse_changed(subject: Subject) -> None:
    """Its copies share the weights of the caller's module: nobody may have written into those.

    Raises:
        ExportError: Somebody did.
    """
    if mark_weights(subject.module) != subject.mark:
        raise ExportError(
            f"the weights of {subject.name} were changed while it was exported, so the file might "
            "hold neither the old nor the new ones; no file was written. If another thread trains "
            "the module, export a copy: export(copy.deepcopy(module), ...)"
        )


def _lengths_to_follow(contract: Contract) -> list[int] | None:
    """Lengths for the proof of a form in blocks: the usual ones, and those of more blocks."""
    top = contract.max_seq_len
    more = [n for n in LOOPED.get(contract.form, ()) if top is None or n <= top]
    return [*LENGTHS, *more] if more else None


def _write_whole(draft: _Draft, found: _Found, source: dict[str, str]) -> int:
    """Write the file with all that it says, once it replays its golden vectors; its bytes.

    Raises:
        ParityError: It does not.
    """
    subject, contract = draft.subject, draft.form.contract
    tolerance = 2 * found.parity.widest_tolerance
    goldens = record_goldens(
        subject.reference.fresh(), subject.specs, contract, tolerance=tolerance
    )
    metadata = {**source, GOLDEN_KEY: goldens.to_json(), CERTIFICATE_KEY: found.to_json()}
    size = draft.write_runnable(metadata)
    trim_memory()
    with without_gaps() if size >= LARGE_FILE else contextlib.nullcontext():
        # While a session is made of one file, the weights are there twice.
        replayed = load(draft.path, huge_pages=False).selftest()
    if draft.is_twin:
        size = draft.write(metadata)
    if not replayed.passed:
        raise ParityError(
            f"the written file fails its own golden vectors (error {replayed.max_error:.1e})",
            found.parity,
        )
    return size
