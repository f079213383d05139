"""A client in some language: how it is made ready, and what its self-test must say."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "BUILD",
    "ROOT",
    "Client",
    "MissingError",
    "Outcome",
    "clean_environment",
    "find_problem",
    "json_lines",
    "run_client",
    "run_tool",
]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "examples"

LIMIT = 1e-5
"""The largest error against PyTorch, relative to each output's scale, in fp32."""
REFUSED = 3
"""Requests against the contract that each client makes, and must refuse."""


class MissingError(Exception):
    """Something that the client needs cannot be had on this machine; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """One client."""

    name: str
    prepare: Callable[[bool], Sequence[str]]
    """Install and build, or with False take what is installed and build; gives the command, to
    which a bundle's folder is added. Raises `MissingError`."""
    takes_several: bool = False
    """The command takes the folders of several bundles, and prints a line for each."""
    environment: Mapping[str, str] | None = None
    prefix: str = ""
    """Of the bundles that it takes: in the portable form for runtimes other than onnxruntime."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one client."""

    name: str
    runtime: str = ""
    passed: int = 0
    bundles: int = 0
    error: float = 0.0
    """The largest over all bundles."""
    ms_per_call: tuple[float, ...] = ()
    """By bundle."""
    untested: str = ""
    """Why it could not be run; empty where it was."""
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return not self.untested and self.passed < self.bundles


def run_client(client: Client, bundles: Sequence[Path], *, install: bool) -> Outcome:
    """Make the client ready and have it replay every bundle.

    Args:
        client: The client.
        bundles: Their folders.
        install: Fetch what is missing from the registries of Debian and npm.
    """
    try:
        command = list(client.prepare(install))
    except MissingError as error:
        return Outcome(name=client.name, untested=str(error))
    found: list[dict[str, Any]] = []
    problems: dict[Path, str] = {}
    for group in [bundles] if client.takes_several else [[bundle] for bundle in bundles]:
        done = subprocess.run(
            [*command, *map(str, group)],
            env=clean_environment(client.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = json_lines(done.stdout)[-len(group) :]
        lines += [{}] * (len(group) - len(lines))
        for said in lines:
            if "missing" in said:
                return Outcome(name=client.name, untested=str(said["missing"]))
        wrong = {b: find_problem(said, b) for b, said in zip(group, lines, strict=True)}
        if done.returncode and not any(wrong.values()):
            wrong = dict.fromkeys(group, f"exit code {done.returncode}")
        told = _cut(done.stderr.strip())
        problems |= {b: f"{b.name}: {text} {told}".strip() for b, text in wrong.items() if text}
        found += lines
    errors = [float(said["error"]) for said in found if "error" in said]
    return Outcome(
        name=client.name,
        runtime=next((str(said["runtime"]) for said in found if "runtime" in said), ""),
        passed=len(bundles) - len(problems),
        bundles=len(bundles),
        error=max(errors, default=math.inf),
        ms_per_call=tuple(float(said.get("ms_per_call", math.nan)) for said in found),
        problems=tuple(problems.values()),
    )


def _cut(text: str) -> str:
    """The beginning and the end of a long text: which of them says why is the runtime's choice."""
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"


def find_problem(said: Mapping[str, Any], bundle: Path) -> str:
    """What is wrong with a client's report on a bundle; empty if nothing is."""
    goldens = json.loads((bundle / "goldens.json").read_bytes())
    if "failed" in said:  # a page has no stderr
        return str(said["failed"])
    if "error" not in said:
        return "it said nothing"
    wanted = {
        "cases": len(goldens["cases"]),
        "streams": len(goldens["streams"]),
        "refused": REFUSED,
        "repeats": True,
    }
    for key, value in wanted.items():
        if said.get(key) != value:
            return f"{key} is {said.get(key)}, expected {value}"
    if not said["error"] <= LIMIT:
        return f"largest error {said['error']}, limit {LIMIT}"
    return ""


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without what points Python at this project, and `more`."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "ORT_DISABLE_TELEMETRY": "1", **(more or {})}


def run_tool(
    command: Sequence[str | Path],
    *,
    folder: Path,
    why: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a compiler or an installer, and give what it printed.

    Raises:
        MissingError: It failed; `why` says what is then missing, its last lines follow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = " ".join((done.stderr or done.stdout).split()[-40:])
        raise MissingError(f"{why}: {tail}")
    return done.stdout


def json_lines(text: str) -> list[dict[str, Any]]:
    """The lines of `text` that begin like a JSON object; an empty one for what is none."""
    return [_object(line) for line in text.splitlines() if line.startswith("{")]


def _object(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
