"""Positions at which the module itself answers otherwise when other tokens follow.

A query whose visible keys are all hidden by a finite number averages over later ones as well:
padding in front of a sequence, where the module finds it in the ids. No stream can give what such a
position gives in a full pass, and a comparison with one leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.artifact.golden import relative_error
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["LaterTokens", "say_left_out"]

_MOST_LATER = 41
"""So many other tokens are enough to move an average over them."""

_LATER_SEED = 1_000_003


class LaterTokens:
    """Compares results of a cached graph with those of full passes of the module."""

    def __init__(
        self, source: Source, specs: Sequence[InputSpec], contract: Contract, tolerance: float
    ):
        """Compare with `source`, of inputs `specs`, up to `tolerance` of the output's scale."""
        self.source, self._specs, self.tolerance = source, specs, tolerance
        self._limit = contract.max_seq_len
        self.compared = 0
        """Rows times positions, of all comparisons."""
        self.left_out = 0
        """Those among them that were left out."""

    def error(
        self,
        got: Sequence[Array],
        expected: Sequence[Array],
        results: Sequence[TensorSpec],
        inputs: Sequence[torch.Tensor],
    ) -> tuple[float, int]:
        """The largest error, and how many positions were left out.

        Args:
            got: Of the graph, one for each of `results`.
            expected: The module's full pass over `inputs`.
            results: The outputs.
            inputs: Of the module.
        """
        worst = max((relative_error(g, e) for g, e in zip(got, expected, strict=True)), default=0.0)
        pairs = list(zip(got, expected, results, strict=True))
        counts = [_positions(e, spec) for _, e, spec in pairs]
        self.compared += max(counts, default=0)
        if worst <= self.tolerance:
            return worst, 0
        moved = self._moved(inputs, expected, results)
        left = max((int(found.sum()) for found in moved if found is not None), default=0)
        if not left:
            return worst, 0
        self.left_out += left
        worst = 0.0
        for (g, e, _), found in zip(pairs, moved, strict=True):
            here = np.where(found, e, g) if found is not None and g.shape == e.shape else g
            worst = max(worst, relative_error(here, e))
        return worst, left

    @property
    def is_too_much(self) -> bool:
        """Whether so much was left out that the comparisons say little."""
        return 2 * self.left_out > self.compared

    def _moved(
        self,
        inputs: Sequence[torch.Tensor],
        expected: Sequence[Array],
        results: Sequence[TensorSpec],
    ) -> list[Array | None]:
        """For each result, with its axes of rows and positions alone, where it moves."""
        nothing: list[Array | None] = [None] * len(results)
        longer = self._with_others_behind(inputs)
        if longer is None:
            return nothing
        found: list[Array | None] = []
        for again, value, spec in zip(self.source.run(longer), expected, results, strict=True):
            axis = spec.axis_of("seq")
            if axis is None or spec.axes.count("seq") > 1 or value.dtype.kind != "f":
                found.append(None)
                continue
            here = to_numpy(again)[tuple(slice(0, size) for size in value.shape)]
            if here.shape != value.shape:
                return nothing
            scale = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
            apart = np.abs(here.astype(np.float64) - value) > self.tolerance * scale
            kept = {axis, spec.axis_of("batch")}
            others = tuple(n for n in range(value.ndim) if n not in kept)
            found.append(np.asarray(apart.any(others, keepdims=True)))
        return found

    def _with_others_behind(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """`inputs` with others behind them; None: there is no room, or no way to make them."""
        sizes = {
            label: x.shape[axis]
            for spec, x in zip(self._specs, inputs, strict=True)
            for axis, label in spec.axes.items()
        }
        seq = sizes["seq"]
        more = min(seq, _MOST_LATER, (self._limit or 2 * seq) - seq)
        if more < 1 or any(list(s.axes.values()).count("seq") > 1 for s in self._specs):
            return None
        free = tuple(
            (label, size) for label, size in sizes.items() if label not in ("batch", "seq")
        )
        wanted = CallSizes(batch=sizes.get("batch", 1), seq=more, past=seq, free=free)
        others = make_inputs(self._specs, wanted, seed=_LATER_SEED + seq)
        found = []
        for spec, x, other in zip(self._specs, inputs, others, strict=True):
            axis = next((axis for axis, label in spec.axes.items() if label == "seq"), None)
            found.append(x if axis is None else torch.cat([x, other.to(x.dtype)], axis))
        return found


def say_left_out(count: int) -> str:
    """What follows the name of a comparison that left out `count` positions."""
    return f" (without {count} positions that later tokens move in PyTorch)" if count else ""


def _positions(value: Array, spec: TensorSpec) -> int:
    """Rows times positions."""
    axes = [spec.axis_of("batch"), spec.axis_of("seq")]
    return 0 if axes[1] is None else int(np.prod([value.shape[a] for a in axes if a is not None]))
