"""Which shapes a check may run, by what they would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.export.source.dry_run import dry_run
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source

__all__ = ["Budget"]

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
ASSUMED_HEADS = 16


class Budget:
    """Decides for one module and its inputs."""

    def __init__(self, source: Source, specs: Sequence[InputSpec]):
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

    def _look(self, sizes: CallSizes) -> bool:
        total = sizes.past + sizes.seq
        scores = sizes.batch * sizes.seq * total
        work = float(self._parameters * sizes.batch * sizes.seq)
        if scores <= SURE_SCORES and work <= SURE_WORK:
            return True
        if sizes.batch > 1 and sizes.seq > FEW_TOKENS and work > MANY_ROWS_WORK:
            return False
        if self._endless is None or sizes.seq < self._endless:
            found = dry_run(self._source.fresh(), make_inputs(self._specs, sizes))
            if found.accepted:
                return found.largest <= LARGEST_TENSOR and found.flops <= LARGEST_FLOPS
            if math.isinf(found.flops):  # a loop over positions: longer ones have more steps
                self._endless = sizes.seq
        return scores * ASSUMED_HEADS <= LARGEST_TENSOR and 2 * work <= LARGEST_FLOPS
