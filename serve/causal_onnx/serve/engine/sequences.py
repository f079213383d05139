"""Sequences whose cache stays here between the requests of a client."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.serve.engine.queued import QueuedEngine
from causal_onnx.serve.errors import BadRequestError, BusyError

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime import Model, Stream

    Array = npt.NDArray[Any]

__all__ = ["SequenceEngine", "SequenceOptions", "SequenceStep"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceOptions:
    """Limits on the sequences that a `SequenceEngine` keeps."""

    sequences: int = 64
    """The most sequences of a model at a time."""
    idle_s: float = 600.0
    """Seconds after which a sequence that was not continued is dropped."""
    positions: int = 1 << 18
    """The most positions of all batch rows of all sequences together."""
    queue: int = 256
    """The most requests that may wait; further ones raise `BusyError`."""

    def __post_init__(self) -> None:
        for name in ("sequences", "positions", "queue"):
            whole_number(name, getattr(self, name))
        if isinstance(self.idle_s, bool) or not self.idle_s > 0:
            raise ValueError(f"idle_s must be a positive number of seconds, got {self.idle_s!r}")


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Which sequence a request belongs to, and whether it begins or ends it."""

    identity: int | str
    starts: bool
    ends: bool


@dataclass(eq=False, slots=True)
class _Request:
    step: SequenceStep
    inputs: Mapping[str, npt.ArrayLike]
    adapter: str | None
    future: Future[dict[str, Array]]


@dataclass(eq=False, slots=True)
class _Sequence:
    stream: Stream
    used: float
    """When it was last gone on with, by `time.monotonic()`."""

    @property
    def positions(self) -> int:
        lengths = self.stream.lengths
        return len(lengths) * max(lengths)


class SequenceEngine(QueuedEngine[_Request]):
    """Keeps the streams of one model, and answers their requests on a thread of its own.

    Requests are taken in the order in which they come, so those of one sequence never overtake
    each other. A step has the bits of `Stream.run` with the same chunks.
    """

    def __init__(self, model: Model, *, options: SequenceOptions | None = None) -> None:
        """Start.

        Raises:
            ValueError: The model has no cache.
        """
        if not model.contract.cache:
            raise ValueError("this model has no KV cache, so it keeps no sequences")
        self.model, self.options = model, options or SequenceOptions()
        super().__init__(queue=self.options.queue, thread_name="causal-onnx-sequences")
        self._own = model.contract.without_cache()
        # The least recently used first; it belongs to the engine's thread, but for its length.
        self._sequences: OrderedDict[tuple[str | None, int | str], _Sequence] = OrderedDict()
        self._begin()

    @property
    def held(self) -> int:
        """The number of sequences that are kept."""
        return len(self._sequences)

    def submit(
        self,
        step: SequenceStep,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        adapter: str | None = None,
    ) -> Future[dict[str, Array]]:
        """Enqueue a request; `asyncio.wrap_future` lets an event loop wait for it.

        Args:
            step: Its sequence. One that starts replaces a sequence of the same identity.
            inputs: The next positions by input name, without the cache.
            adapter: The name of the adapter that changes the model; each has sequences of its own.

        Returns:
            A future with the outputs by name, without the cache. It raises what `Stream.run`
            raises, and BadRequestError if there is no such sequence. A request that fails leaves
            its sequence as it was.

        Raises:
            BusyError: The queue is full.
            UnavailableError: The engine is closing.
        """
        item = _Request(step, inputs, adapter, Future())
        self._enqueue(item)
        return item.future

    # The engine's thread.

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                outputs = self._answer(item)
            except Exception as error:  # whoever waits for it is given it
                item.future.set_exception(error)
            else:
                item.future.set_result(outputs)
            del item  # the wait for the next one may be long
            with self._changed:
                self._running = 0
        self._sequences.clear()

    def _next(self) -> _Request | None:
        """The next request; None at the end. Sequences that are idle too long go meanwhile."""
        while True:
            self._drop_idle()
            with self._changed:
                while self._waiting:
                    item = self._waiting.popleft()
                    if item.future.set_running_or_notify_cancel():
                        self._running = 1
                        return item
                if not self._is_open:
                    return None
                self._changed.wait(self._idle_in())

    def _idle_in(self) -> float | None:
        """Seconds until a sequence is idle too long."""
        oldest = next(iter(self._sequences.values()), None)
        if oldest is None:
            return None
        return max(0.0, oldest.used + self.options.idle_s - time.monotonic())

    def _drop_idle(self) -> None:
        while self._idle_in() == 0:
            (_, identity), _ = self._sequences.popitem(last=False)
            log.info("sequence %r was idle for %g s and is dropped", identity, self.options.idle_s)

    def _answer(self, item: _Request) -> dict[str, Array]:
        step, inputs, options = item.step, item.inputs, self.options
        key = (item.adapter, step.identity)
        given = self._in_order(inputs)
        known = self._sequences.get(key)
        if step.starts:
            if known is None and len(self._sequences) >= options.sequences:
                raise BusyError(
                    f"{len(self._sequences)} sequences of this model are kept, which is the limit; "
                    "end one with sequence_end, or try again later"
                )
            batch = self._size(inputs, "batch")
            stream = self.model.stream(batch=batch, adapter=item.adapter)
            found = _Sequence(stream, time.monotonic())
        elif known is None:
            raise BadRequestError(
                f"there is no sequence {step.identity!r} of this model: it has ended, was idle for "
                f"more than {options.idle_s:g} s, or never began; begin it with sequence_start",
                param="sequence_id",
            )
        else:
            found = known
        self._check_room(found, self._size(inputs, "seq"))
        outputs = found.stream.run(*given)
        found.used = time.monotonic()
        if step.ends:
            self._sequences.pop(key, None)
        else:
            self._sequences[key] = found
            self._sequences.move_to_end(key)
        return outputs

    def _in_order(self, inputs: Mapping[str, npt.ArrayLike]) -> list[npt.ArrayLike]:
        """The inputs as `Stream.run` takes them, whatever their names are."""
        names = [spec.name for spec in self._own.inputs]
        if unknown := sorted(inputs.keys() - set(names)):
            raise ValueError(
                f"a sequence does not take the input {unknown[0]!r}, which its server keeps; it "
                f"takes {', '.join(names)}"
            )
        if missing := [spec.describe() for spec in self._own.inputs if spec.name not in inputs]:
            raise ValueError(f"inputs of the sequence are missing: {'; '.join(missing)}")
        return [inputs[name] for name in names]

    def _size(self, inputs: Mapping[str, npt.ArrayLike], axis_name: str) -> int:
        """How large an axis is, 1 where no input has it; the stream says what does not fit."""
        for spec in self._own.inputs:
            axis, shape = spec.axis_of(axis_name), np.shape(inputs[spec.name])
            lacking = len(spec.axes) - len(shape)  # 1: the batch axis was left out
            if axis is None or lacking not in (0, 1):
                continue
            if lacking and (batch := spec.axis_of("batch")) is not None and batch <= axis:
                axis -= 1
            if 0 <= axis < len(shape) and not (lacking and axis_name == "batch"):
                return max(1, int(shape[axis]))
        return 1

    def _check_room(self, sequence: _Sequence, new: int) -> None:
        lengths, most = sequence.stream.lengths, self.options.positions
        others = sum(item.positions for item in self._sequences.values() if item is not sequence)
        total = others + len(lengths) * (max(lengths) + new)
        if total > most:
            raise BusyError(
                f"the sequences of this model would have {total} positions, and {most} are kept; "
                "end one with sequence_end, or try again later"
            )
