"""How long fresh processes take to their first output, and how much memory they hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.agreement import check_agreement
from bench.client import worker_environment
from bench.figures import Figure, figures
from bench.peers import run_quietly
from bench.rounds import clock_of, rotated

__all__ = ["OURS", "ROW", "TORCH", "measure_starts"]

ROW = "start"
OURS, TORCH = "ours", "torch"
TOLERANCE = 1e-5


def measure_starts(
    artifact: Path, weights: Path, folder: Path, *, threads: int, rounds: int
) -> list[Figure]:
    """Start either subject in turn, each time in a process of its own.

    The first round is not counted: it reads the libraries from the disk.

    Raises:
        DisagreementError: The two give different outputs.
        RuntimeError: A process failed; carries what it said last.
    """
    paths = {OURS: artifact, TORCH: weights}
    clock = clock_of(threads)
    times: dict[str, list[float]] = {name: [] for name in paths}
    peaks: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 1):
        for name in rotated(list(paths), number):
            found = _start(name, paths[name], threads, folder / f"start-{name}.npy")
            if number:
                times[name].append(found[f"{clock}_s"])
                peaks[name].append(found["peak_bytes"])
    outputs = {name: np.load(folder / f"start-{name}.npy") for name in paths}
    check_agreement(OURS, outputs[OURS], outputs[TORCH], tolerance=TOLERANCE, where="the start")
    return [
        *figures(ROW, [times], threads=threads, clock=clock, amount=1.0, unit="s"),
        *figures(ROW, [peaks], threads=threads, clock=clock, amount=1e-6, unit="MB"),
    ]


def _start(name: str, path: Path, threads: int, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.generation.start"]
    command += [name, str(path.resolve()), str(threads), str(output.resolve())]
    found: dict[str, Any] = json.loads(
        run_quietly(command, worker_environment(threads)).splitlines()[-1]
    )
    return found
