"""Render a proof as one HTML page: no network, no scripts, light and dark, wide and narrow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.cli import describe
from causal_onnx.cli.certificate import ShapeCase, StoredCertificate
from causal_onnx.cli.chart import latency_chart
from causal_onnx.cli.commands.selftest import selftest_table
from causal_onnx.cli.markup import Markup, element
from causal_onnx.cli.mask_picture import mask_picture
from causal_onnx.cli.proof import Proof
from causal_onnx.runtime import SelfTestReport, __version__

__all__ = ["render"]

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --card: #ffffff; --ink: #1c1d1f; --soft: #63666b; --rule: #e3e4e6;
  --good: #1a7f4b; --good-ground: #e3f4ea; --bad: #b3261e; --bad-ground: #fbe6e4;
  --open: #7a5b00; --open-ground: #f7efd6; --accent: #2f5fd0; --shade: #00000038;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #131416; --card: #1b1c1f; --ink: #e8e9eb; --soft: #9a9ea5; --rule: #303237;
    --good: #6fd39b; --good-ground: #16331f; --bad: #ff9a8f; --bad-ground: #431a17;
    --open: #e2c46a; --open-ground: #362c10; --accent: #8fb0ff; --shade: #ffffff47;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.1rem 0 .1rem; }
p { margin: .25rem 0 .75rem; }
.soft, footer { color: var(--soft); }
.small, footer { font-size: .875rem; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 1.25rem; margin-top: 1rem;
}
.verdicts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem;
  margin-top: 1.25rem;
}
.verdict { border-radius: 12px; padding: .9rem 1.1rem; overflow-wrap: anywhere; }
.verdict b { display: block; font-size: 1.05rem; }
.verdict span { font-size: .875rem; }
.good { color: var(--good); background: var(--good-ground); }
.bad { color: var(--bad); background: var(--bad-ground); }
.open { color: var(--open); background: var(--open-ground); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.25rem;
  margin: .5rem 0 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, dd, td { font-variant-numeric: tabular-nums; }
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; }
.scroll {
  /* A shadow at each side that has more, which the ground covers where there is none. */
  background:
    linear-gradient(to right, var(--card) 40%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--card) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 1.1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll;
  overflow-x: auto; margin: .5rem 0 0; scrollbar-width: thin;
}
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scroll::after { content: ""; display: block; height: .35rem; }
table { border-collapse: separate; border-spacing: 0 2px; font-size: .9375rem; }
th, td { padding: .35rem .8rem; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
.num { text-align: right; }
td.good, td.bad { border-radius: 7px; }
td.good + td.good, td.bad + td.bad { border-left: 2px solid var(--card); }
td.refused { color: var(--soft); }
pre {
  overflow-x: auto; margin: .5rem 0; padding: .75rem .9rem; border-radius: 8px;
  background: var(--ground); border: 1px solid var(--rule);
}
.masks { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin: .75rem 0; }
figure { margin: 0; max-width: 11rem; }
figcaption { color: var(--soft); font-size: .8125rem; }
figure svg { width: 7.5rem; }
svg .seen { fill: var(--accent); }
svg .unseen { fill: none; stroke: var(--rule); }
svg { display: block; width: 100%; max-width: 38rem; height: auto; margin: .5rem 0; }
svg text { fill: var(--soft); font-size: 11px; }
svg .value { fill: var(--ink); stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
svg .grid, svg .tick { stroke: var(--rule); }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .dot { fill: var(--accent); stroke: var(--card); stroke-width: 2; }
footer { margin-top: 1.5rem; }
@media (max-width: 36rem) {
  main { padding: 1.5rem .9rem 3rem; }
  section { padding: 1rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { section { break-inside: avoid; } }
"""


def render(proof: Proof) -> str:
    """The whole page."""
    name = proof.artifact.name
    sections = [
        _running(proof),
        _contract(proof),
        _causality(proof.certificate),
        _parity(proof.certificate),
        _cache(proof.certificate),
        _selftest(proof),
        _latency(proof),
        _source(proof),
    ]
    short = name.replace("\\", "/").rpartition("/")[2]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever a name in the file may try: nothing is loaded and nothing runs.
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        element("title", f"{short}: proof"),
        Markup(f"<style>{STYLE}</style>"),
    )
    main = element(
        "main",
        element("h1", short),
        element("p", f"{name}, {_first_line(proof)}", class_="soft"),
        _verdicts(proof),
        *sections,
        _footer(proof),
    )
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _first_line(proof: Proof) -> str:
    least, most = proof.contract.min_seq_len, proof.contract.max_seq_len
    length = f"sequences of {least:,} to {most:,}" if most else "no limit of length is known"
    return f"{describe.size_text(proof.artifact.header.size_bytes)}, {length}"


def _verdicts(proof: Proof) -> Markup:
    certificate = proof.certificate
    causal = certificate.is_causal if certificate else None
    has_proof = certificate is not None and certificate.proof is not None
    equal = certificate.is_equal if certificate else None
    selftest = proof.selftest
    return element(
        "div",
        _verdict(
            causal,
            ("Causal", "Not causal", f"Causality {'undecided' if has_proof else 'not stated'}"),
            certificate.verdict_text if certificate else "the file carries no finding",
        ),
        _verdict(
            equal,
            ("Equal to PyTorch", "Not equal to PyTorch", "Equality not stated"),
            describe.parity_summary(certificate)
            if certificate and equal is not None
            else "the file carries no comparison",
        ),
        _verdict(
            None if selftest is None else selftest.passed,
            ("Self-test passed here", "Self-test failed here", "No self-test"),
            "the file has no golden vectors"
            if selftest is None
            else f"largest error {selftest.max_error:.1e}, limit {selftest.tolerance:.0e}, "
            f"on {selftest.device}",
        ),
        class_="verdicts",
    )


def _verdict(state: bool | None, titles: tuple[str, str, str], text: str) -> Markup:
    title = titles[2] if state is None else titles[0] if state else titles[1]
    # Not by colour alone.
    sign = "?" if state is None else "✓" if state else "✗"
    kind = "open" if state is None else "good" if state else "bad"
    return element(
        "div", element("b", f"{sign} {title}"), element("span", text), class_=f"verdict {kind}"
    )


def _running(proof: Proof) -> Markup:
    """A program that runs the file as it is, on zeros of a valid shape."""
    contract = proof.contract
    seq = min(max(3, contract.min_seq_len), contract.max_seq_len or 3)
    sizes = {axis.name: min(3, axis.largest or 3) for axis in contract.free_axes}
    sizes |= {"batch": 1, "seq": seq, "past_seq": 0, "total_seq": seq}
    given = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    arrays = ", ".join(f"np.zeros({spec.shape(sizes)}, {spec.host_dtype!r})" for spec in given)
    name = proof.artifact.name.replace("\\", "/").rpartition("/")[2]
    lines = [
        "import numpy as np",
        "from causal_onnx.runtime import load",
        "",
        f"model = load({name!r})",
        f"for name, value in model.run({arrays}).items():",
        "    print(name, value.shape)",
    ]
    return _section(
        "Run this file",
        "This needs numpy and onnxruntime, but no PyTorch: pip install 'causal-onnx[cpu]'.",
        element("pre", element("code", "\n".join(lines))),
    )


def _contract(proof: Proof) -> Markup:
    return _section(
        "Contract",
        "What the model takes and returns. The runtime checks every request against it.",
        _pairs([*describe.contract_pairs(proof.contract), *describe.file_pairs(proof.artifact)]),
    )


def _source(proof: Proof) -> Markup:
    pairs = describe.source_pairs(proof.artifact.source)
    body = _pairs(pairs) if pairs else element("p", "The file does not say.")
    return _section("Source", "What was exported, and with which versions.", body)


def _causality(certificate: StoredCertificate | None) -> Markup:
    title = "Causality"
    if certificate is None or (certificate.proof is None and certificate.perturbed_causal is None):
        return _section(title, None, element("p", "The file carries no finding on causality."))
    return _section(
        title, "Recorded by the exporter.", *_proof(certificate), *_perturbation(certificate)
    )


def _proof(certificate: StoredCertificate) -> list[Markup]:
    proof = certificate.proof
    if proof is None:
        return []
    pairs = [
        ("verdict", proof.verdict.replace("_", " ")),
        ("because", proof.reason),
        ("holds for", proof.scope),
        *(("attention", core) for core in proof.cores),
        *(("assumed", text) for text in proof.assumptions),
    ]
    if proof.offence:
        pairs.insert(1, ("at", proof.offence))
    return [
        element("h3", "From the graph"),
        element(
            "p",
            "For every element of the graph, the proof follows which input positions it may depend "
            "on.",
            class_="soft small",
        ),
        _pairs(pairs),
        *_masks(proof.cores),
    ]


def _masks(cores: Sequence[str]) -> list[Markup]:
    """What each kind of attention may see, where that has a shape."""
    pictures = [picture for core in cores if (picture := mask_picture(core)) is not None]
    if not pictures:
        return []
    legend = "A filled cell: the query in this row may attend to the key in this column."
    return [
        element("p", legend, class_="soft small"),
        element("div", *pictures, class_="masks"),
    ]


def _perturbation(certificate: StoredCertificate) -> list[Markup]:
    if certificate.perturbed_causal is None:
        return []
    rows = []
    for seq in sorted({case.seq for case in certificate.cuts}):
        cases = [case for case in certificate.cuts if case.seq == seq]
        worst = max(case.past_error for case in cases)
        passed = all(case.passed for case in cases)
        moved = sum(case.future_moved for case in cases)
        rows.append(
            element(
                "tr",
                _cell(f"{seq:,}", "num"),
                _cell("✓ causal" if passed else "✗ not causal", "good" if passed else "bad"),
                _cell(", ".join(str(case.cut) for case in cases)),
                _cell("none (bit-identical)" if worst == 0 else f"{worst:.1e}", "num"),
                _cell(f"{moved} of {len(cases)}", "num"),
            )
        )
    headers = ["length", "result", "changed from position", "change before it", "changed after it"]
    return [
        element("h3", "By running it"),
        element(
            "p",
            "All inputs from a position on were replaced. Outputs before that position must not "
            "change, and outputs after it must.",
            class_="soft small",
        ),
        element("p", certificate.causality_summary),
        *([_table(headers, rows, right=(0, 3, 4))] if rows else []),
    ]


def _parity(certificate: StoredCertificate | None) -> Markup:
    title = "Equality with PyTorch"
    if certificate is None or certificate.is_equal is None:
        return _section(title, None, element("p", "The file carries no comparison."))
    headers, cells = describe.parity_table(certificate)
    rows = [
        element("tr", _cell(seq, "num"), *(_error_cell(cell) for cell in errors))
        for seq, *errors in cells
    ]
    notes = [_note(case) for case in certificate.shapes if case.note]
    return _section(
        title,
        "Recorded by the exporter: whether every output is equal within the limit, or by how "
        "much it "
        "differs, relative to the scale of that output. Calls longer than the limit must be "
        "refused.",
        element("p", describe.parity_summary(certificate)),
        _table(["length", *headers[1:]], rows, right=range(len(headers))),
        *(element("p", note, class_="soft small") for note in notes),
        *(element("p", f"Not run: {text}", class_="soft small") for text in certificate.skipped),
    )


def _note(case: ShapeCase) -> str:
    batch = "no batch" if case.batch is None else f"batch {case.batch}"
    return f"Length {case.seq}, {batch}: {case.note}"


def _error_cell(text: str) -> Markup:
    if text in ("-", "refused"):
        return _cell(text, "num refused")
    return _cell(text, "num bad" if text.endswith("!") else "num good")


def _cache(certificate: StoredCertificate | None) -> Markup | None:
    finding = certificate.cache if certificate else None
    if finding is None:
        return None
    headers, cells = describe.cache_table(finding)
    rows = [
        element(
            "tr",
            _cell(feeding),
            _cell(f"✗ {result}", "bad") if result == "FAILED" else _cell(f"✓ {result}", "good"),
            _cell(times, "num"),
            _cell(error, "num"),
        )
        for feeding, result, times, error in cells
    ]
    return _section(
        "KV cache",
        "Recorded by the exporter. The same sequences were fed in chunks through the cache and "
        "compared with PyTorch's full pass. Errors are relative to the output's scale.",
        element("p", finding.summary),
        _table(headers, rows, right=(2, 3)),
    )


def _selftest(proof: Proof) -> Markup:
    intro = f"Measured on this machine, by running the file on {proof.device}."
    if proof.selftest is None:
        return _section("Self-test", intro, element("p", "There are no golden vectors to replay."))
    return _section(
        "Self-test",
        f"{intro} Golden vectors are inputs with the outputs that were recorded at the export.",
        _selftest_rows(proof.selftest),
    )


def _selftest_rows(report: SelfTestReport) -> Markup:
    _, cells = selftest_table(report)
    rows = [
        element(
            "tr",
            _cell(shapes, "mono"),
            _cell(
                f"✓ {result}" if case.passed else f"✗ {result}", "good" if case.passed else "bad"
            ),
            _cell("different shape" if math.isinf(case.error) else error, "num"),
        )
        for (shapes, result, error), case in zip(cells, report.cases, strict=True)
    ]
    return _table(["inputs", "result", "error"], rows, right=(2,))


def _latency(proof: Proof) -> Markup:
    rows = [
        element(
            "tr",
            _cell(f"{timing.seq:,}", "num"),
            _cell(f"{timing.median_ms:.3f}", "num"),
            _cell(f"{timing.fastest_ms:.3f}", "num"),
            _cell(f"{timing.seq / timing.median_ms * 1e3:,.0f}", "num"),
            _cell(str(timing.runs), "num"),
        )
        for timing in proof.timings
    ]
    headers = ["length", "median ms", "fastest ms", "positions/s", "calls"]
    points = [(timing.seq, timing.median_ms) for timing in proof.timings]
    return _section(
        "Time of one call",
        f"Measured on this machine with batch 1 on {proof.device}: {proof.machine}.",
        latency_chart(points, x_label="sequence length")
        if rows
        else element("p", "Nothing was timed."),
        _table(headers, rows, right=range(5)) if rows else None,
        *(element("p", f"Not timed: {text}", class_="soft small") for text in proof.left_out),
    )


def _footer(proof: Proof) -> Markup:
    return element(
        "footer",
        element(
            "p", f"Written by causal-onnx {__version__}, {proof.when}. To repeat it on any machine:"
        ),
        element("p", element("code", f"causal-onnx report {proof.artifact.name} -o report.html")),
    )


def _section(title: str, intro: str | None, *body: Markup | None) -> Markup:
    return element(
        "section",
        element("h2", title),
        element("p", intro, class_="soft small") if intro else None,
        *body,
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> Markup:
    items: list[Markup] = []
    for name, value in pairs:
        items += [element("dt", name), element("dd", value)]
    return element("dl", *items)


def _table(headers: Sequence[str], rows: Sequence[Markup], *, right: Sequence[int]) -> Markup:
    head = element(
        "tr",
        *(
            element("th", text, scope="col", class_="num" if index in right else None)
            for index, text in enumerate(headers)
        ),
    )
    table = element("table", element("thead", head), element("tbody", *rows))
    # Whoever scrolls by keyboard has to be able to reach it.
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="table")


def _cell(text: str, kind: str | None = None) -> Markup:
    return element("td", text, class_=kind)
