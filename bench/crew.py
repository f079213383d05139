"""The worker processes of several subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from bench.client import Worker, WorkerError

__all__ = ["Crew", "Starts"]

Starts = Mapping[str, Callable[[], Worker]]
"""Name of a subject -> starts its worker."""

LARGE_BYTES = 1 << 30


class Crew:
    """Starts workers when they are first needed, and again when they have died or grown."""

    def __init__(self, starts: Starts) -> None:
        self._starts = starts
        self._workers: dict[str, Worker] = {}

    def ask(self, name: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask the subject's worker; after an error a new one is started next time.

        Raises:
            WorkerError: It refused, or died.
        """
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = self._starts[name]()
        try:
            return worker.ask(operation, **arguments)
        except WorkerError:
            self.dismiss(name)
            raise

    def dismiss(self, name: str) -> None:
        """End the subject's worker, if there is one."""
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()

    def dismiss_large(self) -> None:
        """End the workers that keep much memory: onnxruntime's arena never gives any back."""
        for name in list(self._workers):
            if self.ask(name, "usage")["resident_bytes"] > LARGE_BYTES:
                self.dismiss(name)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in list(self._workers):
            self.dismiss(name)
