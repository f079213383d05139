"""The driver's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Worker", "WorkerError", "worker_environment"]

ROOT = Path(__file__).resolve().parent.parent

THREAD_VARIABLES = ("OMP_", "MKL_", "GOMP_", "KMP_", "OPENBLAS_")


class WorkerError(Exception):
    """A worker refused a request or died; the message says which and why."""


class Worker:
    """One process that holds one subject."""

    def __init__(
        self,
        factory: str,
        *,
        threads: int,
        setup: Mapping[str, Any],
        log: Path,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process and load the subject.

        Args:
            factory: "package.module:function", see `bench.worker`.
            threads: For every thread pool in the process.
            setup: Further arguments of the factory; must survive JSON.
            log: Where its stderr goes.
            name: For messages.
            environment: Variables for this subject alone.

        Raises:
            WorkerError: The subject does not load.
        """
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        spec = {"factory": factory, "threads": threads, "setup": dict(setup)}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                env=worker_environment(threads) | dict(environment or {}),
                text=True,
            )
        try:
            self.ask("open")
        except BaseException:
            self.close()
            raise

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for the answer.

        Raises:
            WorkerError: The answer is an error, or there is none.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name}: {self._cause_of_death()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process; safe to call twice."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(timeout=5)  # it ends with its input, unless it is computing
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "the process was killed (signal 9), as the system does when memory runs out"
        tail = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        said = f": {tail[-1].strip()}" if tail else ""
        return f"the process ended with code {code}{said}"


def worker_environment(threads: int) -> dict[str, str]:
    """The caller's environment with nothing in it that would treat one subject differently."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(THREAD_VARIABLES) and name != "PYTHONPATH"
    }
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # onnxruntime's telemetry runs threads of its own; off for every subject alike.
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
    }
