"""Put functions of ours in the place of others, for a while and for one thread."""

from __future__ import annotations

import builtins
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from causal_onnx.export.outcome import handed_over

__all__ = ["Seen", "attribute_replaced", "code_replaced", "functions_replaced"]

_LOCK = threading.RLock()
"""Held by the thread whose replacements are in place. Those of two threads would be restored in
the wrong order, and one of them would stay."""


class _Turn(threading.local):
    """Whether the thread that looks is the one that replaced, and has not restored yet."""

    is_on = False


@contextlib.contextmanager
def _turn() -> Iterator[_Turn]:
    with _LOCK:
        turn = _Turn()
        turn.is_on = True
        try:
            yield turn
        finally:
            turn.is_on = False


def _ours(function: Callable[..., Any], original: Any, turn: _Turn) -> Callable[..., Any]:
    """`function` in its turn; otherwise `original`.

    Another thread sees the names that were replaced, and must not run ours; nor may code that was
    imported meanwhile, and took ours along, afterwards.
    The frame of this file around `function` is how `ask` knows whose code it is.
    """

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if turn.is_on:
            return function(*args, **kwargs)
        return handed_over(original, *args, **kwargs)

    return replacement


@contextlib.contextmanager
def attribute_replaced(owner: Any, name: str, new: Callable[..., Any]) -> Iterator[None]:
    """Replace a function that is an attribute of a class, or a global of a module.

    Args:
        owner: The class or module. It may have inherited the attribute, or the name may be one of
            Python's own (`len`): it is without it again afterwards.
        name: Of the function.
        new: What is called instead.
    """
    inherited = getattr(owner, name, getattr(builtins, name, None))
    has_own = name in vars(owner)
    own = vars(owner).get(name)
    with _turn() as turn:
        setattr(owner, name, _ours(new, inherited, turn))
        try:
            yield
        finally:
            if has_own:
                setattr(owner, name, own)
            else:
                delattr(owner, name)


@contextlib.contextmanager
def code_replaced(function: FunctionType, code: CodeType) -> Iterator[None]:
    """Replace the code of a function, wherever it is kept: decorated, imported or bound.

    Args:
        function: Of the user's.
        code: With the same free variables. Another thread runs it too: it has to do the same there.
    """
    original = function.__code__
    with _LOCK:
        function.__code__ = code
        try:
            yield
        finally:
            function.__code__ = original


class Seen:
    """Which functions the loaded modules hold, for replacements soon after one another.

    A look through every module takes 10 ms. One that was looked through for the same functions is
    not looked at again while it has as many names as then.
    """

    def __init__(self) -> None:
        self._functions: frozenset[int] = frozenset()
        self._sizes: dict[ModuleType, int] = {}
        self._names: dict[ModuleType, list[str]] = {}

    def places(self, functions: frozenset[int]) -> list[tuple[ModuleType, str, Any]]:
        """Modules, names there and values, of those `functions` (by id) that are held now."""
        if functions != self._functions:
            self._functions = functions
            self._sizes.clear()
            self._names.clear()
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType) or _keeps_originals(module):
                continue
            held = vars(module)
            if self._sizes.get(module) == len(held):
                continue
            self._sizes[module] = len(held)
            # Of thousands of modules few have one.
            if not functions.isdisjoint(map(id, list(held.values()))):
                self._names[module] = [
                    n for n, value in list(held.items()) if id(value) in functions
                ]
        return [
            (module, name, value)
            for module, names in self._names.items()
            for name in names
            if id(value := vars(module).get(name)) in functions
        ]


@contextlib.contextmanager
def functions_replaced(
    pairs: Sequence[tuple[Any, Callable[..., Any]]], seen: Seen | None = None
) -> Iterator[None]:
    """Replace functions under every name they were imported as, in every loaded module.

    Args:
        pairs: What is replaced, and what is called instead.
        seen: Of earlier replacements of the same functions. None: every module is looked through.
    """
    if not pairs:  # no module need be looked at
        yield
        return
    with _turn() as turn:
        by_id = {id(original): _ours(new, original, turn) for original, new in pairs}
        places = (Seen() if seen is None else seen).places(frozenset(by_id))
        try:
            for module, name, original in places:
                setattr(module, name, by_id[id(original)])
            yield
        finally:
            for module, name, original in places:
                setattr(module, name, original)


def _keeps_originals(module: ModuleType) -> bool:
    return module.__name__.startswith(f"{__package__}.")
