"""Run every command of the runtime where numpy and onnxruntime are all that is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.clients.client import BUILD, ROOT, MissingError, run_tool

__all__ = ["COMMANDS", "Fresh", "run_every_command"]

COMMANDS = (
    "inspect",
    "selftest",
    "run",
    "generate",
    "report",
    "bundle",
    "verify-bundle",
    "bench",
    "profile",
    "doctor",
)
"""All but `export`, `attest` and `adopt`, which read graphs, and `chat`, which needs text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fresh:
    """What came of it."""

    packages: tuple[str, ...] = ()
    """Everything installed, with versions."""
    passed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    untested: str = ""

    @property
    def failed(self) -> bool:
        return not self.untested and self.passed != COMMANDS


def run_every_command(bundle: Path, *, install: bool) -> Fresh:
    """Make the environment anew and run the commands on a language model's bundle.

    Args:
        bundle: Of a language model over bytes.
        install: The environment may be made; else nothing is run.
    """
    if not install:
        return Fresh(untested="nothing may be installed")
    folder = BUILD / "fresh"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        python = _make_environment(folder)
    except MissingError as error:
        return Fresh(untested=str(error))
    listed = run_tool([python, "-m", "pip", "list", "--format=json"], folder=folder, why="pip")
    packages = {item["name"]: item["version"] for item in json.loads(listed)}
    passed, problems = [], []
    for name, arguments in _arguments(bundle, folder).items():
        # An empty home: nothing of the user's is on the path.
        done = subprocess.run(
            [python, "-I", "-m", "causal_onnx.cli", name, *arguments],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            passed.append(name)
        else:
            problems.append(f"{name}: {done.stderr.strip()[-300:]}")
    return Fresh(
        packages=tuple(f"{name} {version}" for name, version in sorted(packages.items())),
        passed=tuple(passed),
        problems=tuple(problems),
    )


def _make_environment(folder: Path) -> Path:
    """numpy, onnxruntime and what they need, at the versions of requirements-thin.lock, and us."""
    python = folder / "bin" / "python"
    run_tool([sys.executable, "-m", "venv", folder], folder=BUILD, why="no virtual environment")
    lock = ROOT / "requirements-thin.lock"
    pip: Sequence[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    wanted = ["numpy", "onnxruntime", "--constraint", str(lock)]
    run_tool([*pip, *wanted], folder=folder, why="numpy and onnxruntime cannot be installed")
    wheel: Sequence[str | Path] = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run_tool(
        [*wheel, "--no-build-isolation", "--wheel-dir", folder, ROOT],
        folder=folder,
        why="no wheel of this project",
    )
    ours = next(folder.glob("causal_onnx-*.whl"))
    run_tool([*pip, "--no-deps", ours], folder=folder, why="the wheel cannot be installed")
    return python


def _arguments(bundle: Path, folder: Path) -> Mapping[str, Sequence[str]]:
    """Of each command, in the order of `COMMANDS`."""
    model, ids = str(bundle / "model.onnx"), folder / "ids.npy"
    np.save(ids, np.array([list(b"The value")]))
    again = str(folder / "again")
    return {
        "inspect": [model],
        "selftest": [model],
        "run": [model, str(ids), "-o", str(folder / "logits.npz")],
        "generate": [model, "--ids", "84,104,101", "--max-new-tokens", "8"],
        "report": [model, "-o", str(folder / "report.html")],
        "bundle": [model, "-o", again],
        "verify-bundle": [again],
        "bench": [model, "--lengths", "1,4"],
        "profile": [model, "--seq", "4"],
        "doctor": [],
    }
