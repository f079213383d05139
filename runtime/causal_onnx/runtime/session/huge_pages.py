"""Put the weights of a new session, and the memory that its calls compute in, on huge pages.

A decoder reads all of its weights for every token, in pages of 4 KiB as the system hands them out:
the processor then looks up 250 page addresses per MiB, and under virtualisation each costs twice.
On pages of 2 MiB the same session decodes 1.3 to 1.5 times faster (32M parameters in float32, one
thread: 8.3 ms a token before, 5.9 ms after; how slow it is before differs from process to process).

Linux gives huge pages to whoever asks (`madvise`), and onnxruntime does not ask. So what memory
came to be while a session was made is asked for here, after the fact. So is what the first longer
calls allocated, which onnxruntime keeps for the next ones: attention over 512 positions (width 768)
takes 8 % less there, a prompt of 512 positions in int4 (135M) 4 %.

Source: https://docs.kernel.org/admin-guide/mm/transhuge.html; MADV_COLLAPSE in madvise(2), from
Linux 6.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Growth", "Range", "huge_page_size", "minus", "on_huge_pages", "private_memory"]

Range = tuple[int, int]
"""First address, and the one behind the last."""

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
MAPS = Path("/proc/self/maps")
MADV_COLLAPSE = 25
"""Now, by this thread. Of MADV_HUGEPAGE alone a background thread takes its time, 80 s for 128 MB
here, and memory allocated there later would be on huge pages too, whether that is good or not."""


LEAST_POSITIONS = 64
"""Calls over fewer compute in little memory."""


class Growth:
    """Which calls of a session may allocate memory that stays."""

    def __init__(self, width: int) -> None:
        """`width`: elements of a position, in the input whose size is asked about."""
        self._settled = LEAST_POSITIONS * width - 1
        self._looks = 0

    def may_come(self, size: int) -> bool:
        """Whether a call with so many elements may need more memory than those before it.

        The first two may: at the second call of a shape, onnxruntime allocates anew, by what the
        first one needed. A little longer ones fit into what it then has.
        """
        if size <= self._settled:
            return False
        self._looks += 1
        if self._looks >= 2:  # more, where threads call at once
            self._looks, self._settled = 0, size + size // 4
        return True


@contextlib.contextmanager
def on_huge_pages() -> Iterator[None]:
    """Afterwards, memory that was allocated inside lies on huge pages, where the system allows it.

    Contents and addresses stay as they are; all else that fails is as if nothing had been asked.
    It copies, which takes 0.3 ms per MB, and needs no more memory in the end. Memory that other
    threads allocate meanwhile is treated likewise.
    """
    size, madvise = huge_page_size(), _madvise()
    if size is None or madvise is None:
        yield
        return
    before = private_memory()
    yield
    for first, end in minus(private_memory(), before):
        inner, inner_end = -(-first // size) * size, end // size * size
        if inner < inner_end:
            madvise(inner, inner_end - inner, MADV_COLLAPSE)


@functools.cache
def huge_page_size(system: Path = SYSTEM) -> int | None:
    """Bytes of a huge page; None where there are none, or the administrator wants none."""
    try:
        enabled = (system / "enabled").read_text(encoding="ascii")
        size = int((system / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return size if "[never]" not in enabled and size >= mmap.PAGESIZE else None


def private_memory(maps: Path = MAPS) -> list[Range]:
    """The writable memory of this process that belongs to no file, lowest first.

    Source: proc_pid_maps(5).
    """
    found = []
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        is_private = rights.startswith("rw") and rights.endswith("p") and inode == "0"
        # Stacks and the kernel's own areas have names in brackets, as has the heap.
        if is_private and name in ([], ["[heap]"]):
            first, _, end = addresses.partition("-")
            found.append((int(first, 16), int(end, 16)))
    return found


def minus(ranges: list[Range], others: list[Range]) -> list[Range]:
    """The parts of `ranges` that lie in none of `others`; both are sorted, without overlaps."""
    found = []
    for first, end in ranges:
        start = first
        for other_first, other_end in others:
            if other_end <= start or other_first >= end:
                continue
            if other_first > start:
                found.append((start, other_first))
            start = other_end
        if start < end:
            found.append((start, end))
    return found


@functools.cache
def _madvise() -> Any:
    """The C library's, or None."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
