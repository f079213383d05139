"""Ask the user's module, or onnxruntime: a refusal is an answer, a bug of ours is not.

Whoever wants to know whether a module takes some inputs has to call it and see. What it raises is
its answer then. What this package raises on the way there, or in a replacement that runs inside the
module, is no answer: it passes through, as running out of memory does.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from onnxruntime.capi import onnxruntime_pybind11_state as _onnxruntime

from causal_onnx.export.errors import ExportError

__all__ = ["Refusal", "SessionError", "ask", "ask_onnxruntime", "handed_over", "short"]

P = ParamSpec("P")
T = TypeVar("T")

_OURS = str(Path(__file__).parent)

_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    NameError,
    TypeError,
)
"""What a mistake in a replacement of ours raises. RuntimeError, IndexError and ValueError come from
the operators that it calls with the module's tensors."""

_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)

# Its classes have no base of their own; they are made when the extension is loaded.
_ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,  # of its bindings
    *(
        kind
        for kind in vars(_onnxruntime).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


@dataclass(frozen=True)
class Refusal:
    """What the user's code answered instead of a result."""

    error: Exception

    def __str__(self) -> str:
        return short(self.error)


class SessionError(ExportError):
    """onnxruntime refuses a graph, or a call of it."""


def ask(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Refusal:
    """Call what leads to the user's code; return its result, or what that code raised.

    Raises:
        ExportError: Raised by this package, which says there what is wrong.
        MemoryError: There was not enough; no answer of the module's.
        Exception: Raised by this package and not by the user's code: a bug, passed on as it is.
    """
    try:
        return call(*args, **kwargs)
    except (ExportError, MemoryError):
        raise
    except Exception as error:  # whatever the user's code raises is its answer
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(short(error)) from error
        cause = error.__cause__
        while cause is not None:  # PyTorch wraps what happens while it traces
            if _is_ours(cause, outermost=False):
                raise
            cause = cause.__cause__
        if _is_ours(error, outermost=True):
            raise
        return Refusal(error)


def handed_over(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what is not this package's: the module, a rule of the user's, PyTorch's own function.

    Every such call goes through here: it is how `ask` sees whose exception one is.
    """
    return function(*args, **kwargs)


def ask_onnxruntime(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call into onnxruntime.

    Raises:
        SessionError: onnxruntime refused; `call` is its function, so a RuntimeError is its own.
            Whatever else is raised is passed on.
    """
    try:
        return call(*args, **kwargs)
    except _ONNXRUNTIME_ERRORS as error:
        raise SessionError(short(error)) from error


def short(error: BaseException) -> str:
    """The class and the beginning of the message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


def _is_ours(error: BaseException, *, outermost: bool) -> bool:
    """Whether `error` was raised by this package's own code."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [code for code in codes if code.co_filename.startswith(_OURS)]
    if not own or own[-1] is handed_over.__code__:
        return False
    return isinstance(error, _BUGS) or (outermost and handed_over.__code__ not in own)
