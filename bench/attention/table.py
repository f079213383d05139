"""The section as Markdown, losses in bold."""

from __future__ import annotations

from bench.attention.section import MemoryRow, Section, TimeRow
from bench.markdown import caution, clock_text, facts, marked, table, threads_text
from bench.memory import LEAST_BYTES
from bench.rounds import clock_of

__all__ = ["losses", "to_markdown"]

LOSS = 1.005
"""What is printed as more than 1.00."""


def to_markdown(section: Section, *, chart: str | None) -> str:
    """All tables, what they were measured on, and what is missing.

    Args:
        section: The figures.
        chart: Where the drawing lies beside the page; None: there is none.
    """
    parts = [facts(section), _cautions(section), _subjects(section), _verdict(section)]
    if chart is not None:
        parts.append(f"![Time over PyTorch eager's, by length]({chart})")
    for batch, threads in sorted({(row.batch, row.threads) for row in section.times}):
        parts.append(_times(section, batch, threads))
    parts += [_memory(section, batch) for batch in sorted({row.batch for row in section.memory})]
    parts.append(_left_out(section))
    return "\n\n".join(part for part in parts if part)


def losses(section: Section) -> list[str]:
    """Every place where ours takes more time or memory than a baseline, worst first."""
    titles = {subject.name: subject.title for subject in section.subjects}
    found: list[tuple[float, str]] = []
    for time in section.times:
        if time.subject == section.ours:
            found += [
                (
                    spread[1],
                    f"{spread[1]:.2f} x the time of {titles[base]} at batch {time.batch}, "
                    f"length {time.seq}, {threads_text(time.threads)}",
                )
                for base, spread in time.ratios.items()
            ]
    for memory in section.memory:
        if memory.subject == section.ours:
            for base in section.baselines:
                ratio = _memory_ratio(section, memory, base)
                if ratio is not None:
                    found.append(
                        (
                            ratio,
                            f"{ratio:.2f} x the extra memory of {titles[base]} at batch "
                            f"{memory.batch}, length {memory.seq}",
                        )
                    )
    return [text for ratio, text in sorted(found, reverse=True) if ratio > LOSS]


def _cautions(section: Section) -> str:
    """What makes figures of this run worth less."""
    lines = [caution(section.machine)]
    titles = {subject.name: subject.title for subject in section.subjects}
    slower: dict[str, list[str]] = {}
    for row in section.times:
        one = section.time(row.subject, row.batch, row.seq, 1)
        if row.subject != section.reference or one is None or row.threads == 1:
            continue
        if row.wall_s > LOSS * one.wall_s:
            where = f"{threads_text(row.threads)}, batch {row.batch}, length"
            slower.setdefault(where, []).append(str(row.seq))
    if slower:
        places = "; ".join(f"{where} {', '.join(seqs)}" for where, seqs in slower.items())
        lines.append(
            f"{titles[section.reference]} itself is slower with more threads than with one, and "
            f"beating it there proves little: {places}."
        )
    return "\n\n".join(line for line in lines if line)


def _subjects(section: Section) -> str:
    sizes = section.sizes
    lines = [f"- {subject.title}: {subject.about}" for subject in section.subjects]
    module = f"Module: dim {sizes['embed_dim']}, {sizes['num_heads']} heads, float32. Subjects:"
    return "\n".join([module, "", *lines])


def _verdict(section: Section) -> str:
    ours = [row for row in section.times if row.subject == section.ours]
    if not ours:
        return ""
    titles = {subject.name: subject.title for subject in section.subjects}
    lines = []
    for base in section.baselines:
        ratios = [row.ratios[base][1] for row in ours if base in row.ratios]
        if ratios:
            slower = sum(ratio > LOSS for ratio in ratios)
            lines.append(
                f"- Against {titles[base]}: {min(ratios):.2f} to {max(ratios):.2f} of its time, "
                f"slower at {slower} of {len(ratios)} places."
            )
    worst = losses(section)[:5]
    if worst:
        lines += ["", "The largest losses:", "", *(f"- {text}" for text in worst)]
    return "\n".join(["causal-onnx in this run:", "", *lines])


def _times(section: Section, batch: int, threads: int) -> str:
    others = [s for s in section.subjects if s.name not in (section.reference, section.ours)]
    titles = {subject.name: subject.title for subject in section.subjects}
    has_ours = section.ours in titles
    baselines = [base for base in section.baselines if base != section.reference] * has_ours
    heads = [
        "length",
        f"{titles[section.reference]}, ms",
        *(f"{subject.title}" for subject in others),
        *([titles[section.ours]] if has_ours else []),
        *(f"{titles[section.ours]} / {titles[base]}" for base in baselines),
    ]
    lines = []
    for seq in sorted({r.seq for r in section.times if (r.batch, r.threads) == (batch, threads)}):
        reference = section.time(section.reference, batch, seq, threads)
        cells = [str(seq), _milliseconds(reference)]
        for subject in others:
            row = section.time(subject.name, batch, seq, threads)
            cells.append(_ratio(row, section.reference))
        if has_ours:
            row = section.time(section.ours, batch, seq, threads)
            cells += [
                _ratio(row, base, marks_loss=True) for base in (section.reference, *baselines)
            ]
        lines.append(cells)
    return "\n".join(
        [
            f"### Batch {batch}, {threads_text(threads)}: {clock_text(clock_of(threads))}",
            "",
            f"Relative to {titles[section.reference]}; medians, quartiles in brackets.",
            "",
            *table(heads, lines),
        ]
    )


def _memory(section: Section, batch: int) -> str:
    titles = {subject.name: subject.title for subject in section.subjects}
    baselines = section.baselines if section.ours in titles else []
    heads = [
        "length",
        *titles.values(),
        *(f"{titles[section.ours]} / {titles[base]}" for base in baselines),
    ]
    lines = []
    for seq in sorted({row.seq for row in section.memory if row.batch == batch}):
        cells = [str(seq)]
        for name in titles:
            row = section.footprint(name, batch, seq)
            cells.append(
                f"{row.extra_bytes / 1e6:.1f} ({row.peak_bytes / 1e6:.0f})" if row else "-"
            )
        own = section.footprint(section.ours, batch, seq)
        for base in baselines:
            ratio = _memory_ratio(section, own, base)
            cells.append("-" if ratio is None else marked(f"{ratio:.2f}", ratio > LOSS))
        lines.append(cells)
    return "\n".join(
        [
            f"### Batch {batch}: memory, one thread",
            "",
            "MB that the call needs beyond the loaded model and its input; in brackets the peak of "
            "the whole process. The last columns compare the former.",
            "",
            *table(heads, lines),
        ]
    )


def _memory_ratio(section: Section, own: MemoryRow | None, base: str) -> float | None:
    other = section.footprint(base, own.batch, own.seq) if own else None
    if own is None or other is None or max(own.extra_bytes, other.extra_bytes) < LEAST_BYTES:
        return None
    return own.extra_bytes / max(other.extra_bytes, 1)


def _left_out(section: Section) -> str:
    if not section.left_out:
        return ""
    titles = {subject.name: subject.title for subject in section.subjects}
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for item in section.left_out:
        where = f"batch {item.batch} length {item.seq}"
        if item.what == "time":
            where += f" {threads_text(item.threads)}"
        reasons.setdefault((titles[item.subject], item.what, item.reason), []).append(where)
    lines = [
        f"- {title}, {what}, at {'; '.join(places)}: {reason}"
        for (title, what, reason), places in reasons.items()
    ]
    return "\n".join(["Left out:", "", *lines])


def _milliseconds(row: TimeRow | None) -> str:
    if row is None:
        return "-"
    low, middle, high = (f"{value * 1e3:.3g}" for value in row.quartiles_s)
    return f"{middle} ({low}-{high})"


def _ratio(row: TimeRow | None, base: str, *, marks_loss: bool = False) -> str:
    if row is None or base not in row.ratios:
        return "-"
    low, middle, high = row.ratios[base]
    spread = f" ({_number(low)}-{_number(high)})"
    return marked(_number(middle), marks_loss and middle > LOSS) + spread


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"
