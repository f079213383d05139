"""Know from the kernel whether a file was opened, by whatever thread, through whatever link.

Linux's inotify watches the inode: a hard link or a symbolic link to the file counts too, and so
does C++ code that Python's audit hooks do not see.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

__all__ = ["Watch"]

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_IN_NONBLOCK = os.O_NONBLOCK


class Watch:
    """Counts the openings and readings of one file since it was asked last."""

    def __init__(self, path: Path) -> None:
        """Watch `path`, which exists."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(_IN_NONBLOCK)
        watched = libc.inotify_add_watch(self._events, os.fsencode(path), _IN_ACCESS | _IN_OPEN)
        if self._events < 0 or watched < 0:
            raise OSError(ctypes.get_errno(), f"inotify does not watch {path}")

    def taken(self) -> int:
        """How often it was opened or read since the last call."""
        count = 0
        while True:
            try:
                data = os.read(self._events, 1 << 16)
            except BlockingIOError:
                return count
            at = 0
            while at < len(data):
                (length,) = struct.unpack_from("I", data, at + 12)
                at += 16 + length
                count += 1
