"""The decode section of the results: rows as they are stored, and the page's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.rounds import Clock

__all__ = ["Section", "StepRow", "to_markdown"]

LOSS = 1.005
"""What is printed as more than 1.00."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """Both graphs at one step and number of threads."""

    past_seq: int
    seq: int
    threads: int
    clock: Clock
    processes: int
    """Pairs of processes; the times are medians over them."""
    reference_s: float
    ours_s: float
    ratio: tuple[float, float, float]
    """Ours over the reference's of the same round, median of a pair of processes: the lowest, the
    median and the highest over the pairs."""
    error: float
    """Largest difference of the logits, relative to their scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """All that one run found out."""

    date: str
    seconds: float
    machine: Mapping[str, Any]
    sizes: Mapping[str, Any]
    rows: Sequence[StepRow]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def to_markdown(section: Section) -> str:
    """The table, what it was measured on, and every loss in bold."""
    machine, sizes = section.machine, section.sizes
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    slower = [row for row in section.rows if row.ratio[1] > LOSS]
    lines = [
        f"Measured {section.date}, {section.seconds / 60:.0f} minutes, at revision "
        f"{machine['revision'] or 'unknown'}; {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_before']} when it began; {versions}.",
        "",
        f"Model: {sizes['name']}, {sizes['num_layers']} layers, width {sizes['embed_dim']}, "
        f"{sizes['num_heads']} heads of which {sizes['num_kv_heads']} for keys and values, "
        f"vocabulary {sizes['vocab_size']}, random weights, float32, a cache of "
        f"{sizes['max_seq_len']} positions.",
        "",
        f"causal-onnx is slower at {len(slower)} of {len(section.rows)} places. Ratios: the median "
        "over pairs of processes, in brackets the lowest and the highest.",
        "",
        "| threads | past | new | builder's graph, ms | causal-onnx, ms | ratio |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in section.rows:
        low, middle, high = row.ratio
        text = f"**{middle:.2f}**" if middle > LOSS else f"{middle:.2f}"
        lines.append(
            f"| {row.threads} | {row.past_seq} | {row.seq} | {row.reference_s * 1e3:.3g} | "
            f"{row.ours_s * 1e3:.3g} | {text} ({low:.2f}-{high:.2f}) |"
        )
    return "\n".join(lines)
