"""Find the module that `pkg.module:name` or `path/to/file.py:name` stands for."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.errors import CommandError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

__all__ = ["importable", "make_module", "parse_arguments", "split_target"]


def split_target(target: str) -> tuple[str, str]:
    """Take `pkg.module:name` apart.

    Raises:
        UsageError: It is not of that form.
        CommandError: It names a file or package that is not there: said before PyTorch is
            imported.
    """
    place, colon, name = target.rpartition(":")
    if not colon and Path(target).name != target:  # it has a folder: a path is meant
        raise CommandError(f"there is no file or folder {target}")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"{target!r} does not say what to export; pass the folder or file of a checkpoint, or "
            "pkg.module:name or path/file.py:name, where name is a function or class that returns "
            "the module, or the module itself"
        )
    if _is_file(place):
        if not Path(place).is_file():
            raise CommandError(f"there is no file {place}")
    elif all(part.isidentifier() for part in place.split(".")):
        top = place.partition(".")[0]
        with importable(place):
            if top not in sys.modules and importlib.util.find_spec(top) is None:
                raise _not_found(top)
    return place, name


def _not_found(name: str) -> CommandError:
    return CommandError(
        f"there is no module {name!r} on the path or in {Path.cwd()}; "
        "name a file with its suffix: path/file.py:name"
    )


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs; values are JSON or Python literals, and text otherwise.

    Raises:
        UsageError: One is not of that form, or comes twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--arg takes key=value, got {text!r}")
        if key in arguments:
            raise UsageError(f"--arg {key} was given twice")
        arguments[key] = _literal(value)
    return arguments


def _literal(text: str) -> Any:
    # Both spellings, `true` and `True`: as plain text, `False` would count as true.
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


@contextlib.contextmanager
def importable(place: str) -> Iterator[None]:
    """Let `place` be imported: like `python -m`, or like `python file.py` for a file."""
    folder = str(Path(place).resolve().parent) if _is_file(place) else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def make_module(place: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import `place` and make the module that `name` in it stands for.

    Raises:
        CommandError: It cannot be imported, has no such name, or gives something else.
    """
    from torch import nn  # takes a second

    target = f"{place}:{name}"
    found: Any = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{place} has no {name!r}{_suggestion(part, found, nn.Module)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        if arguments:
            raise CommandError(
                f"{target} is already a module and takes no --arg ({', '.join(arguments)}); "
                "name a function or class that makes it"
            )
        return found
    if not callable(found):
        raise CommandError(
            f"{target} is of type {type(found).__name__}; expected a torch.nn.Module, or a "
            "function or class that returns one"
        )
    try:
        module = found(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise CommandError(
            f"{target}({_call(arguments)}) raised {type(error).__name__}: {error}. "
            "Arguments are passed with --arg key=value"
        ) from error
    if not isinstance(module, nn.Module):
        raise CommandError(
            f"{target} returned an object of type {type(module).__name__}; expected a "
            "torch.nn.Module"
        )
    return module


def _import(place: str) -> ModuleType:
    try:
        return _import_file(Path(place)) if _is_file(place) else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise _not_found(error.name) from error
        raise CommandError(f"importing {place} failed: {error}") from error
    except CommandError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise CommandError(
            f"importing {place} failed with {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        # Else a file called json.py would replace the standard library's module.
        name = f"exported_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their classes' module up there
    spec.loader.exec_module(module)
    return module


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _suggestion(missing: str, found: Any, wanted: type) -> str:
    names = sorted(
        name
        for name, value in getattr(found, "__dict__", {}).items()
        if not name.startswith("_")
        and (
            isinstance(value, wanted)
            or (isinstance(value, type) and issubclass(value, wanted))
            # Functions that were imported there, such as `sqrt`, would only be in the way.
            or (inspect.isfunction(value) and value.__module__ == getattr(found, "__name__", None))
        )
    )
    has = f"; it has {', '.join(names[:8])}" if names else ""
    return did_you_mean(missing, names) or has


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
