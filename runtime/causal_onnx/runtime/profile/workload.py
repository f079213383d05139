"""A call of a model that can be made again and again, on inputs made from its contract alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.request.example import check_sizes, make_request
from causal_onnx.runtime.stream.stream import Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.runner import Runner

    Array = npt.NDArray[Any]

__all__ = ["Workload"]


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
                moving = {spec.name for spec in contract.inputs if "seq" in spec.axes}
                before |= {name: x for name, x in self._request.items() if name not in moving}
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
