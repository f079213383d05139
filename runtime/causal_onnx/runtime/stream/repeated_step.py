"""The step that a stream takes again and again: one position more for each row, nothing else new.

Checking a request, allocating and binding take longer than the graph of a small model. Of a step
that is like the last one, all stays bound but the mask, which is a column wider, the outputs, which
the caller may keep, and what is computed of lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import LAST_ONLY, Contract
from causal_onnx.runtime.request.computed import computed_inputs
from causal_onnx.runtime.request.request import are_ids
from causal_onnx.runtime.session.ort import import_onnxruntime
from causal_onnx.runtime.stream.kv_cache import token_mask

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.runner import Runner

    Array = npt.NDArray[Any]

__all__ = ["RepeatedStep"]


class RepeatedStep:
    """One step of a stream whose whole cache is in buffers that are bound as past and present.

    Once a step has raised it is of no further use.
    """

    def __init__(
        self,
        model: Runner,
        io: Any,
        own: Contract,
        feeds: Mapping[str, Array],
        *,
        moving: Sequence[str],
        lengths: Array,
        most: int,
    ) -> None:
        """Take over a binding whose last run was such a step.

        Args:
            model: The stream's.
            io: The binding; nobody else may run it while this is in use.
            own: The contract without the cache.
            feeds: Its inputs, (batch, 1, ...) those of `own` that have positions.
            moving: The inputs of `own` that each step is given; the others stay what they are.
            lengths: Positions that each row has read, (batch,), that run's among them.
            most: Positions that there is room for in the longest row.
        """
        contract = model.contract
        assert contract.mask is not None
        self._model, self._io, self._mask, self._most = model, io, contract.mask, most
        self._used, self.lengths = int(lengths.max()), lengths
        """(batch,), positions that each row has read; a new array with each step."""
        self._new = np.ones_like(lengths)
        """How many positions a step adds to each row."""
        dtype = next(spec.dtype for spec in contract.inputs if spec.name == contract.mask)
        self._mask_dtype = dtype
        # Of one row, a view of it is every mask.
        self._ones = np.ones((1, most), dtype) if len(lengths) == 1 else None
        self._feeds = {spec.name: np.array(feeds[spec.name], order="C") for spec in own.inputs}
        self._bound = [self._feeds[name] for name in moving]
        """What is bound and changes, and its dtype, shape and vocabulary."""
        vocabs = {spec.name: spec.vocab_size for spec in own.inputs}
        self._wanted = [
            (self._feeds[name].dtype, self._feeds[name].shape, vocabs[name]) for name in moving
        ]
        if contract.last_only is not None:
            # Of a sequence of one, the last position is all there is.
            self._feeds[LAST_ONLY] = np.array(False)
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        for name, array in self._feeds.items():
            io.bind_ortvalue_input(name, value(array))
        sizes = {"batch": len(lengths), "seq": 1}
        self._outputs = [
            _Output(spec.name, spec.shape(sizes), spec.dtype, value) for spec in own.outputs
        ]

    @staticmethod
    def fits(own: Contract) -> bool:
        """Whether the outputs of a step have one shape from step to step."""
        axes = {axis for spec in own.outputs for axis in spec.axes if isinstance(axis, str)}
        return axes <= {"batch", "seq"}

    def takes(self, inputs: Sequence[Any]) -> bool:
        """Whether there is room, and the inputs need no check but that of their ids, and pass."""
        if self._used == self._most or len(inputs) != len(self._wanted):
            return False
        for array, (dtype, shape, vocab) in zip(inputs, self._wanted, strict=True):
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return False
            if vocab is not None and not are_ids(array, vocab):
                return False
        return True

    def run(self, inputs: Sequence[Any]) -> dict[str, Array]:
        """One step, with inputs that it takes.

        Raises:
            RunError: onnxruntime failed.
        """
        for array, bound in zip(inputs, self._bound, strict=True):
            bound[...] = array
        total = self._used + 1
        io, feeds = self._io, self._feeds
        if self._ones is None:
            mask = token_mask(self.lengths, self._new, 1, dtype=self._mask_dtype)
        else:
            mask = self._ones[:, :total]
        feeds[self._mask] = mask
        io.bind_cpu_input(self._mask, mask)
        if self._model.contract.computed:
            sizes = {"batch": len(self.lengths), "past_seq": self._used, "seq": 1}
            for name, value in computed_inputs(self._model.contract, mask, **sizes).items():
                feeds[name] = value
                io.bind_cpu_input(name, value)
        found = {}
        for output in self._outputs:
            found[output.name], value = output.memory()
            io.bind_ortvalue_output(output.name, value)
        self._model.run_bound(io, feeds)
        self._used, self.lengths = total, self.lengths + 1
        return found


class _Output:
    """Memory for an output: a new array, or one of the last two if nobody has it any more.

    A caller who looks at the outputs of one step in the next holds one of two arrays.
    """

    __slots__ = ("_arrays", "_dtype", "_shape", "_unshared", "_value", "_values", "name")

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, value: Callable[[Array], Any]
    ) -> None:
        self.name, self._shape, self._dtype, self._value = name, shape, dtype, value
        self._arrays: list[Array] = []
        self._values: list[Any] = []
        self._add()
        self._unshared = getrefcount(self._arrays[0])
        """References to an array that nobody has but this."""

    def memory(self) -> tuple[Array, Any]:
        """An array, and the same as onnxruntime takes it."""
        arrays, values = self._arrays, self._values
        if len(arrays) == 2:
            arrays.reverse()
            values.reverse()
            # A view, a tensor of another library, or whatever else shares it, refers to it.
            if getrefcount(arrays[1]) == self._unshared:
                return arrays[1], values[1]
            del arrays[1], values[1]
        self._add()
        return arrays[1], values[1]

    def _add(self) -> None:
        self._arrays.append(np.empty(self._shape, self._dtype))
        self._values.append(self._value(self._arrays[-1]))
