"""How much memory this process holds, as Linux counts it."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

__all__ = ["available_bytes", "current_bytes", "is_supported", "peak_bytes", "reset_peak", "trim"]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
LIMIT = Path("/sys/fs/cgroup")


def is_supported() -> bool:
    """Whether the peak can be read, and set back so that it tells about one call."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        reset_peak()
    except OSError:
        return False
    return True


def current_bytes() -> int:
    """Pages in memory now (VmRSS)."""
    return field_bytes(STATUS, "VmRSS")


def peak_bytes() -> int:
    """The most pages in memory at once since the start or `reset_peak` (VmHWM)."""
    return field_bytes(STATUS, "VmHWM")


def reset_peak() -> None:
    """Let the peak start again from what is held now.

    Source: proc_pid_clear_refs(5), value 5.
    """
    CLEAR.write_text("5")


def trim() -> None:
    """Give freed memory back to the system, so that what a call needs is seen to be added."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return  # only glibc has it; other allocators keep less


def available_bytes() -> int:
    """What can be taken without swapping, within the limit of the control group."""
    free = field_bytes(Path("/proc/meminfo"), "MemAvailable")
    try:
        limit = (LIMIT / "memory.max").read_text().strip()
        used = int((LIMIT / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def field_bytes(path: Path, name: str) -> int:
    """The field `name: n kB` of a file below /proc.

    Raises:
        ValueError: There is no such field.
    """
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    raise ValueError(f"{path} has no field {name}")
