"""Stream the same text in two fresh processes: without PyTorch, and with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.demo.player import Run

__all__ = ["Request", "stream_quietly", "stream_to_terminal"]

ROOT = Path(__file__).resolve().parents[2]
"""Where `examples` is importable from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What both processes are asked for."""

    prompt: str
    max_bytes: int
    temperature: float
    seed: int
    threads: int


def stream_to_terminal(model: Path, request: Request) -> Run:
    """Stream from an exported file in a process without PyTorch; its stdout is this one's.

    Raises:
        RuntimeError: The process failed; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = _command("examples.demo.serve", model, request, figures)
        finished = subprocess.run([*command, *_started()], cwd=ROOT, check=False)
        return _result(finished.returncode, command, figures)


def stream_quietly(
    checkpoint: Path, request: Request, *, progress: Callable[[float, str], None]
) -> Run:
    """Stream from a PyTorch checkpoint in a process of its own, without showing the text.

    Raises:
        RuntimeError: The process failed; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = _command("examples.demo.serve_torch", checkpoint, request, figures)
        progress(0.0, "importing PyTorch")
        process = subprocess.Popen([*command, *_started()], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process:
            received = 0
            while chunk := os.read(process.stdout.fileno(), 4096):
                received += len(chunk)
                progress(min(1.0, received / request.max_bytes), f"{received} bytes")
        return _result(process.returncode, command, figures)


def _command(module: str, model: Path, request: Request, figures: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        module,
        f"--model={model.resolve()}",
        f"--prompt={request.prompt}",
        f"--max-bytes={request.max_bytes}",
        f"--temperature={request.temperature}",
        f"--seed={request.seed}",
        f"--threads={request.threads}",
        f"--figures={figures}",
    ]


def _started() -> list[str]:
    # The monotonic clock is the machine's, the same in every process.
    return [f"--started={time.monotonic()!r}"]


def _result(code: int, command: list[str], figures: Path) -> Run:
    if code in (130, -2):
        raise KeyboardInterrupt
    if code != 0:
        raise RuntimeError(f"python -m {command[2]} ended with exit code {code}; see its message")
    return Run.read(figures)
