"""The decode section of the results: figures as they are stored, and the page's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import results
from bench.decode.cases import Step
from bench.decode.subjects import OURS_NAME, REFERENCE
from bench.figures import Figure, find
from bench.markdown import marked, table, versions_text

__all__ = ["Section", "to_markdown"]

LOSS = 1.005
"""What is printed as more than 1.00."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section(results.Section):
    """All that one run found out."""

    sizes: Mapping[str, Any]
    steps: Sequence[Step]
    figures: Sequence[Figure]
    """Seconds of both graphs at each step; the spreads are over pairs of processes."""
    errors: Mapping[str, float]
    """Step -> the largest difference of its logits, relative to their scale."""


def to_markdown(section: Section) -> str:
    """The table, what it was measured on, and every loss in bold."""
    machine, sizes = section.machine, section.sizes
    rows, losses = [], 0
    for threads in sorted({figure.threads for figure in section.figures}):
        for step in section.steps:
            built = find(section.figures, str(step), REFERENCE, threads)
            ours = find(section.figures, str(step), OURS_NAME, threads)
            assert built is not None
            assert ours is not None
            # How many times faster the builder's graph is: ours over the reference's time.
            low, middle, high = built.better[OURS_NAME]
            is_loss = middle > LOSS
            losses += is_loss
            rows.append(
                [
                    f"{threads}",
                    f"{step.past_seq}",
                    f"{step.seq}",
                    f"{built.value[1] * 1e3:.3g}",
                    f"{ours.value[1] * 1e3:.3g}",
                    f"{marked(f'{middle:.2f}', is_loss)} ({low:.2f}-{high:.2f})",
                ]
            )
    heads = ["threads", "past", "new", "builder's graph, ms", "causal-onnx, ms", "ratio"]
    lines = [
        f"Measured {section.date}, {section.seconds / 60:.0f} minutes, at revision "
        f"{machine['revision'] or 'unknown'}; {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_before']} when it began; {versions_text(machine)}.",
        "",
        f"Model: {sizes['name']}, {sizes['num_layers']} layers, width {sizes['embed_dim']}, "
        f"{sizes['num_heads']} heads of which {sizes['num_kv_heads']} for keys and values, "
        f"vocabulary {sizes['vocab_size']}, random weights, float32, a cache of "
        f"{sizes['max_seq_len']} positions.",
        "",
        f"causal-onnx is slower at {losses} of {len(rows)} places. Ratios: the median "
        "over pairs of processes, in brackets the lowest and the highest.",
        "",
        *table(heads, rows),
    ]
    return "\n".join(lines)
