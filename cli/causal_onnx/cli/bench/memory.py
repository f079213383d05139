"""The memory that a call needs at most, in a process that does nothing else.

Run as a program it is that process: it gets its orders as one JSON argument, and prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.cli.errors import CommandError
from causal_onnx.cli.resident import peak_bytes
from causal_onnx.runtime import load
from causal_onnx.runtime.profile.workload import Workload

__all__ = ["Memory", "measure_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Resident memory of a whole process, Python and libraries included."""

    loaded_bytes: int
    """The most at once until the model was loaded."""
    peak_bytes: int
    """The most at once, two calls included."""


def measure_memory(
    path: Path, *, device: str, threads: int | None, trusted: bool, batch: int, seq: int
) -> Memory | None:
    """Measure in a process of its own; None where the system does not tell.

    Raises:
        CommandError: The process failed; with the last line that it wrote.
    """
    orders = {
        "path": str(path),
        "device": device,
        "threads": threads,
        "trusted": trusted,
        "batch": batch,
        "seq": seq,
    }
    done = subprocess.run(
        [sys.executable, "-m", "causal_onnx.cli.bench.memory", json.dumps(orders)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CommandError(f"the process that measures memory failed: {lines[-1]}")
    found = json.loads(done.stdout)
    return None if found is None else Memory(**found)


def main(orders: str) -> None:
    """Load, call twice, and print the peaks."""
    asked = json.loads(orders)
    batch, seq = asked.pop("batch"), asked.pop("seq")
    model = load(asked.pop("path"), **asked)
    loaded = peak_bytes()
    work = Workload(model.runner, batch=batch, seq=seq)
    for _ in range(2):
        work.call()
        work.take_back()
    peak = peak_bytes()
    known = loaded is not None and peak is not None
    print(json.dumps({"loaded_bytes": loaded, "peak_bytes": peak} if known else None))


if __name__ == "__main__":
    main(sys.argv[1])
