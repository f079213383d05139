"""The process in which one subject lives; the driver talks to it in lines of JSON.

`python -m bench.worker SPEC`, where SPEC is {"factory": "package.module:function", "threads": n,
"setup": {...}}. The factory gets `threads` and the setup by name and gives a `Prepare`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np

from bench import resident
from bench.program import Elsewhere

__all__ = ["Forward", "Prepare", "Subject", "main"]

Forward = Callable[[], Any]
"""Does the work of one case once and gives its output as an array or a tensor on the CPU."""

Prepare = Callable[[Mapping[str, Any]], Forward]
"""Makes the input of a case, given by name and size, and compiles if that is what the subject
does; nothing of it is ever timed."""

SLOW_S = 0.2
"""A call longer than this needs no other before it: reading the weights of a module again, which
the others have driven out of the caches, takes a hundredth of it."""
WARM_CALLS = 3
WARM_S = 0.1
"""Shorter calls warm up so often, and for so long."""

REST_STEP_S = 0.003
REST_SHARE = 0.1
REST_LIMIT_S = 0.5
"""After a turn, wait in steps until less than a tenth of a step is spent computing."""


class Subject:
    """One subject and the case that it was last prepared for."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._is_slow = False
        self._forward: Forward | None = None
        self._output: Any = None

    def prepare(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Make the input and warm up; tells how long one warm call takes."""
        self._output = None
        self._forward = self._prepare(case)
        calls: list[float] = []
        while len(calls) < WARM_CALLS or sum(calls) < WARM_S:
            start = time.perf_counter()
            self._output = self._forward()
            calls.append(time.perf_counter() - start)
            if calls[-1] > SLOW_S:
                break
        self._is_slow = min(calls) > SLOW_S
        gc.collect()
        gc.freeze()  # else every turn would begin with a tenth of a second over PyTorch's objects
        rest(_clock_of(self._forward))
        return {"seconds": min(calls)}

    def save(self, path: str) -> dict[str, Any]:
        """Write the output of the last warm-up call."""
        np.save(path, np.asarray(self._output))
        self._output = None
        return {}

    def turn(self, calls: int) -> dict[str, Any]:
        """Time `calls` calls, in seconds of wall and of processor time (of all threads)."""
        forward = self._forward
        if forward is None:
            raise RuntimeError("turn before prepare")
        walls, cpus, processor_s = [], [], _clock_of(forward)
        if not self._is_slow:
            forward()  # the others have used the caches since
        gc.disable()
        try:
            for _ in range(calls):
                wall, cpu = time.perf_counter(), processor_s()
                forward()
                cpus.append(processor_s() - cpu)
                walls.append(time.perf_counter() - wall)
        finally:
            gc.enable()
        rest(processor_s)
        return {"wall_s": walls, "cpu_s": cpus}

    def memory(self, case: Mapping[str, Any], settle: Mapping[str, Any]) -> dict[str, Any]:
        """Run `settle`, then `case` once, and tell what the latter needed beyond the former.

        The input of `case` counts as loaded, its output does not.
        """
        self._prepare(settle)()
        forward = self._prepare(case)
        resident.trim()
        loaded = resident.current_bytes()
        peak_before = resident.peak_bytes()
        resident.reset_peak()
        forward()
        peak = resident.peak_bytes()
        return {
            "loaded_bytes": loaded,
            "peak_bytes": max(peak, peak_before),
            "extra_bytes": max(0, peak - loaded),
        }

    def usage(self) -> dict[str, Any]:
        """Tell the memory held now."""
        return {"resident_bytes": resident.current_bytes()}


def rest(processor_s: Callable[[], float] = time.process_time) -> None:
    """Return when no thread of the process with this clock computes any more.

    The thread pools of PyTorch and onnxruntime go on in a busy loop after a call (5 and 26 ms of
    processor time were seen), and would slow down whoever has the next turn.
    """
    end = time.monotonic() + REST_LIMIT_S
    while time.monotonic() < end:
        start = processor_s()
        time.sleep(REST_STEP_S)
        if processor_s() - start < REST_SHARE * REST_STEP_S:
            return


def _clock_of(forward: Forward) -> Callable[[], float]:
    """Of the process that does the work."""
    return forward.processor_s if isinstance(forward, Elsewhere) else time.process_time


def main(spec_text: str) -> None:
    """Answer requests until the driver closes the pipe."""
    replies = _own_stdout()
    spec = json.loads(spec_text)
    subject: Subject | None = None
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "open":
                subject = Subject(_open(spec))
                answer: dict[str, Any] = {}
            elif subject is None:
                raise RuntimeError("the first request must be 'open'")
            else:
                answer = getattr(subject, operation)(**request)
        except Exception as error:  # the driver decides what an error means
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {_first_line(error)}"}
        print(json.dumps(answer), file=replies, flush=True)


def _open(spec: Mapping[str, Any]) -> Prepare:
    module, _, name = spec["factory"].partition(":")
    factory = getattr(importlib.import_module(module), name)
    prepare: Prepare = factory(threads=spec["threads"], **spec["setup"])
    return prepare


def _own_stdout() -> TextIO:
    """Keep the pipe for replies; what libraries print goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


if __name__ == "__main__":
    main(sys.argv[1])
