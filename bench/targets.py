"""The goals of the project's speed, each beside what the last whole runs reached.

`python -m bench.targets` prints the table of bench/results.json and writes it into bench/README.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bench import cold_start, serving
from bench.attention import section as attention
from bench.client import ROOT
from bench.generation import section as generation
from bench.generation.cases import BATCH, BATCH_ROW, WORKS
from bench.generation.overhead import OVERHEAD
from bench.generation.overhead import ROW as STEP
from bench.generation.starts import OURS, TORCH
from bench.generation.starts import ROW as START
from bench.markdown import threads_text
from bench.readme import rewrite_page
from bench.results import Section, read_results
from bench.serving_clients import CHUNK, CLIENTS, DECODING
from bench.serving_peers import LlamaServer, OnnxGenaiServer, OpenVino
from bench.sizes import FULL

__all__ = ["Target", "main", "targets", "to_markdown"]

RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "bench" / "README.md"
MARKER = "targets"

SLACK = 0.995
"""What is printed with two digits as the bound itself counts as reached."""

MODULE = "attention, dim 768, 12 heads, batch 1"
MODEL = "Llama-style 135M"

AT_MOST = "at most x"
"""A unit: how many times as much; less is better."""

Found = TypeVar("Found", bound=Section)

Bounds = tuple[float, float | None]
"""At least, and the aim where there is one."""

PREFILL, LONG, DECODE = (str(work) for work in WORKS)

_ROWS = {BATCH_ROW: f"{BATCH} together"}
_TITLES = {
    "ours-fp32": "fp32",
    "ours-int4": "int4 in blocks of 32",
    "ours-int4-128": "int4 in blocks of 128",
    "ours-w8a8": "int8 (w8a8)",
    "apart-fp32": "one after another",
    "apart-int4": "one after another",
    "apart-w8a8": "one after another",
    "tuned-fp32": "onnxruntime-genai fp32, tuned",
    "tuned-int4": "onnxruntime-genai int4 in blocks of 32, tuned",
    "tuned-int4-128": "onnxruntime-genai int4 in blocks of 128, tuned",
    "eager-fp32": "PyTorch + transformers fp32",
    "llama-q8_0": "llama.cpp Q8_0",
    "llama-q4_0": "llama.cpp Q4_0",
    "llama-f32": "llama.cpp F32",
}

_WORKS: tuple[tuple[str, str, str, Bounds], ...] = (
    (PREFILL, "ours-w8a8", "ours-fp32", (1.8, 2.2)),
    (PREFILL, "ours-w8a8", "tuned-fp32", (1.8, 2.2)),
    (PREFILL, "ours-w8a8", "tuned-int4", (1.8, 2.2)),
    (PREFILL, "ours-w8a8", "llama-q8_0", (3.5, 4.5)),
    (PREFILL, "ours-int4-128", "llama-q4_0", (1.25, 1.5)),
    (PREFILL, "ours-int4-128", "tuned-int4-128", (1.3, 2.0)),
    (PREFILL, "ours-fp32", "tuned-fp32", (1.3, 2.0)),
    (LONG, "ours-w8a8", "tuned-fp32", (1.3, 2.0)),
    (LONG, "ours-fp32", "tuned-fp32", (1.3, 2.0)),
    (LONG, "ours-int4", "tuned-int4", (1.3, 2.0)),
    (DECODE, "ours-int4", "tuned-int4", (1.0, 1.1)),
    (DECODE, "ours-int4-128", "tuned-int4-128", (1.0, 1.1)),
    (DECODE, "ours-w8a8", "llama-q8_0", (0.8, 1.05)),
    (DECODE, "ours-fp32", "llama-f32", (0.95, 1.05)),
    (DECODE, "ours-fp32", "tuned-fp32", (1.0, None)),
    (DECODE, "ours-fp32", "eager-fp32", (1.4, None)),
    (DECODE, "ours-int4", "eager-fp32", (3.0, 5.0)),
    (BATCH_ROW, "ours-w8a8", "apart-w8a8", (4.0, 5.0)),
    (BATCH_ROW, "ours-w8a8", "ours-int4", (1.3, 1.6)),
    (BATCH_ROW, "ours-fp32", "apart-fp32", (3.0, 6.0)),
    (BATCH_ROW, "ours-int4", "apart-int4", (3.0, 6.0)),
)
EQUAL = 1.02
"""Drifts that are printed alike are equal."""
_EQUAL_DRIFT_PLACE = 10
"""Among them: before the other decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One row. All numbers say how many times better than the other; more is better."""

    work: str
    against: str
    at_least: float | None
    aim: float | None
    found: Mapping[str, float]
    """Where -> how many times better; empty: not measured."""
    unit: str = "x"
    """ "us": the numbers are microseconds, and less is better, as with `AT_MOST`."""
    reason: str = ""
    """Why it was not measured."""

    @property
    def verdict(self) -> str:
        """ "aim", "at least", "missed", or "not measured"."""
        if not self.found:
            return "not measured"
        for name, bound in (("aim", self.aim), ("at least", self.at_least)):
            if bound is not None and all(self._reaches(x, bound) for x in self.found.values()):
                return name
        return "missed"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound * SLACK if self.unit == "x" else value <= bound / SLACK

    def to_row(self) -> str:
        """The row as Markdown; what is missed, and every loss, in bold."""
        verdict = self.verdict
        if not self.found and self.reason:
            verdict += f": {self.reason}"
        marked = f"**{verdict}**" if verdict == "missed" else verdict
        bounds = [self._bound(self.at_least), self._bound(self.aim)]
        return f"| {' | '.join([self.work, self.against, *bounds, self.shown, marked])} |"

    @property
    def shown(self) -> str:
        """What was found, with losses in bold."""
        shown = [f"{self._number(x)} {where}".strip() for where, x in self.found.items()]
        return ", ".join(shown) or "-"

    def _number(self, value: float) -> str:
        if self.unit == "us":
            return f"{value:.0f} us"
        text = f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
        return f"**{text}**" if value < SLACK and self.unit == "x" else text

    def _bound(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:g} us" if self.unit == "us" else f"{self.unit[:-1]}{value:g}x"


def targets(sections: Mapping[str, Any]) -> list[Target]:
    """All rows, from the sections of results.json; those of a missing section are empty."""
    return [
        *_module_rows(_read(sections, "attention", attention.Section)),
        *_model_rows(_read(sections, "generation", generation.Section)),
        *_start_rows(_read(sections, cold_start.SECTION, cold_start.StartSection)),
        *_serving_rows(_read(sections, serving.SECTION, serving.ServingSection)),
    ]


def to_markdown(sections: Mapping[str, Any]) -> str:
    """The table, and where each part of it was measured."""
    lines = [
        "How many times faster or smaller causal-onnx is, at the worst place of each row; losses "
        "are in bold. One thread: processor time; two threads: wall time.",
        "",
        "| work | against | at least | aim | measured | reached |",
        "|--|--|--:|--:|--|--|",
        *(row.to_row() for row in targets(sections)),
        "",
    ]
    for name, title in (
        ("attention", "The module"),
        ("generation", "The model"),
        (cold_start.SECTION, "Starts of the model"),
        (serving.SECTION, "The server"),
    ):
        found = sections.get(name)
        if found is None:
            lines.append(f"{title}: not measured yet.")
            continue
        machine = found["machine"]
        lines.append(
            f"{title}: {found['date'][:10]}, revision {machine['revision'] or 'unknown'}, "
            f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} when it "
            "began."
        )
    return "\n".join(lines)


def _module_rows(section: attention.Section | None) -> list[Target]:
    def worst(base: str, keep: Callable[[int], bool]) -> dict[str, float]:
        """The lowest speed over the lengths, by number of threads."""
        found: dict[str, float] = {}
        for row in section.times if section else ():
            if row.subject == "ours" and row.batch == 1 and base in row.ratios and keep(row.seq):
                where = _where(row.threads)
                speed = 1 / row.ratios[base][1]
                found[where] = min(speed, found.get(where, speed))
        return found

    def smaller(base: str) -> dict[str, float]:
        own = section.footprint("ours", 1, 8192) if section else None
        other = section.footprint(base, 1, 8192) if section else None
        return {"": other.extra_bytes / own.extra_bytes} if own and other else {}

    rows: list[Target] = []
    for against, base, bounds in (
        ("PyTorch eager SDPA", "eager", ((1.0, None), (1.0, None))),
        *(
            (
                f"plain `torch.onnx.export`, opset {opset}",
                f"plain{opset}",
                ((1.0, None), (1.5, 2.5)),
            )
            for opset in (20, 24)
        ),
    ):
        work = "the same," if rows else f"{MODULE}, lengths"
        short, long = (worst(base, keep) for keep in (lambda n: n <= 512, lambda n: n > 512))
        rows.append(_target(f"{work} 1 to 512", against, bounds[0], short))
        rows.append(_target("the same, 1024 to 8192", against, bounds[1], long))
        if base != "eager":
            work = "the same, extra memory at 8192"
            rows.append(_target(work, against, (4.0, 10.0), smaller(base)))
    return rows


def _model_rows(section: generation.Section | None) -> list[Target]:
    def better(row: str, own: str, other: str, unit: str | None = None) -> dict[str, float]:
        """Over another subject, by number of threads."""
        found = {}
        for figure in section.figures if section else ():
            if (figure.row, figure.subject) != (row, own) or unit not in (None, figure.unit):
                continue
            if other in figure.better:
                found[_where(figure.threads)] = figure.better[other][1]
        return found

    def row(work: str, own: str, other: str, bounds: Bounds) -> Target:
        reason = "" if section is None else _reason(section, other)
        found = better(work, own, other)
        what = f"{MODEL}, {_ROWS.get(work, work)}, {_TITLES[own]}"
        against = f"{'causal-onnx ' * other.startswith('ours-')}{_TITLES[other]}"
        return _target(what, against, bounds, found, reason=reason)

    rows = [row(*given) for given in _WORKS]
    rows.insert(_EQUAL_DRIFT_PLACE, _equal_drift(section, better))
    starts: dict[str, tuple[str, Bounds]] = {
        "s": ("time", (7.0, 10.0)),
        "MB": ("memory", (3.0, None)),
    }
    for unit, (name, bound) in starts.items():
        found = better(START, OURS, TORCH, unit)
        what = f"import, load, first output of the module: {name}"
        rows.append(_target(what, "PyTorch doing the same", bound, found))
    added = section.find(STEP, OVERHEAD, 1) if section else None
    found = {} if added is None else {"": added.value[1]}
    what = "Python's part of a decode step"
    rows.append(_target(what, "the bare session run", (150.0, 50.0), found, unit="us"))
    return rows


def _equal_drift(
    section: generation.Section | None, better: Callable[[str, str, str], dict[str, float]]
) -> Target:
    """Decoding by the fastest of our int4 files that drifts no more than llama.cpp's."""
    bounds, peer = (1.0, 1.15), "llama-q4_0"
    drifts = section.drifts if section else {}
    what = f"{MODEL}, {DECODE}, int4 of no more drift than Q4_0"
    good = [
        own
        for own in ("ours-int4", "ours-int4-128")
        if peer in drifts and drifts.get(own, math.inf) <= drifts[peer] * EQUAL
    ]
    found: dict[str, float] = {}
    for own in good:
        for where, value in better(DECODE, own, peer).items():
            found[where] = max(value, found.get(where, 0.0))
    reason = "" if section is None else _reason(section, peer)
    if peer in drifts and not good:
        reason = "both of ours drift more: "
        for own in ("ours-int4", "ours-int4-128"):
            if own in drifts:
                row = _target(what, _TITLES[peer], bounds, better(DECODE, own, peer))
                reason += f"{_TITLES[own]} {100 * drifts[own]:.1f} %, at {row.shown}; "
        reason += f"Q4_0 {100 * drifts[peer]:.1f} %"
    return _target(what, _TITLES[peer], bounds, found, reason=reason)


def _reason(section: generation.Section, subject: str) -> str:
    """Why a subject has no figures; empty where nothing is said."""
    runtime = _TITLES[subject].partition(" ")[0]
    return section.left_out.get(subject) or section.left_out.get(runtime, "")


def _start_rows(section: cold_start.StartSection | None) -> list[Target]:
    """Of 135M: a process to its first token, and what ten processes hold."""
    starts = {(row.file, row.kind): row for row in section.rows} if section else {}
    left_out = section.left_out if section else {}
    rows: list[Target] = []
    shared: dict[str, float] = {}
    for precision in cold_start.PRECISIONS:
        file = f"{FULL.name} {precision}"
        ours = [starts[file, kind] for kind in cold_start.OURS if (file, kind) in starts]
        for peer, bounds in (("genai", (2.0, 4.0)), ("llama", (0.3, 0.7))):
            other, title = starts.get((file, peer)), cold_start.TITLES[peer]
            found = {}
            if ours and other:
                best = min(ours, key=lambda row: row.processor_s)
                found[f"({best.kind})"] = other.processor_s / best.processor_s
            reason = left_out.get(f"{file}, {title}", left_out.get(title, ""))
            what = f"{MODEL}, {precision}, process to first token, processor time"
            rows.append(_target(what, title, bounds, found, reason=reason))
        for row in ours:
            if row.alone_bytes:
                gain = row.alone_bytes / row.together_bytes
                shared[precision] = max(gain, shared.get(precision, 0.0))
    found = {f"({precision})": gain for precision, gain in shared.items()}
    what = f"{MODEL}, memory of ten processes on one file"
    rows.append(_target(what, "ten times one", (3.0, 6.0), found))
    return rows


def _serving_rows(section: serving.ServingSection | None) -> list[Target]:
    files = section.files if section else {}

    def each(value: Callable[[serving.Figures], float | None]) -> dict[str, float]:
        found = {precision: value(figures) for precision, figures in files.items()}
        return {f"({name})": x for name, x in found.items() if x is not None}

    def ratio(value: float | None, base: float | None) -> float | None:
        return None if value is None or not base else value / base

    eight = f"server, {MODEL}, {CLIENTS} clients at once, processor time a token"
    rows = [_target(eight, "one after another", (3.5, 5.0), each(lambda one: one.ours.gain))]
    for name in (LlamaServer.name, OnnxGenaiServer.name, OpenVino.name):
        reasons = {reason for figures in files.values() if (reason := figures.left_out.get(name))}

        def cheaper(one: serving.Figures, name: str = name) -> float | None:
            peer = one.peers.get(name)
            return None if peer is None else peer.server_cpu_ms / one.ours.server_cpu_ms

        reason = "; ".join(sorted(reasons))
        rows.append(_target("the same", name, (1.0, 1.3), each(cheaper), reason=reason))
    company = each(
        lambda one: ratio(one.ours.first_token_in_company_ms, one.ours.first_token_alone_ms)
    )
    work = f"server, first token while {DECODING} others decode"
    rows.append(_target(work, "alone", (2.0, 1.5), company, unit=AT_MOST))
    gap = each(lambda one: ratio(one.ours.gap_in_reading_ms, one.ours.chunk_ms))
    work = "server, longest gap while a prompt of 2k is read"
    rows.append(_target(work, f"a chunk of {CHUNK}, alone", (1.0, 0.5), gap, unit=AT_MOST))
    http = each(lambda one: one.http_cpu_ms * 1000)
    work = "server, HTTP's part of a token"
    rows.append(_target(work, "the engine in process", (300.0, 150.0), http, unit="us"))
    return rows


def _read(sections: Mapping[str, Any], name: str, kind: type[Found]) -> Found | None:
    data = sections.get(name)
    return None if data is None else kind.from_dict(data)


def _target(
    work: str,
    against: str,
    bounds: Bounds,
    found: Mapping[str, float],
    *,
    unit: str = "x",
    reason: str = "",
) -> Target:
    at_least, aim = bounds
    return Target(
        work=work,
        against=against,
        at_least=at_least,
        aim=aim,
        found=found,
        unit=unit,
        reason=reason,
    )


def _where(threads: int) -> str:
    return f"({threads_text(threads)})"


def main() -> int:
    """Print the table and write it into the page."""
    text = to_markdown(read_results(RESULTS))
    print(text)
    rewrite_page(PAGE, MARKER, text)
    print(f"\nwrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
