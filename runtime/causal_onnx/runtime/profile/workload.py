"""A call of a model that can be made again and again, on inputs made from its contract alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.runtime.stream.stream import Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.runner import Runner

    Array = npt.NDArray[Any]

__all__ = ["Workload", "check_sizes", "make_request"]


class Workload:
    """One call of `seq` positions behind a past of `past`, the same each time.

    A model with a cache reads them through a stream, and a language model then gives the logits of
    the last position only, as generating does.

        work = Workload(model, seq=1, past=512)
        work.call()  # this is what to time
        work.take_back()
    """

    def __init__(self, model: Runner, *, batch: int = 1, seq: int = 1, past: int = 0) -> None:
        """Make the inputs, and read the past, which is one call of the model.

        Raises:
            ValueError: The contract does not allow such a call.
            RunError: onnxruntime failed.
        """
        contract = model.contract
        check_sizes(contract, batch=batch, seq=seq, past=past)
        batch, seq, past = int(batch), int(seq), int(past)
        self.batch, self.seq, self.past = batch, seq, past
        self._model = model
        self._request = make_request(contract, batch=batch, seq=seq, past=past)
        self._last_only = contract.last_only is not None
        self._base: Stream | None = None
        self._stream: Stream | None = None
        if contract.cache:
            stream = Stream(model, batch=batch, capacity=past + seq)
            if past:
                before = make_request(contract, batch=batch, seq=past)
                stream.run(*before.values(), last_only=self._last_only)
            self._stream = stream
            # Buffers that the graph writes into go back for nothing. Of other caches a fork shares
            # the arrays, and can go back to what a window has dropped.
            if not all(pair.shared for pair in contract.cache):
                self._base, self._stream = stream, stream.fork()

    @property
    def setup_calls(self) -> int:
        """How often making this object called the model."""
        return int(self._stream is not None and self.past > 0)

    def call(self) -> dict[str, Array]:
        """Call the model, and give its outputs but for the cache.

        Raises:
            RunError: onnxruntime failed.
        """
        if self._stream is None:
            return self._model.run(self._model.checker, (), self._request)
        return self._stream.run(*self._request.values(), last_only=self._last_only)

    def take_back(self) -> None:
        """Make the next `call` like the one before."""
        if self._base is not None:
            self._stream = self._base.fork()
        elif self._stream is not None:
            self._stream.rewind(self.past)


def check_sizes(contract: Contract, *, batch: int, seq: int, past: int) -> None:
    """Check a call's sizes against the contract.

    Raises:
        ValueError: One of them is not what the contract allows.
    """
    for name, value, least in (("batch", batch, 1), ("seq", seq, 1), ("past", past, 0)):
        whole_number(name, value, least=least)
    if batch > 1 and not any("batch" in spec.axes for spec in contract.inputs):
        raise ValueError(f"this model takes one sequence at a time, got batch={batch}")
    if past and not contract.cache:
        raise ValueError(
            f"this model has no KV cache, so there is no past, got past={past}; export it with "
            "cache=True"
        )
    least, most = contract.min_seq_len, contract.max_seq_len
    if past + seq < least or past + seq > (most or past + seq):
        limits = f"from {least}" if most is None else f"from {least} to {most}"
        given = f"{past} + {seq}" if past else f"{seq}"
        raise ValueError(f"this model takes {limits} positions, got {given}")


def make_request(
    contract: Contract, *, seq: int, batch: int = 1, past: int = 0
) -> dict[str, Array]:
    """The new positions of a call, as the contract allows them; the same ones every time."""
    sizes = {"batch": batch, "seq": seq, "past_seq": past, "total_seq": past + seq}
    generator = np.random.default_rng(0)
    return {
        spec.name: _values(spec, sizes, generator)
        for spec in contract.inputs
        if spec.name not in contract.optional_names  # left out: no past, no padding
    }


def _values(spec: TensorSpec, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
    if spec.dtype == "bfloat16":
        return generator.standard_normal(shape, dtype=np.float32)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if spec.vocab_size is not None:
        high = min(spec.vocab_size, int(np.iinfo(dtype).max) + 1)
        return generator.integers(high, size=shape, dtype=dtype)
    # What an integer without a vocabulary means, only its name and axes can tell.
    if "position" in spec.name and spec.axes and spec.axes[-1] in ("seq", "total_seq"):
        end = sizes["total_seq"]
        return np.broadcast_to(np.arange(end - shape[-1], end, dtype=dtype), shape)
    if spec.axes == ("batch",):
        return np.full(shape, sizes["seq"], dtype)
    return np.ones(shape, dtype)
