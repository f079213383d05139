"""Everything that one run of the demo found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examples.demo.attention import AttentionMaps
from examples.demo.modules import Exported
from examples.demo.player import Run
from examples.demo.road import Road
from examples.demo.train import Training

__all__ = ["Findings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the report shows."""

    modules: Sequence[Exported]
    decoder: Exported
    training: Training
    maps: AttentionMaps
    prompt: str
    without_torch: Run
    with_torch: Run
    road: Road
    """From a checkpoint of somebody else's to text."""
    threads: int
    """Of both sides of every comparison."""

    @property
    def same_text(self) -> bool:
        return self.without_torch.text == self.with_torch.text

    def first_difference(self) -> int | None:
        """The index of the first character in which the two texts differ, or None."""
        ours, theirs = self.without_torch.text, self.with_torch.text
        if ours == theirs:
            return None
        pairs = zip(ours, theirs, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
