"""A peer that is a program: its process, what it answers over HTTP, and its processor time."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "LLAMA_SERVER",
    "NO_LLAMA",
    "Elsewhere",
    "Program",
    "find_program",
    "llama_command",
    "processor_clock",
]

LLAMA_SERVER = "llama-server"
NO_LLAMA = (
    "there is no llama-server on the PATH, and none was given by --llama-server; bench/README.md "
    "says how to get it"
)

START_S = 120.0
"""A server that does not answer after so long will not."""
ANSWER_S = 600.0


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Work that another process does, so that its clock counts and not that of this one."""

    work: Callable[[], Any]
    processor_s: Callable[[], float]

    def __call__(self) -> Any:
        return self.work()


class Program:
    """A server in a process of its own, which ends with the context, or with this process."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        health: str = "/health",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it and wait until it answers.

        Args:
            command: With "{port}" where the number of a free port goes.
            log: Where its output goes.
            health: Answered with 200 once it can be asked.
            environment: Of the process; None: that of this one.

        Raises:
            RuntimeError: It ends at its start, or does not answer; carries what it said last.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._name, self._log = command[0], log
        with log.open("w") as said:
            try:
                self._process = subprocess.Popen(
                    [*_end_with_parent(), *(x.replace("{port}", str(port)) for x in command)],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    env=None if environment is None else dict(environment),
                )
            except OSError as error:
                raise RuntimeError(f"{self._name} does not start: {error}") from error
        atexit.register(self.close)
        self.processor_s = processor_clock(self._process.pid)
        """Processor time of all its threads so far, in seconds."""
        try:
            self._wait(f"{self.address}{health}")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON and give the answer.

        Raises:
            OSError: It refuses, or is gone.
        """
        request = urllib.request.Request(
            f"{self.address}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        """End the process; safe to call twice."""
        atexit.unregister(self.close)
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, url: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            code = self._process.poll()
            if code is not None:
                raise RuntimeError(
                    f"{self._name} ended with code {code} at its start{self._said()}"
                )
            time.sleep(0.02)
        raise RuntimeError(f"{self._name} did not answer within {START_S:.0f} s{self._said()}")

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        last = [line.strip() for line in lines if line.strip()][-1:]
        return "".join(f": {line}" for line in last)


def find_program(name: str, given: Path | None = None) -> Path | None:
    """The program that was given, or the one of that name on the PATH; None: there is none."""
    found = str(given) if given is not None else shutil.which(name)
    return None if found is None else Path(found).resolve()


def llama_command(
    program: Path, gguf: Path, *, threads: int, slots: int, positions: int
) -> list[str]:
    """How llama.cpp's server is started.

    Args:
        program: The server.
        gguf: The model.
        threads: Of prompts and of steps.
        slots: Sequences at once.
        positions: Of the cache of each.
    """
    counts = ["--threads", str(threads), "--threads-batch", str(threads)]
    sizes = ["--parallel", str(slots), "--ctx-size", str(slots * positions)]
    command = [str(program), "--model", str(gguf), "--port", "{port}", "--no-webui"]
    return [*command, *counts, *sizes]


def _end_with_parent() -> list[str]:
    """What starts a command so that a driver that is killed leaves no server behind."""
    found = shutil.which("setpriv")
    return [] if found is None else [found, "--pdeathsig", "KILL"]


def processor_clock(pid: int) -> Callable[[], float]:
    """A function that gives the processor time of a process so far, of all threads, in seconds.

    The kernel's clock of a process counts nanoseconds; /proc counts hundredths of a second.

    Raises:
        RuntimeError: There is no such process.
    """
    clock = ctypes.c_int()
    code = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if code:
        raise RuntimeError(f"the processor time of process {pid} cannot be read (code {code})")
    return partial(time.clock_gettime, clock.value)
