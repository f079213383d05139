"""Flush denormal numbers to zero on the calling thread, for the length of one call.

The softmax of masked scores makes denormals, and some x86 processors compute with each of them in
microcode, a hundred times slower. With 12 heads of 64 at length 1024, flushing them made every
form of attention 1.5 to 2 times faster on one machine with AVX-512, and changed nothing (0.96 to
1.08) on an AMD Zen 4, which has no such penalty.

onnxruntime can flush them on the threads of its pool, but on a *calling* thread only if its session
was the first of the process, and then for good. That thread does a full share of the work, or with
`threads=1` all of it. So its mode is set here and put back behind the call, because the caller's
own arithmetic must not change. That costs 2 us; handing the call to a thread of our own would cost
12 to 21 us, and would need that thread to be the first of the process to make a session.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["can_flush", "run_flushed"]

Result = TypeVar("Result")

# Flush-to-zero (results) and denormals-are-zero (operands) of the MXCSR register.
# Source: Intel SDM volume 1, section 10.2.3.
FLUSH_BITS = (1 << 15) | (1 << 6)


class _FloatingPointEnv(ctypes.Structure):
    """`fenv_t` of Linux on x86-64, the same in glibc and musl: 28 bytes of x87 state, then MXCSR.

    The reserve is there so that a C library with a longer state would not write past the end.
    """

    _fields_ = (
        ("x87", ctypes.c_uint32 * 7),
        ("mxcsr", ctypes.c_uint32),
        ("reserve", ctypes.c_ubyte * 96),
    )


def run_flushed(call: Callable[[], Result]) -> Result:
    """Call with denormals treated as zero on this thread; elsewhere it is a plain call.

    It costs 2 us. Other threads, and this one afterwards, are as before, after an interrupt too:
    that is why this is no context manager. Python raises an interrupt behind a call of C or at the
    start of a function, so it may come before the first line of an `__exit__`, but not between the
    start of a `finally` and the call that stands there.
    """
    functions = _fenv_functions()
    if functions is None:
        return call()
    get, set_ = functions
    before, flushing = _FloatingPointEnv(), _FloatingPointEnv()
    as_before, as_flushing = ctypes.byref(before), ctypes.byref(flushing)
    get(as_before)
    get(as_flushing)
    flushing.mxcsr |= FLUSH_BITS
    try:
        set_(as_flushing)
        return call()
    finally:
        set_(as_before)


def can_flush() -> bool:
    """Whether `run_flushed` has an effect on this system."""
    return _fenv_functions() is not None


@functools.cache
def _fenv_functions() -> tuple[Any, Any] | None:
    """`fegetenv` and `fesetenv`, or None where their state has another layout.

    Only Linux on x86-64 is here: elsewhere the layout differs and nothing was measured (the cost
    of denormals is an x86 matter), and being without it is slower, never wrong.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    for library in (None, "libm.so.6"):
        try:
            # Not CDLL: letting other threads of Python run meanwhile takes longer than these calls.
            loaded = ctypes.PyDLL(library)
            get, set_ = loaded.fegetenv, loaded.fesetenv
        except (OSError, AttributeError):
            continue
        get.argtypes = set_.argtypes = (ctypes.c_void_p,)
        get.restype = set_.restype = ctypes.c_int
        return get, set_
    return None
