"""Resolve requirements*.in into lock files: every package, direct or not, at one exact version.

Uses pip's own resolver without installing anything, so it follows whatever index pip is set up
with, and writes no address of one. It resolves for the oldest Python that the package supports, not
for the one that runs it: what needs a newer Python could not be installed there. Local version
labels such as `+cpu` are dropped, because which build of a package is right differs by machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HEADER = """\
# Written by `make lock` from {source}; do not edit.
# No hashes: torch's wheel differs from machine to machine (CPU, CUDA, macOS), and pip takes
# hashes for all packages or for none. Packages that only other platforms need (such as the
# CUDA libraries that torch's Linux wheel asks for) are not listed; torch pins those itself.
"""


OLDEST = "3.11.0"
"""The first release of the oldest Python that pyproject.toml names."""


def resolve(source: Path, constraints: Path | None) -> list[str]:
    """Return `name==version` for every package that `source` needs, sorted by name."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", "--requirement", str(source)]
    command += ["--python-version", OLDEST, "--only-binary", ":all:"]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    with tempfile.TemporaryDirectory() as target:  # pip asks for one with another Python
        command += ["--target", target]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not resolve {source.name}:\n{done.stderr.strip()}")
    report = json.loads(done.stdout)
    pins = {}
    for item in report["install"]:
        metadata = item["metadata"]
        name = re.sub(r"[-_.]+", "-", metadata["name"]).lower()  # as PEP 503 spells names
        pins[name] = metadata["version"].partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def lock(source: Path, target: Path, constraints: Path | None = None) -> None:
    """Resolve `source` and write `target` whole."""
    print(f"resolving {source.name} ...", file=sys.stderr, flush=True)
    pins = resolve(source, constraints)
    target.write_text(HEADER.format(source=source.name) + "\n".join(pins) + "\n")
    print(f"{target.name}: {len(pins)} packages", file=sys.stderr)


def main() -> int:
    """Write the lock files."""
    try:
        lock(ROOT / "requirements.in", ROOT / "requirements.lock")
        # The thin environment differs from the other in what it lacks, never in versions.
        lock(
            ROOT / "requirements-thin.in",
            ROOT / "requirements-thin.lock",
            ROOT / "requirements.lock",
        )
        # Suites that are not ours need packages of their own, and no PyTorch.
        lock(ROOT / "requirements-suites.in", ROOT / "requirements-suites.lock")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
