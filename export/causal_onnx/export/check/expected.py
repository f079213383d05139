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


_LARGE = 1 << 24
"""Bytes of an output that is not held in memory beside what it is compared with."""


class Expected:
    """The outputs of one source.

    With a folder, large ones lie in a file without a name, and kept ones are computed once: the
    logits of a long prompt are as large as a model.
    """

    def __init__(self, source: Source, folder: Path | None = None, *, keeps: bool = False) -> None:
        """Ask `source`.

        Args:
            source: The source.
            folder: Where outputs may lie. None: they are in memory.
            keeps: Several graphs are compared with the same outputs; needs the folder.
        """
        self.source = source
        self._folder, self._keeps = folder, keeps
        self._kept: dict[tuple[CallSizes, Padding], list[Array]] = {}

    def at(
        self, sizes: CallSizes, padding: Padding, inputs: Sequence[torch.Tensor]
    ) -> list[Array] | Refusal:
        """The outputs for the inputs of these sizes, or what the source said instead."""
        kept = self._kept.get((sizes, padding))
        if kept is not None:
            return kept
        answer = ask(self.source.copied_by, self._stored, inputs)
        if isinstance(answer, Refusal):
            return answer
        if self._keeps:
            self._kept[sizes, padding] = answer
        return answer

    def _stored(self, value: torch.Tensor) -> Array:
        """A copy of an output, in a file if that is to be."""
        if self._folder is None or not (self._keeps or value.nbytes >= _LARGE):
            return to_numpy(value)
        return _in_file(to_numpy(value, copies=False), self._folder)


def _in_file(value: Array, folder: Path) -> Array:
    """`value` in a file of `folder` that is gone with the array."""
    if not value.size:  # which cannot be mapped
        return value
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        file.flush()
        return np.memmap(file, value.dtype, "r", shape=value.shape)
