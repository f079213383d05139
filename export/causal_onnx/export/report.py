"""What an export found out: plain data, printable and JSON-able."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.runtime.artifact.golden import json_number
from causal_onnx.runtime.contract import Contract, describe_all

__all__ = [
    "BitsCase",
    "BitsReport",
    "CacheCase",
    "CacheReport",
    "CausalityCase",
    "CausalityReport",
    "DriftReport",
    "ExportReport",
    "Fallback",
    "ParityCase",
    "ParityReport",
    "Progress",
    "QuantisationReport",
]


EQUAL = 1e-3
"""Up to this tolerance, relative to an output's scale, results are called equal; beyond, they
agree, and the tolerance is told."""

Progress = Callable[[str, float], None]
"""Called with the name of the step and how much of it is done, 0.0 to 1.0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityCase:
    """One shape at which the artifact was compared with its source."""

    batch: int | None
    """None: the call had no batch axis."""
    seq: int
    error: float
    """Largest absolute error over the outputs, relative to the scale of each; inf: shape, dtype or
    NaN pattern differ, or exactly one side raised."""
    passed: bool
    refused: bool = False
    """The call was longer than `max_seq_len`, and the graph refused it, as it must."""
    note: str = ""
    """Why it failed, or what was special about the call."""
    from_float64: float | None = None
    """How far PyTorch itself is from the module in float64, where that is further than the
    tolerance; `error` is then the artifact's own distance from float64."""

    @property
    def remark(self) -> str:
        """The note, with the distances from float64 where those decided."""
        if self.from_float64 is None:
            return self.note
        text = f"{self.error:.1e} from float64, PyTorch itself {self.from_float64:.1e}"
        return f"{self.note}; {text}" if self.note else text


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """Equality of an artifact and its PyTorch source over a grid of shapes."""

    cases: tuple[ParityCase, ...]
    tolerance: float
    skipped: tuple[str, ...] = ()
    """Shapes that were not run, each with its reason."""
    roundings: int = 2
    """How many times as far from float64 as PyTorch the artifact may be."""

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def max_error(self) -> float:
        return max((case.error for case in self.cases), default=float("inf"))

    @property
    def widest_tolerance(self) -> float:
        """The tolerance, or `roundings` times what PyTorch itself is from float64 if it is more."""
        theirs = [case.from_float64 for case in self.cases if case.from_float64 is not None]
        return max([self.tolerance, *(self.roundings * error for error in theirs)])

    @property
    def longest(self) -> dict[int | None, int]:
        """The longest sequence that was compared, for each batch size."""
        found: dict[int | None, int] = {}
        for case in self.cases:
            if not case.refused:
                found[case.batch] = max(case.seq, found.get(case.batch, 0))
        return found

    def to_table(self) -> str:
        """A text table: one row per length, one column per batch size, cells the relative error."""
        batches = list(dict.fromkeys(case.batch for case in self.cases))
        lengths = sorted({case.seq for case in self.cases})
        cells = {(case.seq, case.batch): case for case in self.cases}
        heads = ["no batch" if batch is None else f"batch {batch}" for batch in batches]
        lines = ["   seq  " + "".join(f"{head:>12}" for head in heads)]
        for seq in lengths:
            row = [_cell(cells.get((seq, batch))) for batch in batches]
            lines.append(f"{seq:>6}  " + "".join(f"{cell:>12}" for cell in row))
        remarked: dict[tuple[int, str], list[str]] = {}
        for case in self.cases:
            if case.remark:
                remarked.setdefault((case.seq, case.remark), []).append(str(case.batch))
        notes = [
            f"  seq {seq}, batch {', '.join(rows)}: {remark}"
            for (seq, remark), rows in remarked.items()
        ]
        skipped = [f"  not run: {reason}" for reason in self.skipped]
        return "\n".join(lines + notes + skipped)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: an infinite error is None."""
        return {
            **_finite(self),
            "passed": self.passed,
            "max_error": json_number(self.max_error),
        }

    def to_record(self) -> dict[str, Any]:
        """What the file keeps: the shapes and the tolerance they passed, no measured error."""
        kept = ("batch", "seq", "passed", "refused", "note")
        return {
            "cases": [{name: getattr(case, name) for name in kept} for case in self.cases],
            "tolerance": self.tolerance,
            "skipped": list(self.skipped),
            "passed": self.passed,
        }


def _finite(report: ParityReport | CacheReport) -> dict[str, Any]:
    cases = [{**asdict(case), "error": json_number(case.error)} for case in report.cases]
    return {**asdict(report), "cases": cases}


def _told(record: dict[str, Any]) -> dict[str, Any]:
    """`record` without the list of what was skipped where that is empty."""
    skipped = record.pop("skipped")
    return record | ({"skipped": list(skipped)} if skipped else {})


def _rounded(value: float | None) -> float | None:
    """Two digits: what is left of a measured figure in the file."""
    return None if value is None else json_number(float(f"{value:.1e}"))


def _listed(longest: Mapping[int | None, int]) -> str:
    return ", ".join(
        f"{seq} without a batch" if batch is None else f"{seq} at batch {batch}"
        for batch, seq in longest.items()
    )


def _error(error: float, tolerance: float) -> str:
    allowed = "" if tolerance <= EQUAL else f", {tolerance:.0e} allowed"
    return f"largest error {error:.1e} of the output's scale{allowed}"


def _cell(case: ParityCase | None) -> str:
    if case is None:
        return "-"
    if case.refused:
        return "refused"
    return f"{case.error:.1e}" + ("" if case.passed else " !")


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalityCase:
    """One perturbation point: inputs from `cut` on were changed, and `outputs[:cut]` compared."""

    seq: int
    cut: int
    past_error: float
    """Largest relative change of outputs before that point; 0.0 is bit-identical."""
    source_past_error: float | None
    """The same in the PyTorch source; None: not run, as the artifact was bit-identical."""
    future_moved: bool
    """Changing the inputs from that point on changed some output from there on."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalityReport:
    """Causality by perturbation, over lengths and perturbation points."""

    cases: tuple[CausalityCase, ...]
    skipped: tuple[str, ...] = ()
    """Lengths that were not run, each with its reason."""

    @property
    def is_causal(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def bit_identical(self) -> bool:
        return all(case.past_error == 0.0 for case in self.cases)

    def summary(self) -> str:
        """The verdict on one line."""
        if self.is_causal:
            how = "bit-identical" if self.bit_identical else "equal up to the source's own rounding"
            points = f"perturbation point{'' if len(self.cases) == 1 else 's'}"
            return f"causal: {len(self.cases)} {points}, the past stayed {how}"
        bad = next((case for case in self.cases if not case.passed), None)
        if bad is None:
            return "not shown to be causal: no perturbation point was tested"
        if bad.past_error == 0.0:
            return (
                f"not shown to be causal: at length {bad.seq}, changing positions >= {bad.cut} "
                "moved no output at all"
            )
        return (
            f"NOT causal: at length {bad.seq}, changing positions >= {bad.cut} moved earlier "
            f"outputs by {bad.past_error:.1e} of their scale"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "is_causal": self.is_causal,
            "bit_identical": self.bit_identical,
            "summary": self.summary(),
        }

    def to_record(self) -> dict[str, Any]:
        """What the file keeps: the same, errors rounded to two digits."""
        cases = [
            {
                **asdict(case),
                "past_error": _rounded(case.past_error),
                "source_past_error": _rounded(case.source_past_error),
            }
            for case in self.cases
        ]
        return _told(self.to_dict() | {"cases": cases})


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCase:
    """One way of feeding a sequence through the cache, against PyTorch's full pass."""

    batch: int
    seq: int
    feeding: str
    error: float
    """Relative to the output's scale."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheReport:
    """Equality of all ways of feeding a sequence through the cache."""

    cases: tuple[CacheCase, ...]
    tolerance: float
    skipped: tuple[str, ...] = ()
    """Lengths that were not fed, each with its reason."""
    computed_once: str = ""
    """What the first call of a row computes for all of its calls, if anything; other values of the
    inputs that decide it were given to the later ones."""

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def max_error(self) -> float:
        return max((case.error for case in self.cases), default=float("inf"))

    def summary(self) -> str:
        """The verdict on one line."""
        if self.passed:
            return f"{self._equal()}, {_error(self.max_error, self.tolerance)}"
        bad = next((case for case in self.cases if not case.passed), None)
        if bad is None:
            return "cache: nothing was tested"
        return (
            f"cache: {bad.feeding} at batch {bad.batch}, length {bad.seq} is off by "
            f"{bad.error:.1e} of the output's scale"
        )

    def _equal(self) -> str:
        verb = "equal" if self.tolerance <= EQUAL else "agree with"
        once = f" ({self.computed_once})" if self.computed_once else ""
        return f"cache: {len(self.cases)} ways of feeding {verb} PyTorch's full pass{once}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: an infinite error is None."""
        return {
            **_finite(self),
            "passed": self.passed,
            "max_error": json_number(self.max_error),
            "summary": self.summary(),
        }

    def to_record(self) -> dict[str, Any]:
        """What the file keeps: how it was fed and the tolerance it passed, no measured error."""
        kept = ("batch", "seq", "feeding", "passed")
        return _told(
            {
                "cases": [{name: getattr(case, name) for name in kept} for case in self.cases],
                "tolerance": self.tolerance,
                "passed": self.passed,
                "summary": f"{self._equal()} within {self.tolerance:.0e} of the output's scale",
                "skipped": self.skipped,
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsCase:
    """One question about bits: calls that compute the same rows beside different others."""

    question: str
    compared: int
    """Pairs of calls."""
    differing: tuple[str, ...]
    """Of these the ones whose bits differ."""

    @property
    def is_same(self) -> bool:
        return self.compared > 0 and not self.differing


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsReport:
    """For which calls a row's bits do not depend on what else is computed."""

    cases: tuple[BitsCase, ...]
    onnxruntime: str
    """The version that computed them."""

    def summary(self) -> str:
        """What was seen, on one line."""
        same = [case.question for case in self.cases if case.is_same]
        other = [
            f"{case.question} ({', '.join(dict.fromkeys(case.differing))})"
            for case in self.cases
            if not case.is_same
        ]
        compared = sum(case.compared for case in self.cases)
        return (
            f"bits, over {compared} pairs of calls in onnxruntime {self.onnxruntime}: the same for "
            f"{'; '.join(same) or 'nothing'}; different for {'; '.join(other) or 'nothing'}"
        )

    def to_dict(self) -> dict[str, Any]:
        cases = [{**asdict(case), "is_same": case.is_same} for case in self.cases]
        return {"cases": cases, "onnxruntime": self.onnxruntime, "summary": self.summary()}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisationReport:
    """Which weights are quantised, and the proof that nothing else changed."""

    bits: int
    axes: Mapping[str, int]
    """Name of the parameter -> the axis along which its blocks run."""
    kept: tuple[str, ...]
    """What stays in full precision, with the reason."""
    parity: ParityReport
    """The graph against PyTorch with the same rounded weights, activations left alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was done, where the caller chose: "block_size", "rounding", and "wider": the bits of
    weights that were kept wider, by name. And "smoothing", where scale was moved into weights: by
    the name of the weight a letter for each channel of its input, which is divided by 2^k ("m": k
    is 0, "n": 1)."""

    def summary(self) -> str:
        """What was rounded, on one line."""
        return f"{self._equal()}, largest error {self.parity.max_error:.1e}"

    def _equal(self) -> str:
        compared = sum(not case.refused for case in self.parity.cases)
        wider = self.options.get("wider", {})
        kept = f", {len(self.kept)} kept" if self.kept else ""
        coded = [name for name, bits in wider.items() if bits < 32]
        how = f", {len(coded)} in 8" if coded else ""
        if "block_size" in self.options:
            how += f", in blocks of {self.options['block_size']}"
        if "rounding" in self.options:
            how += f", rounded by {self.options['rounding']}"
        if "smoothing" in self.options:
            how += f", {len(self.options['smoothing'])} behind smoothed activations"
        return (
            f"{len(self.axes) - len(coded)} weights in {self.bits} bits{how}{kept}; with the "
            f"rounded weights equal to PyTorch at {compared} shapes"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "axes": dict(self.axes),
            "kept": list(self.kept),
            **self.options,
            "parity": {
                "tolerance": self.parity.tolerance,
                "max_error": self.parity.max_error,
                "shapes": sum(not case.refused for case in self.parity.cases),
                "passed": self.parity.passed,
            },
            "summary": self.summary(),
        }

    def to_record(self) -> dict[str, Any]:
        """What the file keeps: the same without the measured error."""
        document = self.to_dict()
        del document["parity"]["max_error"]
        return {**document, "summary": f"{self._equal()} within {self.parity.tolerance:.0e}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """How far a file of lower precision is from its module in fp32."""

    positions: int
    """Positions that were compared."""
    relative_error: float
    """Root mean square of the difference over that of the outputs."""
    limit: float
    """Of `mean_kl` for a language model, else of `relative_error`."""
    max_logit_error: float | None = None
    """Language models only, as the following: the largest absolute difference of a logit."""
    mean_kl: float | None = None
    """KL divergence of the next-token distribution from the module's, in nats."""
    max_kl: float | None = None
    argmax_flips: int | None = None
    """Positions at which another token is the most likely one."""
    sampled_positions: int = 0
    """Of text that the module in fp32 wrote, instead of given text; 0: none was."""
    sampled_mean_kl: float | None = None
    """As `mean_kl`, on that text."""
    sampled_argmax_flips: int | None = None
    skipped: tuple[str, ...] = ()
    """Samples that were not taken, with the reason."""
    products: tuple[tuple[str, float], ...] = ()
    """Where activations are rounded: the weights whose products lose most by it and by the rounding
    of the weight, each with the error relative to the product (both as root mean squares)."""

    @property
    def drift(self) -> float:
        """The number that `limit` is for: the larger one of both texts."""
        if self.mean_kl is None:
            return self.relative_error
        if self.sampled_mean_kl is None:
            return self.mean_kl
        both = (self.mean_kl, self.sampled_mean_kl)
        return math.nan if any(map(math.isnan, both)) else max(both)

    @property
    def passed(self) -> bool:
        return self.drift <= self.limit  # False for NaN

    def summary(self) -> str:
        """What was measured, on one line."""
        start = f"drift from fp32 over {self.positions} positions: "
        end = f" (limit {self.limit:g})"
        worst = ", ".join(f"{name} {error:.1e}" for name, error in self.products)
        if worst:
            worst = f"; products that lose most: {worst}"
        if self.mean_kl is None:
            return f"{start}relative error {self.relative_error:.1e}{end}{worst}"
        sampled = ""
        if self.sampled_mean_kl is not None:
            sampled = (
                f"; over {self.sampled_positions} positions of its own text: mean KL "
                f"{self.sampled_mean_kl:.1e} nats, {self.sampled_argmax_flips} argmax flips"
            )
        return (
            f"{start}mean KL {self.mean_kl:.1e} nats{end}, largest {self.max_kl:.1e}, "
            f"{self.argmax_flips} argmax flips, largest logit error {self.max_logit_error:.1e}"
            f"{sampled}{worst}"
        )

    def remedy(self) -> str:
        """What to do where it is too much."""
        if not self.products:
            return "Use a wider precision, or keep some weights wider with keep="
        keep = ", ".join(f"{name!r}: 'fp32'" for name, _ in self.products)
        return (
            "Use a wider precision, or keep weights wider, those first whose products lose most: "
            f"keep={{{keep}}}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed, "summary": self.summary()}

    def to_record(self) -> dict[str, Any]:
        """What the file keeps: the same, figures rounded to two digits."""
        figures = ("relative_error", "max_logit_error", "mean_kl", "max_kl", "sampled_mean_kl")
        record = self.to_dict() | {name: _rounded(getattr(self, name)) for name in figures}
        del record["products"]
        if self.products:
            record["products"] = {name: _rounded(error) for name, error in self.products}
        return _told(record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """A better way of writing the graph that a rewrite does not support, so it was not used."""

    form: str
    """What was not written: for the whole graph "attention rewritten" or "cache for rows of
    different lengths"; for one attention that stays as captured, "attention" and its node."""
    reason: str

    def __str__(self) -> str:
        return f"{self.form}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """One finished export."""

    path: Path
    contract: Contract
    parity: ParityReport
    causality: CausalityReport
    certificate: Certificate
    """The static proof of the graph that was written."""
    cache: CacheReport | None = None
    """None: exported without a cache."""
    quantisation: QuantisationReport | None = None
    """None: no quantised weights."""
    drift: DriftReport | None = None
    """None: exported in the module's own precision."""
    bits: BitsReport | None = None
    """None: `same_bits` was not asked for."""
    trained_len: int | None = None
    """The positions that the module was trained on, by its configuration; the limit of the file,
    unless another was asked for. None: it does not say."""
    source: dict[str, Any] = field(default_factory=dict)
    """Class, versions and sha256 of the weights, as stored in the file."""
    size_bytes: int = 0
    nodes: int = 0
    effort: str = "normal"
    """What the checks were allowed to compute."""
    assumed: tuple[str, ...] = ()
    """What inputs were taken to stand for, and why; `inputs` of `export` says otherwise."""
    warnings: tuple[str, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    """What a rewrite does not support, so that the file has it in a plainer form."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was not run because it would compute more than the effort allows, by check."""
        parts = {
            "parity": self.parity.skipped,
            "causality": self.causality.skipped,
            "cache": self.cache.skipped if self.cache else (),
            "drift": self.drift.skipped if self.drift else (),
        }
        return tuple(f"{name}: {text}" for name, texts in parts.items() for text in texts)

    def __str__(self) -> str:
        limit, oldest = self.contract.max_seq_len, self.contract.min_onnxruntime
        verdict = self.certificate.verdict.replace("_", " ")
        offence = self.certificate.offence
        compared = sum(not case.refused for case in self.parity.cases)
        lines = [
            f"{self.path}  {self.size_bytes / 1e6:.2f} MB, {self.nodes} nodes, "
            f"opset {self.contract.opset}, max_seq_len {limit if limit else 'unlimited'}"
            + (f" (trained on {self.trained_len})" if self.trained_len is not None else "")
            + (f", onnxruntime >= {oldest}" if oldest is not None else ""),
            *(f"  in   {text}" for text in describe_all(self.contract.inputs)),
            *(f"  assumed {text}" for text in self.assumed),
            *(f"  out  {text}" for text in describe_all(self.contract.outputs)),
            *(
                [f"  ends a text at {', '.join(map(str, self.contract.eos_token_ids))}"]
                if self.contract.eos_token_ids
                else []
            ),
            *(
                f"  attention {text}" + (f"  x {count}" if count > 1 else "")
                for text, count in self.certificate.core_lines()
            ),
            f"  static proof: {verdict}, {self.certificate.scope}"
            + (f", at {offence}" if offence is not None else ""),
            f"  {self.causality.summary()}",
            *(
                f"  {part.summary()}"
                for part in (self.cache, self.quantisation, self.drift, self.bits)
                if part is not None
            ),
            f"  {'equal to' if self.parity.tolerance <= EQUAL else 'agrees with'} PyTorch at "
            f"{compared} shapes, {_error(self.parity.max_error, self.parity.tolerance)}",
            *(
                [f"  longest compared: {_listed(self.parity.longest)}"]
                if self.parity.skipped
                else []
            ),
            *(
                f"  not run, as the effort is {self.effort}: {text}"
                for text in self.skipped
                if not text.startswith("parity: ")  # `parity.to_table` has them
            ),
            *(f"  warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "nodes": self.nodes,
            "contract": self.contract.to_json(),
            "trained_len": self.trained_len,
            "source": self.source,
            "parity": self.parity.to_dict(),
            "causality": self.causality.to_dict(),
            "certificate": self.certificate.to_dict(),
            "cache": self.cache.to_dict() if self.cache else None,
            "quantisation": self.quantisation.to_dict() if self.quantisation else None,
            "drift": self.drift.to_dict() if self.drift else None,
            "effort": self.effort,
            "skipped": list(self.skipped),
            "assumed": list(self.assumed),
            "bits": self.bits.to_dict() if self.bits else None,
            "warnings": list(self.warnings),
            "fallbacks": [asdict(fallback) for fallback in self.fallbacks],
        }
