"""How large the server's image is beside its base: `python -m tools.image_size`.

No image is built. What the extras install is followed through the metadata of this environment's
packages, and their files are summed.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["EXTRAS", "installed_sizes"]

ROOT = Path(__file__).resolve().parent.parent

EXTRAS = ("cpu", "text", "serve", "grpc", "otel")
"""As `deploy/Dockerfile` installs them."""


def installed_sizes(extras: Sequence[str]) -> dict[str, int]:
    """What this project with extras consists of: packages -> bytes of their files here.

    Compiled Python (`__pycache__`) counts as a wheel has it: not at all.

    Raises:
        PackageNotFoundError: One of them is not installed here.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    sizes = {project["name"]: _own_bytes()}
    first = [*project["dependencies"]]
    first += [item for extra in extras for item in project["optional-dependencies"][extra]]
    pending, seen = [_wanted(item) for item in first], set()
    while pending:
        package, wanted = pending.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        found = importlib.metadata.distribution(package)
        sizes[package] = _size_bytes(found)
        for item in found.requires or ():
            marker = Requirement(item).marker
            environments = [{"extra": extra} for extra in ("", *wanted)]
            if marker is None or any(marker.evaluate(e) for e in environments):
                pending.append(_wanted(item))
    return sizes


def _wanted(text: str) -> tuple[str, frozenset[str]]:
    needed = Requirement(text)
    return canonicalize_name(needed.name), frozenset(needed.extras)


def _own_bytes() -> int:
    roots = [
        ROOT / root / "causal_onnx" for root in ("runtime", "serve", "cli", "export", "models")
    ]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


def _size_bytes(found: importlib.metadata.Distribution) -> int:
    paths = [found.locate_file(file) for file in found.files or () if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())  # type: ignore[attr-defined]


def main() -> int:
    """Print a line for each package, the largest first, and the sum."""
    sizes = installed_sizes(EXTRAS)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.1f} MB  in all, beside the base image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
