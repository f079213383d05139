"""Dynamic batching: requests that come together are one call, where that has the bits of each."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.serve.engine.queued import QueuedEngine

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime import Model

    Array = npt.NDArray[Any]

__all__ = ["TensorEngine", "TensorOptions"]

log = logging.getLogger(__name__)

MOST_KNOWN = 4096
"""Kinds of calls whose bits are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorOptions:
    """Limits of a `TensorEngine`."""

    rows: int = 32
    """The most batch rows of a call that joins several requests."""
    queue: int = 256
    """The most requests that may wait; further ones raise `BusyError`."""

    def __post_init__(self) -> None:
        whole_number("rows", self.rows)
        whole_number("queue", self.queue)


@dataclass(eq=False, slots=True)
class _Request:
    feeds: Mapping[str, Array]
    unbatched: bool
    rows: int
    kind: tuple[object, ...]
    """What requests of one call have in common: names, dtypes and shapes but for the rows."""
    future: Future[dict[str, Array]]


class TensorEngine(QueuedEngine[_Request]):
    """Answers tensor requests to one model, on a thread of its own.

    Requests of the same shapes that wait together become one call, if such a call was seen to give
    each of them the bits that it has alone: the first time, both are run and compared, and the
    answers are those of the calls alone. So the answer to a request does not depend on the load.
    """

    def __init__(self, model: Model, *, options: TensorOptions | None = None) -> None:
        """Start."""
        self.model, self.options = model, options or TensorOptions()
        super().__init__(queue=self.options.queue, thread_name="causal-onnx-tensors")
        contract = model.contract
        self._outputs = {spec.name: spec for spec in contract.outputs}
        self._inputs = {spec.name: spec for spec in contract.inputs}
        self._batches = all(
            spec.axis_of("batch") is not None for spec in (*contract.inputs, *contract.outputs)
        )
        self._most_rows = min(self.options.rows, model.runner.largest_batch or self.options.rows)
        self._equal: OrderedDict[tuple[object, ...], bool] = OrderedDict()
        """A kind of request and the rows of each -> whether together they have their own bits."""
        self.calls = 0
        """Of the model, so far."""
        self._begin()

    def submit(
        self, inputs: Mapping[str, npt.ArrayLike], *, adapter: str | None = None
    ) -> Future[dict[str, Array]]:
        """Enqueue a request; `asyncio.wrap_future` lets an event loop wait for it.

        Args:
            inputs: Arrays by input name, as for `Model.run`.
            adapter: The name of the adapter that changes the model for all rows.

        Returns:
            A future with the outputs by name. Cancelling it withdraws a request that still waits.

        Raises:
            ValueError: The contract does not allow the inputs.
            BusyError: The queue is full.
            UnavailableError: The engine is closing.
        """
        request = self.model.runner.checker.check((), inputs)
        rows, feeds = self._rows(request.feeds), request.feeds
        if adapter is not None:
            own = sorted(self.model.contract.adapter_names & inputs.keys())
            if own:
                raise ValueError(
                    f"input {own[0]!r} is that of the adapter {adapter!r}; leave it out"
                )
            feeds = feeds | self.model.adapter_inputs([adapter] * rows)
        item = _Request(feeds, request.unbatched, rows, self._kind(feeds), Future())
        self._enqueue(item)
        return item.future

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        for name, array in feeds.items():
            spec = self._inputs.get(name)
            axis = None if spec is None else spec.axis_of("batch")
            if axis is not None:
                return int(array.shape[axis])
        return 1

    def _kind(self, feeds: Mapping[str, Array]) -> tuple[object, ...]:
        kind: list[object] = []
        for name in sorted(feeds):
            array, spec = feeds[name], self._inputs.get(name)
            axis = None if spec is None else spec.axis_of("batch")
            shape = tuple(size for place, size in enumerate(array.shape) if place != axis)
            kind.append((name, array.dtype.str, shape, axis is None))
        return tuple(kind)

    # The engine's thread.

    def _run(self) -> None:
        while items := self._next():
            self._settle(items)
            with self._changed:
                self._running = 0

    def _settle(self, items: Sequence[_Request]) -> None:
        try:
            answers = self._answers(items)
        except Exception as error:
            if len(items) > 1:  # what one of them cannot have must not cost the others theirs
                for item in items:
                    self._settle([item])
                return
            log.error("a request to %s failed: %s", self.model.runner.artifact.name, error)
            items[0].future.set_exception(error)
            return
        for item, answer in zip(items, answers, strict=True):
            item.future.set_result(answer)

    def _next(self) -> list[_Request]:
        """The requests of the next call; none at the end."""
        with self._changed:
            while True:
                while not self._waiting:
                    if not self._is_open:
                        return []
                    self._changed.wait()
                first, kept, rows = self._waiting[0], deque[_Request](), 0
                items: list[_Request] = []
                for item in self._waiting:
                    fits = not items or (
                        self._batches
                        and item.kind == first.kind
                        and rows + item.rows <= self._most_rows
                    )
                    if not fits:
                        kept.append(item)
                    elif item.future.set_running_or_notify_cancel():
                        items.append(item)
                        rows += item.rows
                self._waiting = kept
                if items:
                    self._running = len(items)
                    return items

    def _answers(self, items: Sequence[_Request]) -> list[dict[str, Array]]:
        if len(items) == 1:
            return [self._answer(items[0], self._call(items[0].feeds))]
        key = (items[0].kind, tuple(item.rows for item in items))
        if self._equal.get(key):
            self._equal.move_to_end(key)
            return [
                self._answer(item, found)
                for item, found in zip(items, self._together(items), strict=True)
            ]
        alone = [self._call(item.feeds) for item in items]
        if key not in self._equal:
            together = self._together(items)
            self._equal[key] = all(
                one[name].tobytes() == other[name].tobytes()
                for one, other in zip(alone, together, strict=True)
                for name in one
            )
            if len(self._equal) > MOST_KNOWN:
                self._equal.popitem(last=False)
        return [self._answer(item, found) for item, found in zip(items, alone, strict=True)]

    def _together(self, items: Sequence[_Request]) -> list[dict[str, Array]]:
        """The outputs of one call for all, in parts."""
        feeds = {}
        for name, array in items[0].feeds.items():
            spec = self._inputs.get(name)
            axis = None if spec is None else spec.axis_of("batch")
            parts = [item.feeds[name] for item in items]
            feeds[name] = array if axis is None else np.concatenate(parts, axis)
        outputs = self._call(feeds)
        ends = np.cumsum([item.rows for item in items])[:-1].tolist()
        split = {
            name: np.split(value, ends, self._outputs[name].axes.index("batch"))
            for name, value in outputs.items()
        }
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(items))]

    def _call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        return self.model.runner.run_step(feeds)

    def _answer(self, item: _Request, outputs: dict[str, Array]) -> dict[str, Array]:
        if not item.unbatched:
            return {name: np.ascontiguousarray(value) for name, value in outputs.items()}
        return {
            name: value
            if (axis := self._outputs[name].axis_of("batch")) is None
            else value.squeeze(axis)
            for name, value in outputs.items()
        }
