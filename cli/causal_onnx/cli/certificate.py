"""Read the certificate that an export stored in its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime import ArtifactError

__all__ = [
    "CacheFinding",
    "CutCase",
    "GraphProof",
    "ShapeCase",
    "StoredCacheCase",
    "StoredCertificate",
    "read_certificate",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeCase:
    """One shape at which the file was compared with its PyTorch source."""

    batch: int | None
    """None: the call had no batch axis."""
    seq: int
    error: float | None
    """Relative to the output's scale; None: the file says only that it passed."""
    passed: bool
    refused: bool
    """Longer than the limit, and refused as it must be."""
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CutCase:
    """One change of everything from position `cut` on."""

    seq: int
    cut: int
    past_error: float
    """Largest change before the cut; 0 is bit-identical."""
    future_moved: bool
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCacheCase:
    """One way of feeding a sequence through the KV cache, compared with PyTorch's full pass."""

    batch: int
    seq: int
    feeding: str
    error: float | None
    """As of `ShapeCase`."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheFinding:
    """Equality of all ways of feeding."""

    passed: bool
    summary: str
    tolerance: float
    cases: tuple[StoredCacheCase, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphProof:
    """What following every element of the graph showed, without running it."""

    verdict: str
    """causal, not_causal or undecided."""
    scope: str
    """The lengths that it holds for."""
    reason: str
    offence: str
    """The first node that mixes positions; empty where there is none."""
    cores: tuple[str, ...]
    """Each kind of attention core in words, with how often it is there."""
    assumptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCertificate:
    """What the exporter stated about the file; parts that it left out are None or empty."""

    proof: GraphProof | None
    perturbed_causal: bool | None
    """Whether changing the future left the past alone."""
    causality_summary: str
    cuts: tuple[CutCase, ...]
    is_equal: bool | None
    max_error: float | None
    """None: the file keeps no measured errors, as files of earlier versions did."""
    tolerance: float
    shapes: tuple[ShapeCase, ...]
    skipped: tuple[str, ...]
    cache: CacheFinding | None
    precision: tuple[tuple[str, str], ...]
    """("weights", ...) where they are stored in few bits; ("drift", ...) from fp32."""

    @property
    def is_causal(self) -> bool | None:
        """The verdict of proof and perturbation together; None: neither decides."""
        verdict = None if self.proof is None else self.proof.verdict
        if verdict == "not_causal" or self.perturbed_causal is False:
            return False
        # That no change was seen to leak decides nothing where the proof is open.
        return None if verdict == "undecided" else bool(verdict or self.perturbed_causal) or None

    @property
    def verdict_text(self) -> str:
        """Why, on one line."""
        parts = []
        if self.proof is not None:
            verdict = self.proof.verdict.replace("_", " ")
            at = f", at {self.proof.offence}" if self.proof.offence else ""
            parts.append(f"the graph is {verdict} for {self.proof.scope}{at}")
        if self.causality_summary:
            parts.append(self.causality_summary)
        return "; ".join(parts) or "not stated"


def read_certificate(document: Mapping[str, Any] | None) -> StoredCertificate | None:
    """Read the certificate as the file's metadata holds it.

    Args:
        document: `Artifact.certificate`.

    Returns:
        None where the file carries none.

    Raises:
        ArtifactError: A section is damaged.
    """
    if document is None:
        return None
    try:
        causality = document.get("causality")
        parity = document.get("parity")
        cache = document.get("cache")
        return StoredCertificate(
            proof=_proof(document) if "verdict" in document else None,
            perturbed_causal=None if causality is None else bool(causality["is_causal"]),
            causality_summary="" if causality is None else str(causality["summary"]),
            cuts=() if causality is None else tuple(_cut(case) for case in causality["cases"]),
            is_equal=None if parity is None else bool(parity["passed"]),
            max_error=None if parity is None else _error(parity, "max_error"),
            tolerance=0.0 if parity is None else float(parity["tolerance"]),
            shapes=() if parity is None else tuple(_shape(case) for case in parity["cases"]),
            skipped=() if parity is None else _skipped(document, parity),
            cache=None if cache is None else _cache(cache),
            precision=tuple(
                (label, str(document[key]["summary"]))
                for label, key in _SUMMARIES
                if document.get(key) is not None
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"the certificate in the file is damaged: {error!r}") from error


def _skipped(document: Mapping[str, Any], parity: Mapping[str, Any]) -> tuple[str, ...]:
    """What the checks left out; sections other than parity say it only if there is something."""
    others = {name: document.get(name) or {} for name in ("causality", "cache", "drift")}
    return (
        *(str(text) for text in parity["skipped"]),
        *(f"{name}: {text}" for name, part in others.items() for text in part.get("skipped", ())),
    )


_SUMMARIES = (("weights", "quantisation"), ("drift", "drift"), ("bits", "bits"))
"""Label -> the section of the certificate that says it on one line."""


def _proof(document: Mapping[str, Any]) -> GraphProof:
    kinds = Counter(_core_text(core) for core in document.get("cores", ()))
    return GraphProof(
        verdict=str(document["verdict"]),
        scope=str(document["scope"]),
        reason=str(document["reason"]),
        offence=_offence_text(document.get("offence")),
        cores=tuple(text if count == 1 else f"{text} x {count}" for text, count in kinds.items()),
        assumptions=tuple(str(item["text"]) for item in document.get("assumptions", ())),
    )


def _core_text(core: Mapping[str, Any]) -> str:
    details = [str(core["op_type"])]
    heads, kv_heads, head_dim = (core.get(n) for n in ("num_heads", "num_kv_heads", "head_dim"))
    if heads is not None:
        over = f" over {kv_heads}" if kv_heads not in (None, heads) else ""
        count = "one head" if heads == 1 else f"{heads} heads"
        details.append(f"{count}{over}" + (f" of {head_dim}" if head_dim else ""))
    return f"{core['footprint']} ({', '.join(details)})"


def _offence_text(offence: Mapping[str, Any] | None) -> str:
    if offence is None:
        return ""
    place = ", ".join(str(offence[key]) for key in ("module", "line") if offence.get(key))
    return f'{offence["op_type"]} "{offence["node"]}"' + (f" ({place})" if place else "")


def _cache(section: Mapping[str, Any]) -> CacheFinding:
    return CacheFinding(
        passed=bool(section["passed"]),
        summary=str(section["summary"]),
        tolerance=float(section["tolerance"]),
        cases=tuple(
            StoredCacheCase(
                batch=int(case["batch"]),
                seq=int(case["seq"]),
                feeding=str(case["feeding"]),
                error=_error(case),
                passed=bool(case["passed"]),
            )
            for case in section["cases"]
        ),
    )


def _cut(case: Mapping[str, Any]) -> CutCase:
    return CutCase(
        seq=int(case["seq"]),
        cut=int(case["cut"]),
        past_error=float(case["past_error"]),
        future_moved=bool(case["future_moved"]),
        passed=bool(case["passed"]),
    )


def _shape(case: Mapping[str, Any]) -> ShapeCase:
    return ShapeCase(
        batch=None if case["batch"] is None else int(case["batch"]),
        seq=int(case["seq"]),
        error=_error(case),
        passed=bool(case["passed"]),
        refused=bool(case.get("refused", False)),
        note=str(case.get("note", "")),
    )


def _error(section: Mapping[str, Any], name: str = "error") -> float | None:
    return float(section[name]) if name in section else None
