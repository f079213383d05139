"""How much memory this process held at most; imports next to nothing, which would add to it."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_bytes"]


def peak_bytes() -> int | None:
    """The most memory that this process had at once; None where the system does not tell."""
    try:
        # Not ru_maxrss: on Linux it begins with what the parent held.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
