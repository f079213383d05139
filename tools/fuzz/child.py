"""The driver's end of one worker process, and what its end means."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Child", "answers"]

ROOT = Path(__file__).resolve().parents[2]

START_S = 60.0
"""Until a worker has read the corpus and answered for the first time."""


class Child:
    """One process of `tools.fuzz.worker`."""

    def __init__(
        self,
        corpus: Path,
        scratch: Path,
        *,
        limit_s: float,
        trusted: bool = False,
        module: str = "tools.fuzz.worker",
    ) -> None:
        """Start it.

        Args:
            corpus: What is mutated.
            scratch: A folder of its own.
            limit_s: Wall-clock time of one file; the worker limits its processor time besides.
            trusted: Whether it leaves out the scan.
            module: What the process runs.
        """
        self._limit_s = limit_s
        self._log = scratch / "worker.log"
        self.answered = 0
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", module, str(corpus), str(scratch)),
                    *(["trusted"] if trusted else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
                start_new_session=True,  # so that what it starts ends with it
            )

    def ask(self, seed: int) -> dict[str, Any]:
        """What came of the file of a seed; a crash and a hang are answers too."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        deadline = time.monotonic() + self._limit_s + (0 if self.answered else START_S)
        got = b""
        with contextlib.suppress(BrokenPipeError):
            pipe_in.write(b"%d\n" % seed)
            pipe_in.flush()
            while not got.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([pipe_out], [], [], left)[0]:
                    self.close()
                    return self._ended(seed, "hang", f"no answer after {self._limit_s:g} s")
                piece = os.read(pipe_out.fileno(), 1 << 20)
                if not piece:
                    break
                got += piece
        if got.endswith(b"\n"):
            self.answered += 1
            answer: dict[str, Any] = json.loads(got)
            return answer
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        # The kernel's answer to more processor time than the worker allows itself for one file.
        return self._ended(seed, "hang" if name == "SIGXCPU" else "crash", name)

    def _ended(self, seed: int, outcome: str, reason: str) -> dict[str, Any]:
        tail = self._log.read_text(errors="replace")[-1500:]
        return {"seed": seed, "outcome": outcome, "said": f"{reason}\n{tail}", "read_outside": 0}

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def answers(
    seeds: range, folder: Path, corpus: Path, *, files_per_worker: int, **options: Any
) -> Iterator[dict[str, Any]]:
    """What came of each seed, in order.

    Args:
        seeds: What to ask for.
        folder: Where each worker gets a folder of its own.
        corpus: As for `Child`.
        files_per_worker: Then it is replaced: sessions leave memory behind.
        **options: As for `Child`.
    """
    child: Child | None = None
    try:
        for seed in seeds:
            if child is None or not child.is_alive or child.answered >= files_per_worker:
                if child is not None:
                    child.close()
                scratch = folder / f"from-{seed}"
                scratch.mkdir()
                child = Child(corpus, scratch, **options)
            yield child.ask(seed)
    finally:
        if child is not None:
            child.close()
