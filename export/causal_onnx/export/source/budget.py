"""Which shapes a check may run, by what they would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.export.source.dry_run import dry_run
from causal_onnx.export.source.inputs import CallSizes, InputSpec
from causal_onnx.export.source.module import Source

__all__ = ["EFFORTS", "NORMAL", "Budget"]

NORMAL = "normal"
EFFORTS = {"quick": 0.1, NORMAL: 1.0, "full": math.inf}
"""Effort -> what a check may compute, in multiples of what is normal."""

LARGEST_TENSOR = 270_000_000
"""Elements: 1.1 GB in fp32, of which PyTorch and onnxruntime hold a few. 4 heads at 8192 positions,
16 at 4096."""
LARGEST_FLOPS = 6e11
"""2048 tokens of a 135M model: some seconds."""
MANY_ROWS_WORK = 2e10
"""parameters x tokens of a call of several rows: 150 tokens of a 135M model, a second or two. Rows
do not look at each other, so what length does is seen in one, and what rows do at a shorter one."""
SURE_SCORES, SURE_WORK = 1 << 20, 3e9
"""batch x seq x seq, and parameters x tokens, up to which the cost need not be looked at."""
FEW_TOKENS = 16
"""Up to here several rows are run whatever the size of the model."""
MOST_MEMORY = 4.0
"""How many times LARGEST_TENSOR no effort exceeds: 4.3 GB."""
QUICK_FED_WORK = 1e10
"""parameters x tokens of a sequence that less than normal effort feeds through a cache in every
way: 70 tokens of a 135M model."""
ALWAYS_FED = 7
"""Positions, whatever the size of the model."""
ASSUMED_HEADS = 16


class Budget:
    """Decides for one module and its inputs."""

    def __init__(self, source: Source, specs: Sequence[InputSpec], effort: str = NORMAL):
        """Decide for `source` and its inputs, by an effort of `EFFORTS`."""
        self.effort = effort
        self._share = EFFORTS[effort]
        self._source, self._specs = source, specs
        self._found: dict[CallSizes, bool] = {}
        self._endless: int | None = None
        """The least length at which a call was not followed to its end."""
        self._parameters = sum(p.numel() for p in source.parameters())

    def allows(self, sizes: CallSizes) -> bool:
        """Whether a run at `sizes` fits into memory and time everywhere this project is tested."""
        if sizes not in self._found:
            self._found[sizes] = self._look(sizes)
        return self._found[sizes]

    @staticmethod
    def refusal(sizes: CallSizes) -> str:
        """What a report says of sizes that were not run."""
        past = f", past {sizes.past}" if sizes.past else ""
        return f"seq {sizes.seq}, batch {sizes.batch}{past}: more than this check computes"

    def allows_feeding(self, sizes: CallSizes) -> bool:
        """Whether sequences of `sizes`, short ones, are fed through a cache in every way."""
        work = float(self._parameters * sizes.batch * sizes.seq)
        return self._share >= 1 or sizes.seq <= ALWAYS_FED or work <= QUICK_FED_WORK

    @property
    def of_samples(self) -> float:
        """Which part of the samples of a measurement is taken."""
        return min(self._share, 1.0)

    @property
    def is_full(self) -> bool:
        """Time sets no bound."""
        return math.isinf(self._share)

    def _look(self, sizes: CallSizes) -> bool:
        total = sizes.past + sizes.seq
        scores = sizes.batch * sizes.seq * total
        work = float(self._parameters * sizes.batch * sizes.seq)
        if scores <= SURE_SCORES and work <= SURE_WORK:
            return True
        if sizes.batch > 1 and sizes.seq > FEW_TOKENS and work > MANY_ROWS_WORK * self._share:
            return False
        if self._endless is None or sizes.seq < self._endless:
            found = dry_run(self._source, self._specs, sizes)
            if found.accepted:
                return self._fits(found.largest, found.flops)
            if math.isinf(found.flops):  # a loop over positions: longer ones have more steps
                self._endless = sizes.seq
        return self._fits(scores * ASSUMED_HEADS, 2 * work)

    def _fits(self, largest: int, flops: float) -> bool:
        share = self._share
        return (
            largest <= LARGEST_TENSOR * min(share, MOST_MEMORY) and flops <= LARGEST_FLOPS * share
        )
