"""Import what an extra brings, where it is needed and not before."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["import_extra"]


def import_extra(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import the package `name`, which the extra `extra` of this project installs.

    Args:
        name: Of the package.
        extra: Of this project.
        purpose: What needs it, for the message: a plural or an -ing word.

    Raises:
        ImportError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A package may lie in one that is missing, too.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"{purpose} needs the package {name}: pip install 'causal-onnx[{extra}]'", name=name
        ) from error
