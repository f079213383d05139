"""Run a suite that is not ours as its users do: by its command."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["free_ports", "run_suite"]

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
    "NO_COLOR": "1",
}
"""Nothing is fetched, and nothing is told to anybody."""


def free_ports(count: int) -> list[int]:
    """Ports that are free, all at once."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [item.getsockname()[1] for item in opened]
    for item in opened:
        item.close()
    return found


def run_suite(command: Sequence[str], *, folder: Path, timeout_s: float = 1800) -> str:
    """What a command prints; it fails with all of it where the command does."""
    environ = {**os.environ, **QUIET, "HF_HOME": str(folder / "hf"), "HOME": str(folder)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
    return done.stdout
