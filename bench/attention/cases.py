"""What is run: the shapes of the module's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.sizes import ModuleSizes

__all__ = [
    "BATCHES",
    "LENGTHS",
    "QUICK_BATCHES",
    "QUICK_LENGTHS",
    "THREADS",
    "Case",
    "default_cases",
    "make_input",
    "memory_cases",
]

LENGTHS = (1, 2, 4, 8, 16, 128, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 8)
THREADS = (1, 2)

QUICK_LENGTHS = (1, 16, 128, 1024)
QUICK_BATCHES = (1,)

LONGEST_ROWS = 32_768
"""The default run leaves out what has more positions, batch x length: batch 8 at 8192 would take
minutes per round, and the plain export would hold 26 GB in one tensor of scores."""

MEMORY_LENGTHS_FROM = 16
"""Below it, what a call needs is less than a megabyte; length 1 stands for all of them."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Case:
    """One shape of the input."""

    batch: int
    seq: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.seq < 1:
            raise ValueError(
                f"batch and seq must be at least 1, got batch {self.batch}, seq {self.seq}"
            )

    def __str__(self) -> str:
        return f"batch {self.batch}, length {self.seq}"

    def flops(self, sizes: ModuleSizes) -> float:
        """Multiplications and additions of one forward: four projections, half the scores."""
        rows = self.batch * self.seq
        return rows * (8.0 * sizes.embed_dim**2 + 2.0 * self.seq * sizes.embed_dim)


def default_cases(batches: Sequence[int], lengths: Sequence[int]) -> list[Case]:
    """All shapes up to `LONGEST_ROWS` positions, shortest first within each batch size."""
    cases = [Case(batch=batch, seq=seq) for batch in batches for seq in sorted(set(lengths))]
    return [case for case in cases if case.batch * case.seq <= LONGEST_ROWS]


def memory_cases(cases: Sequence[Case]) -> list[Case]:
    """Those at which memory is measured."""
    return [case for case in cases if case.seq == 1 or case.seq >= MEMORY_LENGTHS_FROM]


def make_input(case: Mapping[str, Any], embed_dim: int) -> npt.NDArray[np.float32]:
    """Standard normal (batch, seq, embed_dim), the same in every process."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((case["batch"], case["seq"], embed_dim), dtype=np.float32)
