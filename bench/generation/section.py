"""The generation section of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import results
from bench.figures import Figure
from bench.figures import find as find_figure
from bench.subject import SubjectRow

__all__ = ["Section"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section(results.Section):
    """All that one run found out."""

    device: str
    sizes: Mapping[str, Any]
    """Of the language model."""
    tiny: Mapping[str, Any]
    """Of the small model that shows what Python does."""
    module: Mapping[str, Any]
    """Of the attention module that is started."""
    batch: Mapping[str, int]
    subjects: Sequence[SubjectRow]
    graphs: Mapping[str, str]
    """Subject -> what its file holds in few bits."""
    errors: Mapping[str, float]
    """Subject -> the largest difference of its logits from the reference's, by their scale."""
    figures: Sequence[Figure]
    drifts: Mapping[str, float] = field(default_factory=dict)
    """Subject -> how far its logits lie from those of PyTorch in fp32: the root of the mean square
    of the difference by that of the logits, both without their mean."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What was not measured, a subject or a part -> the reason."""

    def find(self, row: str, subject: str, threads: int, unit: str | None = None) -> Figure | None:
        """The figure of these, or None where there is none."""
        return find_figure(self.figures, row, subject, threads, unit)
