"""The steps that an entry, a mutant or a graph goes through, each one call that gives plain data.

These run in a worker process: what they do to it is nobody else's trouble.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from tools.judge.verdict import judge
from tools.zoo.check import File, Reference, check_file, differ, without_padding
from tools.zoo.chunks import check_chunks
from tools.zoo.leaks import graph_leak
from tools.zoo.plain import export_plainly, quiet, run_plain
from torch import nn

from causal_onnx.export import CausalityError, ExportError, ExportReport, ParityError, export
from causal_onnx.export.attestation import attest
from causal_onnx.export.capture.kept import reusing_captures
from causal_onnx.export.errors import RewriteError
from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.export.proof.symbolic.implication import logging_implications
from causal_onnx.runtime.contract import AXIS_NAMES
from tests.zoo import GRAPH_MUTANTS, GRAPHS, MUTANTS, ZooEntry, entry
from tests.zoo.mutants import Mutant
from tests.zoo.probes import Sizes, Subject, make_inputs, takes_past

__all__ = ["ENTRY_STEPS", "GRAPH_SOURCES", "MUTANT_STEPS", "run", "run_entry", "run_mutant"]

FORMS: dict[str, tuple[str, int | None]] = {
    "portable20": ("portable", 20),
    "tiled": ("tiled", None),
}
"""Besides the default form: target and opset, None for the target's own."""
ENTRY_STEPS = ("ours", "cached", *FORMS, "plain")
MUTANT_STEPS = ("export", "attest")
LEAK = 1e-4
"""A graph mutant that moves earlier outputs by less than this share is not broken in that graph."""

GRAPH_SOURCES = (
    "mask_tril_float_buffer",
    "attn_sdpa_is_causal",
    "attn_one_head_3d",
    "win_tril_minus_tril",
    "pos_alibi_relative",
    "attn_mha_bool_mask",
)
"""Entries whose graphs, from both exporters, are broken by the graph mutants."""


def run(kind: str, name: str, step: str, folder: str) -> dict[str, Any]:
    """One step of one subject, and what z3 says of its proofs; files go to `folder`."""
    torch.set_num_threads(1)
    work = Path(folder) / name
    work.mkdir(parents=True, exist_ok=True)
    with logging_implications() as log:
        result = _run(kind, name, step, work)
    return {**result, "implications": judge(log).to_dict()} if log.counts else result


def _run(kind: str, name: str, step: str, work: Path) -> dict[str, Any]:
    if kind == "entry":
        return run_entry(entry(name), step, work)
    if kind == "mutant":
        return run_mutant(next(m for m in MUTANTS if m.name == name), step, work)
    return run_graph(name, work)


@dataclass(frozen=True)
class _Held:
    """What the steps of one entry share."""

    reference: Reference
    module: nn.Module
    """What is exported, once for each step; never run otherwise."""
    captures: contextlib.ExitStack


_held: dict[str, _Held] = {}


def _hold(item: ZooEntry) -> _Held:
    """What the steps of this entry share; that of the entry before is let go."""
    if item.name not in _held:
        for held in _held.values():
            held.captures.close()
        _held.clear()
        captures = contextlib.ExitStack()
        captures.enter_context(reusing_captures())
        _held[item.name] = _Held(Reference(item), item.factory(), captures)
    return _held[item.name]


def run_entry(item: ZooEntry, step: str, work: Path) -> dict[str, Any]:
    """One step of one entry."""
    if step == "plain":
        return run_plain(work / "plain.onnx", _hold(item).reference)
    path = work / f"{step}.onnx"
    cache = step == "cached"
    target, opset = FORMS.get(step, ("ort", None))
    held = _hold(item)
    report, refusal = _exported(item, held.module, path, cache=cache, target=target, opset=opset)
    if report is None:
        return refusal
    reference = held.reference
    contract = report.contract
    own = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    if cache and len(own) < len(item.axes):
        reference = Reference(without_padding(item))
    with quiet():
        finding = check_file(path, reference)
        result = finding.to_dict()
        if cache and finding.status == "right":
            chunks = check_chunks(path, reference).to_dict()
            result |= {key: chunks[key] for key in ("status", "reason")}
            result["max_error"] = max(result["max_error"], chunks["max_error"])
        if step == "ours":
            result["certificate"] = _certificate(attest(path), item.footprint)
        elif step in FORMS and (work / "ours.onnx").exists() and finding.status == "right":
            apart = differ(work / "ours.onnx", path, reference)
            result["apart"] = apart
            if apart > 2 * reference.tolerance:
                reason = f"differs from the default form by {apart:.1e}"
                result |= {"status": "wrong", "reason": reason}
    result["warnings"] = [str(text)[:300] for text in report.warnings]
    result["fallbacks"] = [asdict(fallback) for fallback in report.fallbacks]
    return result


def _exported(
    item: Subject,
    module: nn.Module,
    path: Path,
    *,
    cache: bool = False,
    target: str = "ort",
    opset: int | None = None,
) -> tuple[ExportReport | None, dict[str, Any]]:
    """Our export with an example of other sizes than plain's, or why it was refused."""
    path.unlink(missing_ok=True)
    lengths = getattr(item, "lengths", None)
    seq = 5 if lengths is None else next(n for n in lengths if n >= 8)
    inputs = item.inputs(2, seq, 3) if takes_past(item) else item.inputs(2, seq)
    was_training = [part.training for part in module.modules()]
    try:
        with quiet():
            report = export(
                module,
                path,
                example=inputs,
                axes=item.axes,
                cache=cache,
                target=target,
                opset=opset,
            )
    except RewriteError as error:
        return None, {"status": "error", "reason": _line(error)}
    except ExportError as error:
        if path.exists():
            return None, {"status": "error", "reason": f"left a file behind: {_line(error)}"}
        return None, {
            "status": "refused",
            "reason": _line(error),
            "error": type(error).__name__,
            "names_place": names_place(str(error)),
        }
    if was_training != [part.training for part in module.modules()]:
        return None, {"status": "error", "reason": "the module was left in another mode"}
    return report, {}


def names_place(message: str) -> bool:
    """Whether a refusal says where: a line of code, or the quoted name of a submodule or node."""
    return bool(re.search(r"\.py:\d+|'[\w./:]+'|\"[\w./:]+\"", message))


def _certificate(certificate: Certificate, declared: str) -> dict[str, Any]:
    footprints = sorted({core.footprint for core in certificate.cores})
    return {
        "verdict": certificate.verdict,
        "confirmed": _confirmed(certificate),
        "every_length": certificate.every_length,
        "scope": certificate.scope,
        "reason": certificate.reason[:300],
        "offence": "" if certificate.offence is None else str(certificate.offence),
        "cores": len(certificate.cores),
        "footprints": footprints,
        "footprint_fits": footprint_fits(declared, footprints),
    }


def _confirmed(certificate: Certificate) -> bool | None:
    """Whether a run showed the leak that the static pass names; None where it names none."""
    found = certificate.confirmation
    return None if found is None else found.confirmed


def footprint_fits(declared: str, found: list[str]) -> bool | None:
    """Whether the cores see what the author says; None where one of them is silent."""
    if "other" in declared or not found:
        return None
    wanted = set()
    for part in declared.split(" / "):
        kind, _, width = part.partition(":")
        wanted.add({"window": f"causal window {width}", "full": "full"}.get(kind, "causal"))
    # Behind it stands how positions bias the scores: "causal, ALiBi".
    seen = set()
    for text in found:
        match = re.match(r"causal window \d+|causal\b", text)
        seen.add(match.group() if match else text)
    return seen == wanted


def run_mutant(item: Mutant, step: str, work: Path) -> dict[str, Any]:
    """Whether a broken module is found out, by export or by attesting its plain graph."""
    if step == "export":
        return _mutant_exported(item, work / "ours.onnx")
    path = work / "plain.onnx"
    path.unlink(missing_ok=True)
    try:
        export_plainly(item, path)
    except Exception as error:
        return {"status": "not exported", "reason": _line(error)}
    certificate = attest(path, axes=_axes_by_name(item, path))
    result = _certificate(certificate, item.declared)
    result["offence_operator"] = getattr(certificate.offence, "op_type", "")
    result["offence_module"] = getattr(certificate.offence, "module", "")
    if item.kind == "length":  # causal at every length, and told apart as not prefix-stable
        told = not certificate.is_prefix_stable
        return {**result, "status": "rejected" if told else "accepted", "named": None}
    if item.kind == "footprint":
        rejected = result["footprint_fits"] is False or certificate.verdict != "causal"
        return {**result, "status": "rejected" if rejected else "accepted", "named": None}
    rejected = certificate.verdict == "not_causal"
    undecided = certificate.verdict == "undecided"
    named = (
        f"{result['offence_module']}.".startswith(f"{item.breaks}.")
        or result["offence_operator"] in item.operators
    )
    status = "rejected" if rejected else "undecided" if undecided else "accepted"
    return {**result, "status": status, "named": named}


def _mutant_exported(item: Mutant, path: Path) -> dict[str, Any]:
    """Leaks must raise, lengths must not get a cache, footprints must be told as they are."""
    report, refusal = _exported(item, item.factory(), path, cache=item.kind == "length")
    if report is None:
        if refusal["status"] != "refused":
            return refusal
        named = item.breaks in refusal["reason"] if item.breaks else None
        return {**refusal, "status": "rejected", "named": named}
    found = _certificate(report.certificate, item.declared)
    if item.kind == "footprint" and found["footprint_fits"] is False:
        return {**found, "status": "rejected", "named": None}
    limit = report.contract.max_seq_len
    if limit is not None and limit < item.shows_from and _ends_at(path, item, limit):
        # The defect shows at no length that the file takes.
        return {**found, "status": "rejected", "named": None, "error": f"beyond {limit}"}
    return {**found, "status": "accepted", "named": None}


def _ends_at(path: Path, item: Subject, limit: int) -> bool:
    """Whether the file answers at `limit` tokens and at no more."""
    file = File(path)
    file(make_inputs(item, Sizes(2, limit)))
    try:
        file(make_inputs(item, Sizes(2, limit + 1)))
    except Exception:  # any error is a refusal
        return True
    return False


def _axes_by_name(item: Subject, path: Path) -> dict[str, dict[int, str]]:
    """What the axes of a plain graph's inputs are, which its names say for most."""
    names = [i.name for i in File(path).inputs]
    if len(names) != len(item.axes):
        return {}
    return {
        name: {axis: word for axis, word in axes.items() if word in AXIS_NAMES}
        for name, axes in zip(names, item.axes, strict=True)
    }


def run_graph(name: str, work: Path) -> dict[str, Any]:
    """Attest a good graph and every broken copy of it."""
    path = work / "good.onnx"
    origin, _, source = name.partition("-")
    axes = None
    if origin == "hand":
        good = next(g for g in GRAPHS if g.name == source).model()
    else:
        item = entry(source)
        if origin == "plain20":
            export_plainly(item, path, opset=20)
        elif origin == "plain24":
            export_plainly(item, path, opset=24)
        elif _exported(item, item.factory(), path)[0] is None:
            return {"status": "error", "reason": "not exported"}
        good = onnx.load(path)
        if origin != "ours":
            axes = _axes_by_name(item, path)
        del good.metadata_props[:]  # a contract would tell what to expect
    certificate = attest(good, axes=axes)
    result: dict[str, Any] = {
        "status": "accepted" if certificate.verdict == "causal" else certificate.verdict,
        **_certificate(certificate, "causal"),
        "mutants": [],
    }
    for mutation in GRAPH_MUTANTS:
        broken = mutation.mutate(good)
        if broken is None:
            continue
        leak = graph_leak(broken)
        if mutation.kind == "leak" and not leak > LEAK:
            continue  # no defect in this graph
        found = attest(broken, axes=axes)
        operator = getattr(found.offence, "op_type", "")
        if mutation.kind == "footprint":
            same = [c.footprint for c in found.cores] == [c.footprint for c in certificate.cores]
            rejected = found.verdict != "causal" or not same
        else:
            rejected = found.verdict == "not_causal"
        result["mutants"].append(
            {
                "name": mutation.name,
                "breaks": mutation.breaks,
                "verdict": found.verdict,
                "rejected": rejected,
                "operator": operator,
                "leak": leak,
                "confirmed": _confirmed(found),
            }
        )
    return result


def _line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, CausalityError | ParityError):
        text = text.splitlines()[0]
        if isinstance(error, ParityError):
            bad = next((case for case in error.report.cases if not case.passed), None)
            if bad is not None:
                text += f" (batch {bad.batch}, length {bad.seq}: {bad.error:.1e} {bad.note})"
    return f"{type(error).__name__}: {' '.join(text.split())}"[:600]
