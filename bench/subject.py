"""A subject: what the driver knows of it, and its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import Worker

__all__ = ["Subject", "SubjectRow", "bare_session"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectRow:
    """One subject, as readers know it."""

    name: str
    title: str
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject(SubjectRow):
    """One subject, as it is started."""

    factory: str
    """ "package.module:function", see `bench.worker`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the factory besides `threads` and those that all subjects get."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of its process."""

    @property
    def row(self) -> SubjectRow:
        """Without how it is started."""
        return SubjectRow(name=self.name, title=self.title, about=self.about)

    def start(self, threads: int, folder: Path, setup: Mapping[str, Any]) -> Worker:
        """Start its process.

        Args:
            threads: For every thread pool in the process.
            folder: For its log.
            setup: Arguments of the factory that all subjects get.

        Raises:
            WorkerError: It does not load.
        """
        return Worker(
            self.factory,
            threads=threads,
            setup={**setup, **self.options},
            log=folder / f"{self.name}.log",
            name=self.name,
            environment=self.environment,
        )


def bare_session(path: Path, threads: int) -> Any:
    """A session as onnxruntime makes it by default, with a number of threads."""
    import onnxruntime  # noqa: PLC0415 - only in a subject's process

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
