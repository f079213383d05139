"""The worker processes of all subjects at one number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from bench.attention.subjects import SubjectInfo
from bench.client import Worker, WorkerError

__all__ = ["Crew", "Start"]

Start = Callable[[SubjectInfo, int], Worker]
"""Starts the worker of a subject with a number of threads."""

LARGE_BYTES = 1 << 30


class Crew:
    """Starts workers when they are first needed, and again when they have died or grown."""

    def __init__(self, subjects: Sequence[SubjectInfo], threads: int, start: Start) -> None:
        self.subjects = subjects
        self.threads = threads
        self._start = start
        self._workers: dict[str, Worker] = {}

    def ask(self, subject: SubjectInfo, operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask the subject's worker; after an error a new one is started next time.

        Raises:
            WorkerError: It refused, or died.
        """
        worker = self._workers.get(subject.name)
        if worker is None:
            worker = self._workers[subject.name] = self._start(subject, self.threads)
        try:
            return worker.ask(operation, **arguments)
        except WorkerError:
            self.dismiss(subject)
            raise

    def dismiss(self, subject: SubjectInfo) -> None:
        """End the subject's worker, if there is one."""
        worker = self._workers.pop(subject.name, None)
        if worker is not None:
            worker.close()

    def dismiss_large(self) -> None:
        """End the workers that keep much memory: onnxruntime's arena never gives any back."""
        for subject in self.subjects:
            if subject.name in self._workers:
                held = self.ask(subject, "usage")["resident_bytes"]
                if held > LARGE_BYTES:
                    self.dismiss(subject)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for subject in self.subjects:
            self.dismiss(subject)
