"""What a source gives at the shapes of a comparison, asked once for several graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from causal_onnx.export.outcome import Refusal, ask
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.inputs import CallSizes, Padding
from causal_onnx.export.source.module import Source

__all__ = ["Expected"]


class Expected:
    """The outputs of one source.

    With a folder to keep them in, each is computed once: they lie in a file without a name, since
    the logits of a long prompt are as large as a model.
    """

    def __init__(self, source: Source, folder: Path | None = None) -> None:
        """Ask `source`; keep what it gives in `folder`. None: nothing is kept."""
        self.source = source
        self._folder = folder
        self._kept: dict[tuple[CallSizes, Padding], list[Array]] = {}

    def at(
        self, sizes: CallSizes, padding: Padding, inputs: Sequence[torch.Tensor]
    ) -> list[Array] | Refusal:
        """The outputs for the inputs of these sizes, or what the source said instead."""
        kept = self._kept.get((sizes, padding))
        if kept is not None:
            return kept
        answer = ask(self.source.run, inputs)
        if isinstance(answer, Refusal):
            return answer
        found = [to_numpy(value) for value in answer]
        if self._folder is not None:
            self._kept[sizes, padding] = [_in_file(value, self._folder) for value in found]
        return found


def _in_file(value: Array, folder: Path) -> Array:
    """`value` in a file of `folder` that is gone with the array."""
    if not value.size:  # which cannot be mapped
        return value
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        file.flush()
        return np.memmap(file, value.dtype, "r", shape=value.shape)
