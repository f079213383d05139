"""The goals of the project's speed, each beside what the last whole runs reached.

`python -m bench.targets` prints the table of bench/results.json and writes it into bench/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.attention import section as attention
from bench.client import ROOT
from bench.generation import section as generation
from bench.generation.cases import WORKS
from bench.generation.overhead import OVERHEAD
from bench.generation.overhead import ROW as STEP
from bench.generation.starts import OURS, TORCH
from bench.generation.starts import ROW as START
from bench.markdown import threads_text
from bench.readme import rewrite_page
from bench.results import read_results

__all__ = ["Target", "main", "targets", "to_markdown"]

RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "bench" / "README.md"
MARKER = "targets"

SLACK = 0.995
"""What is printed with two digits as the bound itself counts as reached."""

GENAI = {
    "genai": "threads set",
    "tuned": "with every setting that we found to help",
}
"""The subjects that are onnxruntime-genai, and how it is set."""

MODULE = "attention, dim 768, 12 heads, batch 1"
MODEL = "Llama-style 135M"

Bounds = tuple[float, float | None]
"""At least, and the aim where there is one."""


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
    """ "us": the numbers are microseconds, and less is better."""

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
        return value <= bound / SLACK if self.unit == "us" else value >= bound * SLACK

    def to_row(self) -> str:
        """The row as Markdown; what is missed, and every loss, in bold."""
        shown = [f"{self._number(x)} {where}".strip() for where, x in self.found.items()]
        verdict = self.verdict
        marked = f"**{verdict}**" if verdict == "missed" else verdict
        bounds = [self._bound(self.at_least), self._bound(self.aim)]
        cells = [self.work, self.against, *bounds, ", ".join(shown) or "-", marked]
        return f"| {' | '.join(cells)} |"

    def _number(self, value: float) -> str:
        if self.unit == "us":
            return f"{value:.0f} us"
        text = f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
        return f"**{text}**" if value < SLACK else text

    def _bound(self, value: float | None) -> str:
        return "-" if value is None else f"{value:g}{'x' if self.unit == 'x' else ' us'}"


def targets(sections: Mapping[str, Any]) -> list[Target]:
    """All rows, from the sections of results.json; those of a missing section are empty."""
    module, model = sections.get("attention"), sections.get("generation")
    return [
        *_module_rows(None if module is None else attention.Section.from_dict(module)),
        *_model_rows(None if model is None else generation.Section.from_dict(model)),
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
    for name, title in (("attention", "The module"), ("generation", "The model")):
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
        ("PyTorch eager SDPA", "eager", ((1.0, 1.0), (0.8, 1.0))),
        *(
            (f"plain `torch.onnx.export`, opset {opset}", f"plain{opset}", ((1.0, 1.0), (1.5, 2.5)))
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

    rows = []
    decode = next(work for work in WORKS if work.kind == "decode")
    bounds: dict[tuple[str, str], Bounds] = {
        ("prefill", "fp32"): (1.3, 2.0),
        ("prefill", "int4"): (1.3, 2.0),
        ("decode", "fp32"): (1.0, None),
        ("decode", "int4"): (1.0, 1.3),
    }
    for work in (*(work for work in WORKS if work.kind == "prefill"), decode):
        for precision in ("fp32", "int4"):
            for runtime, how in GENAI.items():
                found = better(str(work), f"ours-{precision}", f"{runtime}-{precision}")
                what = f"{MODEL}, {work}, {precision}"
                against = f"onnxruntime-genai {precision}, {how}"
                rows.append(_target(what, against, bounds[work.kind, precision], found))
    eager: dict[str, Bounds] = {"fp32": (1.4, None), "int4": (3.0, 5.0)}
    for precision, bound in eager.items():
        found = better(str(decode), f"ours-{precision}", "eager-fp32")
        what = f"{MODEL}, {decode}, {precision}"
        rows.append(_target(what, "PyTorch + transformers fp32", bound, found))
    for precision in ("fp32", "int4"):
        found = better(f"batch {precision}", "together", "apart")
        what = f"{MODEL}, batch of 8 together, {precision}"
        rows.append(_target(what, "one after another", (3.0, 6.0), found))
    starts: dict[str, tuple[str, Bounds]] = {
        "s": ("time", (5.0, 10.0)),
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


def _target(
    work: str, against: str, bounds: Bounds, found: Mapping[str, float], *, unit: str = "x"
) -> Target:
    at_least, aim = bounds
    return Target(work=work, against=against, at_least=at_least, aim=aim, found=found, unit=unit)


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
