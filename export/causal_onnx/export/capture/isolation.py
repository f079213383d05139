"""Keep an export and the caller's process-wide settings apart."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
import torch

from causal_onnx.export.report import Progress

__all__ = [
    "freeing_memory",
    "isolated",
    "release_memory",
    "settled",
    "trim_memory",
    "with_callers_threads",
    "without_gaps",
]

_SELDOM = (100_000, 20, 100)
"""When Python looks for unreachable cycles: tracing makes millions of objects that stay, and a
seventh of an export went into looking at them again and again."""

_M_MMAP_THRESHOLD = -3
_APART, _GLIBCS_LARGEST = 1 << 20, 32 << 20
"""Bytes from which a block gets pages of its own: where gaps are to be avoided, and where glibc
ends up by itself, once blocks of that size were freed."""

_may_freeze: ContextVar[bool] = ContextVar("nobody outside froze objects", default=False)

_callers_threads: ContextVar[int | None] = ContextVar("threads of PyTorch outside", default=None)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run under PyTorch's plain settings, and leave the caller's random states as they were.

    Inside: no gradients, no inference mode (its tensors cannot be traced), no autocast (a graph of
    an fp32 module would be fp16 in parts), tensors on the CPU, products in full precision, and one
    thread: PyTorch splits a sum by the number of its threads, so the last bits of golden vectors,
    of filled buffers and of measured figures, which stand in the file, would depend on it. Python
    looks for unreachable cycles less often, and only among objects made here. The random states of
    PyTorch, numpy and Python are put back on leaving: a module may draw from any of them when it is
    called.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*_SELDOM)
        if not gc.get_freeze_count():  # else the caller has frozen some, and they would be thawed
            gc.freeze()
            stack.callback(gc.unfreeze)
            stack.callback(_may_freeze.reset, _may_freeze.set(True))
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(_callers_threads.reset, _callers_threads.set(torch.get_num_threads()))
        stack.enter_context(_threads(1))
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            # Only then: the context slows down every call, and torch.export sees it.
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Inside, and `isolated`, what exists now is taken to stay.

    A graph and what capturing it left in caches are a million objects, and no check that follows
    has to look at them again for cycles. What is made inside is looked at.
    """
    release_memory()
    if not _may_freeze.get():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Give back to the system what is held no more.

    Traced programs and sessions end in cycles, and glibc keeps what was freed: together as much as
    the weights once more at some steps.
    """
    gc.collect()
    trim_memory()


def freeing_memory(progress: Progress | None) -> Progress:
    """`progress`, before which memory is given back as another step begins."""
    begun = ""

    def tell(step: str, fraction: float) -> None:
        nonlocal begun
        if step != begun:
            begun = step
            release_memory()
        if progress is not None:
            progress(step, fraction)

    return tell


def trim_memory() -> None:
    """Give back to the system what was freed, as after a long call: it keeps its activations."""
    with contextlib.suppress(AttributeError):  # other libraries of C keep less, and have no call
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def without_gaps() -> Iterator[None]:
    """Inside, glibc gives back to the system whatever large block is freed.

    Else it keeps those that are smaller than one that was freed before, and does not fill the gaps:
    to load a file of 500 MB took 110 MB more. A fault for every page is the price, so this is for
    single calls, in processes that have freed large blocks.
    """
    _take_pages_from(_APART)
    try:
        yield
    finally:
        _take_pages_from(_GLIBCS_LARGEST)


def _take_pages_from(size: int) -> None:
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)


@contextlib.contextmanager
def with_callers_threads() -> Iterator[None]:
    """Inside `isolated`, compute with as many threads as its caller had.

    For long checks of which the file keeps the verdict alone.
    """
    with _threads(_callers_threads.get() or torch.get_num_threads()):
        yield


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
