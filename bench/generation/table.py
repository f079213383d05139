"""The section as Markdown, losses in bold."""

from __future__ import annotations

from bench.figures import Figure
from bench.generation.cases import BATCH_ROW, PEERLESS
from bench.generation.overhead import BARE, OVERHEAD, STREAM
from bench.generation.overhead import ROW as STEP
from bench.generation.section import Section
from bench.generation.starts import OURS, TORCH
from bench.generation.starts import ROW as START
from bench.generation.subjects import APART
from bench.markdown import caution, clock_text, facts, marked, table, threads_text

__all__ = ["to_markdown"]

LOSS = 0.995
"""What is printed as less than 1.00."""

EXACT = 1e-4
"""Drifts that are less are rounding."""

NEAR = {"fp32": ("fp32", "f32"), "int4": ("int4", "q4_0"), "int4-128": ("int4-128", "q4_0")}
"""Precision of ours -> those of peers that it is set beside."""


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
    if section.drifts:
        found = ", ".join(
            f"{titles[name]} {100 * x:.2g} %" for name, x in section.drifts.items() if x > EXACT
        )
        text += f"\n\nHow far they lie from PyTorch's in fp32, root of the mean square: {found}."
    if section.left_out:
        lines = [f"- {titles.get(name, name)}: {why}" for name, why in section.left_out.items()]
        text += "\n\n" + "\n".join(["Not measured:", "", *lines])
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
            if figure.threads == threads and figure.subject in titles and figure.row != BATCH_ROW
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
    """Against what is near its precision, and PyTorch at any; without a peer, against all."""
    runtime, _, precision = figure.subject.partition("-")
    mine_at = own.removeprefix("ours-")
    if figure.subject == own or (mine_at not in PEERLESS and runtime == "ours"):
        return ""
    near = NEAR.get(mine_at, (mine_at,))
    if mine_at not in PEERLESS and runtime != "eager" and precision not in near:
        return ""
    mine = section.find(figure.row, own, figure.threads)
    if mine is None or figure.subject not in mine.better:
        return ""
    low, middle, high = mine.better[figure.subject]
    return f"{_times(middle)} ({low:.2f}-{high:.2f})"


def _batches(section: Section) -> str:
    titles = {one.name: one.title for one in section.subjects}
    found = [
        figure for figure in section.figures if figure.row == BATCH_ROW and figure.subject in titles
    ]
    if not found:
        return ""
    batch = section.batch
    ours = [name for name in titles if name.startswith("ours-")]
    rows = []
    for figure in found:
        one_by_one = f"{APART}-{figure.subject.partition('-')[2]}"
        apart = section.find(BATCH_ROW, one_by_one, figure.threads)
        in_turn = ["-", "-"]
        if apart is not None and figure.subject in ours:
            in_turn = [_value(apart), _times(figure.better[one_by_one][1])]
        cells = [titles[figure.subject], str(figure.threads), in_turn[0], _value(figure)]
        rows.append([*cells, in_turn[1], *(_faster(section, figure, own) for own in ours)])
    lines = [
        "### A batch",
        "",
        f"{batch['rows']} prompts of {batch['prompt']} tokens, each continued by {batch['new']}: "
        "by causal-onnx in one `generate_batch`, or one `generate` after another; by llama.cpp's "
        "server in as many requests at once. Reading the prompts is part of it. Tokens a second of "
        "all sequences, then how many times faster causal-onnx is.",
        "",
        *table(
            [
                "subject",
                "threads",
                "one after another",
                "together",
                "times faster",
                *(titles[name] for name in ours),
            ],
            rows,
            left=1,
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
