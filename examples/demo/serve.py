"""Stream from an exported model in a process in which importing PyTorch fails.

    python -m examples.demo.serve --model build/demo/decoder.onnx --prompt "The "

First of all the packages that made the file are barred, and importing each is tried, to show it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from examples.demo.player import parse_arguments, play

__all__ = ["BARRED", "bar", "main", "try_imports"]

BARRED = ("torch", "onnx", "onnx_ir", "onnxscript", "causal_onnx.models", "causal_onnx.export")


class _Bar(MetaPathFinder):
    """Comes before all other finders, and refuses."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            raise ImportError(f"{fullname} is barred from this process", name=fullname)
        return None


def bar(names: Sequence[str]) -> None:
    """Make importing `names`, and everything below them, fail from now on.

    Raises:
        RuntimeError: One of them is imported already.
    """
    loaded = [name for name in names if name in sys.modules]
    if loaded:
        raise RuntimeError(f"imported before it could be barred: {', '.join(loaded)}")
    sys.meta_path.insert(0, _Bar(names))


def try_imports(names: Sequence[str]) -> dict[str, str]:
    """Try to import each of `names`, which must fail.

    Returns:
        Name -> the error it raised.

    Raises:
        RuntimeError: One of them can be imported.
    """
    errors = {}
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            errors[name] = f"{type(error).__name__}: {error}"
        else:
            raise RuntimeError(f"{name} was to be barred from this process, but can be imported")
    return errors


def main() -> None:
    args = parse_arguments("Stream from an exported model, without PyTorch.")
    bar(BARRED)
    play(args, load_context, refused=try_imports(BARRED))


def load_context(path: Path, threads: int) -> Any:
    """Load an exported byte-level language model."""
    from causal_onnx.runtime import load  # noqa: PLC0415 - after the others are barred
    from examples.demo.bytestream import WholeContext  # noqa: PLC0415

    model = load(path, threads=threads)
    limit = model.contract.max_seq_len
    if limit is None:
        raise ValueError(f"{path} has no max_seq_len; the demo's decoder has one")
    return WholeContext(model, max_seq_len=limit)


if __name__ == "__main__":
    main()
