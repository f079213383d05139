"""What engines have in common: requests wait in a line for a thread that answers them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from causal_onnx.serve.errors import BusyError, UnavailableError

__all__ = ["QueuedEngine", "check_admission"]


def check_admission(*, is_open: bool, waiting: int, most: int) -> None:
    """Refuse a request for which there is no room.

    Raises:
        BusyError: As many requests wait as may.
        UnavailableError: The engine ends.
    """
    if not is_open:
        raise UnavailableError("the server is shutting down; ask another server")
    if waiting >= most:
        raise BusyError(
            f"{waiting} requests are waiting for this model, which is the limit; try again later"
        )


class _Item(Protocol):
    @property
    def future(self) -> Future[Any]: ...


Item = TypeVar("Item", bound=_Item)
Self = TypeVar("Self", bound="QueuedEngine[Any]")


class QueuedEngine(ABC, Generic[Item]):
    """A line of requests, and a thread that answers them in the order in which they come."""

    def __init__(self, *, queue: int, thread_name: str) -> None:
        """Make the line; `_begin` starts the thread.

        Args:
            queue: Requests that may wait.
            thread_name: What the thread is called.
        """
        self._most_waiting = queue
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._running = 0
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def _begin(self) -> None:
        self._thread.start()

    @abstractmethod
    def _run(self) -> None:
        """Answer requests until the engine is closed and none is left."""

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        with self._changed:
            return len(self._waiting) + self._running

    def _enqueue(self, item: Item) -> None:
        with self._changed:
            check_admission(
                is_open=self._is_open, waiting=len(self._waiting), most=self._most_waiting
            )
            self._waiting.append(item)
            self._changed.notify_all()

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more requests, finish those that are there, and end.

        Args:
            drain_s: How long they may take; those that still wait then are cancelled.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._thread.join(timeout=drain_s)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for item in left:
            item.future.cancel()
        self._thread.join()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
