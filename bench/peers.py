"""Peers that the project itself does not need, installed into a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import ROOT, worker_environment

__all__ = ["PEERS", "REQUIREMENTS", "Builder", "install_peers", "run_quietly"]

PEERS = ROOT / "build" / "peers"
REQUIREMENTS = ROOT / "bench" / "requirements.txt"

_STAMP = "installed.txt"
"""What was installed into a folder, beside it."""


def install_peers(requirements: Path = REQUIREMENTS, folder: Path = PEERS) -> None:
    """Install what is not there yet, without dependencies: those are the bench's own environment.

    Raises:
        RuntimeError: pip failed; carries what it said last.
    """
    wanted = requirements.read_text(encoding="utf-8")
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    command += ["--target", str(folder), "-r", str(requirements)]
    run_quietly(command, dict(os.environ))
    stamp.write_text(wanted, encoding="utf-8")


def run_quietly(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command in the project's folder, and give what it printed.

    Raises:
        RuntimeError: It failed; carries what it said last.
    """
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise RuntimeError(f"{' '.join(command[1:4])} failed with code {done.returncode}:\n{tail}")
    return done.stdout


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """onnxruntime-genai's model builder."""

    provider: str = "cpu"
    packages: Path = PEERS

    def __call__(self, model: Path, built: Path, precision: str, extra: Sequence[str]) -> None:
        """Build a saved model into the folder `built`.

        Raises:
            RuntimeError: It failed; carries what it said last.
        """
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(model), "-o", str(built), "-c", str(built / "cache")]
        command += ["-p", precision, "-e", self.provider]
        if extra:
            command += ["--extra_options", *extra]
        environment = worker_environment(1)
        environment |= {"PYTHONPATH": str(self.packages), "HF_HUB_OFFLINE": "1"}
        run_quietly(command, environment)
