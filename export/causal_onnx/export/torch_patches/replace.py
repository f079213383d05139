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

__all__ = ["attribute_replaced", "code_replaced", "functions_replaced"]

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


@contextlib.contextmanager
def functions_replaced(pairs: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Replace functions under every name they were imported as, in every loaded module.

    Args:
        pairs: What is replaced, and what is called instead.
    """
    if not pairs:  # no module need be looked at
        yield
        return
    with _turn() as turn:
        by_id = {id(original): (original, _ours(new, original, turn)) for original, new in pairs}
        replaced = by_id.keys()
        places = [
            (module, name, *by_id[id(value)])
            for module in list(sys.modules.values())
            if isinstance(module, ModuleType) and not _keeps_originals(module)
            # Of thousands of modules few have one.
            if not replaced.isdisjoint(map(id, list(vars(module).values())))
            for name, value in list(vars(module).items())
            if id(value) in by_id
        ]
        try:
            for module, name, _, new in places:
                setattr(module, name, new)
            yield
        finally:
            for module, name, original, _ in places:
                setattr(module, name, original)


def _keeps_originals(module: ModuleType) -> bool:
    return module.__name__.startswith(f"{__package__}.")
