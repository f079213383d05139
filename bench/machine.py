"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.resident import field_bytes
from causal_onnx.cli.machine import load_average, processor
from causal_onnx.runtime.session.threads import available_cores

__all__ = ["describe_machine"]

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Those that decide which kernels a library takes."""

HERE = Path(__file__).parent

WRITTEN = ("bench/README.md", "bench/results.json", "bench/results.svg")
"""What one bench writes does not make the next one's revision another."""


def describe_machine(distributions: Sequence[str]) -> dict[str, Any]:
    """Processor, memory, system, and the versions of `distributions`; plain data.

    What the system does not tell is None.
    """
    name, flags = processor()
    return {
        "cpu": name,
        "features": [feature for feature in FEATURES if feature in flags],
        "cores": available_cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": load_average(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in distributions},
        "revision": _revision(),
    }


def _memory() -> int | None:
    try:
        return field_bytes(Path("/proc/meminfo"), "MemTotal")
    except OSError:
        return None


def _revision() -> str | None:
    """The commit of the working tree, with "-dirty" where more was changed than a bench writes."""
    try:
        commit = _git("describe", "--always")
        written = [f":(top,exclude){path}" for path in WRITTEN]
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit or None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
