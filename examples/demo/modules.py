"""Export two attention modules and time each beside PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from causal_onnx.export import Certificate, ExportReport, export
from causal_onnx.export.report import Progress
from causal_onnx.models import AttentionConfig, CausalMechanismV1, MultiHeadAttention
from causal_onnx.runtime import load
from examples.demo.screen import Update
from examples.demo.timing import Timing, time_beside

__all__ = [
    "Exported",
    "attention_modules",
    "bar_of_export",
    "export_with_progress",
    "proof_line",
    "time_exported",
]

EMBED_DIM = 256

SHARES = {
    "probe": (0.0, 0.1),
    "capture": (0.1, 0.5),
    "compare": (0.5, 0.9),
    "causality": (0.9, 0.95),
    "proof": (0.95, 1.0),
    "write": (1.0, 1.0),
}
"""Where each step of an export lies on its progress bar, by the time it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One module, exported."""

    name: str
    summary: str
    """Its sizes, in words."""
    report: ExportReport
    timings: Sequence[Timing]
    threads: int
    """Of both sides of `timings`."""

    @property
    def is_causal(self) -> bool:
        """Proved from the graph, and not refuted by changing inputs."""
        return self.report.certificate.is_causal and self.report.causality.is_causal


def attention_modules(*, context_length: int) -> dict[str, tuple[nn.Module, str]]:
    """The modules to export: name -> (module, its sizes in words)."""
    one_head = CausalMechanismV1(EMBED_DIM, EMBED_DIM, context_length, seed=0)
    config = AttentionConfig(embed_dim=EMBED_DIM, num_heads=4, max_seq_len=context_length)
    several_heads = MultiHeadAttention(config, seed=0)
    sizes = f"{EMBED_DIM} features, up to {context_length} positions"
    return {
        "CausalMechanismV1": (one_head.eval(), f"one head, {sizes}"),
        "MultiHeadAttention": (several_heads.eval(), f"4 heads, {sizes}"),
    }


def proof_line(certificate: Certificate) -> str:
    """What the static proof says, on one line."""
    verdict = certificate.verdict.replace("_", " ")
    place = f", at {certificate.offence}" if certificate.offence is not None else ""
    return f"{verdict}, from the graph itself, for {certificate.scope}{place}"


def bar_of_export(update: Update) -> Progress:
    """What moves a bar by the steps of an export."""
    share = 0.0

    def progress(step: str, fraction: float) -> None:
        nonlocal share
        low, high = SHARES.get(step, (share, share))
        # A second way of capturing begins again; a bar that jumps back would look like an error.
        share = max(share, low + (high - low) * fraction)
        update(share, step)

    return progress


def export_with_progress(module: nn.Module, path: Path, update: Update) -> ExportReport:
    """Export with all its proofs, moving a progress bar."""
    return export(module, path, progress=bar_of_export(update))


def time_exported(
    module: nn.Module, path: Path, *, lengths: Sequence[int], threads: int, update: Update
) -> list[Timing]:
    """Time the file beside its source, at batch 1."""
    model = load(path, threads=threads)
    return time_beside(module, model, lengths=lengths, threads=threads, progress=update)
