"""Results on disk, one file per subject, each kept as long as what it came from is unchanged."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.zoo.pool import ROOT

__all__ = ["Store", "code_key", "versions"]

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "transformers", "numpy")
OF_PLAIN = ("tests/zoo", "tools/zoo/plain.py", "tools/zoo/check.py")
OF_OURS = (
    "tests/zoo",
    "tools/zoo",
    "tools/judge",
    "export/causal_onnx/export",
    "runtime/causal_onnx/runtime",
)
LEFT_OUT = ("page.py", "store.py", "pool.py", "worker.py", "__main__.py", "progress.py", "judge.py")
"""Files of tools/zoo that show, judge or keep results, and change none."""


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_key(*, ours: bool, root: Path = ROOT) -> str:
    """A hash of the sources and versions behind a result; without `ours`, of the zoo alone."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for path in sorted(_files(OF_OURS if ours else OF_PLAIN, root)):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(folders: Iterable[str], root: Path) -> Iterable[Path]:
    for folder in folders:
        found = (root / folder).rglob("*.py") if (root / folder).is_dir() else [root / folder]
        for path in found:
            if not path.name.startswith("test_") and path.name not in LEFT_OUT:
                yield path


class Store:
    """The results in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, step: str, key: str | None = None) -> dict[str, Any] | None:
        """The result of a step, or None; with `key`, only if it came from that code."""
        held = self._read(name).get(step)
        if held is None or (key is not None and held["key"] != key):
            return None
        result: dict[str, Any] = {**held["result"], "date": held["date"], "key": held["key"]}
        return result

    def put(self, name: str, step: str, key: str, result: dict[str, Any]) -> None:
        """Keep a result; what other steps of the subject gave stays."""
        steps = self._read(name)
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        steps[step] = {"key": key, "date": today, "result": result}
        path = self._folder / f"{name}.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(steps, indent=1, sort_keys=True), encoding="utf-8")
        draft.replace(path)

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        if not path.exists():
            return {}
        try:
            steps: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # a disk that was full; the step is run again
            return {}
        return steps
