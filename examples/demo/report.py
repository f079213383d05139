"""Write what the demo found to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.cli.markup import Markup, element, join
from causal_onnx.export import CausalityReport, ParityReport
from examples.demo.attention import AttentionMaps
from examples.demo.drawings import curve, map_cells, map_frame, map_thumbnail
from examples.demo.findings import Findings
from examples.demo.markup import json_script, table
from examples.demo.modules import Exported, proof_line
from examples.demo.timing import Timing
from examples.demo.train import Training

__all__ = ["render_report", "write_report"]

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever would come from elsewhere."""


def write_report(findings: Findings, path: Path) -> Path:
    """Write the report and return its absolute path."""
    path.write_text(render_report(findings), encoding="utf-8")
    return path.resolve()


def render_report(findings: Findings) -> str:
    """Make the page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "causal-onnx: demo report"),
        element("style", Markup((HERE / "page.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        _header(findings),
        element(
            "main",
            _streaming(findings),
            _attention(findings.maps),
            _training(findings.training),
            _modules([*findings.modules, findings.decoder]),
        ),
        _footer(findings),
        _map_data(findings.maps),
        element("script", Markup((HERE / "page.js").read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _header(findings: Findings) -> Markup:
    exported = [*findings.modules, findings.decoder]
    ours, theirs = findings.without_torch, findings.with_torch
    causal = sum(item.is_causal for item in exported)
    points = sum(len(item.report.causality.cases) for item in exported)
    shapes = sum(len(item.report.parity.cases) for item in exported)
    worst = max(item.report.parity.max_error for item in exported)
    tiles = (
        ("Causal", f"{causal} of {len(exported)}", f"modules, by proof and {points} runs"),
        ("Largest error", f"{worst:.0e}", f"of the output's scale, {shapes} shapes"),
        ("First token", _seconds(ours.startup_s), f"PyTorch {_seconds(theirs.startup_s)}"),
        (
            "Peak memory",
            _memory(ours.peak_memory_bytes),
            f"PyTorch {_memory(theirs.peak_memory_bytes)}",
        ),
        (
            "Held-out text",
            f"{findings.training.held_out:.2f}",
            f"bits per byte after {_steps(findings.training.steps)}",
        ),
    )
    return element(
        "header",
        element("p", "causal-onnx", class_="name"),
        element("h1", "Any causal attention module in, one proven ONNX file out"),
        element(
            "p",
            "Three PyTorch modules were exported, compared with their source and tested for "
            "causality. One of them, a small language model trained just now, then wrote the text "
            "below in a process that cannot import PyTorch.",
            class_="lead",
        ),
        element("dl", *(_tile(*tile) for tile in tiles), class_="tiles"),
    )


def _tile(label: str, value: str, note: str) -> Markup:
    return element(
        "div",
        element("dt", label),
        element("dd", element("strong", value), element("span", note)),
        class_="tile",
    )


def _streaming(findings: Findings) -> Markup:
    ours, theirs = findings.without_torch, findings.with_torch
    difference = findings.first_difference()
    verdict = (
        _verdict(True, f"Both processes wrote the same text, all {ours.tokens} bytes of it.")
        if difference is None
        else _verdict(False, f"The two texts differ from character {difference} on.")
    )
    rows = [
        ("Process start to first token", _seconds(ours.startup_s), _seconds(theirs.startup_s)),
        ("Peak memory", _memory(ours.peak_memory_bytes), _memory(theirs.peak_memory_bytes)),
        ("Tokens per second", f"{ours.tokens_per_s:.0f}", f"{theirs.tokens_per_s:.0f}"),
    ]
    refused = [
        element("li", element("code", f"import {name}"), " → ", element("samp", error))
        for name, error in ours.refused.items()
    ]
    return element(
        "section",
        element("h2", "Text streamed without PyTorch"),
        element(
            "figure",
            element(
                "pre",
                element("b", findings.prompt),
                ours.text,
                class_="sample",
            ),
            element(
                "figcaption",
                "The prompt is in bold; the model wrote the rest byte by byte. After so little "
                "training it has learned spelling and layout, but not sense.",
            ),
        ),
        verdict,
        table(
            "Two fresh processes, same prompt, same random numbers, "
            f"{_threads(findings.threads)} each",
            ("", "onnxruntime only", "PyTorch"),
            rows,
        ),
        element(
            "details",
            element("summary", "What the process without PyTorch imported, and what it could not"),
            element("p", "Imported: ", element("code", ", ".join(ours.packages)), "."),
            element("ul", *refused),
        ),
        id="text",
    )


def _attention(maps: AttentionMaps) -> Markup:
    layers, heads, seq, _ = maps.weights.shape
    cells = [
        map_cells(maps.weights[layer, head], identifier=f"cells-{layer}-{head}")
        for layer in range(layers)
        for head in range(heads)
    ]
    library = element(
        "svg", element("defs", *cells), width=0, height=0, aria_hidden="true", class_="library"
    )
    checks = maps.checks
    return element(
        "section",
        element("h2", "What the decoder attends to"),
        element(
            "p",
            "These are attention weights over a held-out passage. Each row is a byte that is being "
            "read, and each column is a byte that it may attend to. Choose a head and a position.",
        ),
        _verdict(
            checks.passed,
            f"Over {checks.seq} bytes, in all layers and heads: {checks.summary()}.",
        ),
        library,
        element(
            "div",
            element(
                "div",
                map_frame(
                    list(maps.passage),
                    identifier="cells-0-0",
                    label="Attention map of the chosen layer and head; the text beside it says "
                    "the same in words",
                ),
                _legend(),
            ),
            element(
                "div",
                _heads(maps),
                element(
                    "div",
                    element("label", "Position", for_="position"),
                    element(
                        "input",
                        type="range",
                        id="position",
                        min=0,
                        max=seq - 1,
                        value=seq - 1,
                    ),
                    class_="control",
                ),
                element(
                    "p",
                    *(element("span", c, data_position=i) for i, c in enumerate(maps.passage)),
                    class_="passage",
                    id="passage",
                ),
                element("p", "", id="readout", aria_live="polite", class_="readout"),
                class_="panel",
            ),
            class_="explorer",
        ),
        id="attention",
    )


def _heads(maps: AttentionMaps) -> Markup:
    """All maps in small, a row for each layer, as buttons that choose what is shown in large."""
    layers, heads, seq, _ = maps.weights.shape
    distance = maps.mean_distance()
    corner = element("span", "", class_="muted")
    parts = [corner, *(element("span", f"head {h + 1}", class_="muted") for h in range(heads))]
    for layer in range(layers):
        parts.append(element("span", f"layer {layer + 1}", class_="muted"))
        parts += [
            element(
                "button",
                map_thumbnail(seq, identifier=f"cells-{layer}-{head}"),
                element("span", f"{distance[layer, head]:.1f}"),
                type="button",
                data_layer=layer,
                data_head=head,
                aria_label=f"Layer {layer + 1}, head {head + 1}, looks "
                f"{distance[layer, head]:.1f} bytes back on average",
                aria_pressed="true" if layer == head == 0 else "false",
            )
            for head in range(heads)
        ]
    return element(
        "div",
        element("div", *parts, class_="heads", style=f"--heads: {heads}"),
        element(
            "p",
            "The number under each head says how many bytes back it attends on average.",
            class_="muted small",
        ),
        role="group",
        aria_label="Layer and head",
    )


def _legend() -> Markup:
    steps = (0.01, 0.05, 0.2, 0.5, 1.0)
    swatches = [
        element(
            "li",
            element("span", class_="swatch", style=f"--weight: {weight**0.5:.3f}"),
            f"{weight:.0%}",
        )
        for weight in steps
    ]
    return element("ul", *swatches, class_="legend", aria_label="Shades of attention weights")


def _training(training: Training) -> Markup:
    last = training.curve[-1]
    label = (
        f"Loss over {_steps(training.steps)} of training: {last.train:.2f} bits per byte "
        f"on the training text, {last.held_out:.2f} on a sample of the held-out text at the end"
    )
    rows = [(f"{p.step:,}", f"{p.train:.3f}", f"{p.held_out:.3f}") for p in training.curve]
    return element(
        "section",
        element("h2", "Training"),
        element(
            "p",
            f"{training.parameters / 1e3:.0f} thousand parameters, {_steps(training.steps)} over "
            f"{training.bytes_read / 1e3:,.0f} kB of the text behind Python's help(). The held-out "
            f"text is its last tenth; its loss is {training.held_out:.2f} bits per byte, and no "
            "paragraph occurs in both. The curve shows the loss on a sample of it.",
        ),
        element("figure", curve(training.curve, label=label)),
        element(
            "details",
            element("summary", "The figures"),
            table("Losses in bits per byte", ("Step", "Training", "Held out"), rows),
        ),
        id="training",
    )


def _modules(exported: Sequence[Exported]) -> Markup:
    return element(
        "section",
        element("h2", "The exported files"),
        *(_module(item) for item in exported),
        id="modules",
    )


def _module(item: Exported) -> Markup:
    report = item.report
    facts = (
        ("File", f"{report.path.name}, {report.size_bytes / 1e6:.2f} MB"),
        ("Graph", f"{report.nodes} nodes, opset {report.contract.opset}"),
        ("Takes", "; ".join(spec.describe() for spec in report.contract.inputs)),
        ("Returns", "; ".join(spec.describe() for spec in report.contract.outputs)),
        *(
            ("Attention", f"{text} x {count}" if count > 1 else text)
            for text, count in report.certificate.core_lines()
        ),
    )
    return element(
        "article",
        element("h3", item.name),
        element("p", item.summary, class_="muted"),
        element(
            "dl",
            *(element("div", element("dt", key), element("dd", value)) for key, value in facts),
            class_="facts",
        ),
        _verdict(
            report.certificate.is_causal, _sentence(f"Proof: {proof_line(report.certificate)}")
        ),
        _verdict(report.causality.is_causal, _sentence(f"Run: {report.causality.summary()}")),
        _verdict(
            report.parity.passed,
            f"Equal to PyTorch: largest error {report.parity.max_error:.1e} of the output's "
            f"scale, allowed {report.parity.tolerance:.0e}.",
        ),
        element(
            "div",
            _parity(report.parity),
            element("div", _timings(item.timings, item.threads), _causality(report.causality)),
            class_="columns",
        ),
        class_="module",
    )


def _parity(report: ParityReport) -> Markup:
    batches = list(dict.fromkeys(case.batch for case in report.cases))
    cells: dict[tuple[int, int | None], list[Markup]] = {}
    for case in report.cases:
        text = "refused" if case.refused else f"{case.error:.1e}" if case.error else "0"
        shown = element(
            "span",
            text if case.passed else f"{text} ✗",
            title=case.note or None,
            class_="refused" if case.refused else None if case.passed else "bad",
        )
        cells.setdefault((case.seq, case.batch), []).append(shown)
    rows = [
        [
            str(seq),
            *(join(_spaced(cells.get((seq, batch), [element("span", "-")]))) for batch in batches),
        ]
        for seq in sorted({case.seq for case in report.cases})
    ]
    heads = ["no batch" if batch is None else f"batch {batch}" for batch in batches]
    return table(
        "Difference from PyTorch, relative to the output's scale; the file refuses calls beyond "
        "its limit",
        ["Length", *heads],
        rows,
    )


def _spaced(parts: Iterable[Markup]) -> Iterable[str]:
    for index, part in enumerate(parts):
        if index:
            yield " "
        yield part


def _timings(timings: Sequence[Timing], threads: int) -> Markup:
    rows = []
    for timing in timings:
        longer = max(timing.onnx_ms, timing.torch_ms)
        rows.append(
            [
                str(timing.seq),
                _bar(timing.onnx_ms, longer, "held-out"),
                _bar(timing.torch_ms, longer, "train"),
                f"{timing.ratio:.2f}",
            ]
        )
    return table(
        f"Time of one call, batch 1, {_threads(threads)} each; below 1 the file is faster",
        ("Length", "File", "PyTorch", "Ratio"),
        rows,
    )


def _bar(value_ms: float, longest_ms: float, kind: str) -> Markup:
    share = value_ms / longest_ms if longest_ms else 0.0
    return join(
        [
            element("span", f"{value_ms:.3g} ms", class_="number"),
            element("span", class_=f"bar {kind}", style=f"--share: {share:.3f}"),
        ]
    )


def _causality(report: CausalityReport) -> Markup:
    rows = []
    for seq in sorted({case.seq for case in report.cases}):
        cases = [case for case in report.cases if case.seq == seq]
        change = max(case.past_error for case in cases)
        rows.append(
            [
                str(seq),
                ", ".join(str(case.cut) for case in cases),
                "bit-identical" if change == 0.0 else f"moved by {change:.1e}",
                "moved" if all(case.future_moved for case in cases) else "did not move",
                _mark(all(case.passed for case in cases)),
            ]
        )
    return table(
        "Inputs from a position on were replaced: outputs before it must not change, later ones "
        "must change",
        ("Length", "Replaced from", "Before it", "From it on", "Causal"),
        rows,
    )


def _footer(findings: Findings) -> Markup:
    source = findings.decoder.report.source
    versions = ", ".join(f"{key} {source[key]}" for key in ("torch", "onnx") if key in source)
    return element(
        "footer",
        element(
            "p",
            f"Python {platform.python_version()}, {versions}, {platform.system()} on "
            f"{platform.machine()}, {_threads(findings.threads)}. Timings are of this machine, "
            "with whatever else it was doing. Written by ",
            element("code", "make demo"),
            ".",
        ),
    )


def _map_data(maps: AttentionMaps) -> Markup:
    """The weights for the page's script: 16 bits each, rows cut at the diagonal."""
    layers, heads, seq, _ = maps.weights.shape
    lower = np.tril_indices(seq)
    packed = np.rint(maps.weights[..., lower[0], lower[1]].astype(np.float64) * 65535)
    raw: npt.NDArray[Any] = np.clip(packed, 0, 65535).astype("<u2")
    return json_script(
        "map-data",
        {
            "layers": layers,
            "heads": heads,
            "passage": maps.passage,
            "weights": base64.b64encode(raw.tobytes()).decode("ascii"),
        },
    )


def _verdict(passed: bool, text: str) -> Markup:
    return element("p", _mark(passed), " ", text, class_="verdict")


def _mark(passed: bool) -> Markup:
    word, sign = ("yes", "✓") if passed else ("no", "✗")
    return element(
        "span",
        element("span", sign, aria_hidden="true"),
        element("span", word, class_="spoken"),
        class_="good" if passed else "bad",
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _memory(value: int) -> str:
    return f"{value / 1e6:.0f} MB"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
