"""The section as Markdown, losses in bold."""

from __future__ import annotations

from bench.figures import Figure
from bench.generation.cases import PEERLESS
from bench.generation.overhead import BARE, OVERHEAD, STREAM
from bench.generation.overhead import ROW as STEP
from bench.generation.section import Section
from bench.generation.starts import OURS, TORCH
from bench.generation.starts import ROW as START
from bench.markdown import caution, clock_text, facts, marked, table, threads_text

__all__ = ["to_markdown"]

LOSS = 0.995
"""What is printed as less than 1.00."""


def to_markdown(section: Section) -> str:
    """All tables, and what they were measured on."""
    parts = [_facts(section), caution(section.machine), _subjects(section), _works(section)]
    parts += [_batches(section), _starts(section), _overhead(section)]
    return "\n\n".join(part for part in parts if part)


def _facts(section: Section) -> str:
    sizes = section.sizes
    return (
        f"{facts(section, device=section.device)}\n\n"
        f"Model: {sizes['name']} parameters, {sizes['num_layers']} layers, width "
        f"{sizes['embed_dim']}, {sizes['num_heads']} heads of which {sizes['num_kv_heads']} for "
        f"keys and values, vocabulary {sizes['vocab_size']}, tied head, random weights."
    )


def _subjects(section: Section) -> str:
    lines = [f"- {one.title}: {one.about}" for one in section.subjects]
    text = "\n".join(["Subjects:", "", *lines])
    titles = {one.name: one.title for one in section.subjects}
    if section.graphs:
        held = [f"- {titles[name]}: {what}" for name, what in section.graphs.items()]
        text += "\n\n" + "\n".join(["What the int4 files hold:", "", *held])
    if section.errors:
        found = ", ".join(f"{titles[name]} {x:.0e}" for name, x in section.errors.items())
        text += f"\n\nLargest difference of a prompt's logits, by their scale: {found}."
    return text


def _works(section: Section) -> str:
    """One line per subject and work; the last columns say how many times faster ours is."""
    names = [one.name for one in section.subjects]
    titles = {one.name: one.title for one in section.subjects}
    ours = [name for name in names if name.startswith("ours-")]
    parts = []
    for threads in _threads(section):
        shown = [
            figure
            for figure in section.figures
            if figure.threads == threads and figure.subject in titles
        ]
        if not shown:
            continue
        lines = [
            f"### {threads_text(threads).capitalize()}: {clock_text(shown[0].clock)}",
            "",
            "Tokens a second: the median over sets of fresh processes, in brackets the lowest and "
            "the highest. Then how many times faster causal-onnx is.",
            "",
            *table(
                ["work", "subject", "tokens/s", *(titles[name] for name in ours)],
                [
                    [
                        figure.row,
                        titles[figure.subject],
                        _value(figure),
                        *(_faster(section, figure, own) for own in ours),
                    ]
                    for figure in shown
                ],
                left=2,
            ),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _faster(section: Section, figure: Figure, own: str) -> str:
    """Against the same precision, and against PyTorch at any; without a peer, against all."""
    runtime, _, precision = figure.subject.partition("-")
    mine_at = own.removeprefix("ours-")
    if figure.subject == own or (mine_at not in PEERLESS and runtime == "ours"):
        return ""
    if mine_at not in PEERLESS and runtime != "eager" and precision != mine_at:
        return ""
    mine = section.find(figure.row, own, figure.threads)
    if mine is None or figure.subject not in mine.better:
        return ""
    low, middle, high = mine.better[figure.subject]
    return f"{_times(middle)} ({low:.2f}-{high:.2f})"


def _batches(section: Section) -> str:
    found = [figure for figure in section.figures if figure.row.startswith("batch ")]
    together = [figure for figure in found if figure.subject == "together"]
    if not together:
        return ""
    batch = section.batch
    rows = []
    for figure in together:
        apart = section.find(figure.row, "apart", figure.threads)
        assert apart is not None
        cells = [figure.row.removeprefix("batch "), str(figure.threads), _value(apart)]
        rows.append([*cells, _value(figure), _times(figure.better["apart"][1])])
    lines = [
        "### A batch",
        "",
        f"{batch['rows']} prompts of {batch['prompt']} tokens, each continued by {batch['new']}, "
        "by causal-onnx: one `generate_batch`, or one `generate` after another; reading the "
        "prompts is part of it. Tokens a second of all rows.",
        "",
        *table(
            ["precision", "threads", "one after another", "together", "times faster"], rows, left=1
        ),
    ]
    return "\n".join(lines)


def _starts(section: Section) -> str:
    found = [figure for figure in section.figures if figure.row == START]
    if not found:
        return ""
    module = section.module
    rows = []
    for threads in _threads(section):
        for unit, what in (("s", "seconds"), ("MB", "MB")):
            own = section.find(START, OURS, threads, unit)
            other = section.find(START, TORCH, threads, unit)
            if own is None or other is None:
                continue
            name = f"{what}, {clock_text(own.clock)}" if unit == "s" else what
            ratio = _times(own.better[TORCH][1])
            cells = [name, str(threads), _value(other), _value(own), ratio]
            rows.append(cells)
    lines = [
        "### A start",
        "",
        f"A fresh process imports, loads an attention module of {module['embed_dim']} features and "
        f"{module['num_heads']} heads, and computes its first output, of 16 positions. PyTorch "
        "reads the weights from a mapped file into a module that is made without weights. The "
        "time begins before the first import; the memory is the most that the process held.",
        "",
        *table(["what", "threads", "PyTorch", "causal-onnx", "times better"], rows, left=1),
    ]
    return "\n".join(lines)


def _overhead(section: Section) -> str:
    added = section.find(STEP, OVERHEAD, 1)
    stream, bare = section.find(STEP, STREAM, 1), section.find(STEP, BARE, 1)
    if added is None or stream is None or bare is None:
        return ""
    tiny = section.tiny
    return "\n".join(
        [
            "### Python's part of a step",
            "",
            f"A model of {tiny['num_layers']} layers, width {tiny['embed_dim']}: one token by "
            "`stream(ids)`, and the same session run with everything bound; one thread, processor "
            f"time. {stream.value[1]:.0f} us less {bare.value[1]:.0f} us: Python adds "
            f"{added.value[1]:.0f} us.",
        ]
    )


def _threads(section: Section) -> list[int]:
    return sorted({figure.threads for figure in section.figures})


def _value(figure: Figure) -> str:
    low, middle, high = (
        f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in figure.value
    )
    return middle if figure.sets == 1 else f"{middle} ({low}-{high})"


def _times(ratio: float) -> str:
    return marked(f"{ratio:.2f}", ratio < LOSS)
